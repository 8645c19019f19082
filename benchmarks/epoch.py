"""How long does an epoch take, and how many folds should run side by side?

    python benchmarks/epoch.py MANIFEST [--config C] [--clips 442] [--jobs 1 2] [--device auto]

Times training steps of the config's network (default: the paper's size, `composite.toml`) in one or
more processes at once, as folds of `loso` run: one thread each, all on the CPU or on one GPU. An
epoch is `--clips` over the batch size. The plan is a leave-one-subject-out of the composite: 68
folds, the config's epochs, one seed. `alone` is one process with every core, as `mfdan-train fit`.
"""

import argparse
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from report import heading

import training
from training.config import RunConfig, load_config
from training.data.prepare import open_prepared, prepare
from training.loop import FitData, time_step
from training.networks import device_of

CONFIGS = Path(training.__file__).parent / "configs"
FOLDS = 68


def step_seconds(config: RunConfig, manifest: Path, device: str, steps: int) -> float:
    """Return the median seconds of a step in this process."""
    prepared = open_prepared(manifest, config.spec())
    data = FitData(prepared, prepared.rows)
    return time_step(config, data, device=device, steps=steps)


def side_by_side(
    config: RunConfig, manifest: Path, device: str, steps: int, jobs: int
) -> list[float]:
    """Return the median seconds of a step in each of `jobs` processes that run at once."""
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        work = [pool.submit(step_seconds, config, manifest, device, steps) for _job in range(jobs)]
        return [job.result() for job in work]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--config", type=Path, default=CONFIGS / "composite.toml")
    parser.add_argument("--clips", type=int, default=442)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    device = device_of(arguments.device).type
    config = load_config(arguments.config)
    start = time.perf_counter()
    prepared = prepare(arguments.manifest, config.spec())
    rate = len(prepared.rows) / (time.perf_counter() - start)
    epoch = math.ceil(arguments.clips / config.batch_size)
    planned = FOLDS * (config.epochs or 1) * epoch

    print(heading(f"An epoch of {arguments.clips} clips: {epoch} steps of {config.batch_size}"))
    print(f"device:  {device}; {config.flow.algorithm} flow; bfloat16 {config.bfloat16}")
    print(f"prepare: {rate:.1f} clips/s ({len(prepared.rows)}; next to no time when cached)\n")
    print(f"{'processes':>9} {'s/step':>8} {'epoch, s':>9} {'steps/s':>8} {'LOSO, min':>10}")

    def show(name: str, seconds: list[float]) -> None:
        each, rate = float(np.median(seconds)), sum(1 / step for step in seconds)
        plan = planned / rate / 60
        print(f"{name:>9} {each:8.3f} {epoch * each:9.1f} {rate:8.2f} {plan:10.0f}", flush=True)

    if device == "cpu":
        alone = replace(config, threads=0)
        show("alone", [step_seconds(alone, arguments.manifest, device, arguments.steps)])
    config = replace(config, threads=1, loader_workers=0)  # as in a fold of `loso`
    for jobs in arguments.jobs:
        work = (config, arguments.manifest, device, arguments.steps)
        show(str(jobs), side_by_side(*work, jobs))


if __name__ == "__main__":
    main()
