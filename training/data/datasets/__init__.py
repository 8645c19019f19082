"""Loaders of licensed data sets, from the folders and annotations that their owners hand out."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from training.data.datasets.casme2 import CASME2
from training.data.datasets.casme3 import CASME3
from training.data.datasets.clips import Dataset, Dropped, Loaded, MissingApex, settle
from training.data.datasets.composite import COMPOSITE
from training.data.datasets.samm import SAMM
from training.data.datasets.smic import SMIC

__all__ = [
    "DATASETS",
    "Dataset",
    "Dropped",
    "Loaded",
    "MissingApex",
    "Summary",
    "load_dataset",
    "summary",
]

DATASETS: Mapping[str, Dataset] = MappingProxyType(
    {dataset.name: dataset for dataset in (CASME2, SAMM, SMIC, CASME3, COMPOSITE)}
)
"""The data sets by the name that `load_dataset` takes."""


def load_dataset(
    name: str,
    root: Path,
    *,
    annotation: Path | None = None,
    apexes: Path | None = None,
    missing_apex: MissingApex = "drop",
) -> Loaded:
    """Load a data set from the folder it was unpacked into.

    `annotation` is its annotation file, where it does not lie in `root`; the composite's is
    `combined_3class_gt.csv`, SMIC has none. `apexes` is a CSV with
    the columns `clip,apex`, the clip with or without its subject ("s01_ne_01", "01/EP02_01f"),
    the apex a frame number as in the file's name; it overrules the annotation. A clip without an
    apex is dropped or, with "middle", takes its middle frame; SMIC and the composite always do.
    Only that pictures exist is checked, not what is in them.

    Raises: FileNotFoundError, NotADirectoryError or ValueError, naming the file and what was
    expected of it, for a fault of the whole. A fault of one row drops that row, with its reason.
    """
    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(DATASETS)}")
    root = root.expanduser().resolve()
    if not root.is_dir():
        fault = NotADirectoryError if root.exists() else FileNotFoundError
        raise fault(f"the root {root} is no folder")
    dataset = DATASETS[name]
    loaded = settle(
        dataset.list_clips(root, annotation),
        missing_apex="middle" if dataset.always_middle else missing_apex,
        apexes=apexes,
        longest=dataset.longest,
    )
    loaded.notes.extend(dataset.check(loaded.pairs))
    return loaded


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of a summary: what was loaded of one data set."""

    dataset: str
    clips: int
    people: int
    labels: Mapping[str, int]
    """Label → clips, the most frequent first."""
    dropped: int


def summary(loaded: Loaded) -> list[Summary]:
    """Count what was loaded, a row for each data set; the composite has three."""
    dropped = Counter(row.dataset for row in loaded.dropped)
    rows = []
    for dataset in dict.fromkeys([*(pair.dataset for pair in loaded.pairs), *dropped]):
        own = [pair for pair in loaded.pairs if pair.dataset == dataset]
        people = {pair.person for pair in own}
        labels = dict(Counter(pair.label for pair in own).most_common())
        rows.append(Summary(dataset, len(own), len(people), labels, dropped[dataset]))
    return rows
