"""From clips as annotated to rows of a manifest: each has its two pictures, or a reason to miss."""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from training.data.datasets.annotation import NO_ENTRY, read_csv, whole_number
from training.data.datasets.frames import Frames, read_frames
from training.data.pairs import Pair

__all__ = ["Clip", "Dataset", "Dropped", "Listing", "Loaded", "MissingApex", "loose", "settle"]

MissingApex = Literal["drop", "middle"]
"""What becomes of a clip without an apex: it is dropped, or its middle frame is taken."""
_NAMED = 5
"""Clips that a note names; the rest are counted."""
_Given = Mapping[str, int]
"""Clip's key → apex frame from a list."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A clip that was left out."""

    where: str
    """File, row and clip: "CASME2-coding-20140508.xlsx row 17 (sub04/EP12_01f)"."""
    why: str
    dataset: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a loader found."""

    pairs: list[Pair]
    """In the order of the annotation; pictures by absolute path, labels as annotated, in small
    letters."""
    dropped: list[Dropped]
    notes: list[str]
    """What was decided on the way, for people to check."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A clip as its annotation has it, before its frames are looked up."""

    dataset: str
    subject: str
    clip: str
    label: str
    where: str
    folder: Path | None
    """Where its frames lie; None if that folder is absent."""
    sought: str
    """The folder's name, as messages tell it."""
    onset: str
    apex: str
    offset: str

    @property
    def key(self) -> str:
        """As the key of its `Pair`."""
        return f"{self.dataset}/{self.subject}/{self.clip}"


