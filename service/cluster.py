"""`mfdan score --ray`: the files among engines on the machines of a Ray cluster, by Ray Data.

Ray's workers read the files themselves: what goes through Ray are names and rows of results, never
a frame. Every machine needs mfdan and the same model, and must see the files under the same paths.
"""

import asyncio
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.errors import MfdanError
from model.session import Session
from model.spec import ModelSpec
from service.answers import Options
from service.engine import Engine, open_sessions
from service.journal import Journal
from service.scoring import Answered, Outcome, answer_source, lost
from service.settings import Settings, cores
from service.sources import Source

__all__ = ["BadCluster", "Cluster", "ClusterLost", "Teller", "score_on_ray"]

_MOST_PER_TASK = 8
"""Files. Ray spends some 20 ms on a task, all tasks in one process: too much for a pair each."""
_TASKS_PER_WORKER = 8
"""At the least, where there are enough files: workers shall end at about the same time."""
_OBJECT_STORE_BYTES = 128 * 2**20
"""Of a cluster of our own: names and rows are small, and memory is for clips."""
_SPARE_OPENINGS = 4
"""Workers that may die while they open the model, before nobody opens it any more."""
_KNOCK_S = 5.0
_PROBE_S = 8.0
"""For a cluster to answer, once Ray is loaded."""
_WATCH_S = 3.0
_MOST_SILENCES = 3
_LOCAL = "local"
_STDERR = 2
Batch = dict[str, NDArray[Any]]
_Told: TypeAlias = Answered | str | None
"""An answer; why no file can be answered; nothing, of a file that lost too many workers."""
T = TypeVar("T")


class BadCluster(Exception):
    """No such cluster, no room on it, or workers that cannot open the model; what was done is kept.

    A machine of a mixed cluster may be the first to say so when others have answered files.
    """


class ClusterLost(Exception):
    """The cluster failed under way; what the journal holds is kept."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where files are scored."""

    address: str
    """Of the head node, HOST:PORT; "auto" finds the one of this machine, "local" starts one."""
    workers: int | None = None
    """Processes with an engine each; None: as many as there is room for."""


class Teller(Protocol):
    """Hears how a run goes."""

    def __call__(self, outcome: Outcome, /) -> None:
        """Take one answer."""

    def say(self, line: str) -> None:
        """Tell a line."""

    def give_up(self, reason: str) -> NoReturn:
        """Tell why, and end the process at once; called in a thread."""


def score_on_ray(  # noqa: PLR0913, PLR0917 - one argument for each thing that takes part
    sources: Sequence[Source],
    journal: Journal,
    settings: Settings,
    spec: ModelSpec,
    options: Options,
    teller: Teller,
    cluster: Cluster,
) -> None:
    """Answer every source as `service.scoring.score` does; `settings` are those of one worker.

    A worker that dies is replaced, and its files are tried again, at last each by itself: one that
    takes each of its workers along is a row with `worker_died`. Where the head node dies, `teller`
    is told to give up: Ray would be silent for a minute, and then end the process without a word.
    Raises: BadCluster, ClusterLost, OSError (of the journal).
    """
    waiting = {source.names: source for source in sources}

    def note(one: Answered) -> None:
        journal.append(one.source, one.stamp, one.rows, final=one.outcome.final)
        del waiting[one.source.names]
        teller(one.outcome)

    with _connected(cluster, settings, teller) as ray:
        size = min(_size(ray, settings, cluster, teller), len(sources))
        crew = _Crew(ray, settings, options, spec, size)
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
        tally = self.ray.remote(**lasting)(_Tally).remote(tries, self.size)
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
                answer: _Told = pickle.loads(row["answer"])  # noqa: S301 - of our workers
                if isinstance(answer, str):
                    raise BadCluster(answer)
                if answer is not None:
                    yield answer
        except self.ray.exceptions.RayError as error:
            raise ClusterLost(f"{type(error).__name__}: {_first_line(error)}") from None


class _Tally:
    """Counts what was begun: Ray itself begins for ever anew what loses its worker."""

    def __init__(self, tries: int, workers: int) -> None:
        self._tries, self._workers = tries, workers
        self._begun: Counter[tuple[str, ...]] = Counter()
        self._opening = 0

    def may_begin(self, files: Sequence[tuple[str, ...]]) -> bool:
        """Count one more try of each file; say whether it is one too many."""
        self._begun.update(files)
        return all(self._begun[one] <= self._tries for one in files)

    def may_open(self) -> bool:
        """Count a worker that opens the model; say whether too many never came to its end."""
        self._opening += 1
        return self._opening <= self._workers + _SPARE_OPENINGS

    def opened(self) -> None:
        """Take a worker off that count."""
        self._opening -= 1


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
        if not _ray().get(tally.may_open.remote()):
            self._fault = "workers die while they open the model (out of memory?)"
            return
        try:
            self._engine = self._in_loop(self._open(sha256))
        except Exception as error:  # noqa: BLE001 - Ray would tell it in forty lines
            self._fault = _of_this_machine(error)
        _ray().get(tally.opened.remote())

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        """Answer the sources of one task in their order, each as soon as it is there.

        There is one answer to each in any case: what came of a task is not asked for again when it
        has to be begun anew, and is told from the rest by its place alone.
        """
        for answer in self._answers(list(batch["source"])):
            # Bytes: what Ray Data cannot put into a table it writes into its log.
            yield {"answer": np.array([pickle.dumps(answer)], object)}

    def _answers(self, pickled: Sequence[bytes]) -> Iterable[_Told]:
        if self._fault:
            return [self._fault] * len(pickled)
        sources: list[Source] = [pickle.loads(one) for one in pickled]  # noqa: S301 - the command's
        if not _ray().get(self._tally.may_begin.remote([source.names for source in sources])):
            return [None] * len(pickled)
        begun = [
            asyncio.run_coroutine_threadsafe(self._answer(source), self._loop) for source in sources
        ]
        return (one.result() for one in begun)

    async def _open(self, sha256: str) -> Engine:
        update: dict[str, object] = {"reload_s": 0}  # the results are of one model
        if "models_dir" not in self._settings.model_fields_set:  # the package may lie elsewhere
            update["models_dir"] = Settings.model_fields["models_dir"].default
        settings = self._settings.model_copy(update=update)
        sessions = _model(settings, sha256)
        self._opened = Engine.open(settings, sessions=sessions)  # kept: its end closes it
        engine = await self._opened.__aenter__()
        await engine.warmed_up()
        return engine

    async def _answer(self, source: Source) -> Answered:
        async with self._places:
            return await answer_source(source, self._engine, self._settings, self._options)

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _model(settings: Settings, sha256: str) -> dict[str, Session]:
    """Open the model that the run is of. Raises: BadCluster, MfdanError, OSError."""
    name, session = next(iter(open_sessions(settings).items()))
    if session.spec.onnx_sha256 != sha256:
        raise BadCluster(f"the model {name} is another here than where the run was started")
    return {name: session}


