"""Predictions of held-out clips: a table keyed by clip, so that nothing depends on its order."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.files import write_text_atomically

__all__ = ["Prediction", "read_predictions", "write_predictions"]

_NAMES = ("dataset", "subject", "clip", "label", "seed", "fold", "prediction", "abstained")
_PROBABILITY = "p_"
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a network that never saw the person says of one clip. Raises: ValueError for NaN."""

    dataset: str
    subject: str
    clip: str
    label: str
    """The true class."""
    seed: int
    fold: str
    probabilities: tuple[float, ...]
    """In the order of the classes."""
    abstained: bool = False
    """Whether the service would have declined to answer."""

    def __post_init__(self) -> None:
        """Refuse what has no largest entry."""
        if not self.probabilities or not all(map(math.isfinite, self.probabilities)):
            raise ValueError(f"{self.key}, seed {self.seed}: a probability is no finite number")

    @property
    def person(self) -> str:
        """Who it is: the subject's name alone may recur across data sets."""
        return f"{self.dataset}/{self.subject}"

    @property
    def key(self) -> str:
        """The clip's own name."""
        return f"{self.person}/{self.clip}"

    @property
    def answer(self) -> int:
        """Place of the largest probability; of equal ones the first."""
        return self.probabilities.index(max(self.probabilities))

    def predicted(self, classes: Sequence[str]) -> str:
        """Return the likeliest class; of equally likely ones the first."""
        return classes[self.answer]

    def check(self, classes: Sequence[str]) -> None:
        """Raise ValueError unless the label is one of the classes, each with a probability."""
        if self.label not in classes:
            raise ValueError(f"{self.key} is {self.label!r}; the classes are {', '.join(classes)}")
        if len(self.probabilities) != len(classes):
            raise ValueError(
                f"{self.key} has {len(self.probabilities)} probabilities for {len(classes)} classes"
            )


def write_predictions(
    path: Path, predictions: Iterable[Prediction], classes: Sequence[str]
) -> None:
    """Write a CSV that `read_predictions` reads back exactly, one column for each class."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_NAMES, *(_PROBABILITY + name for name in classes)))
    for each in predictions:
        each.check(classes)
        writer.writerow(
            (
                *(each.dataset, each.subject, each.clip, each.label, each.seed, each.fold),
                each.predicted(classes),
                str(each.abstained).lower(),
                *map(float, each.probabilities),
            )
        )
    write_text_atomically(path, text.getvalue())


def read_predictions(path: Path) -> tuple[tuple[str, ...], list[Prediction]]:
    """Read classes and predictions. Raises: FileNotFoundError, ValueError naming the line."""
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write the mark
        reader = csv.DictReader(file)
        columns = reader.fieldnames or ()
        missing = [name for name in _NAMES if name not in columns]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}")
        classes = tuple(
            name.removeprefix(_PROBABILITY) for name in columns if name.startswith(_PROBABILITY)
        )
        predictions = []
        for row in reader:
            try:
                predictions.append(_prediction(row, classes))
            except ValueError as fault:
                raise ValueError(f"{path}, line {reader.line_num}: {fault}") from None
    return classes, predictions


def _prediction(row: Mapping[str, str | None], classes: Sequence[str]) -> Prediction:
    cells = {name: cell for name, cell in row.items() if cell is not None}
    if len(cells) < len(row):
        raise ValueError("the row is cut short")
    if cells["abstained"].lower() not in _BOOLEANS:
        raise ValueError(f"abstained is {cells['abstained']!r}, not true or false")
    prediction = Prediction(
        dataset=cells["dataset"],
        subject=cells["subject"],
        clip=cells["clip"],
        label=cells["label"],
        seed=int(cells["seed"]),
        fold=cells["fold"],
        probabilities=tuple(float(cells[_PROBABILITY + name]) for name in classes),
        abstained=_BOOLEANS[cells["abstained"].lower()],
    )
    prediction.check(classes)
    if prediction.predicted(classes) != cells["prediction"]:
        raise ValueError(
            f"prediction is {cells['prediction']!r}, but {prediction.predicted(classes)!r} has "
            "the largest probability"
        )
    return prediction
