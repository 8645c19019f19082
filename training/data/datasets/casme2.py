"""CASME II: 200 frames a second, 640x480; frames in `subNN/EPxx_yy/imgN.jpg`, one Excel sheet."""

import re
from collections.abc import Mapping
from pathlib import Path

from training.data.datasets.annotation import find_annotation, read_sheet, whole_number
from training.data.datasets.clips import Dataset, Listing
from training.data.datasets.frames import child, choose_tree, find_trees, people_in
from training.data.datasets.sheet_rows import Named, list_rows

__all__ = ["CASME2"]

_NAME = "casme2"
_PERSON = re.compile(r"sub([0-9]+)", re.IGNORECASE)
_RAW = re.compile(r"img[0-9]+", re.IGNORECASE)
"""How a raw frame is named; a cropped and registered one is `reg_img46`."""
_COLUMNS = {
    "subject": "Subject",
    "clip": "Filename",
    "onset": "OnsetFrame",
    "apex": "ApexFrame",
    "offset": "OffsetFrame",
    "label": "Estimated Emotion",
}


def _list_clips(root: Path, annotation: Path | None) -> Listing:
    """List the rows of `CASME2-coding-*.xlsx`.

    Traps: blank columns between the named ones; apexes that are "/"; subjects that are numbers
    where their folders are `sub01`; up to three trees of one layout, of which the raw frames are
    taken and not the cropped ones or the videos.
    """
    path = find_annotation(root, "CASME2-coding*.xlsx", annotation)
    table = read_sheet(path, _COLUMNS, "Sheet1")
    trees = find_trees(root, _PERSON)
    tree, choice = choose_tree(trees, root, layout="sub01/EP02_01f/img46.jpg", raw=_RAW)
    people = people_in(tree, _PERSON)

    def name(cells: Mapping[str, str]) -> Named | None:
        subject, clip = whole_number(re.sub(r"(?i)^sub", "", cells["subject"])), cells["clip"]
        if subject is None or not clip:
            return None
        folder = child(people.get(subject), clip)
        return Named(f"{subject:02}", clip, folder, f"sub{subject:02}/{clip}")

    listing = list_rows(_NAME, path, table, name)
    listing.notes.extend([table.note, choice, "subjects are named 01, 02, …"])
    return listing


CASME2 = Dataset(name=_NAME, title="CASME II", list_clips=_list_clips)
