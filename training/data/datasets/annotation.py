"""Annotation files as they are handed out: workbooks with preambles and blank columns, and CSVs."""

import contextlib
import csv
import fnmatch
import itertools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import openpyxl
from openpyxl.utils.exceptions import InvalidFileException

from training.data.datasets.frames import folders_in

if TYPE_CHECKING:
    from openpyxl.workbook import Workbook

__all__ = ["NO_ENTRY", "Row", "Table", "find_annotation", "read_csv", "read_sheet", "whole_number"]

NO_ENTRY = frozenset({"", "/", "\\", "-", "–", "?", "n/a", "na", "nan", "none", "null"})
"""What stands, in small letters, in a cell that says nothing; CASME II has "/"."""
_HEADER_ROWS = 40
"""Rows in which a header is looked for: SAMM's stands below 13 rows of preamble."""
_SEARCH_DEPTH = 2
_NO_WORKBOOK = (InvalidFileException, zipfile.BadZipFile, zlib.error, KeyError, SyntaxError)
"""What openpyxl raises over a file of another kind; a SyntaxError is one of XML."""
_WHOLE = re.compile(r"([+-]?[0-9]+)(\.0*)?")


@dataclass(frozen=True, slots=True)
class Row:
    """One row under a header: its number as the spreadsheet shows it, and its cells by field."""

    number: int
    cells: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a sheet, and a note on where they were found."""

    rows: Sequence[Row]
    note: str


def whole_number(text: str) -> int | None:
    """Return the whole number that a cell holds ("46", "46.0"), None when it holds none."""
    match = _WHOLE.fullmatch(text)
    return int(match[1]) if match else None


def find_annotation(root: Path, pattern: str, given: Path | None = None) -> Path:
    """Return the annotation file: the given one, or the one in the root or little below it.

    `pattern` is a file name with wildcards; capitals do not matter, and a lock file of an open
    spreadsheet (`~$…`) is none. Raises: FileNotFoundError; ValueError naming several candidates.
    """
    if given is not None:
        if not given.is_file():
            raise FileNotFoundError(f"there is no annotation file {given}")
        return given
    found = [path for path in _files(root, _SEARCH_DEPTH) if _matches(path, pattern)]
    if not found:
        raise FileNotFoundError(f"{root} holds no annotation file {pattern}")
    if len(found) > 1:
        named = " and ".join(map(str, found))
        raise ValueError(f"the annotation may be {named}: say which one is meant")
    return found[0]


def _matches(path: Path, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path.name.casefold(), pattern.casefold())


def _files(folder: Path, depth: int) -> Iterable[Path]:
    yield from sorted(path for path in folder.iterdir() if path.is_file())
    if depth:
        for below in folders_in(folder):
            yield from _files(below, depth - 1)


def read_sheet(path: Path, columns: Mapping[str, str], sheet: str) -> Table:
    """Read the rows below the header of a sheet, each field from the column of its header.

    `columns` maps field → header; spaces, capitals and punctuation of a header do not matter, nor
    do blank columns and rows or whatever stands above it. Cells come as text, an empty one as "".
    If there is no sheet of that name, the only one with such a header is read. Raises: OSError;
    ValueError naming the file and what it lacks.
    """
    sheets = _sheets(path)
    named = {name: rows for name, rows in sheets.items() if name.casefold() == sheet.casefold()}
    name, header = _headed_sheet(path, named or sheets, columns)
    rows = [
        Row(number, {field: _cell(cells, place) for field, place in header.places.items()})
        for number, cells in enumerate(sheets[name], start=1)
        if number > header.row
    ]
    filled = [row for row in rows if any(row.cells.values())]
    if not filled:
        raise ValueError(f"{path.name}, sheet {name}, has no row below its header")
    return Table(filled, f"annotation {path}, sheet {name}, header in row {header.row}")


def _sheets(path: Path) -> dict[str, list[list[str]]]:
    with warnings.catch_warnings():
        # It warns of validation rules and styles that it does not know; cells are unharmed.
        warnings.filterwarnings("ignore", module="openpyxl")
        try:
            with contextlib.closing(
                openpyxl.load_workbook(path, read_only=True, data_only=True)
            ) as book:
                return _texts(book)
        except _NO_WORKBOOK:
            raise ValueError(
                f"{path.name} is no .xlsx workbook; open an older one in a spreadsheet program "
                "and save it as .xlsx"
            ) from None


def _texts(book: "Workbook") -> dict[str, list[list[str]]]:
    texts = {}
    for sheet in book.worksheets:
        # Some programs write a wrong extent, and only the cells inside it would be read.
        sheet.reset_dimensions()
        texts[sheet.title] = [
            [_text(value) for value in row] for row in sheet.iter_rows(values_only=True)
        ]
    return texts


def _text(value: object) -> str:
    return "" if value is None else " ".join(str(value).split())


@dataclass(frozen=True, slots=True)
class _Header:
    row: int
    places: Mapping[str, int]
    missing: Sequence[str]


def _header(rows: Sequence[Sequence[str]], columns: Mapping[str, str]) -> _Header:
    """Return the row that has most of the columns, the first of equals."""
    best = _Header(0, {}, list(columns.values()))
    for number, cells in enumerate(itertools.islice(rows, _HEADER_ROWS), start=1):
        titles = [_plain(cell) for cell in cells]
        places = {
            field: titles.index(_plain(title))
            for field, title in columns.items()
            if _plain(title) in titles
        }
        missing = [title for field, title in columns.items() if field not in places]
        if len(missing) < len(best.missing):
            best = _Header(number, places, missing)
    return best


def _plain(title: str) -> str:
    return "".join(letter for letter in title.casefold() if letter.isalnum())


def _headed_sheet(
    path: Path, sheets: Mapping[str, Sequence[Sequence[str]]], columns: Mapping[str, str]
) -> tuple[str, _Header]:
    headers = [(name, _header(rows, columns)) for name, rows in sheets.items()]
    usable = [(name, header) for name, header in headers if not header.missing]
    if len(usable) > 1:
        named = " and ".join(name for name, _header in usable)
        raise ValueError(f"{path.name}: the columns looked for are in sheets {named}")
    if usable:
        return usable[0]
    name, header = min(headers, key=lambda found: len(found[1].missing))
    raise ValueError(
        f"{path.name}, sheet {name}, has no column {', '.join(header.missing)} in its first "
        f"{_HEADER_ROWS} rows"
    )


def _cell(cells: Sequence[str], place: int) -> str:
    return cells[place] if place < len(cells) else ""


def read_csv(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows of a CSV that are not blank, each with its line number; cells stripped.

    Raises: FileNotFoundError; ValueError when the file is no text.
    """
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write the mark
            reader = csv.reader(file)
            for cells in reader:
                stripped = [cell.strip() for cell in cells]
                if any(stripped):
                    rows.append((reader.line_num, stripped))
    except (UnicodeDecodeError, csv.Error):
        raise ValueError(f"{path.name} is no CSV in UTF-8") from None
    return rows
