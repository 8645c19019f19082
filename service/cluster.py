"""`mfdan score --ray`: the files among engines on the machines of a Ray cluster, by Ray Data.

Ray's workers read the files themselves: what goes through Ray are names and rows of results, never
a frame. Every machine needs mfdan and the same model, and must see the files under the same paths.
"""

import asyncio
import logging
import os
import pickle
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.errors import MfdanError
from model.spec import ModelSpec
from service.answers import Options
from service.engine import Engine, open_sessions
from service.journal import Journal
from service.scoring import Answered, Outcome, answer_source, lost
from service.settings import Settings, cores
from service.sources import Source

__all__ = ["BadCluster", "Cluster", "ClusterLost", "score_on_ray"]

_MOST_PER_TASK = 8
"""Files. Ray spends some 20 ms on a task, all tasks in one process: too much for a pair each."""
_TASKS_PER_WORKER = 8
"""At the least, where there are enough files: workers shall end at about the same time."""
_OBJECT_STORE_BYTES = 128 * 2**20
"""Of a cluster of our own: names and rows are small, and memory is for clips."""
_KNOCK_S = 5.0
_LOCAL = "local"
Batch = dict[str, NDArray[Any]]
T = TypeVar("T")


class BadCluster(Exception):
    """There is no such cluster, or no room on it; nothing was scored."""


class ClusterLost(Exception):
    """The cluster failed under way; what the journal holds is kept."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where files are scored."""

    address: str
    """Of the head node, HOST:PORT; "auto" finds the one of this machine, "local" starts one."""
    workers: int | None = None
    """Processes with an engine each; None: as many as there is room for."""


def score_on_ray(  # noqa: PLR0913, PLR0917 - one argument for each thing that takes part
    sources: Sequence[Source],
    journal: Journal,
    settings: Settings,
    spec: ModelSpec,
    options: Options,
    report: Callable[[Outcome], None],
    cluster: Cluster,
) -> None:
    """Answer every source as `service.scoring.score` does; `settings` are those of one worker.

    A worker that dies is replaced, and its files are tried again, at last each by itself: one that
    takes each of its workers along is a row with `worker_died`.
    Raises: BadCluster, ClusterLost, OSError (of the journal).
    """
    waiting = {source.names: source for source in sources}

    def note(one: Answered) -> None:
        journal.append(one.source, one.stamp, one.rows, final=one.outcome.final)
        del waiting[one.source.names]
        report(one.outcome)

    with _connected(cluster, settings) as ray:
        crew = _Crew(ray, settings, options, spec, _size(ray, settings, cluster, len(sources)))
        for answered in crew.answer(list(waiting.values())):
            note(answered)
        if waiting:
            for answered in crew.answer_alone(list(waiting.values())):
                note(answered)
    for source in list(waiting.values()):
        note(lost(source, spec))


