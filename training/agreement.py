"""Whether another way to compute a model's answers gives the same: measured on people never seen.

A way turns crops of faces into answers. The reference is the service with the spec's first flow
backend and its network on the CPU; a candidate gets the same crops, and passes if nearly all pairs
keep every probability.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.stats import beta

from model.errors import MfdanError
from model.pipeline import AlignedPair, Crops, Preprocessor
from model.spec import ModelSpec, Score
from model.verdict import judge
from training.data.pairs import Pair, manifest_path, read_pairs
from training.data.sources import UNUSABLE, read_frames
from training.metrics import share_interval
from training.scored_people import Scored, choose_people

__all__ = [
    "LEAST_PAIRS",
    "LEAST_PEOPLE",
    "LEAST_SHARE",
    "TOLERANCE",
    "Agreement",
    "Answers",
    "Disagreement",
    "HeldOut",
    "Way",
    "agreement",
    "check_passed",
    "compare",
]

TOLERANCE = 0.02
"""Largest difference of a probability of a pair that agrees."""
LEAST_SHARE = 0.99
"""Of the pairs must agree."""
LEAST_PAIRS = 200
"""Fewer say too little of so large a share."""
LEAST_PEOPLE = 20
"""Fewer say too little of others: a face that a candidate sees otherwise, it does in every pair."""
_BATCH = 8

FloatArray = NDArray[np.float32]


class Disagreement(MfdanError):
    """A candidate does not give the reference's answers, or was compared on too few pairs."""

    code = "disagreement"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What one way says of some crops."""

    pairs: Sequence[AlignedPair]
    probabilities: FloatArray
    """(N, K)."""


Way = Callable[[Sequence[Crops], Sequence[AlignedPair]], Answers]
"""From crops, and the pairs that the reference made of them (the reference itself gets none)."""


class HeldOut:
    """The pairs of a manifest whose people the weights never saw, as a service crops them.

    Only pairs of pictures: ready-made flow has no frames to compute another from, and a video's
    frames are chosen by a flow.
    """

    def __init__(self, spec: ModelSpec, manifest: Path, preprocessor: Preprocessor) -> None:
        """Choose them. Raises: as `read_pairs`, `choose_people`; Disagreement: they are too few."""
        self.scored: Scored = choose_people(spec, read_pairs(manifest), "auto")
        self.dropped: dict[str, str] = {}
        """Key of a pair that could not be cropped → why."""
        self._pairs = [pair for pair in self.scored.pairs if pair.kind == "frames"]
        self._folder = manifest_path(manifest).parent
        self._preprocessor = preprocessor
        _check_enough([pair.person for pair in self._pairs])

    def batches(self, console: Console) -> Iterator[list[tuple[Pair, Crops]]]:
        """Yield a few pairs at a time, each with the crops of its largest face."""
        batch: list[tuple[Pair, Crops]] = []
        for pair in track(self._pairs, "answer", console=console, disable=not console.is_terminal):
            crops = self._crop(pair)
            if crops is not None:
                batch.append((pair, crops))
            if len(batch) == _BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    def _crop(self, pair: Pair) -> Crops | None:
        try:
            faces = self._preprocessor.crop_pair(*read_frames(pair, self._folder))
        except UNUSABLE as fault:
            self.dropped[pair.key] = str(fault)
            return None
        if not faces:
            self.dropped[pair.key] = "no face was found"
            return None
        return faces[0]


def _check_enough(people: Sequence[str]) -> None:
    """Refuse too few pairs or people; whose each pair is. Raises: Disagreement."""
    pairs, persons = len(people), len(set(people))
    if pairs < LEAST_PAIRS or persons < LEAST_PEOPLE:
        raise Disagreement(
            f"{pairs} pairs of pictures of {persons} people whom the model never saw are too few "
            f"to tell, {LEAST_PAIRS} of {LEAST_PEOPLE} people are needed: make or list more of them"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How nearly a candidate gives the reference's answers."""

    pairs: int
    people: int
    share: float
    """Of the pairs that keep every probability within TOLERANCE."""
    low: float
    """The lower of two bounds: of the 95 % bootstrap interval over people, which is blind where
    all pairs agree, and of the exact one that takes each person for a single draw."""
    high: float
    """Of the bootstrap interval."""
    largest: float
    """Difference of a probability; infinite where the candidate gives no number."""
    labels_changed: int
    """Pairs whose likeliest class is another."""
    answers_changed: int
    """Pairs whose answer is another, an abstention being one."""

    @property
    def passed(self) -> bool:
        """Whether the candidate may stand in for the reference."""
        return self.share >= LEAST_SHARE

    def score(self, metric: str, protocol: str) -> Score:
        """Return it as a spec holds it."""
        words = (
            f"{protocol}; share of the pairs whose every probability differs by at most "
            f"{TOLERANCE}; {self.pairs} pairs of {self.people} people; largest difference "
            f"{self.largest:.2g}; {self.labels_changed} likeliest classes and "
            f"{self.answers_changed} answers changed; 95 %, the lower of a bootstrap bound over "
            "people and an exact one that takes each person for a single draw"
        )
        return Score(metric=metric, value=self.share, low=self.low, high=self.high, protocol=words)


