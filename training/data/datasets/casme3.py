"""CAS(ME)³ part A: 30 frames a second; frames in `spNO.1/b/color/175.jpg`, one Excel sheet."""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from training.data.datasets.annotation import find_annotation, read_sheet, whole_number
from training.data.datasets.clips import Dataset, Listing
from training.data.datasets.frames import (
    Tree,
    child,
    choose_tree,
    find_trees,
    folders_in,
    people_in,
)
from training.data.datasets.sheet_rows import Named, list_rows

__all__ = ["CASME3", "LONGEST_CLIP"]

LONGEST_CLIP = 120
"""Frames from onset to offset, 4 s: no expression is longer, a broken row has thousands. Ours."""
_NAME = "casme3"
_PERSON = re.compile(r"sp\s*no\.?\s*([0-9]+)", re.IGNORECASE)
_CLIP = re.compile(r"sp\s*no\.?\s*([0-9]+)_([a-z])_([0-9]+)", re.IGNORECASE)
"""A folder of the cut edition: subject, letter and onset."""
_LAYOUT = "spNO.1/b/color/175.jpg or spNO.1_b_175/175.jpg"
_FolderOf = Callable[[int, str, str], Path | None]
"""Subject, letter and onset → the folder of the frames."""
_COLUMNS = {
    "subject": "Subject",
    "clip": "Filename",
    "onset": "Onset",
    "apex": "Apex",
    "offset": "Offset",
    "label": "emotion",
}


def _list_clips(root: Path, annotation: Path | None) -> Listing:
    """List the rows of `cas(me)3_part_A_ME_label_JpgIndex*.xlsx`.

    Traps: one (subject, letter) is a recording that holds several clips, so a clip is named for
    its onset too: `b_175`; depth pictures stand beside the colour ones under the same names; rows
    of more than `LONGEST_CLIP` frames are broken; the label says `spNO.1` where a folder may say
    `spNo.1`. Both editions are read: whole recordings, `spNO.1/b/color/175.jpg`, and the cut
    one, `frame/spNO.1_b_175/175.jpg`.
    """
    path = find_annotation(root, "cas(me)3_part_A_ME_label_JpgIndex*.xlsx", annotation)
    table = read_sheet(path, _COLUMNS, "label")
    folder_of, choice = _frames(root)

    def name(cells: Mapping[str, str]) -> Named | None:
        person, letter = _PERSON.fullmatch(cells["subject"]), cells["clip"].lower()
        if not person or not letter:
            return None
        number, onset = int(person[1]), whole_number(cells["onset"])
        start = cells["onset"] if onset is None else str(onset)
        clip = f"{letter}_{start}"
        folder = folder_of(number, letter, start)
        return Named(f"spNO.{number}", clip, folder, f"spNO.{number}/{clip}")

    listing = list_rows(_NAME, path, table, name)
    listing.notes.extend([table.note, choice, "a clip is named for its letter and onset: b_175"])
    return listing


def _frames(root: Path) -> tuple[_FolderOf, str]:
    whole = [tree for tree in find_trees(root, _PERSON) if _is_meant(tree, root)]
    if whole:
        tree, choice = choose_tree(whole, root, layout=_LAYOUT)
        return _whole_recordings(people_in(tree, _PERSON)), choice
    cut = [tree for tree in find_trees(root, _CLIP) if _is_meant(tree, root)]
    tree, choice = choose_tree(cut, root, layout=_LAYOUT)
    return _cut_clips(tree), choice


def _is_meant(tree: Tree, root: Path) -> bool:
    """Whether a tree is neither of depth pictures nor of macro-expressions."""
    parts = tree.folder.relative_to(root).parts
    return not any(part.casefold() == "depth" or "MaE" in part for part in parts)


def _whole_recordings(people: Mapping[int, Path]) -> _FolderOf:
    @functools.cache
    def recording(number: int, letter: str) -> Path | None:
        folder = child(people.get(number), letter)
        return child(folder, "color")

    return lambda number, letter, _onset: recording(number, letter)


def _cut_clips(tree: Path) -> _FolderOf:
    folders = {
        (int(match[1]), match[2].lower(), match[3].lstrip("0") or "0"): folder
        for folder in folders_in(tree)
        if (match := _CLIP.fullmatch(folder.name))
    }
    return lambda number, letter, onset: folders.get((number, letter, onset))


CASME3 = Dataset(name=_NAME, title="CAS(ME)³ part A", list_clips=_list_clips, longest=LONGEST_CLIP)
