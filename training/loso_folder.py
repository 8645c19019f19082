"""The folder of one method of a run: what lies where, and whether it may be gone on with.

RUN/<method>/ run.json                              what the run is, written before any fold
             folds/seed-<s>/<fold>.json             one finished fold; written last
             folds/seed-<s>/<fold>.attention.npz    of the same fold: one array for each clip
             work/seed-<s>/<fold>/                  a fold in training; gone once it is finished
             tensorboard/seed-<s>/<fold>/           its curves, for TensorBoard
             predictions.csv, scores.json           once all folds are there
             oracle.csv                             likewise, with --oracle-epoch only
"""

import fcntl
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from training.config import METHODS
from training.files import write_atomically, write_text_atomically

__all__ = ["RUN_NOTE", "MethodFolder", "file_name", "locked", "methods_in"]

RUN_NOTE = "run.json"
_FREE_FIELDS = frozenset(
    (
        *("checkpoint_every", "evaluate_every", "evaluate_pairs", "loader_workers"),
        *("seed", "seeds", "split_seed", "val_fraction", "test_fraction"),
        *("pairs", "init"),  # their contents are compared, not where they lie
    )
)
"""Fields of the config that change nothing in a fold, or that are compared by what they lead to."""
_COMPARED = {
    "protocol": "protocol",
    "classes": "order of classes",
    "rows_sha256": "set of clips (their names, classes, motion or prepared pictures)",
    "preprocessing_key": "preprocessing",
    "init_sha256": "content of init",
    "tune": "--tune",
    "oracle_epoch": "--oracle-epoch",
}
"""Entry of `run.json` that is fixed → how a person calls it."""
_SHARED = ("protocol", "classes", "rows_sha256", "preprocessing_key")
"""What the methods of one run have in common, or they could not be compared."""
_LONGEST_NAME = 120


def file_name(fold: str) -> str:
    """Return a name for a fold's files that any file system takes, whatever the subject's name.

    All but letters, digits and `_.-~` of ASCII is percent-encoded; a name that becomes too long is
    cut and told apart by a hash.
    """
    name = quote(fold, safe="")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 17]}-{hashlib.sha256(fold.encode()).hexdigest()[:16]}"
    return name


def methods_in(out: Path) -> list[str]:
    """Return the methods that a run's folder holds, begun or finished, the network first."""
    return [method for method in METHODS if (out / method / RUN_NOTE).is_file()]


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep a run's folder to this process. Raises: ValueError if another one is at work there."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another `mfdan-train loso` is at work in {out}") from None
        yield


@dataclass(frozen=True, slots=True)
class MethodFolder:
    """Names, reads and writes the files of one method."""

    root: Path

    @property
    def predictions(self) -> Path:
        """The table of all folds' predictions."""
        return self.root / "predictions.csv"

    @property
    def oracle(self) -> Path:
        """The same of each fold's best epoch."""
        return self.root / "oracle.csv"

    @property
    def scores(self) -> Path:
        """The scores of `predictions`."""
        return self.root / "scores.json"

    def fold(self, seed: int, name: str) -> Path:
        """Return the file of a finished fold."""
        return self.root / "folds" / f"seed-{seed}" / f"{file_name(name)}.json"

    def work(self, seed: int, name: str) -> Path:
        """Return the folder of a fold in training."""
        return self.root / "work" / f"seed-{seed}" / file_name(name)

    def events(self, seed: int, name: str) -> Path:
        """Return the folder of a fold's curves."""
        return self.root / "tensorboard" / f"seed-{seed}" / file_name(name)

    def finished(self, seed: int, name: str) -> bool:
        """Whether a fold is done."""
        return self.fold(seed, name).is_file()

    def write_fold(
        self, note: Mapping[str, Any], attention: Mapping[str, NDArray[np.float16]]
    ) -> None:
        """Write a finished fold, its attention maps first, and drop its work."""
        seed, name = note["seed"], note["fold"]
        path = self.fold(seed, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if attention:
            content = io.BytesIO()  # np.savez would add ".npz" to a temporary name
            np.savez_compressed(content, allow_pickle=False, **attention)
            maps = path.with_name(f"{file_name(name)}.attention.npz")
            write_atomically(maps, lambda temporary: temporary.write_bytes(content.getbuffer()))
        write_text_atomically(path, json.dumps(note, allow_nan=False) + "\n")
        shutil.rmtree(self.work(seed, name), ignore_errors=True)

    def read_fold(self, seed: int, name: str) -> dict[str, Any]:
        """Read a finished fold. Raises: FileNotFoundError, ValueError naming a damaged file."""
        return _read(self.fold(seed, name))

    def read_note(self) -> dict[str, Any] | None:
        """Read `run.json`; None where the method has not begun. Raises: ValueError."""
        path = self.root / RUN_NOTE
        return _read(path) if path.is_file() else None

    def check(self, note: Mapping[str, Any]) -> None:
        """Raise ValueError naming what differs if the folder was begun with another `run.json`."""
        begun = self.read_note()
        if begun is not None:
            differing = _differences(begun, note)
            if differing:
                raise ValueError(
                    f"{self.root} was begun with another {', '.join(differing)}; "
                    "choose another --out"
                )
        for method in methods_in(self.root.parent):
            sibling = MethodFolder(self.root.parent / method).read_note() or {}
            differing = [_COMPARED[key] for key in _SHARED if sibling.get(key) != note[key]]
            if differing:
                raise ValueError(
                    f"{self.root.parent} holds {method} with another {', '.join(differing)}; "
                    "choose another --out"
                )

    def claim(self, note: Mapping[str, Any]) -> list[str]:
        """Write `run.json`, or go on with the one that is there; `check` comes first.

        Commit, versions and device stay those of the beginning; returns which of them differ now.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        begun = self.read_note()
        origin = {key: {**note, **(begun or {})}[key] for key in ("commit", "versions", "device")}
        now = {**note, **origin}
        if begun != now:
            text = json.dumps(now, indent=2, ensure_ascii=False) + "\n"
            write_text_atomically(self.root / RUN_NOTE, text)
        for left in self.root.glob("**/.*.tmp"):  # of a killed process
            left.unlink(missing_ok=True)
        return [key for key, value in origin.items() if value != note[key]]

    def drop_work(self) -> None:
        """Remove what is left of the folds in training, once all are finished."""
        shutil.rmtree(self.root / "work", ignore_errors=True)

    def withdraw_results(self) -> None:
        """Remove the tables, which are of fewer folds than will be there."""
        for path in (self.predictions, self.oracle, self.scores):
            path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path} is damaged: delete it, and run the same command again") from None
    return document


def _differences(begun: Mapping[str, Any], note: Mapping[str, Any]) -> list[str]:
    old, new = begun.get("config", {}), note["config"]
    fields = [
        name
        for name in {**old, **new}
        if name not in _FREE_FIELDS and old.get(name) != new.get(name)
    ]
    return fields + [name for key, name in _COMPARED.items() if begun.get(key) != note[key]]
