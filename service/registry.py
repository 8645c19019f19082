"""The models of the models folder: loaded at the start, and looked at again while serving."""

import asyncio
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.errors import MfdanError, ModelError, ModelNotFound
from model.session import Session
from model.spec import load_spec, spec_path
from service.loaded import Loaded
from service.observer import Observer
from service.settings import Settings
from service.shelf import Shelf

__all__ = ["Registry", "open_sessions"]

_LOG = logging.getLogger("mfdan")

_Stat = tuple[int, int, int, int] | None
_Stamp = tuple[_Stat, _Stat]
"""Inode, size and times of change of an ONNX file, and of the spec beside it."""
_UNKNOWN: _Stamp = None, None
"""Of a file that is to be judged anew; none that is there has it."""


def open_sessions(settings: Settings) -> dict[str, Session]:
    """Load every model of the models folder, by the name in its spec; the default comes first.

    Raises: ModelNotFound (an empty folder, or no model of the default's name), ModelError (two
    models of one name), and whatever `Session.open` raises.
    """
    sessions: dict[str, Session] = {}
    for path in settings.model_files():
        session = _open(path, settings)
        if session.spec.name in sessions:
            raise ModelError(f"two models are called {session.spec.name}")
        sessions[session.spec.name] = session
    if not sessions:
        raise ModelNotFound("the models folder holds no *.onnx file")
    default = settings.model or next(iter(sessions))
    if default not in sessions:
        raise ModelNotFound(f"the default model {default} is not among {', '.join(sessions)}")
    return {default: sessions.pop(default), **sessions}


class _NameTaken(ModelError):
    """Another file has a model of that name."""


@dataclass(frozen=True, slots=True)
class _Judged:
    stamp: _Stamp
    name: str | None
    """Of the model that is served from this file, if one is."""
    fault: str = ""
    retry: Literal["never", "change", "look"] = "never"
    """When to judge it again, though it is the same: never, when any other file has changed, or at
    every look."""


