import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from service.tables import Row, check_format, write_table

COLUMNS = {"file": str, "frame": int, "share": float, "abstained": bool}
ROWS: list[dict[str, object]] = [
    {"file": 'a, "b".mp4', "frame": 3, "share": 0.25, "abstained": True},
    {"file": "ü\n", "frame": None, "share": None, "abstained": False},
    {"file": "c"},
]
FULL = [{name: row.get(name) for name in COLUMNS} for row in ROWS]


def read_csv(path: Path) -> list[dict[str, object]]:
    kinds: dict[str, Callable[[str], object]] = {
        **COLUMNS,
        "abstained": {"true": True, "false": False}.__getitem__,
    }
    with path.open(newline="") as file:
        return [
            {name: kinds[name](text) if text else None for name, text in line.items()}
            for line in csv.DictReader(file)
        ]


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_parquet(path: Path) -> list[dict[str, object]]:
    return list(parquet.read_table(path).to_pylist())


READERS = {".csv": read_csv, ".jsonl": read_lines, ".parquet": read_parquet}


@pytest.mark.parametrize("suffix", READERS)
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"results{suffix}"
    assert write_table(out, COLUMNS, ROWS) == 3
    assert READERS[suffix](out) == FULL
    assert list(tmp_path.iterdir()) == [out]


@given(st.lists(st.fixed_dictionaries({"file": st.text(), "share": st.none() | st.floats(0, 1)})))
def test_parquet_keeps_any_text_and_number(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    out = tmp_path_factory.mktemp("any") / "results.parquet"
    write_table(out, {"file": str, "share": float}, rows)
    assert read_parquet(out) == rows


def test_an_empty_table_has_its_columns_and_their_types(tmp_path: Path) -> None:
    out = tmp_path / "results.parquet"
    write_table(out, COLUMNS, [])
    schema = parquet.read_schema(out)
    assert schema.names == list(COLUMNS)
    assert [str(schema.field(name).type) for name in COLUMNS] == [
        "string",
        "int64",
        "double",
        "bool",
    ]


@pytest.mark.parametrize("suffix", READERS)
def test_a_table_that_fails_leaves_the_old_one(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"results{suffix}"
    write_table(out, COLUMNS, ROWS[:1])

    def failing() -> Iterator[Row]:
        yield ROWS[1]
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_table(out, COLUMNS, failing())
    assert READERS[suffix](out) == FULL[:1]
    assert list(tmp_path.iterdir()) == [out]


def test_a_format_that_nobody_writes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"results\.xlsx must end in \.parquet, \.csv, \.jsonl"):
        check_format(Path("results.xlsx"))


def test_without_pyarrow_parquet_says_what_to_install_and_csv_works(tmp_path: Path) -> None:
    """In a process of its own, where the package cannot be imported."""
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from service.tables import MissingExtra, check_format, write_table\n"
        f"write_table(Path({str(tmp_path / 'r.csv')!r}), {{'file': str}}, [])\n"
        "try: check_format(Path('r.parquet'))\n"
        "except MissingExtra as error: print(error)\n"
    )
    done = subprocess.run(  # noqa: S603 - this file's own code
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "pip install 'mfdan[offline]'" in done.stdout
