"""Action units: what each moves, and which classes show which.

A unit is written as its FACS number and the person's own side: "12L", "4R"; units of the
midline have no side: "17", "25", "26". The person's left is on the right of the image.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from training.face_mesh import LOWER_LID, LOWER_LIP, UPPER_LID, UPPER_LIP

__all__ = ["PRIORS", "TABLE", "UNITS", "ActionUnit", "Mover", "draw_units", "number_of"]

PRIORS: Mapping[str, tuple[Mapping[int, float], ...]] = {
    "negative": (
        {4: 0.62, 7: 0.34, 17: 0.23, 10: 0.20, 15: 0.17, 9: 0.10},
        {7: 0.61, 4: 0.30, 14: 0.16, 43: 0.12},
    ),
    "positive": (
        {12: 0.88, 14: 0.12, 15: 0.06, 6: 0.06},
        {12: 1.0, 7: 0.12, 15: 0.08, 6: 0.04},
    ),
    "surprise": (
        {2: 0.82, 1: 0.79, 25: 0.11, 5: 0.07},
        {5: 0.60, 1: 0.27, 2: 0.27, 26: 0.13},
    ),
}
"""Share of a class's clips that show each unit, measured on CASME II and on SAMM."""


@dataclass(frozen=True, slots=True)
class Mover:
    """One landmark of the person's right side and where full activation takes it."""

    landmark: int
    out: float
    """Away from the midline, in eye distances."""
    up: float
    """Towards the forehead, in eye distances."""
    reach: float = 0.16
    """Standard deviation of its Gaussian influence, in eye distances."""


@dataclass(frozen=True, slots=True)
class ActionUnit:
    """What a unit moves, on the right side or the midline; the left is its mirror."""

    movers: tuple[Mover, ...]
    still: tuple[int, ...] = ()
    """Landmarks of the right side that the unit leaves where they are."""
    paired: bool = True
    """Whether left and right act alone."""


_LIDS = UPPER_LID + LOWER_LID

