"""Write the dashboards' JSON: `python docker/grafana/build.py [folder]`, or `make dashboards`.

A title is a question or a claim, a description says what to do about what is seen. Alerts and
their rules are in docker/prometheus/rules; what each means stands in docs/operations.md.
"""

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from panels import Row, frame, heat, lines, number, states, text

HERE = Path(__file__).parent
AT = 'instance=~"$instance"'
OF = f'{AT}, model=~"$model"'
ASKED = f'{AT}, route=~"/predict.*|/v2/.*/infer"'
"""Requests for predictions, and none for health or pages."""
ROUTES = f'{AT}, route!~".*health.*|/metrics"'
BROKEN = "internal_error|worker_died|deadline_exceeded"
FULL = "queue_full|too_many_requests"
RATE = "$__rate_interval"
INSTANCE = ("instance", "label_values(mfdan_build_info, instance)")
MODEL = ("model", "label_values(mfdan_model_info, name)")


def main() -> None:
    """Write every dashboard into the folder named, or beside this file."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "dashboards"
    for name, dashboard in (("service", service()), ("model", model()), ("gpu", gpu())):
        text_of = json.dumps(dashboard, cls=JSONEncoder, indent=1, sort_keys=True)
        (folder / f"{name}.json").write_text(f"{text_of}\n")


def service() -> Dashboard:
    """Show whether it answers, how quickly, and what it lacks."""
    return frame(
        "mfdan-service",
        "mfdan: service",
        "Does it answer, how quickly, and what does it lack? Alerts: docs/operations.md.",
        [INSTANCE],
        [
            _glance(),
            _traffic(),
            _latency(),
            _stages("pair", "detect", "align", "flow", "quality", "tensors"),
            _stages("clip", "detect", "spot"),
            _queue(),
            _saturation(),
            _changes(),
        ],
    )


def model() -> Dashboard:
    """Show what is answered, and whether what is sent has changed."""
    return frame(
        "mfdan-model",
        "mfdan: model",
        "What is answered, and has what is sent changed? The measured scores of a model hold for "
        "pictures like those that it was measured on.",
        [INSTANCE, MODEL],
        [_mix(), _confidence(), _pictures(), _clips()],
    )


def gpu() -> Dashboard:
    """Show whether the GPU is used and how much of it is left."""
    return frame(
        "mfdan-gpu",
        "mfdan: GPU",
        "Is the GPU used, and how much of it is left? Empty on a machine without one, but for "
        "where the models run.",
        [INSTANCE, MODEL],
        [_provider(), _gpu_memory(), _dcgm()],
    )


def _quantile(share: float, buckets: str, by: str = "") -> str:
    """Ask for a quantile of a histogram, over `by`'s values apart."""
    kept = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({kept}) (rate({buckets}[{RATE}])))"


def _glance() -> Row:
    asked = f"sum(rate(mfdan_requests_total{{{ASKED}}}[{RATE}]))"
    broken = f'sum(rate(mfdan_rejections_total{{{AT}, code=~"{BROKEN}"}}[{RATE}]))'
    return "Is it well?", [
        number(
            "Who is ready?",
            "Share of the targets that work on predictions. Below 100 %: look at 'Why is it not "
            "ready?' below, and at MfdanDown and MfdanNotReady in the runbook.",
            "percentunit",
            (f'sum(mfdan_ready{{{AT}}}) / count(up{{job="mfdan", {AT}}})', "ready"),
            red_below=1,
            without="nobody",
        ),
        number(
            "Which alerts fire?",
            "How many. Prometheus lists them under Alerts; each has its entry in the runbook, "
            "docs/operations.md.",
            "none",
            ('count(ALERTS{alertname=~"Mfdan.*", alertstate="firing"}) or vector(0)', "alerts"),
            red_from=1,
        ),
        number(
            "How much is asked?",
            "Requests for predictions a second, refused ones too. A batch is one.",
            "reqps",
            (asked, "requests"),
        ),
        number(
            "What share fails?",
            "Faults of the service and answers past the deadline, of all that was asked. Anything "
            "above 0 is a defect or an overload: look for the request ids in the log.",
            "percentunit",
            (f"{broken} / ({asked} > 0)", "failed"),
            red_from=0.01,
        ),
        number(
            "Is the promised latency kept?",
            "The 95th percentile of pairs as a share of mfdan:latency_objective_seconds, a "
            "constant in docker/prometheus/rules/mfdan.yml. Above 100 %: MfdanSlow in the runbook.",
            "percentunit",
            (
                "max(mfdan:pair_latency_seconds:p95_5m) / scalar(mfdan:latency_objective_seconds)",
                "of the objective",
            ),
            red_from=1,
        ),
        number(
            "Since when does it run?",
            "The youngest process. Short again and again: it is being restarted; look at the end "
            "of the log before.",
            "s",
            (f"min(time() - mfdan_process_start_time_seconds{{{AT}}})", "runs for"),
            without="nobody",
        ),
    ]


