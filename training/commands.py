"""The commands of `mfdan-train` that need torch: their options.

The work is imported inside each command, so that torch loads for those that need it only.
"""

# ruff: noqa: PLC0415 - see above

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["fit", "prepare"]

ConfigOption = Annotated[
    Path, typer.Option("--config", exists=True, dir_okay=False, help="TOML file of the run.")
]
PairsOption = Annotated[
    Path, typer.Option("--pairs", exists=True, file_okay=False, help="Folder with pairs.csv.")
]
WorkersOption = Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")]


def prepare(config: ConfigOption, pairs: PairsOption, workers: WorkersOption = 0) -> None:
    """Align the pairs and compute their flow, once, into a cache inside the folder."""
    from training.config import load_config
    from training.fitting import prepare_pairs_folder

    prepare_pairs_folder(load_config(config), pairs, workers, Console(stderr=True))


def fit(  # noqa: PLR0913 - one parameter for each option
    config: ConfigOption,
    pairs: PairsOption,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the run.")],
    *,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the config's.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Choose the steps by timing a few of them first.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the config's.")] = None,
    workers: WorkersOption = 0,
) -> None:
    """Train; the same command again goes on after an interruption."""
    # Read once, as torch loads: waiting threads sleep. Spinning, they would double the time of a
    # step as soon as anything else wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training.config import load_config
    from training.fitting import fit_pairs_folder

    done = fit_pairs_folder(
        load_config(config, {"steps": steps, "seed": seed}),
        pairs,
        out,
        minutes=minutes,
        workers=workers,
        console=Console(stderr=True),
    )
    if not done:
        raise typer.Exit(130)
