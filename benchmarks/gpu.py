"""What does a GPU give: the same answers, how fast, and how near to what it could do at most?

    python benchmarks/gpu.py [--device cuda|cpu] [--pairs FOLDER] [--quick] [--json FILE]
                             [--markdown FILE] [--model FILE.onnx] [--batches 1 8 32 64]

Runs on any machine, to the end: what a machine lacks is a row that says so. Without --device it
takes the GPU where NVIDIA's driver and ONNX Runtime's CUDA are there. FOLDER is one that
`mfdan-train synth` wrote; without it faces are drawn. Contenders of a table run in turn, round by
round; numbers are medians over rounds. On a GPU nothing falls back: a row is of that device or
has a reason. A table in docs/ is made from what --json wrote.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2
import onnxruntime as ort
from gpu_engine import engine_rows
from gpu_flow import flow_rows, fused_rows
from gpu_limits import measure_ceilings
from gpu_network import network_rows
from gpu_parity import NEAR, parity_rows
from gpu_rows import Pace, Row, report_progress, to_markdown
from gpu_work import Bench, drawn_frames, frames_of
from report import heading

BUNDLED = Path(__file__).parents[1] / "model" / "weights" / "mfdan-synthetic.onnx"
QUESTION = "What a GPU gives"
FULL = Pace(rounds=5, budget_s=2.0, longest_s=5.0)
QUICK = Pace(rounds=2, budget_s=0.2, longest_s=2.0)
_WAYS = ("", ", CUDA graphs")
_SERVED = ("tvl1, fused", "tvl1, opencv-cuda", "network, float32")
"""Ways that the CPU's probabilities are held against; without all of them nothing is known."""
_SERVED_TOO = ("tvl1, fused, CUDA graphs",)
"""Where ONNX Runtime can capture the graph."""
_DRAWN, _DRAWN_QUICKLY, _MOST = 24, 4, 300
_PACKAGES = ("onnxruntime-gpu", "torch", "spox", "tensorrt-cu13", "nvidia-cudnn-cu13")


@dataclass(frozen=True, kw_only=True)
class Aim:
    """One of the aims of issue 7, and how near this machine comes."""

    aim: str
    rows: str
    """The row that tells, or those that would."""
    value: float | None
    """None where it was not measured."""
    met: bool | None
    """None where it was not measured, or not on a GPU."""


def measure(bench: Bench) -> list[Row]:
    """Return every row, in the order in which they are printed."""
    report_progress("ceilings")
    rows, bench.ceilings = measure_ceilings(bench.device, quick=bench.quick)
    report_progress("parity")
    rows += parity_rows(bench)
    for part in (flow_rows, network_rows, fused_rows, engine_rows):
        rows += part(bench)
    return rows


@dataclass(frozen=True, kw_only=True)
class _Goal:
    """An aim before anything was measured."""

    words: str
    bound: float
    owed: str
    """The rows that would tell."""

    def judged(self, device: str, rows: Sequence[Row], value: float | None) -> Aim:
        """Return the aim as these rows tell; without a value, as owed."""
        met = None
        if value is not None and device != "cpu":
            met = value <= self.bound if self.words.endswith("at most") else value >= self.bound
        told = "; ".join(f"{row.section}: {row.name}, batch {row.batch}" for row in rows)
        return Aim(
            aim=f"{self.words} {self.bound:g}",
            rows=self.owed if value is None else told,
            value=value,
            met=met,
        )


_RATE = _Goal(
    words="pairs/s end to end, at least",
    bound=1000,
    owed="end to end: tvl1 onnx, fused, from frames",
)
_LONE = _Goal(
    words="ms of a lone pair, at most",
    bound=12,
    owed="end to end: tvl1 onnx, fused, from frames, batch 1",
)
_FASTER = _Goal(
    words="rate of the batched flow over OpenCV CUDA's TV-L1, at least",
    bound=20,
    owed="flow: tvl1, onnx; flow: tvl1, opencv-cuda, batch 1",
)
_NEARNESS = _Goal(
    words=f"share of pairs within {NEAR} of the CPU's probabilities, at least",
    bound=0.99,
    owed=f"parity of answers: {'; '.join(_SERVED)}",
)


def aims_of(rows: Sequence[Row], device: str) -> list[Aim]:
    """Return the aims, each with the best row of its way; the nearness, with the worst."""
    frames = _found(rows, "end to end", [f"tvl1 onnx, fused{way}, from frames" for way in _WAYS])
    alone = [row for row in frames if row.batch == 1]
    graphs = _found(rows, "flow", [f"tvl1, onnx{way}" for way in _WAYS])
    base = [row for row in _found(rows, "flow", ["tvl1, opencv-cuda"]) if row.batch == 1]
    near = _found(rows, "parity of answers", (*_SERVED, *_SERVED_TOO))
    whole = {row.name for row in near}.issuperset(_SERVED)
    share = f"share within {NEAR}"
    batched = _ordered(graphs, "pairs/s")[-1:]
    return [
        _first(_RATE, device, _ordered(frames, "pairs/s")[-1:], "pairs/s"),
        _first(_LONE, device, _ordered(alone, "ms"), "ms"),
        _FASTER.judged(device, batched + base, _ratio(batched, base)),
        _first(_NEARNESS, device, _ordered(near, share) if whole else [], share),
    ]


