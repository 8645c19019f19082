"""What does a clip cost: CPU by stage and size, and memory by length?

    python benchmarks/clip.py [--seconds 4] [--lengths 1 10 60]

Clips of a drawn face that smiles for a moment, H.264 as a telephone writes it, through the code
that serves (without the network, which `benchmarks/pair.py` times), each in a process of its own
with one thread. CPU is the process's own, in seconds for each second of video, so a busy machine
disturbs it little. Memory is the largest that the process held, above one that has loaded all
and read no clip; beside it the formula of `model/clip_pipeline.py`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from report import heading

ROOT = Path(__file__).parents[1]
FORMS = (
    (640, 480, 30),
    (640, 480, 200),
    (1280, 720, 30),
    (1920, 1080, 30),
)
STAGES = ("open", "decode", "detect", "spot", "align", "flow", "rest")
LOOP_S = 1.5
"""Of the drawn movement, which then comes again."""
REFERENCE_FRAMES = 17
MIB = 2**20
WORKSPACE = 32 * MIB
"""Of detector, mesh and flow, whatever the frame's size: 28 MiB where it was measured."""

WORKER = """
import json, sys, time
time.perf_counter = time.process_time  # the stages' own clock counts CPU
import cv2
cv2.setNumThreads(1)
from model.clip import open_clip
from model.clip_pipeline import ClipOptions, align_clip
from model.pipeline import Preprocessor
from model.spec import ModelSpec
from model.tracking import TrackingOptions
from pathlib import Path
spec = ModelSpec.from_json(Path(sys.argv[1]).read_text())
preprocessor = Preprocessor(spec)
found = {}
if sys.argv[2]:
    data = Path(sys.argv[2]).read_bytes()
    tracking = TrackingOptions(**json.loads(sys.argv[3]))
    start = time.process_time()
    clip = open_clip(data)
    opened = time.process_time()
    aligned = align_clip(preprocessor, clip, ClipOptions(tracking=tracking))
    whole = time.process_time() - start
    found = {stage: spent / 1e3 for stage, spent in aligned.timings_ms.items()}
    found["open"] = opened - start
    found["rest"] = whole - sum(found.values())
    found["whole"] = whole
    found["video_s"] = clip.info.duration_s
    found["faces"] = len(aligned.faces)
    found["candidates"] = len(aligned.faces[0].candidates) if aligned.faces else 0
# not getrusage's, which begins with what the parent held as it started this process
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
found["peak"] = 1024 * int(status["VmHWM"].split()[0])
print(json.dumps(found))
"""
SPEC = ROOT / "model" / "weights" / "mfdan-synthetic.onnx.json"


def measure(clip: Path | None, **tracking: float) -> dict[str, float]:
    """Run one clip, or none, in a fresh process; seconds of CPU by stage, and peak bytes."""
    command = [sys.executable, "-c", WORKER, str(SPEC), str(clip or ""), json.dumps(tracking)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(run.stdout)
    return found


def write_clip(folder: Path, width: int, height: int, fps: int, seconds: float) -> Path:
    """Draw and encode a clip, whose movement comes again every LOOP_S seconds."""
    sys.path.insert(0, str(ROOT / "tests"))
    from drawn_clips import encode_clip  # noqa: PLC0415 - the tests' folder is no package
    from drawn_expression_clips import drawn_clip  # noqa: PLC0415 - likewise

    frames, _ = drawn_clip(
        fps=fps, seconds=LOOP_S, size=(height, width), eye_distance=height / 6, noise=3.0
    )

    def wanted() -> Iterator[np.ndarray]:
        yield from islice(cycle(frames), round(seconds * fps))

    path = folder / f"{width}x{height}-{fps}-{seconds:g}.mp4"
    path.write_bytes(encode_clip(wanted(), fps, options={"preset": "veryfast", "crf": "23"}))
    return path


def print_stages(folder: Path, seconds: float) -> None:
    """Print CPU by stage for every form."""
    print(f"CPU seconds for a second of video, by stage; clips of {seconds:g} s")
    print(f"{'':18}" + "".join(f"{stage:>9}" for stage in (*STAGES, "whole")))
    for form in FORMS:
        found = measure(write_clip(folder, *form, seconds))
        cells = [found[stage] / found["video_s"] for stage in (*STAGES, "whole")]
        name = f"{form[0]}x{form[1]} @{form[2]}"
        print(f"{name:18}" + "".join(f"{cell:9.3f}" for cell in cells))
        if not found["candidates"]:
            raise SystemExit("the drawn face was not found: the figures would mean nothing")
    print()


def print_spotting(folder: Path, seconds: float) -> None:
    """Print what spotting alone costs at other rates."""
    print("CPU seconds of spotting for a second of video, by frames measured a second")
    rates = (25.0, 50.0, 100.0, 200.0)
    path = write_clip(folder, 640, 480, 200, seconds)
    spent = [measure(path, rate_hz=rate) for rate in rates]
    print(f"{'640x480 @200':18}" + "".join(f"{rate:7.0f}/s" for rate in rates))
    print(f"{'':18}" + "".join(f"{c['spot'] / c['video_s']:9.3f}" for c in spent))
    print()


def print_memory(folder: Path, lengths: list[float]) -> None:
    """Print peak memory of 1080p by length, and what the formula allows."""
    idle = measure(None)["peak"]
    print(f"Peak memory of 1920x1080 @30 above an idle process ({idle / MIB:.0f} MiB)")
    print(f"{'':18}{'file':>10}{'measured':>10}{'formula':>10}")
    for seconds in lengths:
        path = write_clip(folder, 1920, 1080, 30, seconds)
        found, size = measure(path), path.stat().st_size
        cells = [size, found["peak"] - idle, formula(1920 * 1080, size, int(found["candidates"]))]
        print(f"{f'{seconds:g} s':18}" + "".join(f"{cell / MIB:6.1f} MiB" for cell in cells))


def formula(pixels: int, file_bytes: int, candidates: int) -> float:
    """Return the most bytes that a clip of one person should take, by the documented formula."""
    decoder = REFERENCE_FRAMES * 1.5 * pixels
    frame = 4 * pixels
    held = 3 * 3 * pixels  # two onsets, one apex
    return file_bytes + decoder + frame + held + candidates * MIB + WORKSPACE


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--lengths", type=float, nargs="+", default=[1.0, 10.0, 60.0])
    arguments = parser.parse_args()
    start = time.monotonic()
    print(heading("What does a clip cost, by stage, size and length?"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print_stages(folder, arguments.seconds)
        print_spotting(folder, arguments.seconds)
        print_memory(folder, arguments.lengths)
    print(f"\n{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    main()