class Registry:
    """Keeps a shelf as the models folder is.

    A file is judged once it is the same at two looks: what is still being copied is left alone. A
    model that cannot be used is refused, and the one that it was to replace keeps serving; where
    the machine was at fault, it is tried again. A model whose file is gone is dropped, but for the
    default and the last one. The observer is told. A folder that cannot be looked at changes
    nothing.
    """

    def __init__(self, settings: Settings, shelf: Shelf, observer: Observer) -> None:
        self._settings = settings
        self._shelf = shelf
        self._observer = observer
        self._judged = {
            one.session.path: _Judged(_UNKNOWN, name)
            for name, one in shelf.loaded.items()
            if settings.models_dir in (one.session.path, one.session.path.parent)
        }
        self._seen = dict.fromkeys(self._judged, _UNKNOWN)
        self._blind = False

    async def watch(self) -> None:
        """Look every `reload_s`, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.reload_s)
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - the next look may fare better
                _LOG.error("looking at the models failed: %s", type(error).__name__)

    async def look(self) -> None:
        """Compare the folder with what was judged, and judge what has changed and settled."""
        now = await self._stamps_now()
        if now is None:
            return
        seen, self._seen = self._seen, now
        gone = self._judged.keys() - now.keys() - seen.keys()
        pending = {path for path, stamp in now.items() if self._is_new(path, stamp, seen)}
        retried = {"change", "look"} if gone or pending else {"look"}
        for path, one in self._judged.items():
            if one.retry in retried and now.get(path) == one.stamp:
                pending.add(path)
        served = self._names()
        for path in gone:
            del self._judged[path]
        for path in sorted(pending):
            await self._judge(path, now[path], pending)
            pending.discard(path)
        for name in sorted(served - self._names()):
            self._unload(name)

    async def _stamps_now(self) -> dict[Path, _Stamp] | None:
        """Return what is there; None where that cannot be seen, which is told once."""
        try:
            now = await asyncio.to_thread(_stamps, self._settings)
        except OSError as error:
            if not self._blind:
                reason = error.strerror or type(error).__name__
                _LOG.error(
                    "the models folder cannot be looked at: %s; what is loaded serves on", reason
                )
            self._blind = True
            return None
        if self._blind:
            _LOG.warning("the models folder can be looked at again")
        self._blind = False
        return now

    def _is_new(self, path: Path, stamp: _Stamp, seen: dict[Path, _Stamp]) -> bool:
        judged = self._judged.get(path)
        return seen.get(path) == stamp and (judged is None or judged.stamp != stamp)

    def _names(self) -> set[str]:
        return {one.name for one in self._judged.values() if one.name is not None}

    async def _judge(self, path: Path, stamp: _Stamp, pending: set[Path]) -> None:
        before = self._judged.get(path, _Judged(_UNKNOWN, None))
        try:
            name = await self._take(path, stamp, pending)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the others serve on
            judged = _Judged(stamp, before.name, _fault(path, error), _retry(error))
            if (before.stamp, before.fault) != (stamp, judged.fault):
                self._observer.model_changed(before.name or path.stem, "refused", judged.fault)
        else:
            judged = _Judged(_UNKNOWN, before.name) if name is None else _Judged(stamp, name)
        self._judged[path] = judged

    async def _take(self, path: Path, stamp: _Stamp, pending: set[Path]) -> str | None:
        """Put a file's model on the shelf, unless it is there; return its name.

        None: the file was changed meanwhile, and is to be judged anew.
        """
        spec = await asyncio.to_thread(load_spec, path)
        for other, one in self._judged.items():
            if one.name == spec.name and other != path and other not in pending:
                raise _NameTaken(f"{path.name} and {other.name} are both called {spec.name}")
        present = self._shelf.loaded.get(spec.name)
        if present is not None and present.spec == spec:
            return spec.name
        loaded = await asyncio.to_thread(self._load, path)
        if loaded.spec != spec or await asyncio.to_thread(_stamp, path) != stamp:
            return None
        await self._shelf.put(loaded)
        self._observer.model_changed(spec.name, "loaded" if present is None else "replaced")
        return spec.name

    def _load(self, path: Path) -> Loaded:
        return Loaded.of(_open(path, self._settings), self._settings, self._observer)

    def _unload(self, name: str) -> None:
        names = [*self._shelf.loaded]
        if name not in names:
            return
        if name == names[0]:  # the last one is the default, too
            fault = "its file is gone; it serves on, because it is the default"
            self._observer.model_changed(name, "refused", fault)
            return
        self._shelf.drop(name)
        self._observer.model_changed(name, "unloaded")


def _open(path: Path, settings: Settings) -> Session:
    return Session.open(path, settings.placement)


def _stamps(settings: Settings) -> dict[Path, _Stamp]:
    """Return what is in the folder. Raises: OSError where that cannot be seen."""
    folder = settings.models_dir
    with os.scandir(folder.parent if folder.suffix == ".onnx" else folder):
        pass  # `model_files` finds nothing in a folder that is not there
    stamps = {path: _stamp(path) for path in settings.model_files()}
    return {path: stamp for path, stamp in stamps.items() if stamp[0] is not None}


def _stamp(path: Path) -> _Stamp:
    return _stat(path), _stat(spec_path(path))


def _stat(path: Path) -> _Stat:
    with suppress(FileNotFoundError):
        found = path.stat()
        # The last one nobody can set: a file of the same length may carry its old time.
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return None


def _retry(error: Exception) -> Literal["never", "change", "look"]:
    if isinstance(error, _NameTaken):
        return "change"
    passing = (OSError, MemoryError)
    if isinstance(error, passing) or isinstance(error.__cause__, passing):
        return "look"
    return "never"


def _fault(path: Path, error: Exception) -> str:
    if isinstance(error, MfdanError):
        return str(error)
    reason = error.strerror if isinstance(error, OSError) else None
    return f"{path.name} cannot be used: {reason or type(error).__name__}"
