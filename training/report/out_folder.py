"""The folder of a report: there whole, or as it was."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PAGE", "replaced_folder"]

PAGE = "index.html"
_MARK = '<meta name="generator" content="mfdan-train report">'
"""In every page of ours: only a folder with such a page, and pictures, is ever replaced."""
_MARK_WITHIN = 1000


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """Give a new folder to fill, which then takes the place of `out`; after a fault, nothing.

    Raises: ValueError if `out` holds anything but an earlier report.
    """
    _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    building, old = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    building.mkdir()
    try:
        yield building
        if out.exists():
            out.rename(old)
        try:
            building.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()}
    strange = sorted(name for name in names if name != PAGE and not name.endswith(".png"))
    if names and (strange or PAGE not in names or _MARK not in _beginning(out / PAGE)):
        what = f" ({strange[0]})" if strange else ""
        raise ValueError(
            f"{out} holds something other than an earlier report{what}; give another --out"
        )


def _beginning(page: Path) -> str:
    with page.open(encoding="utf-8", errors="replace") as file:
        return file.read(_MARK_WITHIN)
