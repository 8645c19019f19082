"""A served model on any manifest: its answers, and the scores of these."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from model.pipeline import network_inputs
from model.session import Session
from model.spec import ABSTAINED, ModelSpec, Reference, Score, spec_path
from model.verdict import Verdict, judge
from training.data.labels import Labels
from training.data.pairs import NOTHING, SYNTH_NOTE, Pair, manifest_path, read_pairs
from training.data.prepare import Prepared, PreparedRow
from training.files import write_text_atomically
from training.metrics import share_interval
from training.predictions import Prediction, write_predictions
from training.preparing import prepare_pairs_folder
from training.reliability import Reliability, reliability
from training.scored_people import People, Scored, choose_people
from training.scoring import ScoreRow, ScoreTable, score

__all__ = [
    "Abstained",
    "Answer",
    "Answered",
    "Evaluation",
    "answer_manifest",
    "described",
    "evaluate",
    "people_of",
    "protocol",
    "spec_reference",
    "spec_scores",
    "write_evaluation",
    "write_spec",
]

_BATCH = 8
_NAMED = 5
"""Rows that a fault names; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the served model says of one pair."""

    row: PreparedRow
    label: str
    """The true class, or `none` for a pair in which nothing happens."""
    probabilities: NDArray[np.float32]
    """(K,)."""

    @property
    def genuine(self) -> bool:
        """Whether an expression happens in the pair."""
        return self.label != NOTHING

    def at(self, spec: ModelSpec, temperature: float) -> "Answer":
        """Return the answer at another temperature than the spec's, at which it was given."""
        logarithms = np.log(np.maximum(self.probabilities, np.finfo(np.float32).tiny))
        scaled = np.exp((logarithms - logarithms.max()) * (spec.temperature / temperature))
        return replace(self, probabilities=np.asarray(scaled / scaled.sum(), np.float32))

    def verdict(self, spec: ModelSpec) -> Verdict:
        """Return the answer that the service would give."""
        return judge(spec, self.probabilities, self.row.motion, self.row.quality)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """A model's answers to a manifest."""

    spec: ModelSpec
    manifest: Path
    labels: Labels
    people: People
    scored: Scored
    answers: Sequence[Answer]


def answer_manifest(  # noqa: PLR0913 - who answers, about whom, under which names, told where
    model: Path,
    manifest: Path,
    people: People,
    console: Console,
    *,
    labels: Labels | None = None,
    workers: int = 0,
) -> Answered:
    """Have the served model answer the rows of a manifest that may be scored.

    `labels` carries labels to the model's classes; None takes labels for classes. Clips of a label
    that is left out are not answered, but for those labelled `none`. What is wrong is said before
    anything is prepared. Raises: ModelError; FileNotFoundError; ValueError naming rows whose label
    leads to no class of the model, or as `choose_people`.
    """
    session = Session.open(model)
    spec = session.spec
    scored = choose_people(spec, read_pairs(manifest), people)
    labels = labels or Labels(spec.classes)
    _check_labels(spec, labels, scored.pairs)
    console.print(_told(scored), markup=False, highlight=False, soft_wrap=True)
    if scored.warning:
        console.print(f"WARNING: {scored.warning}", style="bold red", highlight=False)
    prepared = prepare_pairs_folder(spec, manifest, workers, console)
    wanted = {pair.key for pair in scored.pairs}
    rows = [
        (row, label)
        for row in prepared.rows
        if row.pair.key in wanted and (label := _label(labels, row.pair))
    ]
    answers = _answer(session, prepared, rows, console)
    return Answered(
        spec=spec, manifest=manifest, labels=labels, people=people, scored=scored, answers=answers
    )


def _check_labels(spec: ModelSpec, labels: Labels, pairs: Sequence[Pair]) -> None:
    labels.check(pairs)
    lost = [
        f"{pair.key} is {pair.label!r}, class {target!r}"
        for pair in pairs
        if (target := labels.class_of(pair.label)) and target not in spec.classes
    ]
    if lost:
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        raise ValueError(
            f"{spec.name} knows only {', '.join(spec.classes)}: {'; '.join(lost[:_NAMED])}{more}"
        )


def _told(scored: Scored) -> str:
    people = len({pair.person for pair in scored.pairs})
    left_out = "".join(f"; left out: {n} {why}" for why, n in scored.left_out.items())
    return f"people scored: {people} ({scored.words}){left_out}"


def _label(labels: Labels, pair: Pair) -> str | None:
    """Return a pair's class, `none` where nothing happens, None where it is left out."""
    found = labels.class_of(pair.label)
    return NOTHING if found is None and pair.label == NOTHING else found