def _of_this_machine(error: Exception) -> str:
    """Return in one line why no engine can be had here."""
    if isinstance(error, MfdanError | BadCluster):
        told = str(error)
    else:
        told = f"the model cannot be opened: {type(error).__name__}"
        if isinstance(error, OSError) and error.strerror:
            told += f", {error.strerror.lower()}"
    return f"{socket.gethostname()}: {told}"


def _cards(settings: Settings) -> int:
    """Return how many GPUs a worker needs: Ray hides all others from it.

    With `auto` and the network on the CPU none: OpenCV then finds no GPU, on any machine.
    """
    return int(settings.device != "cpu" or settings.flow == "opencv-cuda")


def _size(
    ray: Any,  # noqa: ANN401 - an optional module
    settings: Settings,
    cluster: Cluster,
    teller: Teller,
) -> int:
    """Return how many workers to start: as many as are wanted, or as find a place now."""
    room = sum(_room(node["Resources"], settings) for node in ray.nodes() if node["Alive"])
    if not room:
        card = " and a GPU" if _cards(settings) else ""
        raise BadCluster(
            f"no machine of the cluster has {settings.workers} cores{card} for a worker; "
            "MFDAN_WORKER_THREADS says how many it takes"
        )
    if cluster.address != _LOCAL:  # ours alone
        room = min(room, _room(ray.available_resources(), settings))
        if not room:
            teller.say("others use the whole cluster: waiting for room")
    return cluster.workers or max(1, room)


def _room(resources: dict[str, float], settings: Settings) -> int:
    room = int(resources.get("CPU", 0)) // settings.workers
    return min(room, int(resources.get("GPU", 0))) if _cards(settings) else room


@contextmanager
def _connected(cluster: Cluster, settings: Settings, teller: Teller) -> Iterator[Any]:
    """Connect to the cluster, or start one here; disconnect or stop it in any case."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # a restart is told of in ten lines
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # a worker's end, likewise
    if _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` has it
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
        with _watched(ray.get_runtime_context().gcs_address, teller):
            yield ray
    finally:
        ray.shutdown()


@contextmanager
def _watched(head: str, teller: Teller) -> Iterator[None]:
    """Knock at the head node while the block runs; give up when it is silent for long."""
    ended = threading.Event()

    def watch() -> None:
        silences = 0
        while not ended.wait(_WATCH_S):
            silences = silences + 1 if _silence(head) else 0
            if silences == _MOST_SILENCES:
                teller.give_up("its head node is silent")

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except ClusterLost:
        if _silence(head):  # leaving it would take Ray a minute, and then end the process
            teller.give_up("its head node is silent")
        raise
    finally:
        ended.set()


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
        if told := _silence(address):
            raise BadCluster(f"--ray {address}: no cluster answers: {told}")
    if address != _LOCAL:
        _probe(address)
    try:
        with _without_words():
            ray.init(address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BadCluster(f"--ray {address}: no cluster answers: {_first_line(error)}") from None


def _silence(address: str) -> str:
    """Return why nobody listens there; nothing where somebody does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()
    except (OSError, OverflowError) as error:
        return _first_line(error)
    return ""


def _probe(address: str) -> None:
    """Find out whether it is a cluster that answers, and lets us in."""
    command = [sys.executable, "-m", "service.ray_probe", address]
    with subprocess.Popen(  # noqa: S603 - our own module
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - a pipe
            process.stdout.readline()  # Ray is loaded: that may take long where files are slow
            told, _ = process.communicate(timeout=_PROBE_S)
        except subprocess.TimeoutExpired:
            told = ""
        finally:
            process.kill()
    if process.returncode:
        told = told.strip() or "is it the port of the head, and RAY_AUTH_MODE the cluster's?"
        raise BadCluster(f"--ray {address}: no cluster answers: {told}")


@contextmanager
def _without_words() -> Iterator[None]:
    """Keep off standard error what Ray's C++ writes there before it has read how loud it may be."""
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)


def _has_token() -> bool:
    """Whether Ray would find a token to show."""
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    return bool(named) or Path("~/.ray/auth_token").expanduser().exists()


def _keep_quiet(ray: Any) -> None:  # noqa: ANN401 - an optional module
    """Leave the progress to us, and what went wrong as well."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # byte: an answer waits for no other


def _first_line(error: BaseException) -> str:
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())
