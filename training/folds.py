"""Folds: who is trained on and who is tested. Nobody is ever in both halves."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from training.data.labels import Labels
from training.data.pairs import Pair
from training.data.prepare import PreparedRow

__all__ = [
    "Fold",
    "check_folds",
    "check_people",
    "inner_folds",
    "lodo_folds",
    "loso_folds",
    "missing_classes",
    "spelling",
]

_NAMED = 5
"""People that a fault names; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Fold:
    """One split of the clips; rows stand in the manifest's order in both halves."""

    name: str
    """Who is held out: "casme2/01", or a data set."""
    train: tuple[PreparedRow, ...]
    test: tuple[PreparedRow, ...]


def loso_folds(rows: Sequence[PreparedRow]) -> list[Fold]:
    """One fold per (data set, subject), sorted by name; the rows are those that take part.

    Raises: ValueError if somebody would be in both halves, or a fold has nothing to train on.
    """
    return _leave_out(rows, lambda row: row.pair.person)


def lodo_folds(rows: Sequence[PreparedRow]) -> list[Fold]:
    """One fold per data set, sorted by name. Raises: ValueError as `loso_folds`, or for one set."""
    names = sorted({row.pair.dataset for row in rows})
    if len(names) < 2:  # noqa: PLR2004 - one is left out, one is left
        raise ValueError(
            "leaving one data set out needs clips of two data sets; "
            f"here is {names[0] if names else 'none'}"
        )
    return _leave_out(rows, lambda row: row.pair.dataset)


def _leave_out(rows: Sequence[PreparedRow], group: Callable[[PreparedRow], str]) -> list[Fold]:
    if not rows:
        raise ValueError("no clip has a label that leads to a class")
    folds = [
        Fold(
            name,
            train=tuple(row for row in rows if group(row) != name),
            test=tuple(row for row in rows if group(row) == name),
        )
        for name in sorted({group(row) for row in rows})
    ]
    check_folds(folds)
    return folds


def check_folds(folds: Iterable[Fold]) -> None:
    """Raise ValueError naming who is in both halves of a fold, or a fold without training clips.

    Who is one person, `spelling` says.
    """
    for fold in folds:
        if not fold.train:
            raise ValueError(f"fold {fold.name} has no clip to train on")
        trained, tested = (
            {spelling(row.pair.person): row.pair.person for row in half}
            for half in (fold.train, fold.test)
        )
        shared = sorted(trained.keys() & tested.keys())
        if shared:
            names = [" = ".join(sorted({trained[who], tested[who]})) for who in shared]
            raise ValueError(
                f"fold {fold.name} has people in both halves: {_listed(names)}; "
                "write one name for one person"
            )


def check_people(pairs: Iterable[Pair]) -> None:
    """Raise ValueError naming who would be in both halves of a fold under two names."""
    written: defaultdict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        written[spelling(pair.person)].add(pair.person)
    names = [" = ".join(sorted(names)) for names in written.values() if len(names) > 1]
    if names:
        raise ValueError(
            f"people would be in both halves of a fold: {_listed(sorted(names))}; "
            "write one name for one person"
        )


def spelling(person: str) -> str:
    """Return a name without its case, spaces and leading zeros: "SAMM/006" is "samm/6".

    Data sets write their own subjects in several ways; names that differ in these only are taken
    for one person.
    """
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"\s", "", person.casefold()))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def missing_classes(rows: Sequence[PreparedRow], labels: Labels) -> list[str]:
    """Return the classes that no row belongs to, in the labels' order."""
    there = {labels.class_of(row.pair.label) for row in rows}
    return [name for name in labels.classes if name not in there]


def inner_folds(rows: Sequence[PreparedRow], count: int, seed: int) -> list[Fold]:
    """Split the people of a training half into `count` groups, each held out once.

    People are shuffled by the seed, then each goes to the group with the fewest clips so far.
    The same rows and seed give the same folds. Raises: ValueError for fewer than two people.
    """
    clips = Counter(row.pair.person for row in rows)
    people = sorted(clips)
    if len(people) < 2:  # noqa: PLR2004 - one is held out, one is trained on
        raise ValueError("the inner search needs the clips of two people to train on")
    sizes = [0] * min(count, len(people))
    group_of: dict[str, int] = {}
    for index in np.random.default_rng((seed, 2)).permutation(len(people)):
        smallest = sizes.index(min(sizes))
        group_of[people[index]] = smallest
        sizes[smallest] += clips[people[index]]
    return _leave_out(rows, lambda row: f"inner {group_of[row.pair.person] + 1}")