def _traffic() -> Row:
    return "Who asks for what, and what becomes of it?", [
        lines(
            "What is asked for",
            "Requests a second by route, but for health checks and scrapes. A new route or a jump "
            "is a caller who changed: 'Who asks' names him.",
            "reqps",
            (f"sum by (route) (rate(mfdan_requests_total{{{ROUTES}}}[{RATE}]))", "{{route}}"),
        ),
        lines(
            "What is answered",
            "By status. 499 is a caller who left; 429 want of room or a caller past his limit; 503 "
            "not ready or draining. 500 and 504 are on nobody but the service.",
            "reqps",
            (f"sum by (status) (rate(mfdan_requests_total{{{ASKED}}}[{RATE}]))", "{{status}}"),
            stacked=True,
        ),
        lines(
            "Why is it refused?",
            "Refusals a second by the code of the problem; none where nothing is drawn. "
            "queue_full, too_many_requests: MfdanRejecting. unauthorized: MfdanUnauthorized. "
            "Codes of pictures and fields are the callers' to mend.",
            "reqps",
            (f"sum by (code) (rate(mfdan_rejections_total{{{AT}}}[{RATE}])) > 0", "{{code}}"),
        ),
        lines(
            "Who asks",
            "By the name of the API key; empty without keys. Somebody who takes all the room needs "
            "a rate_per_minute in the file of keys.",
            "reqps",
            (
                f"sum by (caller) (rate(mfdan_caller_requests_total{{{AT}}}[{RATE}]))",
                "{{caller}}",
            ),
        ),
        lines(
            "How many pictures and clips are answered",
            "Predictions a second; the pairs of a batch each. Little of these under many requests: "
            "refusals, or /v2.",
            "ops",
            (f"sum by (kind) (rate(mfdan_predictions_total{{{AT}}}[{RATE}]))", "{{kind}}"),
        ),
        lines(
            "What was worked on for nobody",
            "Work dropped: `cancelled`, the caller left; `deadline`, his time was up "
            "(MfdanDeadlines). Much of it while `working` costs machines.",
            "ops",
            (
                f"sum by (place, why) (rate(mfdan_cancellations_total{{{AT}}}[{RATE}]))",
                "{{why}}, {{place}}",
            ),
        ),
    ]


def _latency() -> Row:
    total = f'mfdan_stage_duration_seconds_bucket{{{AT}, kind="pair", stage="total"}}'
    per_pair = (
        f'sum by (stage) (rate(mfdan_stage_duration_seconds_sum{{{AT}, kind="pair", '
        f'stage!="total"}}[{RATE}])) / on () group_left () (sum(rate('
        f'mfdan_stage_duration_seconds_count{{{AT}, kind="pair", stage="total"}}[{RATE}])) > 0)'
    )
    return "How long does an answer take?", [
        heat(
            "Requests, with what they are sent over",
            "From the headers to the last byte. Slow here and quick in the stages below: the "
            "network between, or large uploads.",
            "s",
            f"mfdan_request_duration_seconds_bucket{{{ASKED}}}",
        ),
        lines(
            "Pairs, from upload to answer",
            "With the wait for a worker, without the upload. Above the dashed objective for ten "
            "minutes: MfdanSlow. See whether a stage or the queue has grown.",
            "s",
            *((_quantile(q, total), f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99)),
            ("mfdan:latency_objective_seconds", "reference: objective"),
        ),
        lines(
            "Which stage takes a pair's time?",
            "Mean seconds of each stage of a pair. Where one grows and the others do not: "
            "larger pictures (decode, detect), other settings, or a slower machine (all).",
            "s",
            (per_pair, "{{stage}}"),
            stacked=True,
        ),
        lines(
            "Requests by route",
            "The 95th percentile of each. Clips go to /predict like pairs, and take seconds.",
            "s",
            (
                _quantile(0.95, f"mfdan_request_duration_seconds_bucket{{{ASKED}}}", "route"),
                "{{route}}",
            ),
            width=24,
        ),
    ]