@dataclass(frozen=True, slots=True)
class _Crew:
    """Workers of one run."""

    ray: Any
    settings: Settings
    options: Options
    spec: ModelSpec
    size: int

    def answer(self, sources: Sequence[Source]) -> Iterator[Answered]:
        """Yield answers as they come, several files to a task; none for those that lost workers.

        A worker has two tasks at a time: the next one's files fill the cores that the last of the
        first leave idle.
        """
        per_task = len(sources) // (self.size * _TASKS_PER_WORKER)
        per_task = max(1, min(_MOST_PER_TASK, per_task))
        return self._run(sources, -(-len(sources) // per_task), calls=2, waiting=2, tries=2)

    def answer_alone(self, sources: Sequence[Source]) -> Iterator[Answered]:
        """Yield answers as they come, each file alone in its worker, so that it takes no other."""
        return self._run(sources, len(sources), calls=1, waiting=0, tries=1)

    def _run(
        self, sources: Sequence[Source], tasks: int, *, calls: int, waiting: int, tries: int
    ) -> Iterator[Answered]:
        data = self.ray.data
        pool = data.ActorPoolStrategy(
            size=min(self.size, tasks),
            max_concurrent_calls_per_actor=calls,
            max_tasks_in_flight_per_actor=calls + waiting,
            enable_true_multi_threading=True,
        )
        lasting = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        tally = self.ray.remote(**lasting)(_Tally).remote(tries)
        answers = data.from_items(
            [{"source": pickle.dumps(source)} for source in sources], override_num_blocks=tasks
        ).map_batches(
            _Worker,
            fn_constructor_args=(self.settings, self.options, self.spec.onnx_sha256, tally),
            batch_format="numpy",
            batch_size=None,
            compute=pool,
            num_cpus=self.settings.workers,
            num_gpus=_cards(self.settings) or None,
        )
        try:
            for row in answers.iter_rows():
                answer: Answered | str = pickle.loads(row["answer"])  # noqa: S301 - of our workers
                if isinstance(answer, str):
                    raise BadCluster(answer)
                yield answer
        except self.ray.exceptions.RayError as error:
            raise ClusterLost(f"{type(error).__name__}: {_first_line(error)}") from None


class _Tally:
    """Counts how often each file was begun: Ray itself retries for ever what loses its worker."""

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self._begun: Counter[tuple[str, ...]] = Counter()

    def may_begin(self, files: Sequence[tuple[str, ...]]) -> bool:
        """Count one more try; say whether it is one too many."""
        self._begun.update(files)
        return all(self._begun[one] <= self._tries for one in files)


class _Worker:
    """An engine in a process of the cluster, in an event loop of its own."""

    def __init__(
        self,
        settings: Settings,
        options: Options,
        sha256: str,
        tally: Any,  # noqa: ANN401 - a handle of an optional module
    ) -> None:
        self._settings, self._options = settings, options
        self._tally = tally
        self._places = asyncio.Semaphore(settings.workers)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._fault = ""
        try:
            self._engine = self._in_loop(self._open(sha256))
        except (MfdanError, BadCluster) as error:  # Ray would tell it in forty lines
            self._fault = f"{socket.gethostname()}: {error}"
            self._end_loop()

    def __call__(self, batch: Batch) -> Batch:
        """Answer the sources of one task; what keeps the engine from it is told in their place."""
        if self._fault:
            return {"answer": _pickled([self._fault])}
        sources: list[Source] = [
            pickle.loads(source)  # noqa: S301 - of the command
            for source in batch["source"]
        ]
        files = [source.names for source in sources]
        if not _ray().get(self._tally.may_begin.remote(files)):
            return {"answer": _pickled([])}
        return {"answer": _pickled(self._in_loop(self._answer(sources)))}

    async def _open(self, sha256: str) -> Engine:
        update: dict[str, object] = {"reload_s": 0}  # the results are of one model
        if "models_dir" not in self._settings.model_fields_set:  # the package may lie elsewhere
            update["models_dir"] = Settings.model_fields["models_dir"].default
        settings = self._settings.model_copy(update=update)
        name, session = next(iter(open_sessions(settings).items()))
        if session.spec.onnx_sha256 != sha256:
            raise BadCluster(f"the model {name} is another here than where the run was started")
        self._opened = Engine.open(settings, sessions={name: session})  # kept: its end closes it
        engine = await self._opened.__aenter__()
        await engine.warmed_up()
        return engine

    async def _answer(self, sources: Sequence[Source]) -> list[Answered]:
        async def one(source: Source) -> Answered:
            async with self._places:
                return await answer_source(source, self._engine, self._settings, self._options)

        return await asyncio.gather(*map(one, sources))

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _pickled(values: Sequence[object]) -> NDArray[Any]:
    """Return values as bytes: what Ray Data cannot put into a table it writes into its log."""
    return np.array([pickle.dumps(value) for value in values], object)


def _cards(settings: Settings) -> int:
    return 1 if settings.device == "cuda" else 0


def _size(ray: Any, settings: Settings, cluster: Cluster, files: int) -> int:  # noqa: ANN401 - an optional module
    """Return how many workers to start."""
    room = sum(_room(node["Resources"], settings) for node in ray.nodes() if node["Alive"])
    if not room:
        card = " and a GPU" if _cards(settings) else ""
        raise BadCluster(
            f"no machine of the cluster has {settings.workers} cores{card} for a worker; "
            "MFDAN_WORKER_THREADS says how many it takes"
        )
    return min(cluster.workers or room, files)


def _room(resources: dict[str, float], settings: Settings) -> int:
    room = int(resources.get("CPU", 0)) // settings.workers
    return min(room, int(resources.get("GPU", 0))) if _cards(settings) else room


@contextmanager
def _connected(cluster: Cluster, settings: Settings) -> Iterator[Any]:
    """Connect to the cluster, or start one here; disconnect or stop it in any case."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # a restart is told of in ten lines
    ray = _ray()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if cluster.address == _LOCAL:
        options |= {
            "include_dashboard": False,
            "num_cpus": settings.workers * (cluster.workers or _workers_here(settings)),
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    _connect(ray, cluster.address, options)
    try:
        _keep_quiet(ray)
        yield ray
    finally:
        ray.shutdown()


def _workers_here(settings: Settings) -> int:
    return max(1, cores() // settings.workers)


def _ray() -> Any:  # noqa: ANN401 - an optional module
    try:
        import ray  # noqa: PLC0415 - an extra, and slow to load
        import ray.data  # noqa: PLC0415 - likewise
    except ImportError:
        raise BadCluster("--ray needs the extra `ray`: pip install 'mfdan[ray]'") from None
    return ray


def _connect(ray: Any, address: str, options: dict[str, Any]) -> None:  # noqa: ANN401 - an optional module
    host, _, port = address.rpartition(":")
    if address not in {_LOCAL, "auto"}:
        if not (host and port.isdigit()) or "/" in host:
            raise BadCluster(f'--ray takes HOST:PORT of a head node, "auto" or "local": {address}')
        _knock(address, host, int(port))
    try:
        ray.init(address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        told = _first_line(error)
        raise BadCluster(
            f"--ray {address}: no cluster answers, or it wants RAY_AUTH_MODE=token: {told}"
        ) from None


def _knock(address: str, host: str, port: int) -> None:
    """Find out whether anybody listens: Ray itself tries for a minute, and then aborts."""
    try:
        socket.create_connection((host, port), _KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise BadCluster(f"--ray {address}: no cluster answers: {_first_line(error)}") from None


def _keep_quiet(ray: Any) -> None:  # noqa: ANN401 - an optional module
    """Leave the progress to us, and what went wrong as well."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False


def _first_line(error: BaseException) -> str:
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())
