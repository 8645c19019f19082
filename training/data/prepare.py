"""Manifest → prepared arrays: the slow part of preprocessing, done once.

A prepared folder lies beside its manifest and holds shards of a few pairs, each named by a digest
of its rows, of their files' sizes and times and, with videos, of how their frames are chosen:
`DIGEST.onset.npy` (n, S, S, 3) uint8, `DIGEST.flow.npy` (n, 2, S, S) float16 and, written last,
`DIGEST.json` with its rows; a shard without its JSON does not exist. Where a shard ends is read
from its rows' keys, not from their numbers, so a row that comes, goes or changes disturbs its own
shard and not all that follow.
`prepare` deletes the shards that the manifest no longer lists: a face that was taken out of it
does not stay on disk. Face, alignment, flow and rigid motion come from `model.pipeline`, the code
that serves; `training.data.sources` reads each kind of row.
"""

import functools
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.movement import Motion
from model.pipeline import MEASURES_VERSION, AlignedPair, Preprocessor
from model.quality import Quality
from model.solver import open_solver
from model.spec import ModelSpec
from training.data.pairs import Pair, manifest_path, read_pairs
from training.data.processes import in_processes
from training.data.ready import ReadyPair
from training.data.sources import UNUSABLE, align_row, read_ready
from training.data.video import method_digest
from training.files import write_atomically

__all__ = ["Prepared", "PreparedRow", "open_prepared", "prepare", "prepared_folder"]

SHARD_PAIRS = 16
"""About so many in the mean, twice as many at most.

Few, so that a small set keeps many cores busy and little is lost when a run is killed.
"""
_SHARD_FILE = re.compile(
    r"(\.)?(?P<shard>[0-9a-f]{16}|[0-9]+)\.(?:onset\.npy|flow\.npy|json)(?(1)\.[0-9]+\.tmp)"
)
"""A shard's file, or the temporary file of one (`training.files`); shards once had numbers."""
_NO_FACE = "no face was found"


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """One prepared pair and where its arrays lie."""

    pair: Pair
    motion: Motion
    """All NaN where nobody knows how far the face moved (`training.data.ready`)."""
    shard: str
    """Its digest."""
    position: int
    quality: Quality | None = None
    """None where no live picture was measured."""


def prepared_folder(manifest: Path, spec: ModelSpec) -> Path:
    """Return where the prepared arrays of a manifest (or the one in a folder) lie for a spec."""
    path = manifest_path(manifest)
    return path.parent / f"{_prefix(path)}{spec.preprocessing_key()}"


def _prefix(manifest: Path) -> str:
    return f"prepared-{manifest.stem}-"