def _answer(
    session: Session,
    prepared: Prepared,
    rows: Sequence[tuple[PreparedRow, str]],
    console: Console,
) -> list[Answer]:
    """Run the served session on prepared pairs (their flow was rounded to half precision)."""
    answers: list[Answer] = []
    starts = range(0, len(rows), _BATCH)
    for start in track(starts, "answer", console=console, disable=not console.is_terminal):
        batch = rows[start : start + _BATCH]
        inputs = [network_inputs(*prepared.arrays(row), session.spec) for row, _label in batch]
        image, flow = (np.stack(part) for part in zip(*inputs, strict=True))
        answers += [
            Answer(row, label, probabilities)
            for (row, label), probabilities in zip(batch, session.run(image, flow), strict=True)
        ]
    return answers


def protocol(answered: Answered, how: str = "95 % bootstrap interval over people") -> str:
    """Say how the scores of these answers are measured, or what else is counted, and `how`."""
    spec = answered.spec
    seed = spec.provenance.seed
    mapped, gates = _mapping_words(answered), spec.provenance.gates
    command = f"--split {answered.people}" + (" --config FILE" if mapped else "")
    return "; ".join(
        filter(
            None,
            (
                described(answered),
                mapped,
                gates and f"gates chosen on {gates}",
                "one model" if seed is None else f"last step of one run, seed {seed}",
                how,
                f"`mfdan-train evaluate --model FILE MANIFEST {command}`",
            ),
        )
    )


def described(answered: Answered) -> str:
    """Say which clips of which people were answered."""
    return people_of(answered.manifest, answered.scored)


def people_of(manifest: Path, scored: Scored) -> str:
    """Say which clips of a manifest, of which people, were chosen."""
    return f"{_origin(manifest, scored)}, {scored.words}"


def _origin(manifest: Path, scored: Scored) -> str:
    """Say what a manifest lists: `synth` leaves a note of what it made pairs with."""
    note = manifest_path(manifest).with_name(SYNTH_NOTE)
    if not note.is_file():
        return f"clips of {', '.join(sorted({pair.dataset for pair in scored.pairs}))}"
    made = json.loads(note.read_text())
    moves = "measured blendshapes" if made["blendshapes_sha256"] else "mfdan's own table"
    return f"synthetic pairs (`mfdan-train synth`, seed {made['seed']}, moved by {moves})"


