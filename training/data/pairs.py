"""A manifest: the CSV that lists labelled clips; and who is held out.

A row names a clip by `dataset,subject,clip`, its `label`, and where its two frames come from: the
columns `onset,apex` (pictures), or `image,flow` (ready-made inputs), or neither, and then `clip` is
a video file. Paths are relative to the CSV's folder, or absolute. Other columns are passed over.
"""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from training.files import write_text_atomically

__all__ = [
    "NOTHING",
    "PAIRS_FILE",
    "SYNTH_NOTE",
    "Holdout",
    "Kind",
    "Pair",
    "Split",
    "manifest_path",
    "read_pairs",
    "write_pairs",
]

PAIRS_FILE = "pairs.csv"
"""Name of the manifest in a folder that `synth` or `prepare --dataset` made."""
SYNTH_NOTE = "synth.json"
"""What `mfdan-train synth` made a pairs folder with, beside its `pairs.csv`."""
NOTHING = "none"
"""Label of a pair in which no expression happens."""
Split = Literal["train", "val", "test"]
Kind = Literal["frames", "ready", "video"]
_NAMES = ("dataset", "subject", "clip", "label")
_SOURCES = ("onset", "apex", "image", "flow")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One row of a manifest. Raises: ValueError for a name left empty or half a source."""

    dataset: str
    subject: str
    clip: str
    label: str
    onset: str = ""
    apex: str = ""
    image: str = ""
    """A picture of an aligned face, any size, to go with `flow`."""
    flow: str = ""
    """Ready-made flow: a picture of u, v and strain, or an `.npy` in pixels."""

    def __post_init__(self) -> None:
        """Refuse what names no clip or no source."""
        empty = [name for name in _NAMES if not getattr(self, name)]
        if empty:
            raise ValueError(f"{', '.join(empty)} is empty")
        for one, other in (("onset", "apex"), ("image", "flow")):
            if bool(getattr(self, one)) != bool(getattr(self, other)):
                raise ValueError(f"{self.key}: {one} and {other} go together")
        if self.onset and self.image:
            raise ValueError(f"{self.key}: give onset and apex, or image and flow, not both")

    @property
    def person(self) -> str:
        """Who it is: the subject's name alone may recur across data sets."""
        return f"{self.dataset}/{self.subject}"

    @property
    def key(self) -> str:
        """The clip's own name; no other row of a manifest has it."""
        return f"{self.person}/{self.clip}"

    @property
    def kind(self) -> Kind:
        """Where the two frames come from."""
        if self.onset:
            return "frames"
        return "ready" if self.image else "video"

    @property
    def files(self) -> tuple[str, ...]:
        """The files of this row, as it names them."""
        sources = {
            "frames": (self.onset, self.apex),
            "ready": (self.image, self.flow),
            "video": (self.clip,),
        }
        return sources[self.kind]


def manifest_path(path: Path) -> Path:
    """Return the CSV that is meant: the path itself, or `pairs.csv` in a folder."""
    return path / PAIRS_FILE if path.is_dir() else path


def read_pairs(path: Path) -> list[Pair]:
    """Read a manifest, or the one in a folder.

    Raises: FileNotFoundError; ValueError naming the column or line that is wrong, or a clip that
    stands there twice.
    """
    path = manifest_path(path)
    pairs: list[Pair] = []
    lines: dict[str, int] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write the mark
        reader = csv.DictReader(file)
        missing = [name for name in _NAMES if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path.name} has no column {', '.join(missing)}")
        for row in reader:
            pair = _pair(row, f"{path.name}, line {reader.line_num}")
            if pair.key in lines:
                raise ValueError(
                    f"{path.name}, line {reader.line_num}: {pair.key} is in line "
                    f"{lines[pair.key]} already"
                )
            lines[pair.key] = reader.line_num
            pairs.append(pair)
    return pairs


def _pair(row: Mapping[str, str | None], place: str) -> Pair:
    if None in row.values():
        raise ValueError(f"{place}: the row is cut short")
    fields = {name: (row.get(name) or "").strip() for name in (*_NAMES, *_SOURCES)}
    try:
        return Pair(**fields)
    except ValueError as fault:
        raise ValueError(f"{place}: {fault}") from None


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write a manifest that `read_pairs` reads."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, (*_NAMES, *_SOURCES), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(pair) for pair in pairs)
    write_text_atomically(path, text.getvalue())


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
