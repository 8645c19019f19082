"""What `mfdan score` has to score: folders, files and patterns → clips and pairs of pictures."""

import csv
import errno
import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePath
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from model.container import sniff_container
from model.errors import ClipTooLarge, ImageTooLarge, NotAClip
from service.answers import ClipUpload, Upload
from service.settings import Settings
from service.stores import StoredFile, StoreFault, find_stored, is_address

__all__ = [
    "BadArgument",
    "Found",
    "Source",
    "Stamp",
    "find_sources",
    "is_clip",
    "read_upload",
]

File: TypeAlias = Path | StoredFile
Stamp = tuple[tuple[int, int], ...]
"""Size in bytes and time of change in nanoseconds of each file of a source."""

_HEAD_BYTES = 64
_WEBP_KIND, _WEBP_FLAGS = 12, 20
_WEBP_ANIMATED = 0x02
_CLIP_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"})
_PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_PAIR = ("onset", "apex")


class BadArgument(ValueError):
    """What was given on the command line names nothing that can be read."""


@dataclass(frozen=True, slots=True)
class Source:
    """One clip, or one pair of pictures."""

    names: tuple[str, ...]
    """Of its one or two files, relative to the folder that holds all that was asked for."""
    paths: tuple[File, ...]
    fault: str = ""
    """Why it cannot be scored, when that is known before its files are read."""

    @property
    def is_pair(self) -> bool:
        """Whether it is an onset and an apex."""
        return len(self.paths) == len(_PAIR)

    def stamp(self) -> Stamp:
        """Return what changes when a file does. Raises: OSError."""
        return tuple(_stamp(path) for path in self.paths)


@dataclass(frozen=True, slots=True)
class Found:
    """What there is to score, in order of names, each once."""

    sources: tuple[Source, ...]
    skipped: int
    """Files that are neither clips nor pictures of a pair."""


@dataclass(frozen=True, slots=True)
class _Item:
    """A source before it has its names."""

    paths: tuple[File, ...]
    fault: str = ""


def find_sources(
    arguments: Sequence[str], manifest: Path | None = None, ignored: Iterable[Path] = ()
) -> Found:
    """Find what folders, files and patterns hold, and what a manifest lists.

    A folder is walked in order of names, without hidden files, following links but no circle of
    them. A file is a clip when its first bytes or its name say so; `ignored` files are not looked
    at. A folder's pictures `onset.*` and `apex.*` are a pair. Addresses (`s3://bucket/folder`) are
    of folders and files alike, and stand alone: names are relative to what holds all.
    Raises: BadArgument.
    """
    bases: list[str] = []
    items: list[_Item] = []
    skipped = 0
    unwanted = {_absolute(path) for path in ignored}
    arguments = [_without_scheme(argument) for argument in arguments]
    addresses = [argument for argument in arguments if is_address(argument)]
    if addresses and (len(addresses) < len(arguments) or manifest is not None):
        raise BadArgument("files of this machine and of a store are scored apart, each to an --out")
    for argument in arguments:
        base, found, others = _in_store(argument) if addresses else _here(argument, unwanted)
        bases.append(base)
        items += found
        skipped += others
    if manifest is not None:
        bases.append(str(_absolute(manifest).parent))
        items += _read_manifest(manifest)
    if not bases:
        return Found((), 0)
    shared = os.path.commonpath(bases)
    sources = {source.names: source for source in (_named(item, shared) for item in items)}
    return Found(tuple(sources[names] for names in sorted(sources)), skipped)


def is_clip(head: bytes) -> bool:
    """Say whether a file that begins so is a video, a GIF or an animated WebP."""
    try:
        container = sniff_container(head)
    except NotAClip:
        return False
    if container != "webp":
        return True
    extended = head[_WEBP_KIND : _WEBP_KIND + 4] == b"VP8X" and len(head) > _WEBP_FLAGS
    return extended and bool(head[_WEBP_FLAGS] & _WEBP_ANIMATED)


