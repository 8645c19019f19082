"""The dashboard of the service: does it answer, how quickly, and what does it lack."""

from grafana_foundation_sdk.models.dashboard import Dashboard
from panels import Row, frame, heat, lines, number, states, text
from queries import ASKED, AT, INSTANCE, RATE, quantile

__all__ = ["service"]

ROUTES = f'{AT}, route!~".*health.*|/metrics"'


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
            _stages("clip", "detect", "align", "spot", "flow", "tensors"),
            _queue(),
            _saturation(),
            _changes(),
        ],
    )


def _glance() -> Row:
    asked = f"sum(rate(mfdan_requests_total{{{ASKED}}}[{RATE}]))"
    return "Is it well?", [
        number(
            "Who is ready?",
            "Share of the targets that work on predictions. Below 100 %: look at 'Why is it not "
            "ready?' below, and at MfdanDown and MfdanNotReady in the runbook.",
            "percentunit",
            (
                # Of those that are down nothing is there to be summed.
                f'(sum(mfdan_ready{{{AT}}}) or vector(0)) / count(up{{job="mfdan", {AT}}})',
                "ready",
            ),
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
            "Of the requests for predictions of the last five minutes: answered 500 or 504. Above "
            "1 % for five minutes: MfdanErrors. Anything above 0 is a defect or an overload: look "
            "for the request ids in the log.",
            "percentunit",
            ("max(mfdan:failed_requests:ratio5m)", "failed"),
            red_from=0.01,
        ),
        number(
            "How near is the objective?",
            "What 95 % of the pairs are answered within, as a share of the latency promised for "
            "them (mfdan:latency_objective_seconds, a constant of the rules). 300 %: three times "
            "as long. Above 100 % for ten minutes: MfdanSlow.",
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
            "queue_full, too_many_requests, too_many_connections: MfdanRejecting. unauthorized: "
            "MfdanUnauthorized. Codes of pictures and fields are the callers' to mend.",
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
            width=12,
        ),
        lines(
            "Pairs, from upload to answer",
            "With the wait for a worker, without the upload. Above the dashed objective for ten "
            "minutes: MfdanSlow. See whether a stage or the queue has grown.",
            "s",
            *((quantile(q, total), f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99)),
            ("mfdan:latency_objective_seconds", "reference: objective"),
            width=12,
        ),
        lines(
            "Which stage takes a pair's time?",
            "Mean seconds of each stage of a pair. Where one grows and the others do not: "
            "larger pictures (decode, detect), other settings, or a slower machine (all).",
            "s",
            (per_pair, "{{stage}}"),
            stacked=True,
            width=12,
        ),
        lines(
            "Requests by route",
            "The 95th percentile of each. Clips go to /predict like pairs, and take seconds.",
            "s",
            (
                quantile(0.95, f"mfdan_request_duration_seconds_bucket{{{ASKED}}}", "route"),
                "{{route}}",
            ),
            width=12,
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
            width=6,
        )
        for stage in stages
    ]


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
                    quantile(q, f"mfdan_batch_duration_seconds_bucket{{{AT}}}", "model"),
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
