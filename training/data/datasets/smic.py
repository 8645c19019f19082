"""SMIC-HS: 100 frames a second, 640x480; clips in `HS/sNN/micro/<emotion>/<clip>/`, no sheet."""

import re
from collections.abc import Iterator
from pathlib import Path

from training.data.datasets.clips import Clip, Dataset, Dropped, Listing
from training.data.datasets.frames import (
    child,
    choose_tree,
    find_trees,
    folders_in,
    people_in,
    read_frames,
)

__all__ = ["SMIC"]

_NAME = "smic"
_PERSON = re.compile(r"s([0-9]+)", re.IGNORECASE)
_RAW = re.compile(r"(image|img)?[0-9]+", re.IGNORECASE)
"""How a raw frame is named; a cropped and registered one is `reg_image000046`."""
_CLIP = re.compile(r"s([0-9]+)_([a-z]+)_([0-9]+)", re.IGNORECASE)


def _list_clips(root: Path, annotation: Path | None) -> Listing:
    """List the clips of the folder HS, each from its first frame to its last.

    Traps: no apex is annotated, so the middle frame stands in for it unless a list gives a better
    one; ids come as `s1_ne_01` and as `s01_ne_01`, and are named `s01` and `s01_ne_01` here; the
    folders VIS and NIR hold clips of the same names, and `non_micro` clips without an expression.
    """
    if annotation is not None:
        raise ValueError("SMIC has no annotation file: its emotions are the names of folders")
    trees = [tree for tree in find_trees(root, _PERSON) if _is_hs(tree.folder, root)]
    layout = "HS/s01/micro/negative/s01_ne_01"
    tree, choice = choose_tree(trees, root, layout=layout, raw=_RAW)
    listing = Listing([], notes=[choice, "subjects and clips are named s01, s01_ne_01, …"])
    for number, folder in sorted(people_in(tree, _PERSON).items()):
        for path in _clip_folders(folder):
            _add(listing, f"s{number:02}", path, tree)
    if not listing.clips:
        raise FileNotFoundError(f"{tree} holds no clips in folders like {layout}")
    return listing


def _is_hs(folder: Path, root: Path) -> bool:
    name = folder.name.casefold()
    return name == "hs" or (folder == root and name not in {"vis", "nir"})


def _clip_folders(person: Path) -> Iterator[Path]:
    micro = child(person, "micro")
    for emotion in folders_in(micro) if micro else []:
        yield from folders_in(emotion)


def _add(listing: Listing, subject: str, folder: Path, tree: Path) -> None:
    sought = folder.relative_to(tree).as_posix()
    where = f"{tree.name}/{sought}"
    numbers = list(read_frames(folder).names)
    if not numbers:
        listing.dropped.append(Dropped(where, "it holds no numbered picture", _NAME))
        return
    listing.clips.append(
        Clip(
            dataset=_NAME,
            subject=subject,
            clip=_clip_name(folder.name),
            label=folder.parent.name.casefold(),
            where=where,
            folder=folder,
            sought=sought,
            onset=str(numbers[0]),
            apex="",
            offset=str(numbers[-1]),
        )
    )


def _clip_name(name: str) -> str:
    match = _CLIP.fullmatch(name)
    return f"s{int(match[1]):02}_{match[2].lower()}_{int(match[3]):02}" if match else name


SMIC = Dataset(name=_NAME, title="SMIC-HS", list_clips=_list_clips, always_middle=True)