def read_upload(paths: Sequence[File], settings: Settings) -> Upload | ClipUpload:
    """Read one clip, or an onset and an apex; what is larger than the caps is not read.

    Raises: ClipTooLarge, ImageTooLarge, OSError (also of a pipe or a device).
    """
    if len(paths) == len(_PAIR):
        limit = settings.max_image_bytes
        for name, path in zip(_PAIR, paths, strict=True):
            if (size := _size(path)) > limit:
                raise ImageTooLarge(
                    f"{name}: the picture holds {size} bytes, at most {limit} are taken"
                )
        onset, apex = (_read(path, limit) for path in paths)
        return Upload(onset, apex)
    limit = settings.max_clip_bytes
    if (size := _size(paths[0])) > limit:
        raise ClipTooLarge(f"the clip holds {size} bytes, at most {limit} are taken")
    return ClipUpload(_read(paths[0], limit))


def _stamp(path: File) -> tuple[int, int]:
    if isinstance(path, StoredFile):
        return path.size, path.changed_ns
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _size(path: File) -> int:
    """Return the bytes of a file; a pipe would wait and a device never end. Raises: OSError."""
    if isinstance(path, StoredFile):
        return path.size
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return found.st_size


def _read(path: File, limit: int) -> bytes:
    """Read a file, or one byte over the limit if it has grown: then the engine refuses it."""
    if isinstance(path, StoredFile):
        return path.read(limit + 1)
    with path.open("rb") as file:
        return file.read(limit + 1)


def _without_scheme(argument: str) -> str:
    return unquote(urlsplit(argument).path) if argument.startswith("file://") else argument


def _here(argument: str, unwanted: set[Path]) -> tuple[str, list[_Item], int]:
    """Return the folder that an argument is relative to, its items, and how many files are none."""
    base, paths = _expanded(argument)
    looked_at = [_look_at(path, unwanted) for path in paths]
    items = [item for found, _others in looked_at for item in found]
    return str(base), items, sum(others for _found, others in looked_at)


def _in_store(address: str) -> tuple[str, list[_Item], int]:
    """Return the same of an address."""
    try:
        base, files = find_stored(address)
    except StoreFault as error:
        raise BadArgument(str(error)) from None
    seen = [file for file in files if not _is_hidden(file.name.relative_to(base))]
    seen.sort(key=lambda file: (str(file.name.parent), file.path))
    items: list[_Item] = []
    skipped = 0
    for _folder, together in groupby(seen, key=lambda file: file.name.parent):
        found, others = _sort_files(list(together))
        items += found
        skipped += others
    return f"/{base}", items, skipped


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - a link keeps its own name and place


def _expanded(argument: str) -> tuple[Path, list[Path]]:
    """Return the folder that an argument is relative to, and the paths that it means."""
    path = _absolute(argument)
    if path.is_dir():
        return path, [path]
    if path.exists():
        return path.parent, [path]
    if not glob.has_magic(argument):
        raise BadArgument(f"there is no {argument}")
    fixed = 0
    while not glob.has_magic(path.parts[fixed]):
        fixed += 1
    base, pattern = Path(*path.parts[:fixed]), Path(*path.parts[fixed:])
    # pathlib's own: its ** follows no links, so it ends.
    found = [match for match in base.glob(str(pattern)) if not _is_hidden(match.relative_to(base))]
    if not found:
        raise BadArgument(f"nothing is called {argument}")
    return base, sorted(found)


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _look_at(path: Path, unwanted: set[Path]) -> tuple[list[_Item], int]:
    """Return the items of a folder or file, and how many files are none."""
    if not path.is_dir():
        return _sort_files([path] if path not in unwanted else [])
    items: list[_Item] = []
    skipped = 0
    for files in _walk(path, items):
        found, others = _sort_files([file for file in files if file not in unwanted])
        items += found
        skipped += others
    return items, skipped


