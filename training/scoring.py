"""Scores of predictions that no fold trained on, pooled over the folds.

The predictions of all folds are pooled before anything is divided: a class that is absent from a
fold then costs nothing, where a mean over folds would depend on how the clips fell into them.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.metrics import (
    Counts,
    FloatArray,
    IntArray,
    accuracy_of,
    bootstrap_weights,
    f1_of,
    interval,
    mean_of_known,
    recall_of,
    uar_of,
    uf1_of,
)
from training.predictions import Prediction, read_predictions, write_predictions

__all__ = [
    "Prediction",
    "ScoreRow",
    "ScoreTable",
    "difference",
    "read_predictions",
    "score",
    "write_predictions",
]

_NAMED = 5
"""Clips that a fault names; the rest are counted."""
_POOLED: dict[str, Callable[[Counts], FloatArray]] = {
    "uf1": uf1_of,
    "uar": uar_of,
    "accuracy": accuracy_of,
}
_OF_A_CLASS: dict[str, Callable[[Counts], FloatArray]] = {"f1": f1_of, "recall": recall_of}


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRow:
    """One metric of one group of clips. NaN where there is no such number."""

    metric: str
    """uf1, uar or accuracy; f1 or recall of a class."""
    group: str
    """`all`, `dataset:NAME` or `class:NAME`."""
    value: float
    """Mean over the seeds."""
    sd: float
    """Standard deviation over the seeds, ddof 1; NaN for one seed."""
    low: float
    """Of the 95 % bootstrap interval of `value`, the group's people drawn with replacement."""
    high: float
    clips: int
    """Of a class: the clips whose true class it is."""
    people: int
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """All scores of one method; two are the same where their `to_json` is."""

    classes: tuple[str, ...]
    rows: tuple[ScoreRow, ...]
    confusions: dict[int, NDArray[np.int64]]
    """Seed → (K, K) counts, true class in rows."""

    def row(self, metric: str, group: str = "all") -> ScoreRow:
        """Return one row. Raises: KeyError."""
        for row in self.rows:
            if (row.metric, row.group) == (metric, group):
                return row
        raise KeyError(f"there is no {metric} of {group}")

    def to_json(self) -> str:
        """Return the table as indented JSON, NaN as null, ending in a newline."""
        document = {
            "classes": self.classes,
            "rows": [
                {name: _null_for_nan(value) for name, value in asdict(row).items()}
                for row in self.rows
            ],
            "confusions": {seed: counts.tolist() for seed, counts in self.confusions.items()},
        }
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ScoreTable":
        """Parse what `to_json` wrote. Raises: ValueError."""
        try:
            document = json.loads(text)
            return cls(
                tuple(document["classes"]),
                tuple(_score_row(row) for row in document["rows"]),
                {
                    int(seed): np.array(counts, np.int64)
                    for seed, counts in document["confusions"].items()
                },
            )
        except (AttributeError, KeyError, TypeError, ValueError) as fault:
            raise ValueError("not a table of scores that mfdan-train wrote") from fault

    def show(self, console: Console, title: str, caption: str = "pooled over all folds") -> None:
        """Print the scores over all clips, of each data set and class, and the confusions."""
        console.print(Text(title, style="bold"))
        console.print(_scores_of(caption, self._in("all")))
        datasets = self._in("dataset:")
        if len(datasets) > len(_POOLED):
            console.print(_scores_of("by data set", datasets))
        console.print(_scores_of("by class", self._in("class:")))
        console.print(self._confusion_table())

    def _in(self, prefix: str) -> list[ScoreRow]:
        return [row for row in self.rows if row.group.startswith(prefix)]

    def _confusion_table(self) -> Table:
        table = Table(title="clips by true class (rows) and prediction, mean over the seeds")
        for name in ("", *self.classes):
            table.add_column(Text(name), justify="right")
        mean = np.mean(list(self.confusions.values()), axis=0)
        for name, counts in zip(self.classes, mean, strict=True):
            table.add_row(Text(name), *(f"{count:.1f}" for count in counts))
        return table


