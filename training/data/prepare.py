"""Pairs folder → prepared arrays: the slow part of preprocessing, done once.

A prepared folder holds shards of a few dozen pairs. Shard 7 is `7.onset.npy` (n, S, S, 3) uint8,
`7.flow.npy` (n, 2, S, S) float16 and, written last, `7.json` with its rows; a shard without its
JSON does not exist. Face, alignment, flow and rigid motion come from `model.pipeline`, the code
that serves.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model.decode import decode_image
from model.errors import InputError
from model.pipeline import AlignedPair, Motion, Preprocessor
from model.spec import ModelSpec
from training.data.pairs import Pair, read_pairs
from training.files import write_atomically, write_text_atomically

__all__ = ["Prepared", "PreparedRow", "prepare", "prepared_folder"]

SHARD_PAIRS = 64


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """One prepared pair and where its arrays lie."""

    pair: Pair
    motion: Motion
    shard: int
    position: int


def prepared_folder(pairs: Path, spec: ModelSpec) -> Path:
    """Return where the prepared arrays of a pairs folder lie for a spec."""
    return pairs / f"prepared-{spec.preprocessing_key()}"


def prepare(
    pairs: Path,
    spec: ModelSpec,
    *,
    workers: int = 0,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> "Prepared":
    """Prepare what is not yet prepared; interrupted, it goes on where it stopped.

    `workers` processes share the work, one for each core when 0; `report` hears how many pairs
    are done, of how many. Pairs whose pictures cannot be read or show no face are left out and
    named in `Prepared.dropped`. Raises: FileNotFoundError, ValueError.
    """
    folder = prepared_folder(pairs, spec)
    rows = read_pairs(pairs)
    folder.mkdir(exist_ok=True)
    shards = [
        _Shard(folder, number, tuple(rows[start : start + SHARD_PAIRS]))
        for number, start in enumerate(range(0, len(rows), SHARD_PAIRS))
    ]
    todo = [shard for shard in shards if shard.read_index() is None]
    done = len(rows) - sum(len(shard.rows) for shard in todo)
    report(done, len(rows))
    if todo:
        # Spawned, not forked: a forked child would inherit the locks of this process's threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            min(workers or os.cpu_count() or 1, len(todo)), context, _start_worker
        ) as pool:
            jobs = {
                pool.submit(_prepare_shard, shard, pairs, spec.to_json()): shard for shard in todo
            }
            try:
                for job in as_completed(jobs):
                    job.result()
                    done += len(jobs[job].rows)
                    report(done, len(rows))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return Prepared(shards)


@dataclass(frozen=True, slots=True)
class _Shard:
    folder: Path
    number: int
    rows: tuple[Pair, ...]

    def path(self, kind: str) -> Path:
        return self.folder / f"{self.number}.{kind}"

    @property
    def digest(self) -> str:
        """Tells a shard of these rows from one left by an earlier pairs.csv."""
        return hashlib.sha256(repr(self.rows).encode()).hexdigest()[:16]

    def read_index(self) -> dict[str, Any] | None:
        """Return the shard's JSON, or None when it must be made."""
        path = self.path("json")
        if not path.is_file():
            return None
        index: dict[str, Any] = json.loads(path.read_text())
        return index if index["digest"] == self.digest else None


class Prepared:
    """The prepared pairs of one folder; arrays are read from disk as they are asked for."""

    def __init__(self, shards: list[_Shard]) -> None:
        self.rows: list[PreparedRow] = []
        self.dropped: dict[str, str] = {}
        """`person/clip` of a pair that was left out → why."""
        self._shards = {shard.number: shard for shard in shards}
        for shard in shards:
            index = shard.read_index()
            if index is None:
                raise ValueError(f"shard {shard.number} of {shard.folder} is not prepared")
            self.dropped |= index["dropped"]
            self.rows += [
                PreparedRow(Pair(**row["pair"]), Motion(**row["motion"]), shard.number, position)
                for position, row in enumerate(index["rows"])
            ]

    def arrays(self, row: PreparedRow) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return the aligned onset (S, S, 3) and the residual flow (2, S, S) of a pair."""
        shard = self._shards[row.shard]
        # Mapped anew for each pair, which takes next to nothing: kept open, the shards of a large
        # folder would exhaust the process's files.
        onset, flow = (
            np.load(shard.path(kind), mmap_mode="r")[row.position]
            for kind in ("onset.npy", "flow.npy")
        )
        return np.array(onset, np.uint8), np.array(flow, np.float32)


def _start_worker() -> None:
    cv2.setNumThreads(1)  # there is a process for each core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business


@functools.cache
def _preprocessor(spec_json: str) -> Preprocessor:
    return Preprocessor(ModelSpec.from_json(spec_json))


def _prepare_shard(shard: _Shard, pairs: Path, spec_json: str) -> None:
    preprocessor = _preprocessor(spec_json)
    kept: list[tuple[Pair, AlignedPair]] = []
    dropped: dict[str, str] = {}
    for pair in shard.rows:
        try:
            onset, apex = (
                decode_image((pairs / name).read_bytes()) for name in (pair.onset, pair.apex)
            )
            faces = preprocessor.align_pair(onset, apex)
        except (InputError, FileNotFoundError) as error:
            dropped[f"{pair.person}/{pair.clip}"] = str(error)
            continue
        if faces:
            kept.append((pair, faces[0]))
        else:
            dropped[f"{pair.person}/{pair.clip}"] = "no face was found"
    size = preprocessor.spec.input_size
    onsets = np.empty((len(kept), size, size, 3), np.uint8)
    flows = np.empty((len(kept), 2, size, size), np.float16)
    for position, (_pair, face) in enumerate(kept):
        onsets[position], flows[position] = face.onset, face.flow
    _save_array(shard.path("onset.npy"), onsets)
    _save_array(shard.path("flow.npy"), flows)
    index = {
        "digest": shard.digest,
        "rows": [{"pair": asdict(pair), "motion": asdict(face.motion)} for pair, face in kept],
        "dropped": dropped,
    }
    write_text_atomically(shard.path("json"), json.dumps(index))


def _save_array(path: Path, array: NDArray[Any]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # np.save would add ".npy" to a name
            np.save(file, array)

    write_atomically(path, write)
