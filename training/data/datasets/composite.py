"""The MEGC2019 composite: clips of SMIC-HS, CASME II and SAMM under three common classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.data.datasets.annotation import find_annotation, read_csv
from training.data.datasets.casme2 import CASME2
from training.data.datasets.clips import Clip, Dataset, Dropped, Listing, loose
from training.data.datasets.frames import folders_in
from training.data.datasets.samm import SAMM
from training.data.datasets.smic import SMIC
from training.data.pairs import Pair

__all__ = ["COMPOSITE", "PUBLISHED", "check_counts"]

_CLASSES = {"0": "negative", "1": "positive", "2": "surprise"}
_MEMBERS = {
    "casme2": CASME2,
    "casmeii": CASME2,
    "samm": SAMM,
    "smic": SMIC,
    "smichs": SMIC,
}
"""A name's letters and digits, in small letters → the data set."""
_CELLS = 4
_NAMED = 5
PUBLISHED = {"smic": (70, 51, 43, 16), "casme2": (88, 32, 25, 24), "samm": (92, 26, 15, 28)}
"""Negative, positive and surprise clips, and people, as the challenge counted them: 442 clips of 68
people. Source: See et al., "MEGC 2019", FG 2019."""
_COMMON = {
    "happiness": "positive",
    **dict.fromkeys(("anger", "contempt", "disgust", "fear", "repression", "sadness"), "negative"),
}
"""A member's own emotion → the class it counts as."""


@dataclass(frozen=True, slots=True)
class _Line:
    where: str
    member: Dataset
    name: str
    """Of the clip with its subject, as `loose` leaves it."""
    label: str


def _list_clips(root: Path, annotation: Path | None) -> Listing:
    """List the clips of `combined_3class_gt.csv`, found in the members' own annotations.

    The root holds folders or links `casme2`, `samm` and `smic`. Traps: the CSV has no header;
    its SAMM subjects are integers, its CASME II ones `sub01`; SMIC's ids come in two forms. The
    composite needs all its clips, so one without an annotated apex takes its middle frame.
    """
    path = find_annotation(root, "combined_3class_gt*.csv", annotation)
    lines = _read_lines(path)
    folders = _member_folders(root)
    listing = Listing([], notes=[f"annotation {path}"])
    known: dict[str, Mapping[str, Clip]] = {}
    for member in {line.member.name: line.member for line in lines}.values():
        if member.name not in folders:
            raise FileNotFoundError(
                f"{root} holds no folder {member.name}, of which {path.name} lists clips"
            )
        own = member.list_clips(folders[member.name], None)
        # The first of two rows of one clip is the one to keep.
        known[member.name] = {_name(clip.subject, clip.clip): clip for clip in own.clips[::-1]}
        listing.notes.extend(f"{member.name}: {note}" for note in own.notes)
    contradicted = []
    for line in lines:
        clip = known[line.member.name].get(line.name)
        if clip is None:
            why = f"{line.member.title} has no such clip"
            listing.dropped.append(Dropped(line.where, why, line.member.name))
            continue
        if _COMMON.get(clip.label, clip.label) != line.label:
            contradicted.append(f"{line.where} is {line.label}, {clip.where} is {clip.label}")
        listing.clips.append(replace(clip, label=line.label, where=line.where))
    if contradicted:
        listing.notes.append(_contradiction(contradicted))
    return listing


def _read_lines(path: Path) -> list[_Line]:
    rows = read_csv(path)
    if not rows:
        raise ValueError(f"{path.name} is empty")
    return [_line(f"{path.name} row {number}", cells) for number, cells in rows]


def _line(place: str, cells: Sequence[str]) -> _Line:
    if len(cells) != _CELLS:
        raise ValueError(f"{place} has {len(cells)} cells, not dataset, subject, clip, label")
    dataset, subject, clip, label = cells
    member = _MEMBERS.get(_plain(dataset))
    if member is None:
        raise ValueError(f"{place}: {dataset!r} is none of CASME II, SAMM and SMIC")
    if label not in _CLASSES:
        raise ValueError(f"{place}: label {label!r} is none of 0, 1, 2")
    where = f"{place} ({member.name}/{subject}/{clip})"
    return _Line(where, member, _name(subject, clip), _CLASSES[label])


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _name(subject: str, clip: str) -> str:
    return loose(f"{subject}/{clip}")


def _member_folders(root: Path) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for folder in folders_in(root):
        member = _MEMBERS.get(_plain(folder.name))
        if member and member.name in folders:
            raise ValueError(f"{folders[member.name]} and {folder} are both of {member.title}")
        if member:
            folders[member.name] = folder
    return folders


def _contradiction(cases: Sequence[str]) -> str:
    more = f"; and {len(cases) - _NAMED} more" if len(cases) > _NAMED else ""
    return "labels differ from the emotion annotated: " + "; ".join(cases[:_NAMED]) + more


def check_counts(pairs: Sequence[Pair]) -> list[str]:
    """Return a note for each member whose clips or people are not as many as published."""
    notes = []
    for member, published in PUBLISHED.items():
        own = [pair for pair in pairs if pair.dataset == member]
        labels = Counter(pair.label for pair in own)
        people = len({pair.person for pair in own})
        found = (*(labels[label] for label in _CLASSES.values()), people)
        if found != published:
            notes.append(f"{member}: {_counts(found)}; published: {_counts(published)}")
    return notes


def _counts(counts: Sequence[int]) -> str:
    negative, positive, surprise, people = counts
    return f"{negative} negative, {positive} positive, {surprise} surprise of {people} people"


COMPOSITE = Dataset(
    name="composite",
    title="MEGC2019 composite",
    list_clips=_list_clips,
    always_middle=True,
    check=check_counts,
)
