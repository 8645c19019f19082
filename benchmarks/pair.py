"""Where does the time of one pair go, stage by stage?

    python benchmarks/pair.py ONSET APEX [--runs 30] [--model FILE.onnx] [--threads 1]

Medians over runs, in one process, with one thread for OpenCV and ONNX Runtime unless asked
otherwise; the share of the whole is what carries over to another machine.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from report import heading

from model.decode import decode_image
from model.magnify import magnify
from model.pipeline import Preprocessor
from model.runtime import Placement
from model.session import Session
from model.tensors import flow_tensor, image_tensor

BUNDLED = Path(__file__).parents[1] / "model" / "weights" / "mfdan-synthetic.onnx"
STAGES = ("decode", "detect", "align", "flow", "magnify", "tensors", "infer")
Result = TypeVar("Result")


class Stopwatch:
    """Collects the wall time of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, stage: str, work: Callable[[], Result]) -> Result:
        """Run one stage and keep its time."""
        start = time.perf_counter()
        result = work()
        self.seconds.setdefault(stage, []).append(time.perf_counter() - start)
        return result


def run_pair(
    onset_bytes: bytes,
    apex_bytes: bytes,
    preprocessor: Preprocessor,
    session: Session,
    watch: Stopwatch,
) -> None:
    """Walk the way of one request. Raises: SystemExit when the onset shows no face."""
    spec = session.spec
    onset, apex = watch("decode", lambda: (decode_image(onset_bytes), decode_image(apex_bytes)))
    pairs = preprocessor.align_pair(onset, apex)
    if not pairs:
        raise SystemExit("there is no face in the onset")
    pair = pairs[0]
    for stage, milliseconds in pair.timings_ms.items():  # detect, align, flow
        watch.seconds.setdefault(stage, []).append(milliseconds / 1e3)
    image = watch("magnify", lambda: magnify(pair.onset, pair.flow, spec.magnification))
    arrays = watch(
        "tensors",
        lambda: (image_tensor(image)[None], flow_tensor(pair.flow, spec.normalisation)[None]),
    )
    watch("infer", lambda: session.run(*arrays))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("onset", type=Path)
    parser.add_argument("apex", type=Path)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    cv2.setNumThreads(arguments.threads)
    session = Session.open(arguments.model, Placement(threads=arguments.threads))
    preprocessor, pair = (
        Preprocessor(session.spec),
        (arguments.onset.read_bytes(), arguments.apex.read_bytes()),
    )
    run_pair(*pair, preprocessor, session, Stopwatch())  # warm-up
    watch = Stopwatch()
    for _ in range(arguments.runs):
        run_pair(*pair, preprocessor, session, watch)
    medians = {stage: 1e3 * float(np.median(watch.seconds[stage])) for stage in STAGES}
    whole = sum(medians.values())
    print(
        heading(f"One pair, stage by stage: {arguments.runs} runs, {arguments.threads} thread(s)")
    )
    for stage, milliseconds in medians.items():
        print(f"{stage:10} {milliseconds:8.2f} ms {milliseconds / whole:7.1%}")
    print(f"{'whole':10} {whole:8.2f} ms")


if __name__ == "__main__":
    main()
