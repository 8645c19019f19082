"""Tiny trees in the layouts of the licensed data sets: blank pictures, made-up annotations."""

import csv
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import openpyxl
from PIL import Image

CASME2_FILE = "CASME2-coding-20140508.xlsx"
SAMM_FILE = "SAMM_Micro_FACS_Codes_v2.xlsx"
CASME3_FILE = "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx"
COMPOSITE_FILE = "combined_3class_gt.csv"

Cells = Sequence[object]


def write_sheet(path: Path, sheet: str, rows: Iterable[Cells]) -> Path:
    book = openpyxl.Workbook()
    page = book.worksheets[0]
    page.title = sheet
    for row in rows:
        page.append(list(row))
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path


def spoil_extent(path: Path) -> None:
    """Have every sheet of a workbook say that it is one cell large, as some programs write it."""
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    with zipfile.ZipFile(path, "w") as book:
        for name, part in parts.items():
            book.writestr(name, re.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1"', part))


def write_csv(path: Path, rows: Iterable[Cells]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def write_frames(folder: Path, numbers: Iterable[int], name: str = "{}.jpg") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.new("L", (8, 6), number % 256).save(folder / name.format(number))
    return folder


@dataclass
class Casme2:
    """`sub01/EP02_01f/img46.jpg`, and Sheet1 with its two blank columns."""

    root: Path
    rows: list[Cells] = field(default_factory=list)
    frames: Path | None = None
    """Where the people's folders lie, if not in the root."""

    def add(  # noqa: PLR0913 - the columns of a row
        self,
        *,
        subject: object = 1,
        clip: str = "EP02_01f",
        onset: object = 46,
        apex: object = 59,
        offset: object = 86,
        emotion: object = "happiness",
    ) -> None:
        self.rows.append([subject, clip, None, onset, apex, offset, None, "12", emotion])

    def draw(self, folder: str = "sub01/EP02_01f", numbers: Iterable[int] = range(46, 87)) -> None:
        write_frames((self.frames or self.root) / folder, numbers, "img{}.jpg")

    def write(self, name: str = CASME2_FILE) -> Path:
        header = ["Subject", "Filename", None, "OnsetFrame", "ApexFrame", "OffsetFrame", None]
        header += ["Action Units", "Estimated Emotion"]
        write_sheet(self.root / name, "Sheet1", [header, *self.rows])
        return self.root


@dataclass
class Samm:
    """`006/006_1_2/006_05562.jpg`, and sheet MICRO_ONLY with its preamble."""

    root: Path
    rows: list[Cells] = field(default_factory=list)

    def add(  # noqa: PLR0913 - the columns of a row
        self,
        *,
        subject: object = "006",
        clip: str = "006_1_2",
        onset: object = 5562,
        apex: object = 5588,
        offset: object = 5632,
        emotion: object = "Anger",
    ) -> None:
        row = [subject, clip, 1, onset, apex, offset, 71, "Micro", "4+7", emotion, 2, None]
        self.rows.append(row)

    def draw(
        self,
        folder: str = "006/006_1_2",
        numbers: Iterable[int] = (5562, 5588, 5632),
        name: str = "006_{:05}.jpg",
    ) -> None:
        write_frames(self.root / folder, numbers, name)

    def write(self, sheet: str = "MICRO_ONLY") -> Path:
        preamble = [["A title"], ["Subject to a licence"], *([None],) * 10, ["Key", "1 to 7"]]
        header = ["Subject", "Filename", "Inducement Code", "Onset Frame", "Apex Frame"]
        header += ["Offset Frame", "Duration", "Micro", "Action Units", "Estimated Emotion"]
        header += ["Objective Classes", "Notes"]
        write_sheet(self.root / SAMM_FILE, sheet, [*preamble, header, *self.rows])
        return self.root


def draw_smic(
    root: Path,
    folder: str = "HS/s1/micro/negative/s1_ne_01",
    numbers: Iterable[int] = range(94, 105),
    name: str = "image{:06}.bmp",
) -> Path:
    write_frames(root / folder, numbers, name)
    return root


@dataclass
class Casme3:
    """`spNO.1/b/color/175.jpg`, and sheet label."""

    root: Path
    rows: list[Cells] = field(default_factory=list)

    def add(  # noqa: PLR0913 - the columns of a row
        self,
        *,
        subject: object = "spNO.1",
        letter: str = "b",
        onset: object = 175,
        apex: object = 180,
        offset: object = 187,
        emotion: object = "disgust",
    ) -> None:
        self.rows.append([subject, letter, onset, apex, offset, "4", "1", emotion])

    def draw(
        self, folder: str = "spNO.1/b/color", numbers: Iterable[int] = (175, 180, 187)
    ) -> None:
        write_frames(self.root / folder, numbers)

    def write(self) -> Path:
        header = ["Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class"]
        write_sheet(self.root / CASME3_FILE, "label", [[*header, "emotion"], *self.rows])
        return self.root


def write_composite(root: Path, lines: Iterable[Cells]) -> Path:
    """Write the three members with a clip each, and the list of `lines`."""
    casme2, samm = Casme2(root / "casme2"), Samm(root / "samm")
    casme2.add()
    casme2.draw()
    casme2.write()
    samm.add()
    samm.draw()
    samm.write()
    draw_smic(root / "smic")
    write_csv(root / COMPOSITE_FILE, lines)
    return root
