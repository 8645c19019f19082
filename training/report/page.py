"""`mfdan-train report`: the runs' folders → one folder with a page and its pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from training.loso_run import ORACLE_LABEL
from training.metrics import FloatArray
from training.report.clip_section import ClipSection, clip_section
from training.report.clips import draw_wheel
from training.report.figures import (
    SERIES,
    Estimate,
    Picture,
    confusion_chart,
    forest_chart,
    loss_chart,
    people_chart,
    save_chart,
)
from training.report.numbers import (
    Cell,
    Comparison,
    PersonRow,
    TunedRow,
    accuracies,
    cell,
    compare,
    config_rows,
    has,
    loss_curves,
    people_rows,
    reference_of,
    signed,
    tuned_rows,
)
from training.report.out_folder import PAGE, replaced_folder
from training.report.run_folder import MethodRun, read_runs
from training.scoring import score

__all__ = ["Report", "write_report"]

_METRICS = {"uf1": "UF1", "uar": "UAR", "accuracy": "accuracy"}
_CLASS_METRICS = {"f1": "F1", "recall": "recall"}
_PROTOCOLS = {
    "loso": "leave one subject out: every fold holds out all clips of one person",
    "lodo": "leave one data set out: every fold holds out all clips of one data set",
}
Report = Callable[[str, int, int], None]
"""Hears what is under way, and how much of it is done, of how much."""


def write_report(
    folders: Sequence[Path],
    out: Path,
    *,
    manifest: Path | None = None,
    worst: int = 12,
    report: Report = lambda _what, _done, _total: None,
) -> Path:
    """Write the page of one or more runs of `mfdan-train loso`; return its `index.html`.

    `manifest` is the one whose prepared pictures show the `worst` clips, in place of the config's
    `pairs`. The same runs give the same bytes. `out` is replaced at once, if it is empty or holds
    an earlier report. Raises: FileNotFoundError, ValueError (see `read_runs`; or `out` holds
    something else).
    """
    runs = read_runs(folders)
    with replaced_folder(out) as building:
        methods = _methods(runs, building, report)
        clips = _clips(runs, building, manifest, worst, report)
        text = (
            _environment()
            .get_template("page.html")
            .render(
                title=" and ".join(folder.resolve().name for folder in folders),
                summary=list(dict.fromkeys(_summary(run) for run in runs)),
                runs=runs,
                unfinished=[run for run in runs if run.missing or not run.scores],
                finished=[run for run in runs if run.scores],
                metrics=_METRICS,
                class_metrics=_CLASS_METRICS,
                protocols=_PROTOCOLS,
                oracle_label=ORACLE_LABEL,
                dataset_groups=[f"dataset:{name}" for name in _datasets(runs)],
                class_groups=[f"class:{name}" for name in runs[0].note.classes],
                settings=config_rows([run.config for run in runs]),
                overview=_overview(runs, building),
                methods=methods,
                clips=clips,
                wheel=draw_wheel(building) if any(each.pictured for each in clips) else None,
            )
        )
        (building / PAGE).write_text(text, encoding="utf-8")
    return out / PAGE


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of clips are whatever the data's owners wrote
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"cell": cell, "has": has, "signed": signed}
    return environment


def _summary(run: MethodRun) -> str:
    seeds = len(run.note.seeds)
    return (
        f"{run.note.protocol.upper()} on {run.note.manifest}: {run.note.clips} clips of "
        f"{run.note.people} people, "
        f"{len(run.note.classes)} classes ({', '.join(run.note.classes)}), "
        f"{len(run.note.folds)} folds with {seeds} seed{'s' if seeds > 1 else ''} each."
    )


def _datasets(runs: Sequence[MethodRun]) -> list[str]:
    return sorted({each.dataset for run in runs for each in run.predictions})


@dataclass(frozen=True, slots=True)
class _Overview:
    """What is shown of all runs together."""

    forest: Picture | None
    reference: str
    comparisons: Sequence[Comparison]
    differences: Picture | None
    people: Sequence[PersonRow]
    people_picture: Picture | None
    lines: int
    """Of that picture: so many runs can be told apart."""


def _overview(runs: Sequence[MethodRun], folder: Path) -> _Overview:
    finished = [run for run in runs if run.scores]
    reference = reference_of(runs)
    if reference is None:
        return _Overview(None, "", (), None, (), None, 0)
    comparisons = [compare(run, reference) for run in finished if run is not reference]
    return _Overview(
        forest=_forest(finished, folder),
        reference=reference.name,
        comparisons=comparisons,
        differences=_differences(comparisons, reference.name, folder),
        people=people_rows(finished),
        people_picture=_people(finished, folder),
        lines=min(SERIES, len(finished)),
    )


def _forest(finished: Sequence[MethodRun], folder: Path) -> Picture:
    rows = [run.scores.row("uf1") for run in finished if run.scores]
    estimates = [
        Estimate(run.name, row.value, row.low, row.high)
        for run, row in zip(finished, rows, strict=True)
    ]
    alt = f"UF1 with its 95 % interval: {_in_words(estimates, '.3f')}."
    draw = partial(forest_chart, estimates, "UF1, mean over seeds", None)
    return save_chart(folder, "scores", alt, draw)


def _differences(comparisons: Sequence[Comparison], reference: str, folder: Path) -> Picture | None:
    estimates = [each.by_metric["uf1"] for each in comparisons if each.by_metric]
    if not estimates:
        return None
    alt = f"UF1 above or below {reference}, 95 % interval: {_in_words(estimates, '+.3f')}."
    draw = partial(forest_chart, estimates, f"UF1 minus that of {reference}", 0.0)
    return save_chart(folder, "differences", alt, draw)


def _in_words(estimates: Sequence[Estimate], form: str) -> str:
    return "; ".join(
        f"{e.name} {e.value:{form}} ({e.low:{form}} to {e.high:{form}})" for e in estimates
    )


def _people(finished: Sequence[MethodRun], folder: Path) -> Picture:
    lines = [
        (
            run.name,
            np.array(
                [np.mean(each) for each in accuracies(run.predictions, run.note.classes).values()]
            ),
        )
        for run in finished[:SERIES]
    ]
    alt = "Accuracy of each person, sorted; medians: " + "; ".join(
        f"{name} {np.median(values):.0%} of {len(values)} people" for name, values in lines
    )
    return save_chart(folder, "people", alt, partial(people_chart, lines))


@dataclass(frozen=True, slots=True)
class _Method:
    """What is shown of one run of one method."""

    run: MethodRun
    confusion: Picture | None
    losses: Picture | None
    trainings: int
    """Whose losses those are."""
    tuned: Sequence[TunedRow]
    oracle: Sequence[tuple[str, Cell, Cell]]
    """Metric, the score, the leaking score."""


def _methods(runs: Sequence[MethodRun], folder: Path, report: Report) -> list[_Method]:
    methods = []
    for number, run in enumerate(runs, start=1):
        curves = loss_curves(run)
        methods.append(
            _Method(
                run,
                _confusion(run, folder, f"confusion-{number}"),
                _losses(run, curves, folder, f"losses-{number}"),
                0 if curves is None else len(curves),
                tuned_rows(run),
                _oracle(run),
            )
        )
        report("charts", number, len(runs))
    return methods


def _confusion(run: MethodRun, folder: Path, stem: str) -> Picture | None:
    if run.scores is None:
        return None
    counts = np.mean(list(run.scores.confusions.values()), axis=0)
    classes = run.note.classes
    cells = "; ".join(
        f"{true}: " + ", ".join(f"{n:.3g} {said}" for n, said in zip(row, classes, strict=True))
        for true, row in zip(classes, counts, strict=True)
    )
    alt = f"Confusion matrix of {run.name}, clips by true class and answer: {cells}."
    return save_chart(folder, stem, alt, partial(confusion_chart, counts, classes))


def _losses(run: MethodRun, curves: FloatArray | None, folder: Path, stem: str) -> Picture | None:
    if curves is None:
        return None
    first, last = np.median(curves[:, [0, -1]], axis=0)
    alt = (
        f"Training loss of {run.name}: the median of {len(curves)} trainings goes from "
        f"{first:.3f} to {last:.3f}."
    )
    return save_chart(folder, stem, alt, partial(loss_chart, curves))


def _oracle(run: MethodRun) -> list[tuple[str, Cell, Cell]]:
    if not run.oracle or run.scores is None:
        return []
    leaking = score(run.oracle, run.note.classes)
    return [(name, cell(run.scores, key), cell(leaking, key)) for key, name in _METRICS.items()]


def _clips(
    runs: Sequence[MethodRun], folder: Path, manifest: Path | None, worst: int, report: Report
) -> list[ClipSection]:
    """Show the clips of the networks; where there is none, those of the reference."""
    finished = [run for run in runs if run.scores]
    networks = [run for run in finished if run.note.method == "mfdan"]
    shown = (networks or finished[:1]) if worst else []
    return [
        clip_section(run, folder, f"clip-{number}", manifest=manifest, worst=worst, report=report)
        for number, run in enumerate(shown, start=1)
    ]