def _stages(kind: str, *between: str) -> Row:
    about = {
        "decode": "Grows with the pictures' pixels and bytes. Callers may send smaller ones.",
        "detect": "Grows with pixels and faces asked for.",
        "align": "Should be some milliseconds; else the processor is wanted elsewhere.",
        "spot": "Grows with frames and faces. Long clips may be cut by their callers.",
        "flow": "The same for every pair. Slower than it was: too many threads for the cores.",
        "quality": "Should be some milliseconds; else the processor is wanted elsewhere.",
        "tensors": "Should be some milliseconds; else the processor is wanted elsewhere.",
        "infer": "With the wait for a batch. Slow: too few threads, or a GPU that is not used.",
        "total": "With the wait for a worker, which the stages leave out.",
    }
    stages = ("decode", *between, "infer", "total")
    return f"Where does the time of a {kind} go?", [
        heat(
            f"{kind}: {stage}",
            about[stage],
            "s",
            f'mfdan_stage_duration_seconds_bucket{{{AT}, kind="{kind}", stage="{stage}"}}',
            width=_width_of(place, len(stages)),
        )
        for place, stage in enumerate(stages)
    ]


def _width_of(place: int, of: int) -> int:
    """Lay panels out four in a line, and let the last line be filled."""
    in_line = min(4, of - place // 4 * 4)
    return 24 // in_line if 24 % in_line == 0 else 6


def _queue() -> Row:
    wait = f"mfdan_queue_wait_seconds_bucket{{{AT}"
    return "Is there a queue?", [
        lines(
            "How many wait for a worker?",
            "Pairs and clips. Never 0 for minutes: more is asked than this machine can do.",
            "short",
            (f"sum by (instance) (mfdan_queue_waiting{{{AT}}})", "{{instance}}"),
        ),
        heat(
            "How long do they wait for a worker?",
            "Above a second for the slowest hundredth: MfdanQueueWait, add machines.",
            "s",
            f'{wait}, resource="worker"}}',
        ),
        heat(
            "How long do faces wait for the network?",
            "As long as the run before takes. More: give it more threads, or a GPU.",
            "s",
            f'{wait}, resource="network"}}',
        ),
        heat(
            "How many faces share a run of the network?",
            "One at a time while little is asked. On a GPU larger ones win; on a CPU they do not.",
            "short",
            f"mfdan_batch_size_bucket{{{AT}}}",
        ),
        lines(
            "How long does a run of the network take?",
            "Median and 95th percentile. A jump without larger batches: the machine is shared.",
            "s",
            *(
                (
                    _quantile(q, f"mfdan_batch_duration_seconds_bucket{{{AT}}}", "model"),
                    f"p{q * 100:.0f} {{{{model}}}}",
                )
                for q in (0.5, 0.95)
            ),
        ),
        lines(
            "What broke?",
            "Runs of the network that raised (MfdanBatchFailures), threads that ended "
            "(MfdanWorkerDied), lines of the log that were lost (MfdanLogLost). All should be 0.",
            "short",
            (f"sum(increase(mfdan_batch_failures_total{{{AT}}}[{RATE}]))", "failed runs"),
            (f"sum(increase(mfdan_worker_deaths_total{{{AT}}}[{RATE}]))", "threads ended"),
            (f"sum(increase(mfdan_log_lines_lost_total{{{AT}}}[{RATE}]))", "log lines lost"),
        ),
    ]


def _saturation() -> Row:
    limits = {
        "workers_busy": "workers",
        "connections": "connections",
        "queue_items": "queue_items",
        "queue_clips": "queue_clips",
        "predictions_in_flight": "predictions_in_flight",
    }
    return "What runs short?", [
        lines(
            "How much of each limit is used?",
            "At 100 % the next is refused, or waits for a worker. Workers above 70 % for long: add "
            "machines. What the limits are set by: docs/operations.md, Settings.",
            "percentunit",
            *(
                (
                    f'max(mfdan_{used}{{{AT}}} / ignoring (of) mfdan_limit{{{AT}, of="{of}"}})',
                    used,
                )
                for used, of in limits.items()
            ),
            (
                f"max(mfdan_process_open_fds{{{AT}}} / mfdan_process_max_fds{{{AT}}})",
                "open files",
            ),
            width=12,
            most=1,
        ),
        lines(
            "How much memory does it take?",
            "Resident. It grows with what is uploading and settles; for hours: MfdanMemoryGrowth.",
            "bytes",
            (f"mfdan_process_resident_memory_bytes{{{AT}}}", "{{instance}}"),
            width=6,
        ),
        lines(
            "How many cores does it keep busy?",
            "At the machine's number it can do no more. Less, with a queue: more workers or "
            "threads.",
            "short",
            (f"rate(mfdan_process_cpu_seconds_total{{{AT}}}[{RATE}])", "{{instance}}"),
            width=6,
        ),
    ]


def _changes() -> Row:
    return "What changed?", [
        states(
            "Why is it not ready?",
            "draining: it was told to stop. worker_wedged, network_wedged: restart it. "
            "inference_failed: it is tried again; see memory. Anything for two minutes: "
            "MfdanNotReady.",
            (f"min by (instance) (mfdan_ready{{{AT}}})", "ready {{instance}}"),
            (f"max by (reason) (mfdan_not_ready{{{AT}}})", "{{reason}}"),
        ),
        lines(
            "Which models came and went?",
            "Changes of the models folder. refused: MfdanModelRefused, the log says why.",
            "short",
            (
                f"sum by (change) (increase(mfdan_model_changes_total{{{AT}}}[{RATE}]))",
                "{{change}}",
            ),
            width=6,
        ),
        text(
            "What runs here?",
            "Versions. More than one of mfdan while it is being replaced, and at no other time.",
            (
                f"count by (version, python, onnxruntime, opencv) (mfdan_build_info{{{AT}}})",
                "mfdan {{version}}, Python {{python}}, onnxruntime {{onnxruntime}}, cv2 {{opencv}}",
            ),
            width=6,
        ),
    ]


def _mix() -> Row:
    share = 'mfdan:answer_share:ratio6h{model=~"$model"}'
    return "Are the answers spread as they were?", [
        number(
            "How far from the reference?",
            "Share of the last six hours' answers that would have to differ to fit the reference "
            "that came with the model: 0 to 100 %. Above 30 % for an hour: MfdanMixDrift. No value "
            "without answers, or for a model without a reference.",
            "percentunit",
            ('max(mfdan:answer_drift:ratio6h{model=~"$model"})', "drift"),
            red_from=0.3,
            width=6,
            without="nothing to compare",
        ),
        number(
            "What share abstains?",
            "Of the faces answered in the last six hours. 'Why does it abstain?' says for what.",
            "percentunit",
            (f'max({share[:-1]}, answer="abstained"}})', "abstained"),
            width=6,
            without="no answers",
        ),
        number(
            "What share has no face?",
            "Of the predictions of the last hour. Twice the usual: MfdanNoFaceDoubled.",
            "percentunit",
            ("max(mfdan:no_face:ratio1h)", "no face"),
            width=6,
            without="no predictions",
        ),
        text(
            "Which models answer?",
            "Name, version, and where it runs.",
            (
                f'count by (name, version, provider) (mfdan_model_info{{{AT}, name=~"$model"}})',
                "{{name}} {{version}}, {{provider}}",
            ),
            width=6,
        ),
        lines(
            "How are the answers spread, and how should they be?",
            "Shares of the last six hours, and dashed those of the reference. Where they part, "
            "look at the callers first: others, another camera, other light.",
            "percentunit",
            (share, "{{answer}}"),
            (
                'avg by (model, answer) (mfdan_reference_ratio{model=~"$model"})',
                "reference: {{answer}}",
            ),
            width=12,
            most=1,
        ),
        lines(
            "How far from the reference, over time?",
            "A step is a caller who came or changed; a slow climb a camera or its light.",
            "percentunit",
            ('mfdan:answer_drift:ratio6h{model=~"$model"}', "{{model}}"),
            width=12,
            most=1,
        ),
        lines(
            "Which labels stand?",
            "Answers a second by class. One class alone where there were several: look at what "
            "is sent.",
            "ops",
            (
                f"sum by (model, label) (rate(mfdan_labels_total{{{OF}}}[{RATE}]))",
                "{{label}} {{model}}",
            ),
            stacked=True,
            width=12,
        ),
        lines(
            "Why does it abstain?",
            "no_movement: still pictures. low_confidence: faces unlike those of the training. The "
            "others are about the pictures: light, sharpness, size, pose.",
            "ops",
            (
                f"sum by (reason) (rate(mfdan_abstentions_total{{{OF}}}[{RATE}]))",
                "{{reason}}",
            ),
            stacked=True,
            width=12,
        ),
    ]


def _confidence() -> Row:
    buckets = f"mfdan_confidence_ratio_bucket{{{OF}}}"
    return "How sure is it?", [
        heat(
            "Probability of the label",
            "Of answers that stand. A cloud that sinks is a change of what is sent, whatever the "
            "labels are.",
            "percentunit",
            buckets,
            width=12,
        ),
        lines(
            "The median, and the doubtful tenth",
            "Compare with last week's. A fall of the median by .1 is worth a look at some pictures "
            "with a caller who may show them.",
            "percentunit",
            *(
                (_quantile(q, buckets, "model"), f"p{q * 100:.0f} {{{{model}}}}")
                for q in (0.1, 0.5)
            ),
            width=12,
            most=1,
        ),
    ]


def _pictures() -> Row:
    none = f'sum(rate(mfdan_predictions_total{{{AT}, faces="none"}}[{RATE}]))'
    every = f"sum(rate(mfdan_predictions_total{{{AT}}}[{RATE}]))"
    return "Has what is sent changed?", [
        heat(
            "How far do faces move?",
            "Pixels of the aligned crop: what the gate reads. A micro-expression moves a "
            "fraction of a pixel to some; much more is talking, or a frame rate that fell.",
            "short",
            f"mfdan_motion_moved_pixels_bucket{{{OF}}}",
        ),
        heat(
            "How far does the part that moves most go?",
            "95th percentile of a face's motion, pixels of the aligned crop.",
            "short",
            f"mfdan_motion_p95_pixels_bucket{{{OF}}}",
        ),
        lines(
            "Does it find faces?",
            "Share of predictions without one: now, in the last hour, and dashed what this hour "
            "had over the last seven days. Twice that: MfdanNoFaceDoubled.",
            "percentunit",
            (f"{none} / ({every} > 0)", "now"),
            ("mfdan:no_face:ratio1h", "last hour"),
            ("mfdan:no_face:usual_ratio1h", "reference: usual"),
            most=1,
        ),
    ]


def _clips() -> Row:
    cost = (
        f'sum(rate(mfdan_stage_duration_seconds_sum{{{AT}, kind="clip", stage="total"}}[{RATE}]))'
        f" / (sum(rate(mfdan_clip_seconds_total{{{AT}}}[{RATE}])) > 0)"
    )
    return "What are the clips like?", [
        lines(
            "Which containers come?",
            "Clips answered a second. A new one is a new camera or caller.",
            "ops",
            (f"sum by (container) (rate(mfdan_clips_total{{{AT}}}[{RATE}]))", "{{container}}"),
        ),
        lines(
            "What is found in them?",
            "Intervals a second: spotted, given by the caller, or the middle frame when nothing "
            "was spotted. Much of the last: clips without expressions, or too slow cameras.",
            "ops",
            (f"sum by (source) (rate(mfdan_candidates_total{{{AT}}}[{RATE}]))", "{{source}}"),
        ),
        lines(
            "What does a second of video cost?",
            "Seconds from upload to answer for each second of video. It grows with pixels, frame "
            "rate and faces, and while clips wait for workers.",
            "s",
            (cost, "seconds"),
        ),
    ]


def _provider() -> Row:
    return "Is the GPU used?", [
        text(
            "Where do the models run?",
            "CUDAExecutionProvider is the GPU.",
            (
                f'count by (name, version, provider) (mfdan_model_info{{{AT}, name=~"$model"}})',
                "{{name}} {{version}}, {{provider}}",
            ),
            width=12,
        ),
        number(
            "How many models fell back to the CPU?",
            "Asked for a GPU and not got: MfdanProviderFallback. `mfdan doctor` says what is "
            "missing; MFDAN_STRICT_GPU refuses such a model instead.",
            "none",
            (f"sum(mfdan_provider_fallback{{{OF}}})", "fell back"),
            red_from=1,
            width=6,
            without="nobody",
        ),
        number(
            "Does the GPU tell its memory?",
            "Share of the GPUs whose driver answers. Below 100 %: the GPU is gone; see the "
            "machine's kernel log, and restart.",
            "percentunit",
            (f"avg(mfdan_gpu_answers{{{AT}}})", "answers"),
            red_below=1,
            width=6,
            without="no GPU",
        ),
        heat(
            "How long does a run of the network take?",
            "Some milliseconds on a GPU. Ten times as much: it runs on the CPU.",
            "s",
            f"mfdan_batch_duration_seconds_bucket{{{OF}}}",
            width=12,
        ),
        heat(
            "How many faces share a run?",
            "A GPU is worth its price from eight on: ask for more at once, or share it.",
            "short",
            f"mfdan_batch_size_bucket{{{AT}}}",
            width=12,
        ),
    ]


def _gpu_memory() -> Row:
    used, total = f"mfdan_gpu_memory_used_bytes{{{AT}}}", f"mfdan_gpu_memory_total_bytes{{{AT}}}"
    return "Is there memory left?", [
        lines(
            "How much is taken?",
            "By all processes together, and dashed what there is.",
            "bytes",
            (used, "{{instance}} {{gpu}}"),
            (total, "reference: {{gpu}}"),
            width=12,
        ),
        lines(
            "What share is taken?",
            "Above 95 % for ten minutes: MfdanGpuMemory. Smaller MFDAN_BATCH_SIZES, or fewer "
            "models.",
            "percentunit",
            (f"{used} / {total}", "{{instance}} {{gpu}}"),
            width=12,
            most=1,
        ),
    ]


def _dcgm() -> Row:
    return "What does the GPU do? (NVIDIA's exporter)", [
        lines(
            "How busy is it?",
            "Share of the time in which something ran. Near 100 % with a queue: a second GPU.",
            "percent",
            ("DCGM_FI_DEV_GPU_UTIL", "GPU {{gpu}}"),
            most=100,
        ),
        lines(
            "How much memory does the machine's driver count?",
            "Of all processes. More than mfdan takes: somebody shares the GPU.",
            "bytes",
            ("DCGM_FI_DEV_FB_USED * 1048576", "GPU {{gpu}}"),
        ),
        lines(
            "How busy is its memory?",
            "Share of the time in which memory was read or written.",
            "percent",
            ("DCGM_FI_DEV_MEM_COPY_UTIL", "GPU {{gpu}}"),
            most=100,
        ),
        lines(
            "How warm is it?",
            "From some 85 °C on it slows itself down: look at the fans and the room.",
            "celsius",
            ("DCGM_FI_DEV_GPU_TEMP", "GPU {{gpu}}"),
        ),
        lines(
            "How much power does it draw?",
            "Far below its limit while busy: the work comes too slowly, from the CPU.",
            "watt",
            ("DCGM_FI_DEV_POWER_USAGE", "GPU {{gpu}}"),
        ),
        lines(
            "Did it report a fault?",
            "The number of the last XID error; NVIDIA's list says what each means. Anything but 0: "
            "take the machine out of service and look at its kernel log.",
            "none",
            ("DCGM_FI_DEV_XID_ERRORS", "GPU {{gpu}}"),
        ),
    ]


if __name__ == "__main__":
    main()
