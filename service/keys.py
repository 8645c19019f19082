"""API keys: who may ask, and how often. Knows no HTTP.

A key is 256 random bits, so its bare SHA-256 is enough to know it again: slow and salted hashes
hinder whoever guesses at passwords that people chose, and nobody guesses 256 bits.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import stat
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = [
    "MAX_KEYS",
    "Key",
    "KeyRing",
    "KeyUnknown",
    "KeysInvalid",
    "QuotaExceeded",
    "RateLimited",
    "answers_others",
    "digest_of",
    "new_token",
    "read_keys",
    "stanza_of",
]

MAX_KEYS = 256
"""Keys in one file: each is compared with each request's, and its name is a label of metrics."""

_MAX_FILE_BYTES = 2**20
_TOKEN = re.compile(r"mfdan_[A-Za-z0-9_-]{43}")
_NAME = r"^[A-Za-z0-9_-]{1,64}$"
_MINUTE_S = 60
_DAY_S = 24 * 60 * 60
_LOOPBACK_NAMES = {"localhost"}


class KeysInvalid(Exception):
    """The file of API keys cannot be used; the message says why, and quotes no key or hash."""


class KeyUnknown(Exception):
    """What was sent is not a key that the service knows."""

    code = "unauthorized"


class _UsedUp(Exception):
    """The key's share of a minute or a day is used up."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(_UsedUp):
    """The key was used as often in this minute as it may be."""

    code = "rate_limited"


class QuotaExceeded(_UsedUp):
    """The key was used as often in this day as it may be."""

    code = "quota_exceeded"


class _Stanza(BaseModel):
    """One `[keys.NAME]` of the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
    rate_per_minute: Annotated[int, Field(ge=1, le=10**6)] | None = None
    quota_per_day: Annotated[int, Field(ge=1, le=10**9)] | None = None