@dataclass(frozen=True, slots=True)
class Listing:
    """The clips of a data set as annotated."""

    clips: list[Clip]
    dropped: list[Dropped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A data set that can be loaded."""

    name: str
    title: str
    list_clips: Callable[[Path, Path | None], Listing]
    """Root and, if it is given, the annotation file → the clips."""
    always_middle: bool = False
    """Whether a clip without an apex takes its middle frame whatever the user asks."""
    longest: int | None = None
    """Most frames from onset to offset of a row that is not broken."""
    check: Callable[[Sequence[Pair]], list[str]] = lambda _pairs: []
    """Notes on what was loaded as a whole."""


def settle(
    listing: Listing,
    *,
    missing_apex: MissingApex,
    apexes: Path | None = None,
    longest: int | None = None,
) -> Loaded:
    """Find the two pictures of every clip; a clip without them is dropped with its reason.

    `apexes` is a CSV `clip,apex` that overrules the annotation. Raises: OSError; ValueError naming
    the line of that CSV that is wrong.
    """
    given = _read_apexes(apexes, listing.clips) if apexes else {}
    frames_of = functools.cache(read_frames)  # CAS(ME)3 has many clips in one folder
    loaded = Loaded([], list(listing.dropped), list(listing.notes))
    first: dict[str, Clip] = {}
    middle: list[Clip] = []
    for clip in listing.clips:
        try:
            pair, is_middle = _pair(clip, frames_of, given, missing_apex, longest)
        except _RowFault as fault:
            loaded.dropped.append(Dropped(clip.where, str(fault), clip.dataset))
            continue
        if pair.key in first:
            why = _duplicate(first[pair.key], clip)
            loaded.dropped.append(Dropped(clip.where, why, clip.dataset))
            continue
        first[pair.key] = clip
        loaded.pairs.append(pair)
        middle += [clip] if is_middle else []
    if apexes:
        loaded.notes.append(f"{apexes.name} gives the apex of {_clips(len(given))}")
    loaded.notes.extend(_middle_notes(middle))
    return loaded


class _RowFault(Exception):
    """Why one row is dropped."""


def _pair(
    clip: Clip,
    frames_of: Callable[[Path], Frames],
    given: _Given,
    missing_apex: MissingApex,
    longest: int | None,
) -> tuple[Pair, bool]:
    if clip.label in NO_ENTRY:
        raise _RowFault("no emotion is annotated")
    if clip.folder is None:
        raise _RowFault(f"there is no folder {clip.sought}")
    onset, apex = _number(clip.onset, "onset"), given.get(clip.key)
    if onset is None:
        raise _RowFault("no onset is annotated")
    offset = _number(clip.offset, "offset")
    if apex is None:
        apex = _number(clip.apex, "apex")
        if apex is not None and apex <= 0 < onset:
            apex = None  # 0 and -1 stand for "not annotated" in some hands
    _check_length(onset, apex if offset is None else offset, longest)
    frames = frames_of(clip.folder)
    is_middle = apex is None
    try:
        if apex is None:
            apex = _middle(frames, onset, offset, missing_apex)
        _check_order(onset, apex, offset)
        pictures = frames.file(onset), frames.file(apex)
    except ValueError as fault:
        raise _RowFault(str(fault)) from None
    pair = Pair(
        dataset=clip.dataset,
        subject=clip.subject,
        clip=clip.clip,
        label=clip.label,
        onset=str(pictures[0]),
        apex=str(pictures[1]),
    )
    return pair, is_middle


def _number(text: str, what: str) -> int | None:
    if text.casefold() in NO_ENTRY:
        return None
    number = whole_number(text)
    if number is None:
        raise _RowFault(f"its {what} {text!r} is no whole number")
    return number


def _check_length(onset: int, end: int | None, longest: int | None) -> None:
    if longest is not None and end is not None and end - onset > longest:
        raise _RowFault(
            f"it lasts {end - onset} frames, {onset} to {end}; a row of more than {longest} "
            "is broken"
        )


def _middle(frames: Frames, onset: int, offset: int | None, missing_apex: MissingApex) -> int:
    if missing_apex == "drop":
        raise ValueError("no apex is annotated")
    if offset is None:
        raise ValueError("neither apex nor offset is annotated, so it has no middle frame")
    return frames.middle(onset, offset)


def _check_order(onset: int, apex: int, offset: int | None) -> None:
    if onset >= apex:
        raise ValueError(f"its apex {apex} does not come after its onset {onset}")
    if offset is not None and apex > offset:
        raise ValueError(f"its apex {apex} lies beyond its offset {offset}")


def _duplicate(first: Clip, clip: Clip) -> str:
    labels = "" if first.label == clip.label else f", as {first.label} and not {clip.label}"
    return f"it is the same clip as {first.where}{labels}"


def _middle_notes(clips: Sequence[Clip]) -> list[str]:
    by_dataset: dict[str, list[str]] = defaultdict(list)
    for clip in clips:
        by_dataset[clip.dataset].append(clip.key)
    return [
        f"{_clips(len(keys))} of {dataset} without an apex: the middle frame is taken ("
        + ", ".join(keys[:_NAMED])
        + (", …)" if len(keys) > _NAMED else ")")
        for dataset, keys in by_dataset.items()
    ]


def _clips(count: int) -> str:
    return f"{count} clip{'' if count == 1 else 's'}"


def loose(name: str) -> str:
    """Return a name in which spellings of one clip agree.

    Capitals, zeros before a number and the "sub" of CASME II's folders do not count: `s1_ne_01`
    is `s01_ne_01`, `sub04/EP12_01f` is `4/EP12_01f`.
    """
    parts = name.casefold().split("/")
    bare = [re.sub(r"^sub(?=[0-9])", "", part) for part in parts]
    return re.sub(r"0*([0-9]+)", r"\1", "/".join(bare))


def _read_apexes(path: Path, clips: Sequence[Clip]) -> _Given:
    rows = read_csv(path)
    header = [title.casefold() for title in rows[0][1]] if rows else []
    if not {"clip", "apex"} <= {*header}:
        raise ValueError(f"{path.name} has no header with the columns clip and apex")
    keys = _keys_by_name(clips)
    given: dict[str, int] = {}
    for line, cells in rows[1:]:
        place = f"{path.name}, line {line}"
        if len(cells) < len(header):
            raise ValueError(f"{place}: the row is cut short")
        name = cells[header.index("clip")]
        apex = whole_number(cells[header.index("apex")])
        if apex is None:
            raise ValueError(f"{place}: the apex of {name!r} is no whole number")
        key = _only_key(name, keys.get(loose(name), {}), place)
        if key in given:
            raise ValueError(f"{place}: {name} stands there twice")
        given[key] = apex
    return given


def _keys_by_name(clips: Sequence[Clip]) -> Mapping[str, Mapping[str, None]]:
    """Return name → the keys of clips that it may mean: a clip's own, with subject, data set."""
    keys: dict[str, dict[str, None]] = defaultdict(dict)
    for clip in clips:
        for name in (clip.clip, f"{clip.subject}/{clip.clip}", clip.key):
            keys[loose(name)][clip.key] = None
    return keys


def _only_key(name: str, keys: Mapping[str, None], place: str) -> str:
    if not keys:
        raise ValueError(f"{place}: there is no clip {name!r}")
    if len(keys) > 1:
        raise ValueError(
            f"{place}: {name!r} may be {' or '.join(list(keys)[:_NAMED])}: write subject/clip"
        )
    return next(iter(keys))