def _mapping_words(answered: Answered) -> str:
    labels = sorted({pair.label for pair in answered.scored.pairs} & {*answered.labels.mapping})
    ways = [f"{label} → {answered.labels.mapping[label] or 'left out'}" for label in labels]
    return f"labels mapped ({', '.join(ways)})" if ways else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Abstained:
    """Share of clips that the service would not answer."""

    kind: str
    """`genuine`, or `none` where nothing happens."""
    group: str
    """`all`, `dataset:NAME` or `class:NAME`."""
    value: float
    low: float
    """Of the 95 % bootstrap interval over people."""
    high: float
    clips: int
    people: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores of one model on one manifest."""

    classes: tuple[str, ...]
    predictions: Sequence[Prediction]
    """Of the genuine clips."""
    forced: ScoreTable
    """Every clip forced to one class."""
    answered: ScoreTable | None
    """Only where the service would answer; None where it never does."""
    abstained: Sequence[Abstained]
    reliability: Reliability
    """Of the genuine clips, whether answered or not."""

    @property
    def coverage(self) -> float:
        """Share of the genuine clips that are answered."""
        return 1 - float(np.mean([each.abstained for each in self.predictions]))


def evaluate(answers: Sequence[Answer], spec: ModelSpec) -> Evaluation:
    """Score answers: forced to one class each, then only where the service would answer.

    Intervals come from drawing people, not clips. Raises: ValueError without genuine clips.
    """
    genuine = [each for each in answers if each.genuine]
    if not genuine:
        raise ValueError("no pair with an expression to score")
    predictions = [_prediction(each, spec) for each in genuine]
    given = [each for each in predictions if not each.abstained]
    return Evaluation(
        classes=spec.classes,
        predictions=predictions,
        forced=score(predictions, spec.classes),
        answered=score(given, spec.classes) if given else None,
        abstained=[
            *_abstained(genuine, spec, "genuine"),
            *_abstained([each for each in answers if not each.genuine], spec, "none"),
        ],
        reliability=_reliability(genuine, spec),
    )


def _reliability(genuine: Sequence[Answer], spec: ModelSpec) -> Reliability:
    return reliability(
        [float(each.probabilities.max()) for each in genuine],
        [spec.classes[int(each.probabilities.argmax())] == each.label for each in genuine],
        [each.row.pair.person for each in genuine],
    )


def _prediction(answer: Answer, spec: ModelSpec) -> Prediction:
    pair = answer.row.pair
    return Prediction(
        dataset=pair.dataset,
        subject=pair.subject,
        clip=pair.clip,
        label=answer.label,
        seed=spec.provenance.seed or 0,
        fold=spec.name,
        probabilities=tuple(map(float, answer.probabilities)),
        abstained=answer.verdict(spec).abstained,
    )


def _abstained(answers: Sequence[Answer], spec: ModelSpec, kind: str) -> list[Abstained]:
    groups: dict[str, list[Answer]] = {"all": list(answers)} if answers else {}
    for each in sorted(answers, key=lambda answer: answer.row.pair.dataset):
        groups.setdefault(f"dataset:{each.row.pair.dataset}", []).append(each)
    if kind == "genuine":
        for name in spec.classes:
            groups[f"class:{name}"] = [each for each in answers if each.label == name]
    return [
        _abstained_share(members, spec, kind, group) for group, members in groups.items() if members
    ]


def _abstained_share(
    answers: Sequence[Answer], spec: ModelSpec, kind: str, group: str
) -> Abstained:
    people = [each.row.pair.person for each in answers]
    silent = [each.verdict(spec).abstained for each in answers]
    low, high = share_interval(silent, people)
    return Abstained(
        kind=kind,
        group=group,
        value=float(np.mean(silent)),
        low=low,
        high=high,
        clips=len(answers),
        people=len(set(people)),
    )


def spec_scores(result: Evaluation, words: str) -> tuple[Score, ...]:
    """Return the pooled scores as a model's spec holds them, each with its protocol."""
    tables = {"": result.forced, "_answered": result.answered}
    pooled: list[tuple[str, ScoreRow | Abstained]] = [
        (f"{metric}{suffix}", table.row(metric))
        for suffix, table in tables.items()
        if table is not None
        for metric in ("uf1", "uar", "accuracy")
    ]
    shares = [(f"abstained_{e.kind}", e) for e in result.abstained if e.group == "all"]
    told = result.reliability
    return (
        *(_score(metric, row, words) for metric, row in (*pooled, *shares)),
        Score(
            metric="ece",
            value=told.ece,
            low=told.low,
            high=told.high,
            protocol=f"{words}; {len(told.bins)} bins of equal mass; "
            f"{told.clips} clips of {told.people} people",
        ),
    )


def _score(metric: str, row: ScoreRow | Abstained, words: str) -> Score:
    counted = f"{words}; {row.clips} clips of {row.people} people"
    return Score(metric=metric, value=row.value, low=row.low, high=row.high, protocol=counted)


def spec_reference(result: Evaluation, answered: Answered) -> Reference:
    """Return how often the service would give each answer to the genuine clips."""
    given = Counter(
        ABSTAINED if each.abstained else each.predicted(result.classes)
        for each in result.predictions
    )
    people = len({each.person for each in result.predictions})
    words = protocol(answered, "clips with an expression only")
    return Reference(
        shares={name: given[name] / given.total() for name in (*result.classes, ABSTAINED)},
        answers=given.total(),
        protocol=f"{words}; {given.total()} clips of {people} people",
    )


def write_evaluation(out: Path, answered: Answered, result: Evaluation) -> None:
    """Write `predictions.csv` (of the genuine clips), then `scores.json`. Raises: OSError."""
    out.mkdir(parents=True, exist_ok=True)
    spec = answered.spec
    document = {
        "model": {"name": spec.name, "version": spec.version, "onnx_sha256": spec.onnx_sha256},
        "manifest": manifest_path(answered.manifest).name,
        "protocol": protocol(answered),
        "warning": answered.scored.warning,
        "people_left_out": dict(answered.scored.left_out),
        "coverage": result.coverage,
        "forced": json.loads(result.forced.to_json()),
        "answered": result.answered and json.loads(result.answered.to_json()),
        "abstained": [asdict(each) for each in result.abstained],
        "reliability": asdict(result.reliability),
    }
    write_predictions(out / "predictions.csv", result.predictions, result.classes)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text_atomically(out / "scores.json", text)


def write_spec(model: Path, spec: ModelSpec) -> None:
    """Store a spec, with what was measured, beside its model; the ONNX file does not change."""
    write_text_atomically(spec_path(model), spec.to_json())
