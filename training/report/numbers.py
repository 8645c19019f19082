"""Results as the page prints them: cells, differences, people, settings."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.network import MfdanConfig
from training.config import RunConfig
from training.predictions import Prediction
from training.report.figures import Estimate
from training.report.run_folder import MethodRun
from training.scoring import ScoreRow, ScoreTable, difference

__all__ = [
    "Cell",
    "Comparison",
    "PersonRow",
    "TunedRow",
    "accuracies",
    "cell",
    "compare",
    "config_rows",
    "has",
    "loss_curves",
    "people_rows",
    "reference_of",
    "signed",
    "tuned_rows",
]

_CURVE_POINTS = 101
_ALWAYS = {"data", "licence", "classes"}
"""Settings without a default."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One score: mean, spread over the seeds, interval over people."""

    value: str
    spread: str
    """ "" for one seed."""
    interval: str


def cell(scores: ScoreTable, metric: str, group: str = "all") -> Cell:
    """Format one score of a table; a dash where it has none. Raises: KeyError."""
    return _cell(scores.row(metric, group))


def has(scores: ScoreTable, group: str) -> bool:
    """Whether a table has scores of a group of clips."""
    return any(row.group == group for row in scores.rows)


def _cell(row: ScoreRow) -> Cell:
    if math.isnan(row.value):
        return Cell("–", "", "")
    spread = "" if math.isnan(row.sd) else f"± {row.sd:.3f}"
    return Cell(f"{row.value:.3f}", spread, f"{row.low:.3f} – {row.high:.3f}")


def signed(value: float) -> str:
    """Format a difference, its minus as wide as a plus."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def reference_of(runs: Sequence[MethodRun]) -> MethodRun | None:
    """Return what the others are compared with: the first finished network, else what is first."""
    finished = [run for run in runs if run.scores]
    networks = [run for run in finished if run.note.method == "mfdan"]
    return next(iter([*networks, *finished]), None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one run differs from the reference."""

    name: str
    by_metric: Mapping[str, Estimate]
    fault: str = ""
    """Why there is no difference."""


def compare(run: MethodRun, reference: MethodRun) -> Comparison:
    """Subtract the reference's UF1, UAR and accuracy; the same people are drawn for both."""
    try:
        return Comparison(
            run.name,
            {
                metric: Estimate(
                    run.name,
                    *difference(run.predictions, reference.predictions, run.note.classes, metric),
                )
                for metric in ("uf1", "uar", "accuracy")
            },
        )
    except ValueError as fault:
        named = str(fault).replace("the first run", run.name)
        return Comparison(run.name, {}, named.replace("the second run", reference.name))


def accuracies(predictions: Sequence[Prediction], classes: Sequence[str]) -> dict[str, list[float]]:
    """Return each person's share of right answers, seed by seed."""
    right: defaultdict[str, defaultdict[int, list[bool]]]
    right = defaultdict(lambda: defaultdict(list))
    for each in predictions:
        right[each.person][each.seed].append(each.predicted(classes) == each.label)
    return {
        person: [float(np.mean(seeds[seed])) for seed in sorted(seeds)]
        for person, seeds in sorted(right.items())
    }


@dataclass(frozen=True, slots=True)
class Share:
    """Right answers of one person in one run."""

    percent: float
    """Mean over the seeds."""
    spread: str
    """Lowest and highest of the seeds; "" where all are the same."""


@dataclass(frozen=True, slots=True)
class PersonRow:
    """One person's accuracies."""

    person: str
    clips: int
    cells: tuple[Share | None, ...]
    """By run; None where a run lacks the person."""


def people_rows(runs: Sequence[MethodRun]) -> list[PersonRow]:
    """Return everybody, the lowest accuracy in the first run on top."""
    scored = [accuracies(run.predictions, run.note.classes) for run in runs]
    clips = Counter({each.key: each.person for run in runs for each in run.predictions}.values())
    rows = [
        PersonRow(
            person,
            clips[person],
            tuple(_percent(each.get(person)) for each in scored),
        )
        for person in sorted(clips)
    ]
    return sorted(rows, key=lambda row: row.cells[0].percent if row.cells[0] else math.inf)


def _percent(values: Sequence[float] | None) -> Share | None:
    if values is None:
        return None
    low, high = 100 * min(values), 100 * max(values)
    return Share(100 * float(np.mean(values)), f"{low:.0f} – {high:.0f}" if high > low else "")


@dataclass(frozen=True, slots=True)
class TunedRow:
    """How often the inner search chose a value."""

    field: str
    value: str
    folds: int
    of: int


def tuned_rows(run: MethodRun) -> list[TunedRow]:
    """Count the choices of the inner search over folds and seeds, the most frequent first."""
    chosen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for fold in run.folds.values():
        for name, value in (fold.tuned or {}).items():
            chosen[name][_text(value)] += 1
    return [
        TunedRow(name, value, times, counts.total())
        for name, counts in sorted(chosen.items())
        for value, times in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def loss_curves(run: MethodRun) -> NDArray[np.float64] | None:
    """Return the losses of all folds and seeds, (runs, points) over the share of the training."""
    curves = []
    for fold in run.folds.values():
        if len(fold.losses) > 1:
            steps, losses = np.array(fold.losses, np.float64).T
            share = (steps - steps[0]) / (steps[-1] - steps[0])
            curves.append(np.interp(np.linspace(0, 1, _CURVE_POINTS), share, losses))
    return np.array(curves) if curves else None


def config_rows(configs: Sequence[RunConfig]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the settings that are not the same everywhere; of one run, those it chose itself.

    A setting that equals RunConfig's default is not a choice.
    """
    flat = [_flat(json.loads(config.to_json())) for config in configs]
    fields = sorted({name for each in flat for name in each})
    if len(configs) == 1:
        default = _flat(json.loads(_default_of(configs[0]).to_json()))
        return [
            (name, (_text(value),))
            for name, value in sorted(flat[0].items())
            if name in _ALWAYS or value != default.get(name)
        ]
    rows = [(name, tuple(_text(each.get(name)) for each in flat)) for name in fields]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _default_of(config: RunConfig) -> RunConfig:
    """Return the config that says no more than a config must."""
    return RunConfig(
        data=config.data,
        licence=config.licence,
        classes=config.classes,
        network=MfdanConfig(classes=config.network.classes),
        steps=config.steps,
        epochs=config.epochs,
    )


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _text(value: object) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