def _found(rows: Sequence[Row], section: str, names: Sequence[str]) -> list[Row]:
    return [row for row in rows if row.section == section and row.name in names and row.numbers]


def _ordered(rows: Sequence[Row], number: str) -> list[Row]:
    return sorted(rows, key=lambda row: row.numbers[number])


def _first(goal: _Goal, device: str, rows: Sequence[Row], number: str) -> Aim:
    value = rows[0].numbers[number] if rows else None
    return goal.judged(device, rows[:1], value)


def _ratio(batched: Sequence[Row], base: Sequence[Row]) -> float | None:
    if not batched or not base:
        return None
    return batched[0].numbers["pairs/s"] / base[0].numbers["pairs/s"]


def machine() -> dict[str, str]:
    """Return what is not in the heading of every benchmark: GPU, driver, libraries."""
    facts = {
        "ONNX Runtime's providers": ", ".join(ort.get_available_providers()),
        "OpenCV's CUDA devices": str(cv2.cuda.getCudaEnabledDeviceCount()),
    }
    facts |= dict(_gpus())
    for name in _PACKAGES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def _gpus() -> Iterator[tuple[str, str]]:
    try:
        import pynvml  # noqa: PLC0415 - of the extra `gpu`
    except ImportError:
        yield "GPU", "unknown: nvidia-ml-py is not installed"
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as fault:
        yield "GPU", f"none: {fault}"
        return
    try:
        for number in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(number)
            memory = pynvml.nvmlDeviceGetMemoryInfo(device).total / 2**30
            yield f"GPU {number}", f"{pynvml.nvmlDeviceGetName(device)}, {memory:.0f} GiB"
        yield "driver", pynvml.nvmlSystemGetDriverVersion()
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        yield "CUDA of the driver", f"{cuda // 1000}.{cuda % 1000 // 10}"
    finally:
        pynvml.nvmlShutdown()


def likely_device() -> str:
    """Return cuda where a driver and ONNX Runtime's CUDA are there, else cpu."""
    has_gpu = any(name == "driver" for name, _ in _gpus())
    return "cuda" if has_gpu and "CUDAExecutionProvider" in ort.get_available_providers() else "cpu"


def render(report: dict[str, object]) -> str:
    """Return the tables of a report as Markdown, and nothing that is not in it."""
    rows = [Row(**row) for row in report["rows"]]  # type: ignore[attr-defined] # JSON's
    lines = ["```", str(report["heading"]).rstrip()]
    lines += [f"{name}: {value}" for name, value in report["machine"].items()]  # type: ignore[attr-defined] # JSON's
    lines += [
        "```",
        "",
        "### aims",
        "",
        "| aim | row | measured | met |",
        "| --- | --- | --- | --- |",
    ]
    for aim in (Aim(**each) for each in report["aims"]):  # type: ignore[attr-defined] # JSON's
        value = "owed" if aim.value is None else f"{aim.value:.4g}"
        met = "owed: no GPU" if aim.met is None else "yes" if aim.met else "no"
        lines.append(f"| {aim.aim} | {aim.rows} | {value} | {met} |")
    return "\n".join([*lines, "", to_markdown(rows)])


def main() -> None:
    """Measure, print, and write what is asked for."""
    arguments = _arguments()
    drawn = _DRAWN_QUICKLY if arguments.quick else _DRAWN
    frames = frames_of(arguments.pairs, _MOST) if arguments.pairs else drawn_frames(drawn)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as kept:
        bench = Bench(
            model=arguments.model,
            device=arguments.device,
            frames=frames,
            batches=tuple(arguments.batches),
            pace=QUICK if arguments.quick else FULL,
            quick=arguments.quick,
            folder=Path(folder),
            kept=kept,
        )
        rows = measure(bench)
    report = {
        "heading": heading(_asked(arguments, len(frames))),
        "machine": machine(),
        "device": arguments.device,
        "quick": arguments.quick,
        "aims": [asdict(aim) for aim in aims_of(rows, arguments.device)],
        "rows": [asdict(row) for row in rows],
    }
    print(render(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(render(report))


def _asked(arguments: argparse.Namespace, pairs: int) -> str:
    quickly = ", --quick" if arguments.quick else ""
    source = "given" if arguments.pairs else "drawn"
    return f"{QUESTION}: device {arguments.device}{quickly}, {pairs} {source} pairs"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default=likely_device())
    parser.add_argument("--pairs", type=Path, help="folder of mfdan-train synth")
    parser.add_argument(
        "--quick", action="store_true", help="few pairs and rounds: for a first look"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--batches", type=int, nargs="+", default=None)
    arguments = parser.parse_args()
    if arguments.batches is None:
        arguments.batches = [1, 8] if arguments.quick else [1, 8, 32, 64]
    return arguments


if __name__ == "__main__":
    main()
