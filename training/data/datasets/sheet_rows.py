"""Rows of an annotation sheet → clips."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from training.data.datasets.annotation import Table
from training.data.datasets.clips import Clip, Dropped, Listing

__all__ = ["Named", "list_rows"]


@dataclass(frozen=True, slots=True)
class Named:
    """Whose clip a row is, what it is called, and where its frames lie."""

    subject: str
    clip: str
    folder: Path | None
    sought: str
    """The folder's name, as messages tell it."""


def list_rows(
    dataset: str, path: Path, table: Table, name: Callable[[Mapping[str, str]], Named | None]
) -> Listing:
    """Make a clip of every row; one that `name` cannot tell the clip of is dropped.

    The table's fields are subject, clip, onset, apex, offset and label.
    """
    listing = Listing([])
    for row in table.rows:
        place = f"{path.name} row {row.number}"
        cells = row.cells
        named = name(cells)
        if named is None:
            why = f"subject {cells['subject']!r} and file name {cells['clip']!r} name no clip"
            listing.dropped.append(Dropped(place, why, dataset))
            continue
        listing.clips.append(
            Clip(
                dataset=dataset,
                subject=named.subject,
                clip=named.clip,
                label=cells["label"].casefold(),
                where=f"{place} ({named.sought})",
                folder=named.folder,
                sought=named.sought,
                onset=cells["onset"],
                apex=cells["apex"],
                offset=cells["offset"],
            )
        )
    return listing
