"""`mfdan-train fit` and `export`: their options.

The work is imported inside each command, so that torch loads for those that need it only.
"""

# ruff: noqa: PLC0415 - see above

import os
from pathlib import Path
from typing import Annotated

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
)
from training.options import (
    BUNDLED_CONFIG,
    ConfigOption,
    DeviceOption,
    InitOption,
    OptionalManifest,
    WorkersOption,
)

__all__ = ["export", "fit"]


def fit(  # noqa: PLR0913 - one parameter for each option
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the run.")],
    manifest: OptionalManifest = None,
    *,
    config: ConfigOption = BUNDLED_CONFIG,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the config's.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the config's.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Choose the steps by timing a few of them first.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the config's.")] = None,
    init: InitOption = None,
    no_flow_attention: NoFlowAttention = False,
    no_dropkey: NoDropkey = False,
    cross_entropy: CrossEntropy = False,
    adamw: AdamW = False,
    balanced: Balanced = False,
    no_average: NoAverage = False,
    device: DeviceOption = "auto",
    workers: WorkersOption = 0,
) -> None:
    """Train one network; the same command again goes on after an interruption."""
    # Read once, as torch loads: waiting threads sleep. Spinning, they would double the time of a
    # step as soon as anything else wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training.config import load_config
    from training.fitting import fit_pairs_folder

    if sum(given is not None for given in (steps, epochs, minutes)) > 1:
        raise typer.BadParameter(
            "--steps, --epochs and --minutes all fix the steps: give one of them"
        )
    switched = ablations(
        no_flow_attention=no_flow_attention,
        no_dropkey=no_dropkey,
        cross_entropy=cross_entropy,
        adamw=adamw,
        balanced=balanced,
        no_average=no_average,
    )
    given = {"steps": steps, "epochs": epochs, "seed": seed, "init": init and str(init)}
    run = load_config(config, switched | given)
    done = fit_pairs_folder(
        run,
        run.manifest(manifest),
        out,
        minutes=minutes,
        workers=workers,
        console=Console(stderr=True),
        device=device,
    )
    if not done:
        raise typer.Exit(130)


def export(
    run: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of the run.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="ONNX file to write.")],
    name: Annotated[str | None, typer.Option(help="Instead of the config's.")] = None,
    version: Annotated[str | None, typer.Option(help="Instead of the config's.")] = None,
) -> None:
    """Write the trained network as one ONNX file, its spec inside and beside it."""
    from training.export import export_run

    console = Console()
    made = export_run(run, out, name=name, version=version)
    console.print(f"{out}: {made.megabytes:.1f} MB, after {made.steps} steps")
    console.print(f"largest difference of a logit to torch: {made.logit_difference:.1e}")
    console.print(
        f"largest difference of a probability to unrounded weights: "
        f"{made.probability_difference:.1e}"
    )