TABLE: Mapping[int, ActionUnit] = {
    1: ActionUnit(
        (
            Mover(107, 0.00, 0.11),
            Mover(55, -0.01, 0.10, 0.12),
            Mover(66, 0.00, 0.09),
            Mover(65, 0.00, 0.08, 0.12),
            Mover(105, 0.00, 0.04),
            Mover(108, 0.00, 0.08),
        ),
        still=_LIDS,
    ),
    2: ActionUnit(
        (
            Mover(70, 0.01, 0.10),
            Mover(63, 0.01, 0.12),
            Mover(46, 0.01, 0.09, 0.12),
            Mover(53, 0.01, 0.10, 0.12),
            Mover(105, 0.00, 0.09),
            Mover(68, 0.00, 0.07),
        ),
        still=_LIDS,
    ),
    4: ActionUnit(
        (
            Mover(107, -0.06, -0.08),
            Mover(55, -0.06, -0.08, 0.12),
            Mover(66, -0.05, -0.07),
            Mover(65, -0.05, -0.07, 0.12),
            Mover(105, -0.03, -0.05),
            Mover(9, -0.00, -0.05, 0.12),
            Mover(108, -0.02, -0.04),
        ),
        still=LOWER_LID,
    ),
    5: ActionUnit(
        (
            Mover(159, 0.00, 0.06, 0.07),
            Mover(158, 0.00, 0.05, 0.06),
            Mover(160, 0.00, 0.05, 0.06),
        ),
        still=LOWER_LID,
    ),
    6: ActionUnit(
        (
            Mover(117, -0.01, 0.07),
            Mover(118, 0.00, 0.08),
            Mover(119, 0.00, 0.06),
            Mover(50, 0.01, 0.09, 0.2),
            Mover(101, 0.00, 0.07),
            Mover(226, -0.03, -0.01, 0.1),
            Mover(145, 0.00, 0.03, 0.08),
        ),
        still=UPPER_LID,
    ),
    7: ActionUnit(
        (
            Mover(145, -0.01, 0.05, 0.07),
            Mover(153, -0.01, 0.04, 0.06),
            Mover(144, -0.01, 0.04, 0.06),
            Mover(159, 0.00, -0.03, 0.05),
            Mover(31, -0.02, 0.02, 0.1),
        ),
    ),
    9: ActionUnit(
        (
            Mover(129, 0.02, 0.07, 0.11),
            Mover(48, 0.01, 0.08, 0.11),
            Mover(98, 0.01, 0.06, 0.1),
            Mover(36, 0.00, 0.06),
            Mover(37, 0.00, 0.04, 0.1),
            Mover(55, -0.02, -0.04, 0.12),
            Mover(8, 0.00, -0.03, 0.1),
        ),
        still=_LIDS,
    ),
    10: ActionUnit(
        (
            Mover(37, 0.00, 0.07, 0.1),
            Mover(39, 0.01, 0.09, 0.1),
            Mover(40, 0.01, 0.07, 0.1),
            Mover(82, 0.00, 0.07, 0.08),
            Mover(203, 0.01, 0.06, 0.14),
            Mover(206, 0.02, 0.05, 0.14),
            Mover(129, 0.01, 0.04, 0.1),
        ),
        still=LOWER_LIP,
    ),
    12: ActionUnit(
        (
            Mover(61, 0.15, 0.12, 0.13),
            Mover(78, 0.13, 0.10, 0.1),
            Mover(185, 0.11, 0.09, 0.1),
            Mover(146, 0.10, 0.08, 0.1),
            Mover(40, 0.06, 0.05, 0.1),
            Mover(91, 0.06, 0.04, 0.1),
            Mover(206, 0.07, 0.08, 0.15),
            Mover(205, 0.03, 0.08, 0.18),
            Mover(50, 0.01, 0.05, 0.16),
        ),
    ),
    14: ActionUnit(
        (
            Mover(61, 0.08, 0.00, 0.11),
            Mover(78, 0.06, 0.00, 0.09),
            Mover(185, 0.04, -0.01, 0.09),
            Mover(146, 0.04, 0.01, 0.09),
            Mover(216, -0.02, 0.00, 0.12),
            Mover(207, -0.02, 0.01, 0.14),
        ),
    ),
    15: ActionUnit(
        (
            Mover(61, 0.02, -0.11, 0.13),
            Mover(78, 0.01, -0.09, 0.09),
            Mover(185, 0.01, -0.07, 0.09),
            Mover(146, 0.01, -0.09, 0.1),
            Mover(91, 0.00, -0.04, 0.09),
            Mover(43, 0.02, -0.07, 0.13),
        ),
    ),
    17: ActionUnit(
        (
            Mover(17, 0.0, 0.09, 0.12),
            Mover(84, 0.0, 0.08, 0.12),
            Mover(14, 0.0, 0.07, 0.09),
            Mover(18, 0.0, 0.10, 0.14),
            Mover(200, 0.0, 0.11, 0.16),
            Mover(199, 0.0, 0.09, 0.16),
            Mover(0, 0.0, 0.03, 0.1),
        ),
        paired=False,
    ),
    25: ActionUnit(
        (
            Mover(17, 0.0, -0.08, 0.12),
            Mover(84, 0.0, -0.08, 0.12),
            Mover(14, 0.0, -0.08, 0.1),
            Mover(181, 0.0, -0.06, 0.1),
            Mover(18, 0.0, -0.06, 0.12),
            Mover(200, 0.0, -0.03, 0.14),
        ),
        still=UPPER_LIP,
        paired=False,
    ),
    26: ActionUnit(
        (
            Mover(17, 0.0, -0.17, 0.14),
            Mover(14, 0.0, -0.16, 0.12),
            Mover(84, 0.0, -0.17, 0.14),
            Mover(200, 0.0, -0.19, 0.2),
            Mover(152, 0.0, -0.20, 0.22),
            Mover(149, -0.01, -0.15, 0.2),
            Mover(61, -0.02, -0.06, 0.1),
            Mover(91, -0.01, -0.10, 0.12),
        ),
        still=UPPER_LIP,
        paired=False,
    ),
    43: ActionUnit(
        (
            Mover(159, 0.0, -0.11, 0.07),
            Mover(158, 0.0, -0.10, 0.06),
            Mover(160, 0.0, -0.10, 0.06),
            Mover(157, 0.0, -0.06, 0.05),
            Mover(161, 0.0, -0.06, 0.05),
        ),
        still=LOWER_LID,
    ),
}
"""Ours: landmark moves read from FACS's descriptions, sized by eye in eye distances. Only
their proportions matter, for every pair is scaled to a drawn peak."""

UNITS = tuple(
    f"{number}{side}"
    for number, unit in sorted(TABLE.items())
    for side in (("L", "R") if unit.paired else ("",))
)
"""Every unit that can be drawn, in the order of every displacement array."""

_ONE_SIDED = {1: 0.25, 2: 0.25, 4: 0.25, 5: 0.3, 6: 0.4, 7: 0.4, 43: 0.2}
_ONE_SIDED_DEFAULT = 0.5


def number_of(unit: str) -> int:
    """Return the FACS number of a unit: 12 of "12L"."""
    match = re.fullmatch(r"(\d+)[LR]?", unit)
    if match is None:
        raise ValueError(f"not an action unit: {unit!r}")
    return int(match[1])


def draw_units(label: str, rng: np.random.Generator) -> dict[str, float]:
    """Draw the units of one expression of a class, with weights in (0, 1].

    One of the class's priors is taken; its units come independently, again until there is
    one. How often a unit is one-sided and how asymmetric it is otherwise is ours.
    """
    prior = PRIORS[label][rng.integers(len(PRIORS[label]))]
    numbers: list[int] = []
    while not numbers:
        numbers = [number for number, share in prior.items() if rng.random() < share]
    lone, side = rng.random(), "LR"[rng.integers(2)]
    weights: dict[str, float] = {}
    for number in numbers:
        strength, weaker = rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.0)
        if not TABLE[number].paired:
            weights[f"{number}"] = strength
        elif lone < _ONE_SIDED.get(number, _ONE_SIDED_DEFAULT):
            weights[f"{number}{side}"] = strength
        else:
            weights[f"{number}{side}"] = strength
            weights[f"{number}{'R' if side == 'L' else 'L'}"] = strength * weaker
    return weights