def _scores_of(title: str, rows: Sequence[ScoreRow]) -> Table:
    table = Table(title=title)
    groups = ["", "metric"] if any(row.group != "all" for row in rows) else ["metric"]
    value = "value" if all(len(row.seeds) == 1 for row in rows) else "mean ± sd"
    for name in (*groups, value, "95 % interval", "clips", "people", "seeds"):
        table.add_column(name, justify="left" if name in groups else "right")
    for row in rows:
        names = (row.group.partition(":")[2], row.metric)[-len(groups) :]
        spread = "" if math.isnan(row.sd) else f" ± {row.sd:.3f}"
        table.add_row(
            *map(Text, names),
            f"{row.value:.3f}{spread}" if row.clips else "–",
            "–" if math.isnan(row.low) else f"{row.low:.3f} – {row.high:.3f}",
            *map(str, (row.clips, row.people, len(row.seeds))),
        )
    return table


def _null_for_nan(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def _score_row(row: Mapping[str, Any]) -> ScoreRow:
    fields: dict[str, Any] = {
        name: float("nan") if value is None else value for name, value in row.items()
    }
    return ScoreRow(**fields | {"seeds": tuple(row["seeds"])})


@dataclass(frozen=True, slots=True)
class _Pool:
    """Answers of every seed on the same clips, folds pooled."""

    seeds: tuple[int, ...]
    clips: tuple[Prediction, ...]
    """Of the first seed, in the order of their keys."""
    labels: IntArray
    """(N,) true classes."""
    answers: IntArray
    """(S, N) by seed and clip."""
    classes: int

    @property
    def people(self) -> tuple[str, ...]:
        return tuple(sorted({clip.person for clip in self.clips}))

    def counts(self) -> NDArray[np.int64]:
        """Confusion counts by person, in the order of `people`, and seed: (P, S, K, K)."""
        place = {person: number for number, person in enumerate(self.people)}
        who = np.array([place[clip.person] for clip in self.clips])
        counts = np.zeros((len(place), len(self.seeds), self.classes, self.classes), np.int64)
        seeds = np.arange(len(self.seeds))[:, None]
        np.add.at(counts, (who, seeds, self.labels, self.answers), 1)
        return counts


def _pool(predictions: Iterable[Prediction], classes: Sequence[str]) -> _Pool:
    """Join the seeds by clip. Raises: ValueError naming what does not fit."""
    by_seed: defaultdict[int, dict[str, Prediction]] = defaultdict(dict)
    for prediction in predictions:
        prediction.check(classes)
        if prediction.key in by_seed[prediction.seed]:
            raise ValueError(f"{prediction.key} is predicted twice with seed {prediction.seed}")
        by_seed[prediction.seed][prediction.key] = prediction
    if not by_seed:
        raise ValueError("there are no predictions to score")
    seeds = tuple(sorted(by_seed))
    clips = {
        prediction.key: prediction for each in by_seed.values() for prediction in each.values()
    }
    for seed in seeds:
        _check_same(clips, by_seed[seed], f"seed {seed}")
    keys = sorted(clips)
    return _Pool(
        seeds,
        tuple(by_seed[seeds[0]][key] for key in keys),
        np.array([classes.index(clips[key].label) for key in keys]),
        np.array([[by_seed[seed][key].answer for key in keys] for seed in seeds]),
        len(classes),
    )


def _check_same(clips: Mapping[str, Prediction], got: Mapping[str, Prediction], who: str) -> None:
    """Raise ValueError unless `got` holds exactly these clips, under the same true classes."""
    missing = sorted(clips.keys() - got.keys())
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ValueError(f"{who} lacks {', '.join(missing[:_NAMED])}{more}")
    for key, clip in clips.items():
        if got[key].label != clip.label:
            raise ValueError(f"{key} is {clip.label!r}, but {got[key].label!r} in {who}")


def score(
    predictions: Iterable[Prediction], classes: Sequence[str], *, resamples: int = 2000
) -> ScoreTable:
    """Score the pooled predictions of every seed; their order does not matter.

    `abstained` is passed over: leave such predictions out to score the answers given. Intervals
    come from drawing the group's people, the same ones for every seed, and are those of the mean
    over the seeds; they repeat themselves. Raises: ValueError naming the clip where a seed lacks
    one that another has, holds one twice, or where its label is no class.
    """
    pool = _pool(predictions, classes)
    counts = pool.counts()
    rows = [*_pooled_rows(pool, counts, "all", resamples)]
    for dataset in sorted({clip.dataset for clip in pool.clips}):
        inside = {clip.person for clip in pool.clips if clip.dataset == dataset}
        chosen = counts[[person in inside for person in pool.people]]
        rows += _pooled_rows(pool, chosen, f"dataset:{dataset}", resamples)
    rows += _class_rows(pool, counts, classes, resamples)
    total = counts.sum(axis=0)
    return ScoreTable(tuple(classes), tuple(rows), dict(zip(pool.seeds, total, strict=True)))


def _resample(counts: Counts, resamples: int) -> FloatArray:
    """Draw people with replacement and pool their counts: (P, S, K, K) → (R, S, K, K)."""
    weights = bootstrap_weights(len(counts), resamples).astype(np.float64)
    return np.tensordot(weights, counts.astype(np.float64), axes=1)  # floats: BLAS knows no other


def _pooled_rows(pool: _Pool, counts: Counts, group: str, resamples: int) -> list[ScoreRow]:
    drawn = _resample(counts, resamples)
    clips = int(counts[:, 0].sum())
    return [
        _row((name, group), metric(counts.sum(axis=0)), metric(drawn), (clips, len(counts)), pool)
        for name, metric in _POOLED.items()
    ]


def _class_rows(
    pool: _Pool, counts: Counts, classes: Sequence[str], resamples: int
) -> list[ScoreRow]:
    drawn = _resample(counts, resamples)
    clips = counts[:, 0].sum(axis=-1)  # (P, K)
    return [
        _row(
            (metric, f"class:{name}"),
            function(counts.sum(axis=0))[:, place],
            function(drawn)[..., place],
            (int(clips[:, place].sum()), int((clips[:, place] > 0).sum())),
            pool,
        )
        for place, name in enumerate(classes)
        for metric, function in _OF_A_CLASS.items()
    ]


def _row(
    name: tuple[str, str],
    by_seed: FloatArray,
    drawn: FloatArray,
    size: tuple[int, int],
    pool: _Pool,
) -> ScoreRow:
    """Sum up a metric by seed (S,) and by resample and seed (R, S); `size` is clips, people."""
    known = by_seed[~np.isnan(by_seed)]
    # One person drawn again and again shows no spread, which is not to be taken for certainty.
    low, high = interval(mean_of_known(drawn)) if size[1] > 1 else (math.nan, math.nan)
    return ScoreRow(
        metric=name[0],
        group=name[1],
        value=float(mean_of_known(by_seed)),
        sd=float(known.std(ddof=1)) if len(known) > 1 else float("nan"),
        low=low,
        high=high,
        clips=size[0],
        people=size[1],
        seeds=pool.seeds,
    )


def difference(
    a: Iterable[Prediction],
    b: Iterable[Prediction],
    classes: Sequence[str],
    metric: str = "uf1",
    *,
    resamples: int = 2000,
) -> tuple[float, float, float]:
    """Return by how much `a` scores above `b`, and the 95 % bootstrap interval of that.

    Both are means over their own seeds; the same people are drawn for both. `metric` is uf1, uar
    or accuracy. Raises: ValueError naming what differs unless both predict the same clips.
    """
    function = _POOLED[metric]
    pools = [_pool(each, classes) for each in (a, b)]
    first, second = ({clip.key: clip for clip in pool.clips} for pool in pools)
    _check_same(first, second, "the second run")
    _check_same(second, first, "the first run")
    values, samples = [], []
    for pool in pools:
        counts = pool.counts()
        values.append(float(function(counts.sum(axis=0)).mean()))
        samples.append(function(_resample(counts, resamples)).mean(axis=-1))
    return values[0] - values[1], *interval(samples[0] - samples[1])
