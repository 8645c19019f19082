"""A served model on identities it never saw: calibration of its gates, and its scores."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from model.pipeline import Verdict, judge, network_inputs
from model.session import Session
from model.spec import ModelSpec, Score, spec_path
from training.data.dataset import rows_of
from training.data.pairs import NOTHING, SYNTH_NOTE, Holdout, Split
from training.data.prepare import Prepared, PreparedRow
from training.files import write_text_atomically
from training.fitting import prepare_pairs_folder
from training.metrics import IntArray, accuracy, bootstrap_interval, confusion, uar, uf1
from training.onnx_file import write_model

__all__ = [
    "Answer",
    "Calibration",
    "Evaluation",
    "answer",
    "answer_folder",
    "calibrate",
    "evaluate",
    "holdout_of",
    "largest_threshold",
    "protocol",
    "rewrite_gates",
    "write_scores",
]

_BATCH = 8
GATE_SHARE = 0.08
"""Of the genuine pairs, at most this share may be taken for motionless."""
CONFIDENCE_SHARE = 0.05
"""Of the genuine pairs that pass the gate, at most this share may be too uncertain."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the served model says of one pair."""

    row: PreparedRow
    probabilities: NDArray[np.float32]
    """(K,)."""

    @property
    def genuine(self) -> bool:
        """Whether an expression happens in the pair."""
        return self.row.pair.label != NOTHING

    def verdict(self, spec: ModelSpec) -> Verdict:
        """Return the answer that the service would give."""
        return judge(spec, self.probabilities, self.row.motion)


def holdout_of(spec: ModelSpec) -> Holdout:
    """Return who was kept from training. Raises: ValueError if the spec does not say."""
    made = spec.provenance
    if made.split_seed is None or made.val_fraction is None or made.test_fraction is None:
        raise ValueError(
            f"the spec of {spec.name} does not say who was held out from its training "
            "(provenance: split_seed, val_fraction, test_fraction); export its run again"
        )
    return Holdout(seed=made.split_seed, val=made.val_fraction, test=made.test_fraction)


def answer_folder(
    model: Path, pairs: Path, split: Split, console: Console
) -> tuple[ModelSpec, list[Answer]]:
    """Have the served model answer a split of a pairs folder; its spec says who is in it.

    Pairs labelled neither a class nor `none` are left out. Raises: ModelError, ValueError.
    """
    session = Session.open(model)
    spec = session.spec
    holdout = holdout_of(spec)
    prepared = prepare_pairs_folder(spec, pairs, 0, console)
    known = {*spec.classes, NOTHING}
    rows = [row for row in rows_of(prepared, holdout, split) if row.pair.label in known]
    return spec, answer(session, prepared, rows, console)


def answer(
    session: Session, prepared: Prepared, rows: Sequence[PreparedRow], console: Console
) -> list[Answer]:
    """Run the served session on prepared pairs (their flow was rounded to half precision)."""
    answers: list[Answer] = []
    for start in track(range(0, len(rows), _BATCH), "answer", console=console):
        batch = rows[start : start + _BATCH]
        inputs = [network_inputs(*prepared.arrays(row), session.spec) for row in batch]
        image, flow = (np.stack(part) for part in zip(*inputs, strict=True))
        answers += map(Answer, batch, session.run(image, flow))
    return answers


def protocol(spec: ModelSpec, split: Split, pairs: Path) -> str:
    """Say how a score of `evaluate` on a pairs folder was measured. Raises: ValueError."""
    holdout = holdout_of(spec)
    shares = {"val": holdout.val, "test": holdout.test}
    shares["train"] = 1 - sum(shares.values())
    trained = "trained on" if split == "train" else "never trained on"
    return (
        f"{_origin(pairs)}, identities of the {split} split ({shares[split]:.3g} of them, by "
        f"a hash of the identity, seed {holdout.seed}), {trained}; last step of one run, seed "
        f"{spec.provenance.seed}; 95 % bootstrap interval over identities; "
        f"`mfdan-train evaluate --model FILE --pairs DIR --split {split}`"
    )


