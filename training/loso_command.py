"""`mfdan-train loso`: its options, its progress and its tables."""

# ruff: noqa: PLC0415 - torch loads inside the command, for those that need it only

import os
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.console import Console

from training.ablations import (
    AdamW,
    Balanced,
    CrossEntropy,
    NoAverage,
    NoDropkey,
    NoFlowAttention,
    ablations,
    ablations_named,
)
from training.config import METHODS, Method
from training.options import (
    ConfigOption,
    DeviceOption,
    InitOption,
    OptionalManifest,
    WorkersOption,
)

__all__ = ["loso"]

_BASELINES = [method for method in METHODS if method != "mfdan"]


def _method(text: str) -> str:
    if text not in METHODS:
        raise typer.BadParameter(f"there is no method {text}, only {', '.join(METHODS)}")
    return text


def loso(  # noqa: PLR0913 - one parameter for each option
    manifest: OptionalManifest = None,
    *,
    config: ConfigOption,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder of the run; else runs/<name of the config>."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            parser=_method, metavar="|".join(METHODS), help="What to train; may be repeated."
        ),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also majority, svm and ststnet, on these folds.")
    ] = False,
    protocol: Annotated[
        Literal["loso", "lodo"], typer.Option(help="Leave one subject, or one data set, out.")
    ] = "loso",
    seeds: Annotated[
        str | None, typer.Option(help="Instead of the config's: 1,2,3,4,5.", metavar="LIST")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Folds at a time (1, or all that a cluster takes); on a GPU all share one card.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help='Ray cluster that runs the folds; "local" starts one here.'),
    ] = None,
    device: DeviceOption = "auto",
    gpu_share: Annotated[
        float, typer.Option(min=0, help="Of a card for one fold, on a cluster: .25 puts 4 on it.")
    ] = 1.0,
    tune: Annotated[
        bool, typer.Option("--tune", help="Search the config's grid inside each training half.")
    ] = False,
    oracle_epoch: Annotated[
        bool,
        typer.Option(
            "--oracle-epoch",
            help="Also the literature's best-epoch score, which leaks the held-out labels.",
        ),
    ] = False,
    init: InitOption = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the config's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the config's.")] = None,
    workers: WorkersOption = 0,
    no_flow_attention: NoFlowAttention = False,
    no_dropkey: NoDropkey = False,
    cross_entropy: CrossEntropy = False,
    adamw: AdamW = False,
    balanced: Balanced = False,
    no_average: NoAverage = False,
) -> None:
    """Train and test on every fold; the same command again goes on after an interruption."""
    if epochs is not None and steps is not None:
        raise typer.BadParameter("--epochs and --steps both fix the steps: give one of them")
    # Read once, as torch loads: waiting threads sleep, for other folds want the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training.config import load_config
    from training.loso import Options
    from training.loso_run import LosoRun
    from training.networks import device_of
    from training.workers import Place

    flags = {
        "no_flow_attention": no_flow_attention,
        "no_dropkey": no_dropkey,
        "cross_entropy": cross_entropy,
        "adamw": adamw,
        "balanced": balanced,
        "no_average": no_average,
    }
    overrides: dict[str, Any] = {
        "seeds": None if seeds is None else _numbers(seeds),
        "epochs": epochs,
        "steps": steps,
        "init": None if init is None else str(init),
        **ablations(**flags),
    }
    settings = load_config(config, overrides)
    asked = [
        *(cast("list[Method]", method) or [settings.method]),
        *(_BASELINES if baselines else ()),
    ]
    # On a cluster the cards are elsewhere: this machine need have none.
    where = device if ray and device != "auto" else device_of(device).type
    ending = ablations_named(**flags) + ("-lodo" if protocol == "lodo" else "")
    run = LosoRun(
        config=settings,
        manifest=settings.manifest(manifest),
        methods=cast("list[Method]", list(dict.fromkeys(asked))),
        out=out or Path("runs") / f"{settings.name}{ending}",
        options=Options(protocol=protocol, tune=tune, oracle=oracle_epoch, device=where),
        place=Place(
            jobs=jobs,
            ray=ray,
            cpus=settings.threads or 1,
            gpus=gpu_share if where == "cuda" else 0.0,
        ),
        prepare_workers=workers,
    )
    run.execute(Console(stderr=True), Console())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"--seeds takes numbers with commas between, got {text!r}"
        ) from None
