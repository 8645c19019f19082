"""Rows of results → Parquet, CSV or JSON lines, written whole or not at all."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from service.files import replacing

__all__ = ["FORMATS", "Columns", "MissingExtra", "Row", "check_format", "write_table"]

Row: TypeAlias = Mapping[str, object]
Columns: TypeAlias = Mapping[str, type]
"""Name → str, int, float or bool, in order; every value may also be missing."""

_ROWS_PER_GROUP = 10_000


class MissingExtra(Exception):
    """A package that serving does not need is not installed."""


def check_format(out: Path) -> None:
    """Refuse a file of results that could not be written. Raises: ValueError, MissingExtra."""
    if out.suffix not in FORMATS:
        raise ValueError(f"{out.name} must end in {', '.join(FORMATS)}")
    if out.suffix == ".parquet":
        _pyarrow()


def write_table(out: Path, columns: Columns, rows: Iterable[Row]) -> int:
    """Write rows of these columns as the file's name asks; return how many there were.

    What was at `out` is replaced at once, or stays when writing fails. Missing values are empty in
    CSV and null elsewhere; CSV writes true and false. Raises: as `check_format`, OSError.
    """
    check_format(out)
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            yield {name: row.get(name) for name in columns}

    with replacing(out) as temporary:
        FORMATS[out.suffix](temporary, columns, counted())
    return count


def _write_csv(path: Path, columns: Columns, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([_cell(value) for value in row.values()] for row in rows)


def _cell(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


def _write_json_lines(path: Path, _columns: Columns, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_parquet(path: Path, columns: Columns, rows: Iterable[Row]) -> None:
    pa, parquet = _pyarrow()
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    with parquet.ParquetWriter(path, schema) as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema))


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield lists of rows; one at least, so that an empty table has its columns."""
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if len(group) == _ROWS_PER_GROUP:
            yield group
            group = []
    yield group


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - for those only who ask for Parquet
        from pyarrow import parquet  # noqa: PLC0415 - likewise
    except ImportError:
        raise MissingExtra(
            "Parquet needs a package that is not installed: pip install 'mfdan[offline]', "
            "or write .csv or .jsonl"
        ) from None
    return pa, parquet


FORMATS: dict[str, Callable[[Path, Columns, Iterable[Row]], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
}
