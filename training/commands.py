"""The commands of `mfdan-train` that need torch: their options.

The work is imported inside each command, so that torch loads for those that need it only.
"""

# ruff: noqa: PLC0415 - see above

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from training.data.pairs import Split

__all__ = ["calibrate", "evaluate", "export", "fit", "prepare"]

_DEFAULT_CONFIG = Path(__file__).parent / "configs" / "synthetic.toml"

ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config",
        exists=True,
        dir_okay=False,
        show_default=False,
        help="TOML file of the run; the bundled model's when left out.",
    ),
]
ModelOption = Annotated[
    Path, typer.Option("--model", exists=True, dir_okay=False, help="ONNX file, spec beside it.")
]
PairsOption = Annotated[
    Path, typer.Option("--pairs", exists=True, file_okay=False, help="Folder with pairs.csv.")
]
SplitOption = Annotated[Split, typer.Option(help="Which identities.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")]


def prepare(
    pairs: PairsOption, config: ConfigOption = _DEFAULT_CONFIG, workers: WorkersOption = 0
) -> None:
    """Align the pairs and compute their flow, once, into a cache inside the folder."""
    from training.config import load_config
    from training.fitting import prepare_pairs_folder

    prepare_pairs_folder(load_config(config).spec(), pairs, workers, Console(stderr=True))


def fit(  # noqa: PLR0913 - one parameter for each option
    pairs: PairsOption,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the run.")],
    *,
    config: ConfigOption = _DEFAULT_CONFIG,
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

    if steps is not None and minutes is not None:
        raise typer.BadParameter("--steps and --minutes both fix the steps: give one of them")

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


def calibrate(
    model: ModelOption,
    pairs: PairsOption,
    split: SplitOption = "val",
) -> None:
    """Choose the motion gate and the abstention threshold; store them in the model."""
    from training.evaluate import answer_folder, rewrite_gates
    from training.evaluate import calibrate as choose

    console = Console()
    spec, answers = answer_folder(model, pairs, split, console)
    chosen = choose(answers, spec)
    rewrite_gates(model, spec, chosen)
    console.print(f"motion gate {chosen.motion_gate_px:.3f} px")
    console.print(f"abstention threshold {chosen.abstention_threshold:.3f}")
    console.print(
        f"on {chosen.pairs} pairs, {chosen.genuine_abstain:.1%} of those with an expression "
        f"abstain, {chosen.nothing_abstains:.1%} of those without"
    )


def evaluate(
    model: ModelOption,
    pairs: PairsOption,
    split: SplitOption = "test",
    *,
    write_spec: Annotated[
        bool, typer.Option("--write-spec", help="Store the scores beside the model.")
    ] = False,
) -> None:
    """Score a model, as it is served, on identities that training never saw."""
    from training.evaluate import answer_folder, protocol, write_scores
    from training.evaluate import evaluate as score

    console = Console()
    spec, answers = answer_folder(model, pairs, split, console)
    result = score(answers, spec, protocol(spec, split, pairs))
    table = Table("score", "value", "95 % interval over identities", "pairs")
    for entry in result.scores:
        table.add_row(
            entry.metric,
            f"{entry.value:.3f}",
            f"{entry.low:.3f} to {entry.high:.3f}",
            entry.protocol.rsplit("; ", 1)[-1],
        )
    console.print(table)
    counts = Table("true class", *spec.classes, title="answered, no abstention")
    for label, row in zip(spec.classes, result.confusion, strict=True):
        counts.add_row(label, *map(str, row))
    console.print(counts)
    if write_spec:
        write_scores(model, spec, result.scores)
