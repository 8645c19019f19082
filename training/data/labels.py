"""From the labels of the data to the classes of a network."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from training.data.pairs import NOTHING, Pair

__all__ = ["Labels"]

_NAMED = 5
"""Rows that a fault names; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Carries each label to a class, or out.

    Raises: ValueError for a target that is no class, or a class named twice.
    """

    classes: tuple[str, ...]
    """In the order of the network's outputs."""
    mapping: Mapping[str, str] = field(default_factory=dict)
    """Label → class, or → "" for a label that is left out. A class's own name means itself, and
    `none` is left out, unless they are mapped too."""

    def __post_init__(self) -> None:
        """Refuse a class named twice, and a map to nowhere."""
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes repeat: {', '.join(self.classes)}")
        unknown = sorted({target for target in self.mapping.values() if target} - {*self.classes})
        if unknown:
            raise ValueError(
                f"label_map leads to {', '.join(unknown)}; the classes are "
                f"{', '.join(self.classes)}"
            )

    def knows(self, label: str) -> bool:
        """Whether it is said what becomes of a label."""
        return label in self.mapping or label in self.classes or label == NOTHING

    def class_of(self, label: str) -> str | None:
        """Return the class of a label, None for one that is left out. Raises: ValueError."""
        if not self.knows(label):
            raise ValueError(f"label {label!r} is neither a class nor in label_map")
        target = self.mapping.get(label, "" if label == NOTHING else label)
        return target or None

    def index_of(self, label: str) -> int | None:
        """Return the place of a label's class among the outputs; None where it is left out."""
        target = self.class_of(label)
        return None if target is None else self.classes.index(target)

    def check(self, pairs: Iterable[Pair]) -> None:
        """Raise ValueError naming the rows whose label leads nowhere."""
        lost = [pair for pair in pairs if not self.knows(pair.label)]
        if lost:
            named = "; ".join(f"{pair.key} is {pair.label!r}" for pair in lost[:_NAMED])
            more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
            raise ValueError(
                f"labels outside the class map: {named}{more} (classes: "
                f'{", ".join(self.classes)}; a --config\'s label_map takes others to one, or to "")'
            )