def _origin(pairs: Path) -> str:
    """Say what a pairs folder is: `synth` leaves a note of what it was made with."""
    note = pairs / SYNTH_NOTE
    if not note.is_file():
        return "pairs of the user's own"
    made = json.loads(note.read_text())
    moves = "measured blendshapes" if made["blendshapes_sha256"] else "mfdan's own table"
    return f"synthetic pairs (`mfdan-train synth`, seed {made['seed']}, moved by {moves})"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Gates chosen on the calibration identities, and what they do there."""

    motion_gate_px: float
    abstention_threshold: float
    pairs: int
    genuine_abstain: float
    """Share of the pairs with an expression that are not answered."""
    nothing_abstains: float
    """Share of the pairs without one that are not answered; NaN without such pairs."""


def largest_threshold(values: Sequence[float], share: float) -> float:
    """Return the largest threshold below which at most `share` of the values lie."""
    ordered = sorted(values)
    return ordered[int(share * len(ordered))]


def calibrate(answers: Sequence[Answer], spec: ModelSpec) -> Calibration:
    """Choose both gates of a spec. Raises: ValueError where no pair has an expression."""
    genuine = [a for a in answers if a.genuine]
    if not genuine:
        raise ValueError("no pair with an expression to calibrate on")
    gate = largest_threshold([a.row.motion.p95_px for a in genuine], GATE_SHARE)
    gate = _floor(gate)
    moving = [float(a.probabilities.max()) for a in genuine if a.row.motion.p95_px >= gate]
    threshold = _floor(largest_threshold(moving, CONFIDENCE_SHARE))
    spec = replace(spec, motion_gate_px=gate, abstention_threshold=threshold)
    return Calibration(gate, threshold, len(answers), *_abstention(answers, spec))


def _floor(value: float) -> float:
    """Three decimals are enough; rounded down, a threshold keeps its promise."""
    return float(np.floor(value * 1000) / 1000)


def _abstention(answers: Sequence[Answer], spec: ModelSpec) -> tuple[float, float]:
    """Return the shares that abstain, of genuine pairs and of those where nothing happens."""
    shares = []
    for kind in (True, False):
        abstained = [a.verdict(spec).abstained for a in answers if a.genuine is kind]
        shares.append(float(np.mean(abstained)) if abstained else float("nan"))
    return shares[0], shares[1]


def rewrite_gates(model: Path, spec: ModelSpec, calibration: Calibration) -> ModelSpec:
    """Store the gates in the model's metadata, sidecar and hash; its scores, now stale, go."""
    spec = replace(
        spec,
        motion_gate_px=calibration.motion_gate_px,
        abstention_threshold=calibration.abstention_threshold,
        scores=(),
    )
    return write_model(onnx.load(model), spec, model)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores on held-out identities."""

    scores: tuple[Score, ...]
    confusion: NDArray[np.int64]
    """(K, K), true class by answered class, no abstention."""


def evaluate(answers: Sequence[Answer], spec: ModelSpec, protocol: str) -> Evaluation:
    """Score answers: forced to one class each, then only where the service would answer.

    Intervals come from drawing identities, not pairs. Raises: ValueError without genuine pairs.
    """
    genuine = [a for a in answers if a.genuine]
    if not genuine:
        raise ValueError("no pair with an expression to score")
    given = [a for a in genuine if not a.verdict(spec).abstained]
    nothing = [a for a in answers if not a.genuine]
    scores = [*_class_scores(genuine, spec, "", protocol)]
    if given:
        scores += _class_scores(given, spec, "_answered", protocol)
    for name, group in (("genuine", genuine), ("none", nothing)):
        if group:
            abstained = np.array([a.verdict(spec).abstained for a in group], np.int64)
            scores.append(
                _score(
                    f"abstained_{name}",
                    lambda rows, values=abstained: float(values[rows].mean()),  # type: ignore[misc] # a bound default
                    group,
                    protocol,
                )
            )
    labels, predictions = _indices(genuine, spec)
    return Evaluation(tuple(scores), confusion(labels, predictions, len(spec.classes)))


def _indices(answers: Sequence[Answer], spec: ModelSpec) -> tuple[IntArray, IntArray]:
    labels = np.array([spec.classes.index(a.row.pair.label) for a in answers])
    return labels, np.array([int(a.probabilities.argmax()) for a in answers])


def _class_scores(
    answers: Sequence[Answer], spec: ModelSpec, suffix: str, protocol: str
) -> list[Score]:
    labels, predictions = _indices(answers, spec)
    classes = len(spec.classes)
    measures: dict[str, Callable[[IntArray], float]] = {
        "uf1": lambda rows: uf1(labels[rows], predictions[rows], classes),
        "uar": lambda rows: uar(labels[rows], predictions[rows], classes),
        "accuracy": lambda rows: accuracy(labels[rows], predictions[rows]),
    }
    return [_score(name + suffix, measure, answers, protocol) for name, measure in measures.items()]


def _score(
    metric: str,
    measure: Callable[[IntArray], float],
    answers: Sequence[Answer],
    protocol: str,
) -> Score:
    people = [a.row.pair.person for a in answers]
    low, high = bootstrap_interval(measure, people)
    value = measure(np.arange(len(answers)))
    counted = f"{protocol}; {len(answers)} pairs of {len(set(people))} identities"
    return Score(metric=metric, value=value, low=low, high=high, protocol=counted)


def write_scores(model: Path, spec: ModelSpec, scores: tuple[Score, ...]) -> None:
    """Store the scores in the spec beside the model; the ONNX file itself does not change."""
    write_text_atomically(spec_path(model), replace(spec, scores=scores).to_json())
