"""The loaded models, each with its own network thread; swapped while requests are under way."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError, ModelNotFound
from model.face import FaceFinder
from model.pipeline import Preprocessor
from model.session import Session
from service.batcher import Batcher
from service.observer import Observer
from service.settings import Settings

__all__ = ["Model", "Shelf"]

WARM_UP_S = 60.0
"""What a model that comes while serving is given to warm up, at the least."""
_DEADLINES = 3
"""The same in deadlines of a pair, where those are long."""
_LEAVE_S = 1.0
"""What the thread of a model that never served is waited for when it is given up."""


@dataclass(slots=True, eq=False)
class Model:
    """A loaded model. Who was admitted with it ends with it, whatever took its place meanwhile."""

    session: Session
    preprocessor: Preprocessor
    batcher: Batcher[NDArray[np.float32]]
    users: int = 0
    retired: bool = False


class Shelf:
    """Holds the models that requests may name. For one event loop; `close` ends its threads."""

    def __init__(
        self,
        sessions: Mapping[str, Session],
        settings: Settings,
        observer: Observer,
        finder: FaceFinder,
    ) -> None:
        self._settings = settings
        self._observer = observer
        self._finder = finder
        self._models = {name: self._model(session) for name, session in sessions.items()}
        self._ending: set[asyncio.Task[bool]] = set()

    @property
    def sessions(self) -> dict[str, Session]:
        """The loaded models by name; the default is the first."""
        return {name: one.session for name, one in self._models.items()}

    @property
    def models(self) -> Iterable[Model]:
        """The loaded models; the default is the first."""
        return self._models.values()

    def get(self, name: str | None) -> Model:
        """Return a loaded model; the default when no name is given. Raises: ModelNotFound."""
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            raise ModelNotFound("there is no model of that name")
        return self._models[name]

    @contextmanager
    def in_use(self, model: Model) -> Iterator[None]:
        """Keep a model's threads for as long as this lasts, though it be replaced meanwhile."""
        model.users += 1
        try:
            yield
        finally:
            model.users -= 1
            if model.retired and not model.users:
                self._end(model, self._settings.drain_s)

    async def warm_up(self) -> None:
        """Run every model at every batch size. Raises what a run raises."""
        for one in self._models.values():
            await self._warmed(one)

    async def put(self, session: Session) -> None:
        """Warm a model, then swap it for the one of its name, or add it as the last.

        Raises: ModelError (a warm-up that goes on and on: its thread is left behind), or what
        warming up raises; then nothing has changed.
        """
        model = self._model(session)
        limit_s = max(WARM_UP_S, _DEADLINES * self._settings.deadline_ms / 1e3)
        try:
            async with asyncio.timeout(limit_s):
                await self._warmed(model)
        except TimeoutError:
            self._end(model, _LEAVE_S)
            raise ModelError(f"{session.spec.name} was not warm after {limit_s:g} s") from None
        except BaseException:
            self._end(model, _LEAVE_S)
            raise
        old = self._models.get(session.spec.name)
        self._models = {**self._models, session.spec.name: model}
        if old is not None:
            self._retire(old)

    def drop(self, name: str) -> None:
        """Take a model away. Raises: KeyError."""
        rest = dict(self._models)
        model = rest.pop(name)
        self._models = rest
        self._retire(model)

    def mend(self) -> None:
        """Replace network threads that have ended."""
        for one in self._models.values():
            one.batcher.mend()

    async def close(self, timeout_s: float) -> bool:
        """Finish what waits and end all threads; return whether that was done in time."""
        closing = [one.batcher.close(timeout_s) for one in self._models.values()]
        return all(await asyncio.gather(*closing, *self._ending))

    def _model(self, session: Session) -> Model:
        batcher: Batcher[NDArray[np.float32]] = Batcher(
            session.run,
            sizes=self._settings.batch_sizes,
            name=session.spec.name,
            observer=self._observer,
        )
        return Model(session, Preprocessor(session.spec, self._finder), batcher)

    async def _warmed(self, model: Model) -> None:
        sizes = self._settings.batch_sizes
        await model.batcher.call(lambda: model.session.warm_up(sizes))

    def _retire(self, model: Model) -> None:
        model.retired = True
        if not model.users:
            self._end(model, self._settings.drain_s)

    def _end(self, model: Model, timeout_s: float) -> None:
        ending = asyncio.create_task(model.batcher.close(timeout_s))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