def compare(
    spec: ModelSpec,
    held_out: HeldOut,
    reference: Way,
    candidates: Mapping[str, Way],
    console: Console,
) -> dict[str, Agreement]:
    """Run the reference and every candidate on the same crops.

    Raises: Disagreement where too few pairs, or of too few people, could be cropped.
    """
    people: list[str] = []
    expected = _Told(spec)
    got = {name: _Told(spec) for name in candidates}
    for batch in held_out.batches(console):
        people += [pair.person for pair, _crops in batch]
        crops = [each for _pair, each in batch]
        first = reference(crops, [])
        expected.add(first)
        for name, candidate in candidates.items():
            got[name].add(candidate(crops, first.pairs))
    _check_enough(people)
    return {
        name: agreement(
            expected.probabilities,
            told.probabilities,
            people,
            answers_changed=sum(map(operator.ne, expected.answers, told.answers)),
        )
        for name, told in got.items()
    }


class _Told:
    """What one way said of all pairs; their pictures are let go."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._rows: list[FloatArray] = []
        self.answers: list[str] = []
        """The class that is answered, "" where none stands."""

    def add(self, answers: Answers) -> None:
        for row, pair in zip(answers.probabilities, answers.pairs, strict=True):
            verdict = judge(self._spec, row, pair.motion, pair.quality)
            self.answers.append("" if verdict.abstained else verdict.label)
            self._rows.append(row)

    @property
    def probabilities(self) -> FloatArray:
        """(N, K)."""
        return np.stack(self._rows)


def agreement(
    expected: FloatArray, got: FloatArray, people: Sequence[str], *, answers_changed: int = 0
) -> Agreement:
    """Count how many rows of (N, K) probabilities agree; `people` says whose each is."""
    gaps = np.nan_to_num(np.abs(expected - got).max(axis=1), nan=np.inf)
    within = gaps <= TOLERANCE
    share, persons = float(within.mean()), len(set(people))
    low, high = share_interval(within.tolist(), people)
    return Agreement(
        pairs=len(within),
        people=persons,
        share=share,
        low=min(low, _exact_low(share, persons)),
        high=high,
        largest=float(gaps.max()),
        labels_changed=int((expected.argmax(axis=1) != got.argmax(axis=1)).sum()),
        answers_changed=answers_changed,
    )


def _exact_low(share: float, people: int) -> float:
    """Return the exact lower bound of a share (Clopper and Pearson 1934) of so many draws.

    As if all pairs of a person were one: pairs of a face go together, so their number is no
    evidence. The share of draws need not be whole (Korn and Graubard 1998); where all pairs agree,
    it is the bound of as many people of whom all agree.
    """
    hits = share * people
    return float(beta.ppf(0.025, hits, people - hits + 1)) if hits else 0.0


def check_passed(results: Mapping[str, Agreement]) -> None:
    """Refuse what did not pass. Raises: Disagreement naming the first that did not."""
    for name, result in results.items():
        if not result.passed:
            raise Disagreement(
                f"{name} does not give the same answers: {result.share:.1%} of {result.pairs} "
                f"pairs agree, {LEAST_SHARE:.0%} must; nothing was written"
            )
