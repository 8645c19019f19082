"""The dashboard of the GPU: is it used, and how much of it is left."""

from grafana_foundation_sdk.models.dashboard import Dashboard
from panels import Row, frame, heat, lines, number, text
from queries import AT, INSTANCE, MODEL, OF, RATE

__all__ = ["gpu"]


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
        text(
            "Who computes the flow?",
            "opencv-cuda is the GPU; onnx is a graph that runs where the model runs.",
            (
                f"count by (model, backend, algorithm) (mfdan_flow_backend_info{{{OF}}})",
                "{{model}}: {{algorithm}} by {{backend}}",
            ),
            width=12,
        ),
        lines(
            "Where does the GPU fail at it?",
            "Flows a second that were computed otherwise (MfdanFlowFallback), or not at all, by "
            "what failed. None is normal.",
            "ops",
            (
                f"sum by (reason) (rate(mfdan_flow_fallbacks_total{{{OF}}}[{RATE}]))",
                "{{reason}}, fell back",
            ),
            (
                f"sum by (reason) (rate(mfdan_flow_failures_total{{{OF}}}[{RATE}]))",
                "{{reason}}, failed",
            ),
            width=12,
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
