"""Who may be scored: what a model's spec says of whom it was trained on, and who is chosen."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from model.spec import ModelSpec
from training.data.pairs import Holdout, Pair, Split
from training.folds import spelling

__all__ = ["People", "Scored", "check_shares", "check_start", "choose_people", "holdout_of"]

People = Literal["auto", "all", "train", "val", "test"]
"""auto: everybody of other data sets than those trained on, and of those the test split."""


def holdout_of(spec: ModelSpec) -> Holdout:
    """Return who was kept from training. Raises: ValueError if the spec does not say."""
    holdout = _holdout(spec)
    if holdout is None:
        raise ValueError(
            f"the spec of {spec.name} does not say who was held out from its training "
            "(provenance: split_seed, val_fraction, test_fraction); export its run again"
        )
    return holdout


def _holdout(spec: ModelSpec) -> Holdout | None:
    made = spec.provenance
    if made.split_seed is None or made.val_fraction is None or made.test_fraction is None:
        return None
    return Holdout(seed=made.split_seed, val=made.val_fraction, test=made.test_fraction)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The rows that are scored, and what must be said of them."""

    pairs: Sequence[Pair]
    words: str
    """Who they are, for the protocol."""
    left_out: Mapping[str, int]
    """Why people are left out → how many."""
    warning: str
    """If people are scored whom the model knows, or may know; "" if none."""


def choose_people(spec: ModelSpec, pairs: Sequence[Pair], people: People) -> Scored:
    """Choose the rows of a manifest whose people may be, or shall be, scored.

    Raises: ValueError if nobody is left, or the spec does not say what the choice needs.
    """
    if not pairs:
        raise ValueError("the manifest is empty")
    if people == "auto":
        chosen, left_out = _unseen(spec, pairs)
        words = _unseen_words(spec, chosen)
    elif people == "all":
        chosen, left_out, words = list(pairs), {}, "all people"
    else:
        holdout = holdout_of(spec)
        chosen = [pair for pair in pairs if holdout.split_of(pair.person) == people]
        others = {pair.person for pair in pairs} - {pair.person for pair in chosen}
        left_out = {"of another split": len(others)} if others else {}
        words = f"people of {_split_words(holdout, people)}"
    if not chosen:
        reasons = "; ".join(f"{count} people {why}" for why, count in left_out.items())
        raise ValueError(f"nobody is left to score with --split {people}: {reasons}")
    known, maybe = _acquaintances(spec, chosen)
    return Scored(
        pairs=chosen,
        words=words if people == "auto" else f"{words}, {_seen_words(chosen, known, maybe)}",
        left_out=left_out,
        warning=_warning(spec, known, maybe),
    )


def check_start(spec: ModelSpec, scored: Sequence[Pair]) -> str:
    """Return what must be said of people who are scored by a run that starts from a model.

    Returns "" if the model has seen none of them. Raises: ValueError naming those it was trained
    on, for they would be in both halves.
    """
    known, maybe = _acquaintances(spec, scored)
    if known:
        first = sorted(known)
        more = f" and {len(first) - _NAMED} more" if len(first) > _NAMED else ""
        raise ValueError(
            f"{spec.name}, from which this run starts, was trained on people who are to be scored: "
            f"{', '.join(first[:_NAMED])}{more}"
        )
    return _warning(spec, known, maybe)


def check_shares(spec: ModelSpec, holdout: Holdout) -> None:
    """Check that whom a run holds out, the model that it starts from held out too.

    The spec of the new model tells one split for all its data sets, those of its start as well.
    Raises: ValueError.
    """
    before = _holdout(spec)
    kept = before is not None and (
        holdout.seed == before.seed and holdout.val + holdout.test <= before.val + before.test
    )
    if spec.provenance.datasets and not kept:
        raise ValueError(
            f"{spec.name}, from which this run starts, held out other people than this run does: "
            "nobody could say later who was trained on; take its split_seed, val_fraction and "
            "test_fraction, or a smaller share"
        )


_NAMED = 5
"""People whom a fault names; the rest are counted."""


def _unseen(spec: ModelSpec, pairs: Sequence[Pair]) -> tuple[list[Pair], dict[str, int]]:
    trained, holdout = spec.provenance.datasets, _holdout(spec)
    if not trained and holdout is None:
        raise ValueError(
            f"the spec of {spec.name} says neither on which data sets it was trained nor who was "
            "held out (provenance: datasets, split_seed); if nobody here was trained on, say "
            "--split all"
        )
    chosen = []
    left_out: defaultdict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        why = _why_not(pair, trained, holdout)
        if why:
            left_out[why].add(pair.person)
        else:
            chosen.append(pair)
    return chosen, {why: len(people) for why, people in left_out.items()}


def _why_not(pair: Pair, trained: Sequence[str], holdout: Holdout | None) -> str:
    if trained and not _among(pair.dataset, trained):
        return ""
    if holdout is None:
        return "of a data set that it was trained on; its spec does not say who was held out"
    return _WHY_NOT[holdout.split_of(pair.person)]


_WHY_NOT: dict[Split, str] = {
    "train": "of its training split",
    "val": "of its calibration split",
    "test": "",
}


def _among(dataset: str, trained: Sequence[str]) -> bool:
    """Whether a data set was trained on, however its name is written."""
    return spelling(dataset) in {spelling(name) for name in trained}


def _unseen_words(spec: ModelSpec, chosen: Sequence[Pair]) -> str:
    trained = spec.provenance.datasets
    names = sorted({pair.dataset for pair in chosen})
    new = [name for name in names if trained and not _among(name, trained)]
    old = [name for name in names if name not in new]
    parts = [f"all people of {', '.join(new)}, never trained on"] if new else []
    if old:
        test = _split_words(holdout_of(spec), "test")
        parts.append(f"people of {', '.join(old)} of {test}, never trained on")
    return "; ".join(parts)


def _split_words(holdout: Holdout, split: Split) -> str:
    shares = {"val": holdout.val, "test": holdout.test}
    shares["train"] = 1 - sum(shares.values())
    return (
        f"the {split} split ({shares[split]:.3g} of them, by a hash of the identity, "
        f"seed {holdout.seed})"
    )


def _acquaintances(spec: ModelSpec, pairs: Sequence[Pair]) -> tuple[set[str], set[str]]:
    """Return the people who were trained on, and those of whom the spec does not tell."""
    trained, holdout = spec.provenance.datasets, _holdout(spec)
    known: set[str] = set()
    maybe: set[str] = set()
    for pair in pairs:
        foreign = bool(trained) and not _among(pair.dataset, trained)
        held_out = holdout is not None and holdout.split_of(pair.person) != "train"
        if not foreign and not held_out:
            (known if trained else maybe).add(pair.person)
    return known, maybe


def _seen_words(chosen: Sequence[Pair], known: set[str], maybe: set[str]) -> str:
    total = len({pair.person for pair in chosen})
    if known:
        return "trained on" if len(known) == total else f"{len(known)} of {total} TRAINED ON"
    if maybe:
        return f"{len(maybe)} of {total} unknown to it by the user's word alone"
    return "never trained on"


def _warning(spec: ModelSpec, known: set[str], maybe: set[str]) -> str:
    if known:
        return f"{spec.name} was trained on {len(known)} of these people: no measure of its worth"
    if maybe:
        return (
            f"the spec of {spec.name} does not tell whether {len(maybe)} of these people were "
            "trained on; if they were, the scores are no measure of its worth"
        )
    return ""
