"""A pairs folder: `pairs.csv` and the pictures it names; and who is held out."""

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["NOTHING", "PAIRS_FILE", "SYNTH_NOTE", "Holdout", "Pair", "Split", "read_pairs"]

PAIRS_FILE = "pairs.csv"
SYNTH_NOTE = "synth.json"
"""What `mfdan-train synth` made a pairs folder with, beside its `pairs.csv`."""
NOTHING = "none"
"""Label of a pair in which no expression happens."""
Split = Literal["train", "val", "test"]
_COLUMNS = ("dataset", "subject", "clip", "label", "onset", "apex")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One row of `pairs.csv`; the two paths are relative to the folder."""

    dataset: str
    subject: str
    clip: str
    label: str
    onset: str
    apex: str

    @property
    def person(self) -> str:
        """Who it is: the subject's name alone may recur across data sets."""
        return f"{self.dataset}/{self.subject}"


def read_pairs(folder: Path) -> list[Pair]:
    """Read the rows of a pairs folder. Raises: FileNotFoundError, ValueError (columns missing)."""
    with (folder / PAIRS_FILE).open(newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{PAIRS_FILE} has no column {', '.join(missing)}")
        return [_pair(row, reader.line_num) for row in reader]


def _pair(row: Mapping[str, str | None], line: int) -> Pair:
    fields = {name: value for name in _COLUMNS if (value := row[name]) is not None}
    if len(fields) < len(_COLUMNS):
        raise ValueError(f"line {line} of {PAIRS_FILE} is cut short")
    return Pair(**fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class Holdout:
    """Who is kept from training: shares of the identities, and the seed of the hash."""

    seed: int
    val: float
    test: float

    def split_of(self, person: str) -> Split:
        """Say which split a person belongs to: fixed whatever else is in the data."""
        digest = hashlib.sha256(f"{self.seed}:{person}".encode()).digest()
        place = int.from_bytes(digest[:8]) / 2**64
        if place < self.test:
            return "test"
        return "val" if place < self.test + self.val else "train"
