"""SAMM: 200 frames a second, grey; frames in `006/006_1_2/006_05562.jpg`, an Excel workbook."""

import re
from collections.abc import Mapping
from pathlib import Path

from training.data.datasets.annotation import find_annotation, read_sheet, whole_number
from training.data.datasets.clips import Dataset, Listing
from training.data.datasets.frames import child, choose_tree, find_trees, people_in
from training.data.datasets.sheet_rows import Named, list_rows

__all__ = ["SAMM"]

_NAME = "samm"
_PERSON = re.compile(r"([0-9]{1,3})")
_COLUMNS = {
    "subject": "Subject",
    "clip": "Filename",
    "onset": "Onset Frame",
    "apex": "Apex Frame",
    "offset": "Offset Frame",
    "label": "Estimated Emotion",
}


def _list_clips(root: Path, annotation: Path | None) -> Listing:
    """List the rows of sheet MICRO_ONLY of `SAMM_Micro_FACS_Codes*.xlsx`.

    Traps: thirteen rows of preamble above the header; subjects are strings ("006") that a
    spreadsheet may have made numbers of; frame numbers run through the whole recording, padded.
    """
    path = find_annotation(root, "SAMM_Micro_FACS_Codes*.xlsx", annotation)
    table = read_sheet(path, _COLUMNS, "MICRO_ONLY")
    trees = find_trees(root, _PERSON)
    tree, choice = choose_tree(trees, root, layout="006/006_1_2/006_05562.jpg")
    people = people_in(tree, _PERSON)

    def name(cells: Mapping[str, str]) -> Named | None:
        subject, clip = whole_number(cells["subject"]), cells["clip"]
        if subject is None or not clip:
            return None
        folder = child(people.get(subject), clip)
        return Named(f"{subject:03}", clip, folder, f"{subject:03}/{clip}")

    listing = list_rows(_NAME, path, table, name)
    listing.notes.extend([table.note, choice, "subjects are named 006, 007, …"])
    return listing


SAMM = Dataset(name=_NAME, title="SAMM", list_clips=_list_clips)
