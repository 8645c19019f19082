"""The loaded models, each with its own network threads; swapped while requests are under way."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError, ModelNotFound
from model.face import FaceFinder
from model.fused import FusedRow
from model.pipeline import Preprocessor
from model.session import Session
from service.batcher import Batcher
from service.loaded import Loaded
from service.observer import Observer
from service.settings import Settings

__all__ = ["Model", "Shelf"]

Row = TypeVar("Row")

WARM_UP_S = 60.0
"""What a model that comes while serving is given to warm up, at the least."""
_DEADLINES = 3
"""The same in deadlines of a pair, where those are long."""
_LEAVE_S = 1.0
"""What the thread of a model that never served is waited for when it is given up."""


@dataclass(slots=True, eq=False)
class Model:
    """A loaded model. Who was admitted with it ends with it, whatever took its place meanwhile."""

    loaded: Loaded
    preprocessor: Preprocessor
    batcher: Batcher[NDArray[np.float32]]
    """Of the network alone."""
    fused: Batcher[FusedRow] | None
    """Of flow and network in one run."""
    users: int = 0
    retired: bool = False

    @property
    def session(self) -> Session:
        """Its network."""
        return self.loaded.session

    @property
    def failed(self) -> bool:
        """Whether the last run of one of its graphs raised what costs an answer."""
        return any(one.failed for one in self._batchers)

    @property
    def busy_s(self) -> float:
        """For how long the longest of its present runs has been going on, seconds."""
        return max(one.busy_s for one in self._batchers)

    async def warm_up(self, sizes: Sequence[int]) -> None:
        """Run each graph at every batch size. Raises what a run raises."""
        session, fused = self.loaded.session, self.loaded.fused
        await self.batcher.call(lambda: session.warm_up(sizes))
        if self.fused is not None and fused is not None:
            await self.fused.call(lambda: fused.warm_up(sizes))

    def mend(self) -> None:
        """Replace threads that have ended, and probe what has failed."""
        for one in self._batchers:
            one.mend()

    async def close(self, timeout_s: float) -> bool:
        """Finish what waits and end the threads; return whether that was done in time."""
        return all(await asyncio.gather(*(one.close(timeout_s) for one in self._batchers)))

    @property
    def _batchers(self) -> tuple[Batcher[Any], ...]:
        return (self.batcher,) if self.fused is None else (self.batcher, self.fused)


class Shelf:
    """Holds the models that requests may name. For one event loop; `close` ends its threads."""

    def __init__(
        self,
        models: Mapping[str, Loaded],
        settings: Settings,
        observer: Observer,
        finder: FaceFinder,
    ) -> None:
        self._settings = settings
        self._observer = observer
        self._finder = finder
        self._models = {name: self._model(loaded) for name, loaded in models.items()}
        self._ending: set[asyncio.Task[bool]] = set()

    @property
    def loaded(self) -> dict[str, Loaded]:
        """What the models were opened as, by name; the default is the first."""
        return {name: one.loaded for name, one in self._models.items()}

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
            await one.warm_up(self._settings.batch_sizes)

    async def put(self, loaded: Loaded) -> None:
        """Warm a model, then swap it for the one of its name, or add it as the last.

        Raises: ModelError (a warm-up that goes on and on: its thread is left behind), or what
        warming up raises; then nothing has changed.
        """
        model, name = self._model(loaded), loaded.spec.name
        limit_s = max(WARM_UP_S, _DEADLINES * self._settings.deadline_ms / 1e3)
        try:
            async with asyncio.timeout(limit_s):
                await model.warm_up(self._settings.batch_sizes)
        except TimeoutError:
            self._end(model, _LEAVE_S)
            raise ModelError(f"{name} was not warm after {limit_s:g} s") from None
        except BaseException:
            self._end(model, _LEAVE_S)
            raise
        old = self._models.get(name)
        self._models = {**self._models, name: model}
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
            one.mend()

    async def close(self, timeout_s: float) -> bool:
        """Finish what waits and end all threads; return whether that was done in time."""
        closing = [one.close(timeout_s) for one in self._models.values()]
        return all(await asyncio.gather(*closing, *self._ending))

    def _model(self, loaded: Loaded) -> Model:
        spec, fused = loaded.spec, loaded.fused
        return Model(
            loaded,
            Preprocessor(spec, self._finder, loaded.solver),
            self._batcher(spec.name, loaded.session.run),
            None if fused is None else self._batcher(spec.name, fused.run, loaded.makes_good),
        )

    def _batcher(
        self,
        name: str,
        run: Callable[..., Collection[Row]],
        excuses: Callable[[Exception], bool] = lambda _error: False,
    ) -> Batcher[Row]:
        sizes = self._settings.batch_sizes
        return Batcher(run, sizes=sizes, name=name, observer=self._observer, excuses=excuses)

    def _retire(self, model: Model) -> None:
        model.retired = True
        if not model.users:
            self._end(model, self._settings.drain_s)

    def _end(self, model: Model, timeout_s: float) -> None:
        ending = asyncio.create_task(model.close(timeout_s))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
