"""Files of an object store: `s3://bucket/folder`, `gs://…` and whatever else pyarrow can reach.

Who may read is settled as the store's own tools settle it (`AWS_ACCESS_KEY_ID`, a profile, …).
"""

import functools
import os
import re
import urllib.parse
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

__all__ = ["StoreFault", "StoredFile", "find_stored", "holds_key", "is_address"]

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://")
_SECOND_NS = 10**9
_GIVE_UP_S = 30
"""Google's client would try for fifteen minutes."""


class StoreFault(Exception):
    """A store cannot be reached, or holds no such file."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One object, as it was when it was listed."""

    store: str = field(repr=False)  # it may hold a key
    """Address of the store that holds it."""
    path: str
    """From the store's root: of a bucket, its name comes first."""
    size: int
    """Bytes."""
    changed_ns: int
    """Whole seconds: a listing may say more than a look at one object."""

    @property
    def name(self) -> PurePosixPath:
        """Its path, to take apart."""
        return PurePosixPath(self.path)

    def read(self, limit: int) -> bytes:
        """Return the first `limit` bytes. Raises: OSError."""
        with _opened(self.store).open_input_file(self.path) as file:
            data: bytes = file.read(limit)
        return data


def is_address(argument: str) -> bool:
    """Whether it names something in a store; `file://` is a path like any other."""
    return _ADDRESS.match(argument) is not None


def holds_key(argument: str) -> bool:
    """Whether an address says a password or a secret."""
    if not is_address(argument):
        return False
    parts = urllib.parse.urlsplit(argument)
    return parts.password is not None or "secret" in parts.query


def find_stored(address: str) -> tuple[str, list[StoredFile]]:
    """Return the folder that an address is relative to, and its file or all files below it.

    Raises: StoreFault.
    """
    store, path = _split(address)
    shown = re.sub(r"//[^/]*@", "//", address.partition("?")[0])  # without key and options
    try:
        files = _opened(store)
        found = files.get_file_info(path)
        if found.is_file:
            return os.path.dirname(path), [_stored(store, found)]  # noqa: PTH120 - no path of here
        listed = files.get_file_info(_below(path))
    except FileNotFoundError:
        raise StoreFault(f"there is no {shown}") from None
    except (OSError, ValueError, NotImplementedError) as error:
        told = str(error).replace(address, shown).splitlines() or [type(error).__name__]
        raise StoreFault(f"{shown} cannot be read: {told[0]}") from None
    return path, [_stored(store, one) for one in listed if one.is_file]


def _split(address: str) -> tuple[str, str]:
    """Return the address of a store, and a path of it."""
    parts = urllib.parse.urlsplit(address)
    options = parts.query
    if parts.scheme in {"gs", "gcs"} and "retry_limit_seconds" not in options:
        options = "&".join(filter(None, (options, f"retry_limit_seconds={_GIVE_UP_S}")))
    store = urllib.parse.urlunsplit((parts.scheme, parts.netloc, "", options, ""))
    bucket = parts.netloc.rpartition("@")[2]
    return store, f"{bucket}{parts.path}".rstrip("/")


@functools.lru_cache(maxsize=8)
def _opened(store: str) -> Any:  # noqa: ANN401 - an optional module
    fs = _pyarrow_fs()
    return fs.FileSystem.from_uri(store)[0]


def _below(path: str) -> Any:  # noqa: ANN401 - an optional module
    return _pyarrow_fs().FileSelector(path, recursive=True)


def _pyarrow_fs() -> Any:  # noqa: ANN401 - an optional module
    try:
        from pyarrow import fs  # noqa: PLC0415 - for those only who have a store
    except ImportError:
        raise StoreFault(
            "a store needs a package that is not installed: pip install 'mfdan[offline]'"
        ) from None
    return fs


def _stored(store: str, found: Any) -> StoredFile:  # noqa: ANN401 - of an optional module
    changed_ns = (found.mtime_ns or 0) // _SECOND_NS * _SECOND_NS
    return StoredFile(store, found.path, found.size, changed_ns)
