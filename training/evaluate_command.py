"""`mfdan-train evaluate` and `calibrate`: their options. The work is imported inside each."""

# ruff: noqa: PLC0415 - see above

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.options import ManifestArgument, ModelOption, WorkersOption, config_path
from training.scored_people import People

if TYPE_CHECKING:
    from training.data.labels import Labels
    from training.evaluate import Evaluation

__all__ = ["calibrate", "evaluate"]

_FEW_PEOPLE = 5
"""Fewer make gates that fit them alone."""
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        parser=config_path,
        metavar="FILE",
        show_default=False,
        help="Its label_map carries the manifest's labels to the model's classes.",
    ),
]


def evaluate(  # noqa: PLR0913 - one parameter for each option
    model: ModelOption,
    manifest: ManifestArgument,
    *,
    config: LabelsOption = None,
    split: Annotated[
        People,
        typer.Option(
            help="Whom to score. auto: of data sets it was trained on the people held out, of "
            "others everybody."
        ),
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            show_default=False,
            help="Folder of predictions and scores; runs/evaluate-MODEL-MANIFEST.",
        ),
    ] = None,
    workers: WorkersOption = 0,
    write_spec: Annotated[
        bool,
        typer.Option("--write-spec", help="Store the scores, and the reference, beside the model."),
    ] = False,
    write_reference: Annotated[
        bool,
        typer.Option(
            "--write-reference",
            help="Store only how often each answer was given: with what is answered later, drift "
            "from it is measured.",
        ),
    ] = False,
) -> None:
    """Score a model, as it is served, on people whom it was not trained on."""
    from training.evaluate import (
        answer_manifest,
        protocol,
        spec_reference,
        spec_scores,
        write_evaluation,
    )
    from training.evaluate import evaluate as score
    from training.evaluate import write_spec as store

    console = Console()
    answered = answer_manifest(
        model, manifest, split, Console(stderr=True), labels=_labels(config), workers=workers
    )
    spec = answered.spec
    result = score(answered.answers, spec)
    _show(result, console)
    folder = out or Path("runs") / f"evaluate-{spec.name}-{_name_of(manifest)}"
    write_evaluation(folder, answered, result)
    console.print(f"{protocol(answered)}\n{folder}", markup=False, highlight=False, soft_wrap=True)
    reference = spec_reference(result, answered)
    shares = (f"{name} {share:.1%}" for name, share in reference.shares.items())
    console.print(f"answers: {', '.join(shares)}", highlight=False)
    if write_spec:
        scores = spec_scores(result, protocol(answered))
        store(model, replace(spec, scores=scores, reference=reference))
    elif write_reference:
        store(model, replace(spec, reference=reference))


def _labels(config: Path | None) -> "Labels | None":
    from training.config import load_config

    return None if config is None else load_config(config).labels


def _name_of(manifest: Path) -> str:
    """Name a manifest: `pairs.csv` says nothing, its folder does."""
    from training.data.pairs import PAIRS_FILE

    path = manifest.resolve()
    return path.parent.name if path.name == PAIRS_FILE else path.stem


def _show(result: "Evaluation", console: Console) -> None:
    result.forced.show(console, "Every clip forced to one class", "all clips")
    title = f"Where the service answers: {result.coverage:.1%} of the clips"
    if result.answered is None:
        console.print(Text(f"{title}, so there is nothing to score", style="bold"))
    else:
        result.answered.show(console, title, "clips that are answered")
    table = Table("clips", "group", title="abstained")
    for name in ("share", "95 % interval", "clips", "people"):
        table.add_column(name, justify="right")
    for each in result.abstained:
        table.add_row(
            each.kind,
            Text(each.group.replace(":", " ")),
            f"{each.value:.3f}",
            f"{each.low:.3f} – {each.high:.3f}",
            str(each.clips),
            str(each.people),
        )
    console.print(table)
    told = result.reliability
    console.print(
        f"expected calibration error {told.ece:.3f} ({told.low:.3f} – {told.high:.3f}), "
        f"{len(told.bins)} bins of equal mass"
    )


def calibrate(
    model: ModelOption,
    manifest: ManifestArgument,
    *,
    config: LabelsOption = None,
    split: Annotated[
        Literal["val", "train", "test", "all"],
        typer.Option(help="Whose clips choose the gates; never those that will be scored."),
    ] = "val",
    workers: WorkersOption = 0,
) -> None:
    """Choose temperature, motion gate and abstention threshold; store them in the model."""
    from training.calibrate import calibrate as choose
    from training.calibrate import rewrite_gates
    from training.evaluate import answer_manifest, described

    answered = answer_manifest(
        model, manifest, split, Console(stderr=True), labels=_labels(config), workers=workers
    )
    chosen = choose(answered.answers, answered.spec)
    rewrite_gates(model, answered.spec, chosen, described(answered))
    console = Console()
    console.print(f"temperature {chosen.temperature:.3f}")
    console.print(f"motion gate {chosen.motion_gate_px:.3f} px")
    console.print(f"abstention threshold {chosen.abstention_threshold:.3f}")
    without = chosen.nothing_abstains
    console.print(
        f"on {chosen.pairs} clips, {chosen.genuine_abstain:.1%} of those with an expression abstain"
        + ("" if math.isnan(without) else f", {without:.1%} of those without")
    )
    people = len({pair.person for pair in answered.scored.pairs})
    if people < _FEW_PEOPLE:
        console.print(
            f"{people} people are few to choose gates on: raise the config's val_fraction",
            style="yellow",
        )