def _walk(folder: Path, unread: list[_Item]) -> Iterator[list[Path]]:
    """Yield the files of each folder; folders that cannot be listed are added to `unread`."""

    def note(error: OSError) -> None:
        unread.append(_Item((Path(error.filename),), f"{error.strerror}".lower()))

    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=note):
        known = Path(here).stat()
        if (known.st_dev, known.st_ino) in seen:
            folders.clear()  # a link led back here
            continue
        seen.add((known.st_dev, known.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield [Path(here, name) for name in sorted(files) if not name.startswith(".")]


def _sort_files(files: Sequence[File]) -> tuple[list[_Item], int]:
    """Return the pair and the clips among files of one folder, and how many are neither."""
    pair = _pair_among(files)
    others = [path for path in files if pair is None or path not in pair.paths]
    clips = [item for item in map(_clip, others) if item is not None]
    return ([pair] if pair else []) + clips, len(others) - len(clips)


def _pair_among(files: Sequence[File]) -> _Item | None:
    pictures = [path for path in files if _name(path).suffix.lower() in _PICTURE_SUFFIXES]
    named = [[path for path in pictures if _name(path).stem.lower() == name] for name in _PAIR]
    if not all(named):
        return None
    paths = tuple(path for paths in named for path in paths)
    if len(paths) > len(_PAIR):
        return _Item(paths[:1], "the folder holds several pictures called onset or apex")
    return _Item(paths)


def _clip(path: File) -> _Item | None:
    """Return a file as a clip, when its first bytes or its name say that it is one.

    By its name too: an empty `.mp4` is a recording that failed, which somebody wants to know.
    """
    called_so = _name(path).suffix.lower() in _CLIP_SUFFIXES
    if called_so and isinstance(path, StoredFile):
        return _Item((path,))  # a look into each would take a minute a thousand
    try:
        if isinstance(path, Path) and not stat.S_ISREG(path.stat().st_mode):
            return None  # reading a pipe would wait
        head = _read(path, _HEAD_BYTES)
    except OSError as error:
        return _Item((path,), (error.strerror or "it cannot be read").lower())
    return _Item((path,)) if called_so or is_clip(head) else None


def _name(file: File) -> PurePath:
    return file.name if isinstance(file, StoredFile) else file


def _read_manifest(manifest: Path) -> list[_Item]:
    """Read a CSV with columns onset and apex, or clip; paths are relative to its folder."""
    folder = _absolute(manifest).parent
    try:
        _size(manifest)  # a manifest may be as long as it likes, but must end
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            columns = set(lines.fieldnames or ())
            if not ({"onset", "apex"} <= columns or "clip" in columns):
                raise BadArgument(f"{manifest} has no columns onset and apex, and no column clip")
            return [_listed(folder, line) for line in lines]
    except OSError as error:
        raise BadArgument(f"{manifest}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise BadArgument(f"{manifest} is not a CSV file in UTF-8") from None


def _listed(folder: Path, line: dict[str, str | None]) -> _Item:
    onset, apex, clip = (line.get(column) or "" for column in (*_PAIR, "clip"))
    if any(is_address(text) for text in (onset, apex, clip)):
        return _Item((folder,), "a manifest lists files of this machine, not of a store")
    if "\0" in onset + apex + clip:
        return _Item((folder,), "the line names no file")
    if onset and apex:
        return _Item((folder / onset, folder / apex))
    if onset or apex:
        return _Item((folder / (onset or apex),), "onset and apex go together")
    if line.get("image") or line.get("flow"):
        return _Item((folder / clip,), "ready-made flow cannot be scored, only pictures and clips")
    return _Item((folder / clip,), "" if clip else "the line names no file")


def _named(item: _Item, base: str) -> Source:
    names = tuple(
        # A name need not be UTF-8, the files of results are.
        os.fsencode(os.path.relpath(_place(path), base)).decode("utf-8", "backslashreplace")
        for path in item.paths
    )
    return Source(names, item.paths, item.fault)


def _place(file: File) -> str:
    return f"/{file.path}" if isinstance(file, StoredFile) else str(file)
