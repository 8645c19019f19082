"""Leave-one-subject-out on drawn faces: the smallest run of it."""

import io
from dataclasses import replace
from pathlib import Path

from drawn_pairs import TINY
from rich.console import Console

from training.config import Method, RunConfig
from training.loso import Options
from training.loso_run import LosoRun
from training.workers import Place

SMALL: RunConfig = replace(
    TINY, steps=5, batch_size=8, seeds=(1, 2), checkpoint_every=50, evaluate_every=50
)
"""Fifteen clips to train on in each of six folds: two steps an epoch, three epochs."""

PLAIN = Options()


def plain_run(manifest: Path, folder: Path) -> Path:
    """Return a finished run of three methods, made one fold after the other; made once only."""
    evaluate(manifest, folder / "plain-loso", methods=("mfdan", "svm", "majority"))
    return folder / "plain-loso"


def evaluate(  # noqa: PLR0913 - each argument is one thing a test varies
    manifest: Path,
    out: Path,
    config: RunConfig = SMALL,
    *,
    methods: tuple[Method, ...] = ("mfdan",),
    jobs: int = 1,
    options: Options = PLAIN,
) -> str:
    """Run the folds that are not there yet; return what was printed."""
    text = io.StringIO()
    console = Console(file=text, width=200)
    run = LosoRun(
        config=config,
        manifest=manifest,
        methods=methods,
        out=out,
        options=options,
        place=Place(jobs=jobs),
        prepare_workers=1,
    )
    run.execute(console, console)
    return text.getvalue()


def tables(out: Path, method: str = "*") -> dict[str, bytes]:
    """Return every table of a run by its path in the run's folder."""
    paths = sorted([*out.glob(f"{method}/*.csv"), *out.glob(f"{method}/scores.json")])
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def finished(out: Path) -> dict[str, int]:
    """Return when each finished fold was written, by its path in the run's folder."""
    return {
        str(path.relative_to(out)): path.stat().st_mtime_ns
        for path in sorted(out.glob("*/folds/*/*.json"))
    }
