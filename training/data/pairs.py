"""A manifest: the CSV that lists labelled clips; and who is held out.

A row names a clip by `dataset,subject,clip`, its `label`, and where its two frames come from: the
columns `onset,apex` (pictures), or `image,flow` (ready-made inputs: `training/data/ready.py`), or
neither, and then `clip` is a video file (`training/data/video.py`). Paths are relative to the
CSV's folder, or absolute. Other columns are passed over.
"""

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from training.files import write_atomically

__all__ = [
    "NOTHING",
    "PAIRS_FILE",
    "SYNTH_NOTE",
    "Holdout",
    "Kind",
    "Line",
    "Pair",
    "Split",
    "manifest_path",
    "read_lines",
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
    """One row of a manifest. Raises: ValueError for a bad name or half a source."""

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
        for name in ("dataset", "subject"):
            if "/" in getattr(self, name):  # two people could then share one name
                raise ValueError(f"{name} {getattr(self, name)!r} must not hold a slash")
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


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a manifest as it stands there, good or not."""

    number: int
    """Of its last line in the file, counted from 1, as an editor shows it."""
    clip: str
    """What the row says it is, `dataset/subject/clip`, as far as it says so."""
    pair: Pair | None
    fault: str = ""
    """Why there is no pair."""


def read_pairs(path: Path) -> list[Pair]:
    """Read a manifest, or the one in a folder; `training.data.validate` names every fault of it.

    Raises: FileNotFoundError; ValueError naming the column or line that is wrong, or a clip that
    stands there twice.
    """
    pairs: list[Pair] = []
    for line in read_lines(path):
        if line.pair is None:
            raise ValueError(f"{manifest_path(path).name}, line {line.number}: {line.fault}")
        pairs.append(line.pair)
    return pairs


def read_lines(path: Path) -> Iterator[Line]:
    """Yield each row of a manifest, or of the one in a folder, with its fault if it has one.

    Raises: FileNotFoundError; ValueError for a missing column and for what is no CSV in UTF-8.
    """
    path = manifest_path(path)
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write the mark
        reader = csv.DictReader(file, restkey=_SURPLUS)
        try:
            missing = [name for name in _NAMES if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"{path.name} has no column {', '.join(missing)}")
            yield from _lines(reader)
        except UnicodeDecodeError:
            raise ValueError(
                f"{path.name} is not in UTF-8 (somewhere after line {reader.line_num})"
            ) from None
        except csv.Error as fault:
            raise ValueError(f"{path.name}, after line {reader.line_num}: {fault}") from None


_SURPLUS = "\n"
"""Key of the fields beyond the header's: no column is called so."""


def _lines(reader: "csv.DictReader[str]") -> Iterator[Line]:
    seen: dict[str, int] = {}
    for row in reader:
        number = reader.line_num
        fields = {name: (row.get(name) or "").strip() for name in (*_NAMES, *_SOURCES)}
        name = "/".join(fields[part] for part in ("dataset", "subject", "clip"))
        try:
            pair = _pair(row, fields)
        except ValueError as fault:
            yield Line(number, name, None, str(fault))
            continue
        first = seen.setdefault(pair.key, number)
        if first == number:
            yield Line(number, name, pair)
        else:
            yield Line(number, name, None, f"{pair.key} is in line {first} already")


def _pair(row: Mapping[str, str | list[str] | None], fields: Mapping[str, str]) -> Pair:
    if None in row.values():
        raise ValueError("the row is cut short")
    if _SURPLUS in row:
        raise ValueError("the row has more fields than there are columns (quote a comma)")
    return Pair(**fields)


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write a manifest that `read_pairs` reads."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, (*_NAMES, *_SOURCES), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(pair) for pair in pairs)
    data = text.getvalue().encode()  # UTF-8, whatever this machine's locale writes
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


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