_Name = Annotated[str, Field(pattern=_NAME)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    keys: Annotated[dict[_Name, _Stanza], Field(min_length=1, max_length=MAX_KEYS)]


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key as the file has it."""

    name: str
    digest: bytes
    """SHA-256 of the key."""
    rate_per_minute: int | None = None
    quota_per_day: int | None = None


class _Period:
    """Counts uses in periods of fixed length; each begins with its first use."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = float("-inf")
        self._used = 0

    def take(self, limit: int, now: float) -> float:
        """Count one use and return 0, or return the seconds until there is room for one."""
        if now >= self._end:
            self._end, self._used = now + self._seconds, 0
        if self._used >= limit:
            return min(self._end - now, self._seconds)  # the sum above may have been rounded up
        self._used += 1
        return 0


@dataclass(frozen=True)
class _Use:
    minute: _Period = field(default_factory=lambda: _Period(_MINUTE_S))
    day: _Period = field(default_factory=lambda: _Period(_DAY_S))


@dataclass(frozen=True)
class _Stamp:
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Return what changes with a file; None: it cannot be looked at."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)


class KeyRing:
    """The keys of a file that may change, and how often each was used.

    `now` must never go back: were it the wall clock, setting that clock back by a day would lock
    everybody out for a day.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        """Read the file. Raises: KeysInvalid."""
        self._path = path
        self._now = now
        self._stamp = self._seen = _Stamp.of(path)
        self._keys = read_keys(path)
        self._uses = {key.name: _Use() for key in self._keys}

    @property
    def names(self) -> tuple[str, ...]:
        """Of all keys, as the file has them."""
        return tuple(key.name for key in self._keys)

    def whose(self, token: str) -> Key:
        """Return the key that was sent, in a time that does not tell how much of it is right.

        Raises: KeyUnknown.
        """
        digest = digest_of(token) if _TOKEN.fullmatch(token) else b""
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if not found:
            raise KeyUnknown("the API key is not known")
        return found[0]

    def count(self, key: Key) -> None:
        """Count one request made with a key.

        Raises: RateLimited, QuotaExceeded.
        """
        use, now = self._uses.setdefault(key.name, _Use()), self._now()
        if key.rate_per_minute and (wait := use.minute.take(key.rate_per_minute, now)):
            raise RateLimited(_at_most(key.rate_per_minute, "minute"), _whole(wait))
        if key.quota_per_day and (wait := use.day.take(key.quota_per_day, now)):
            raise QuotaExceeded(_at_most(key.quota_per_day, "day"), _whole(wait))

    def look(self) -> bool:
        """Read the file again where it has changed and kept still since the last look.

        Returns whether it was read; what was counted stays. Raises: KeysInvalid, once for each
        change, and the keys stay as they were.
        """
        before, self._seen = self._seen, _Stamp.of(self._path)
        if self._seen == self._stamp or self._seen != before:
            return False
        self._stamp = self._seen
        self._keys = keys = read_keys(self._path)
        self._uses = {key.name: self._uses.get(key.name, _Use()) for key in keys}
        return True


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read a file of keys.

    Raises: KeysInvalid: cannot be read, everybody may write to it, is not such a file, holds no
    key, or one key twice.
    """
    try:
        return _parsed(_read(path).decode())
    except OSError as error:
        raise KeysInvalid(f"{path} cannot be read: {error.strerror}") from None
    except KeysInvalid as error:
        raise KeysInvalid(f"{path} {error}") from None
    except UnicodeDecodeError:
        raise KeysInvalid(f"{path} is not UTF-8 text") from None


def stanza_of(name: str, token: str, **limits: int | None) -> str:
    """Return what a file of keys has for a key; `limits` are its other fields, None: no limit.

    Raises: KeysInvalid: no such name or limit.
    """
    if not re.fullmatch(_NAME, name):
        raise KeysInvalid("a name is 1 to 64 letters of A to Z and a to z, digits, - and _")
    lines = [f"[keys.{name}]", f'sha256 = "{digest_of(token).hex()}"']
    lines += [f"{limit} = {value}" for limit, value in limits.items() if value is not None]
    stanza = "\n".join(lines)
    _parsed(stanza)
    return stanza


def new_token() -> str:
    """Make a key: a prefix by which scanners for leaked secrets know it, and 256 random bits."""
    return f"mfdan_{secrets.token_urlsafe(32)}"


def digest_of(token: str) -> bytes:
    """Return what is kept of a key."""
    return hashlib.sha256(token.encode()).digest()


def answers_others(host: str) -> bool:
    """Whether a service that listens on `host` can be reached from other machines."""
    try:
        return not (host in _LOOPBACK_NAMES or ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return True


def _parsed(text: str) -> tuple[Key, ...]:
    try:
        stanzas = _File.model_validate(tomllib.loads(text)).keys
    except ValidationError as error:
        raise KeysInvalid(_fault(error)) from None
    except tomllib.TOMLDecodeError as error:
        raise KeysInvalid(f"is not TOML: {error}") from None
    except ValueError:  # tomllib's of Python's own: a number of more than 4300 digits
        raise KeysInvalid("is not TOML: a number in it has too many digits") from None
    except RecursionError:
        raise KeysInvalid("is not TOML: nested too deeply") from None
    keys = tuple(
        Key(
            name=name,
            digest=bytes.fromhex(stanza.sha256),
            rate_per_minute=stanza.rate_per_minute,
            quota_per_day=stanza.quota_per_day,
        )
        for name, stanza in stanzas.items()
    )
    names: dict[bytes, str] = {}
    for key in keys:
        other = names.setdefault(key.digest, key.name)
        if other != key.name:
            raise KeysInvalid(f"holds one key twice, as {other} and as {key.name}")
    return keys


def _read(path: Path) -> bytes:
    def at_once(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # a pipe would wait for its writer

    with open(path, "rb", opener=at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise KeysInvalid("is not a file")
        if found.st_mode & stat.S_IWOTH:
            raise KeysInvalid("may be written to by everybody: chmod o-w")
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise KeysInvalid(f"is larger than {_MAX_FILE_BYTES} bytes")
    return content


def _fault(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    return f"at {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _at_most(uses: int, period: str) -> str:
    return f"the API key allows at most {uses} in a {period}"


def _whole(seconds: float) -> int:
    """Round up: whoever comes back then must not be refused again."""
    return int(-(-seconds // 1))