def prepare(
    manifest: Path,
    spec: ModelSpec,
    *,
    workers: int = 0,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> "Prepared":
    """Prepare what is not yet prepared; interrupted, it goes on where it stopped.

    `workers` processes share the work, one for each core when 0; `report` hears how many pairs
    are done, of how many. Rows whose files are missing, cannot be read or show no face are left
    out and named in `Prepared.dropped`; once a file is put right, its shard is prepared again.
    When all is prepared, the files of shards that the manifest no longer lists are deleted from
    the folder, and no others. So do not call it after a change while a training reads the folder.
    Raises: FileNotFoundError, ValueError for a bad manifest; OSError naming what cannot be
    written, which leaves every finished shard as it is, or what cannot be deleted; ModelError
    where something is to be prepared and this machine does not have the spec's flow backend.
    """
    shards = _shards(manifest, spec)
    todo = [shard for shard in shards if shard.read_index() is None]
    if todo:
        open_solver(spec, spec.flow_backends[0])  # before any process is started for nothing
    folder = prepared_folder(manifest, spec)
    if shards:
        folder.mkdir(exist_ok=True)
    total = sum(len(shard.rows) for shard in shards)
    done = total - sum(len(shard.rows) for shard in todo)
    report(done, total)
    work = functools.partial(_prepare_shard, spec_json=spec.to_json())
    for shard, _ in in_processes(work, todo, workers):
        done += len(shard.rows)
        report(done, total)
    prepared = Prepared(shards)
    _delete_unlisted(folder, {shard.digest for shard in shards})
    return prepared


def _delete_unlisted(folder: Path, listed: set[str]) -> None:
    if not folder.is_dir():
        return  # an empty manifest, never prepared
    for path in sorted(folder.iterdir()):
        found = _SHARD_FILE.fullmatch(path.name)
        if found and found["shard"] not in listed:
            path.unlink(missing_ok=True)


def open_prepared(manifest: Path, spec: ModelSpec) -> "Prepared":
    """Open what `prepare` made, for those that must not prepare: many processes at once.

    Nothing is written or deleted.
    Raises: FileNotFoundError; ValueError if it was prepared for other specs only, or a row is not
    prepared, or its files changed since.
    """
    path = manifest_path(manifest)
    shards = _shards(path, spec)
    command = f"run `mfdan-train prepare {path}` with this config"
    if shards and not shards[0].folder.is_dir():
        keys = [folder.name for folder in path.parent.glob(f"{_prefix(path)}*")]
        found = [key.removeprefix(_prefix(path)) for key in sorted(keys)]
        others = f" (it is for {', '.join(found)}: another alignment, flow or size)"
        raise ValueError(
            f"{path.name} is not prepared for the spec {spec.preprocessing_key()}"
            f"{others if found else ''}: {command}"
        )
    stale = [shard for shard in shards if shard.read_index() is None]
    if stale:
        raise ValueError(
            f"{sum(len(shard.rows) for shard in stale)} rows of {path.name} are not prepared, or "
            f"changed since, among them {stale[0].rows[0].key}: {command}"
        )
    return Prepared(shards)


@dataclass(frozen=True, slots=True)
class _Shard:
    folder: Path
    root: Path
    """Of the rows' paths."""
    rows: tuple[Pair, ...]
    digest: str
    """Of the rows, and of their files' sizes and times when the manifest was read."""

    def path(self, kind: str) -> Path:
        return self.folder / f"{self.digest}.{kind}"

    def read_index(self) -> dict[str, Any] | None:
        """Return the shard's JSON, or None when it must be made."""
        try:
            index: dict[str, Any] = json.loads(self.path("json").read_text())
            whole = all(
                self.path(kind).stat().st_size == size for kind, size in index["bytes"].items()
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None  # never finished, or damaged
        return index if whole else None


def _shards(manifest: Path, spec: ModelSpec) -> list[_Shard]:
    rows = read_pairs(manifest)
    folder = prepared_folder(manifest, spec)
    root = manifest_path(manifest).parent
    return [_Shard(folder, root, chunk, _digest(chunk, root)) for chunk in _chunks(rows)]


def _chunks(rows: Iterable[Pair]) -> Iterator[tuple[Pair, ...]]:
    """Cut after the rows whose keys say so, which no other row's coming or going changes.

    Only behind a chunk that was cut for its length may others move, up to the next such row.
    """
    chunk: list[Pair] = []
    for pair in rows:
        chunk.append(pair)
        if _ends_shard(pair) or len(chunk) == 2 * SHARD_PAIRS:
            yield tuple(chunk)
            chunk = []
    if chunk:
        yield tuple(chunk)


def _ends_shard(pair: Pair) -> bool:
    first = hashlib.sha256(pair.key.encode()).digest()[:4]
    return int.from_bytes(first, "big") % SHARD_PAIRS == 0


def _digest(rows: Iterable[Pair], root: Path) -> str:
    """Tell these rows of these files from any that an earlier manifest or file left prepared.

    Also from those whose clips' frames were chosen in another way.
    """
    stamps: list[list[object]] = [
        [asdict(pair), *(_stamp(root / name) for name in pair.files)] for pair in rows
    ]
    stamps.append([MEASURES_VERSION])
    if any(pair.kind == "video" for pair in rows):
        stamps.append([method_digest()])
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size, status.st_mtime_ns


class Prepared:
    """The prepared pairs of one manifest; arrays are read from disk as they are asked for."""

    def __init__(self, shards: Sequence[_Shard]) -> None:
        self.rows: list[PreparedRow] = []
        """In the manifest's order."""
        self.dropped: dict[str, str] = {}
        """Key of a pair that was left out → why."""
        self._shards = {shard.digest: shard for shard in shards}
        for shard in shards:
            index = shard.read_index()
            if index is None:
                raise ValueError(f"shard {shard.digest} of {shard.folder} is not prepared")
            self.dropped |= index["dropped"]
            self.rows += [
                PreparedRow(
                    Pair(**row["pair"]),
                    _motion_of(row["motion"]),
                    shard.digest,
                    position,
                    row["quality"] and Quality(**row["quality"]),
                )
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


def _motion_of(values: dict[str, float | None]) -> Motion:
    # One and the same NaN, so that rows read twice are equal.
    return Motion(**{name: math.nan if value is None else value for name, value in values.items()})


def _json_of(motion: Motion) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in asdict(motion).items()}


@functools.cache
def _preprocessor(spec_json: str) -> Preprocessor:
    return Preprocessor(ModelSpec.from_json(spec_json))


def _prepare_shard(shard: _Shard, *, spec_json: str) -> None:
    preprocessor = _preprocessor(spec_json)
    kept: list[tuple[Pair, AlignedPair | ReadyPair]] = []
    dropped: dict[str, str] = {}
    for pair in shard.rows:
        try:
            made = _prepare_pair(pair, shard.root, preprocessor)
        except UNUSABLE as error:
            dropped[pair.key] = str(error)
            continue
        if made is None:
            dropped[pair.key] = _NO_FACE
        else:
            kept.append((pair, made))
    size = preprocessor.spec.input_size
    onsets = np.empty((len(kept), size, size, 3), np.uint8)
    flows = np.empty((len(kept), 2, size, size), np.float16)
    for position, (_pair, made) in enumerate(kept):
        onsets[position], flows[position] = made.onset, made.flow
    index = {
        "bytes": {
            kind: _write(shard.path(kind), _npy(array))
            for kind, array in (("onset.npy", onsets), ("flow.npy", flows))
        },
        "rows": [
            {
                "pair": asdict(pair),
                "motion": _json_of(made.motion),
                "quality": asdict(made.quality) if isinstance(made, AlignedPair) else None,
            }
            for pair, made in kept
        ],
        "dropped": dropped,
    }
    _write(shard.path("json"), json.dumps(index, allow_nan=False).encode())


def _prepare_pair(
    pair: Pair, root: Path, preprocessor: Preprocessor
) -> AlignedPair | ReadyPair | None:
    """Return the arrays of a row, None if it shows no face. Raises: as `align_row`."""
    if pair.kind == "ready":
        return read_ready(pair, root, preprocessor.spec.input_size)
    return align_row(pair, root, preprocessor)


def _npy(array: NDArray[Any]) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


def _write(path: Path, data: bytes) -> int:
    """Write a file at once; return its size. Raises: OSError that names it."""
    try:
        write_atomically(path, lambda temporary: temporary.write_bytes(data))
    except OSError as fault:
        told = f"{fault.strerror or fault}; what is finished is kept"
        raise OSError(fault.errno, told, str(path)) from None
    return len(data)
