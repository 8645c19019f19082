"""`mfdan score`: its options, its progress, what it says at the end."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NoReturn, Self

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from model.session import Session
from service.answers import Options
from service.cluster import BadCluster, Cluster, ClusterLost, score_on_ray
from service.command_line import (
    BAD_USAGE,
    INTERRUPTED,
    ModelOption,
    failed,
    open_models,
    read_settings,
)
from service.journal import Journal, JournalInUse, JournalMismatch
from service.scoring import Outcome, columns, fingerprint, score
from service.settings import MAX_CANDIDATES, MAX_FACES, Settings
from service.sources import BadArgument, Found, Source, find_sources
from service.stores import holds_key
from service.tables import MissingExtra, Row, check_format, write_table
from service.wording import in_words

__all__ = ["score_command"]

_LONGEST_MS = {"deadline_ms": 600_000, "clip_deadline_ms": 3_600_000}
"""Nobody waits at the other end, and a machine at full load is slow."""
_LINE_EVERY_S = 30.0
_CUT_SHORT = 3
"""Exit status where the results could not be written; what the journal holds is kept."""


def score_command(  # noqa: PLR0913 - one parameter for each option
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DIR|FILE|GLOB]...",
            show_default=False,
            help="Folders, clips and patterns. A folder's pictures onset.* and apex.* are a pair.",
        ),
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option(dir_okay=False, help="File of results: .parquet, .csv or .jsonl.")
    ],
    manifest: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="CSV with columns onset and apex, or clip; paths relative to its folder.",
        ),
    ] = None,
    model: ModelOption = None,
    faces: Annotated[int, typer.Option(min=1, max=MAX_FACES, help="Faces to answer for.")] = 1,
    candidates: Annotated[
        int,
        typer.Option(min=1, max=MAX_CANDIDATES, help="Intervals of each face to answer for."),
    ] = 5,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help='Ray cluster that does the work: HOST:PORT, "auto", or "local" to start one here.',
        ),
    ] = None,
    ray_workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Engines on the cluster (default: all it has room for), "
            "of MFDAN_WORKER_THREADS cores each (there 1 by default).",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, whatever was done before.")
    ] = False,
) -> None:
    """Score many clips and pairs into one table; run again, it goes on where it was stopped."""
    journal_path = out.with_name(f"{out.name}.journal.jsonl")
    _check_out(out)
    if ray is not None and any(holds_key(path) for path in paths or []):
        raise failed(
            "with --ray an address holds no key, for it is sent to every machine: "
            "leave the key to the store's own settings on each",
            status=BAD_USAGE,
        )
    found = _found(paths or [], manifest, (out, journal_path))
    if ray_workers is not None and ray is None:
        raise failed("--ray-workers are those of --ray: say where", status=BAD_USAGE)
    cluster = None if ray is None else Cluster(ray, ray_workers)
    options = Options(faces=faces, candidates=candidates)
    settings = _settings(model, options, cluster)
    try:
        sessions = open_models(settings)
    except typer.Exit:  # its status says here that there are results
        raise typer.Exit(BAD_USAGE) from None
    with _open_journal(out, journal_path, settings, sessions, options, overwrite) as journal:
        _score_missing(found, journal, settings, sessions, options, cluster)
        errors = _write(out, found, journal, sessions)
    if errors:
        raise typer.Exit(1)


def _check_out(out: Path) -> None:
    try:
        check_format(out)
        out.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, MissingExtra) as error:
        raise failed(str(error), status=BAD_USAGE) from None
    except OSError as error:
        raise failed(f"{out.parent}: {error.strerror}", status=BAD_USAGE) from None


def _settings(model: str | None, options: Options, cluster: Cluster | None) -> Settings:
    """Return the settings of one engine: all workers take clips, and nothing queues for long."""
    settings = read_settings(model=model, **_LONGEST_MS)
    update: dict[str, object] = {}
    if cluster is not None:
        threads = settings.worker_threads or 1
        update |= {
            "worker_threads": threads,
            "onnx_threads": settings.onnx_threads or threads,
            "opencv_threads": settings.opencv_threads or 1,
        }
        if "models_dir" in settings.model_fields_set:
            update["models_dir"] = settings.models_dir.absolute()  # workers are elsewhere
    settings = settings.model_copy(update=update)
    faces = settings.workers * options.faces * options.candidates
    return settings.model_copy(
        update={
            "clip_workers": settings.workers,
            "queue_items": max(settings.queue_items, faces),
        }
    )


def _found(paths: Sequence[str], manifest: Path | None, ignored: Sequence[Path]) -> Found:
    try:
        found = find_sources(paths, manifest, ignored)
    except BadArgument as error:
        raise failed(str(error), status=BAD_USAGE) from None
    if not found.sources:
        skipped = f"; {found.skipped} other files" if found.skipped else ""
        raise failed(f"there is nothing to score: no clip and no pair{skipped}", status=BAD_USAGE)
    return found


def _open_journal(  # noqa: PLR0913, PLR0917 - what fixes the results
    out: Path,
    path: Path,
    settings: Settings,
    sessions: dict[str, Session],
    options: Options,
    overwrite: bool,  # noqa: FBT001 - the option's value
) -> Journal:
    if overwrite:
        path.unlink(missing_ok=True)
    elif out.exists() and not path.exists():
        raise failed(
            f"{out} is there already, and nothing says what with; --overwrite replaces it",
            status=BAD_USAGE,
        )
    run = fingerprint(next(iter(sessions.values())).spec, settings, options)
    try:
        return Journal(path, run)
    except JournalMismatch:
        raise failed(
            f"{path} is of another model, version or other options; --overwrite begins anew",
            status=BAD_USAGE,
        ) from None
    except JournalInUse:
        raise failed(f"another run is writing {path}", status=BAD_USAGE) from None
    except OSError as error:
        raise failed(f"{path}: {error.strerror}", status=BAD_USAGE) from None


def _score_missing(  # noqa: PLR0913, PLR0917 - one argument for each thing that takes part
    found: Found,
    journal: Journal,
    settings: Settings,
    sessions: dict[str, Session],
    options: Options,
    cluster: Cluster | None,
) -> None:
    missing = [source for source in found.sources if not _is_done(source, journal)]
    say = Console(stderr=True, highlight=False)
    before = len(found.sources) - len(missing)
    if before:
        say.print(f"{before} of {len(found.sources)} were done before", markup=False)
    if not missing:
        return
    try:
        with _Progress(say, len(found.sources), before) as progress:
            if cluster is None:
                asyncio.run(score(missing, journal, settings, sessions, options, progress))
            else:
                spec = next(iter(sessions.values())).spec
                score_on_ray(missing, journal, settings, spec, options, progress, cluster)
    except KeyboardInterrupt:
        say.print("stopped; the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None
    except BadCluster as error:
        raise failed(str(error), status=BAD_USAGE) from None
    except ClusterLost as error:
        raise failed(_cluster_failed(str(error)), status=_CUT_SHORT) from None
    except OSError as error:
        told = f"the journal cannot be written: {error.strerror}"
        raise failed(told, status=_CUT_SHORT) from None


def _cluster_failed(why: str) -> str:
    return f"the cluster failed ({why}); the same command goes on from here"


def _is_done(source: Source, journal: Journal) -> bool:
    try:
        return journal.is_done(source, source.stamp())
    except OSError:
        return False


def _write(out: Path, found: Found, journal: Journal, sessions: dict[str, Session]) -> int:
    """Write the results and say what they are; return how many files failed."""
    codes: Counter[str] = Counter()

    def rows() -> Iterator[Row]:
        for source in found.sources:
            of_file = journal.rows(source)
            codes.update(row["error_code"] for row in of_file if row.get("error_code"))
            yield from of_file

    try:
        count = write_table(out, columns(next(iter(sessions.values())).spec), rows())
    except OSError as error:
        raise failed(f"{out}: {error.strerror}", status=_CUT_SHORT) from None
    say = Console(highlight=False, soft_wrap=True)
    say.print(f"{out}: {count} rows of {len(found.sources)} files", markup=False)
    if found.skipped:
        say.print(f"{found.skipped} other files are neither clips nor pairs")
    if codes:
        say.print(f"{codes.total()} files failed:")
        for code, number in codes.most_common():
            say.print(f"{number:6d} {in_words(code)}")
    return codes.total()


class _Progress:
    """A bar where there is a terminal, else a line every half minute; and each failure."""

    def __init__(self, console: Console, total: int, before: int) -> None:
        self._console = console
        self._total, self._done, self._before, self._failed = total, before, before, 0
        self._start = self._told = time.perf_counter()
        self._bar = Progress(
            TextColumn("score"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("score", total=total, completed=before, state="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bar.stop()

    def __call__(self, outcome: Outcome) -> None:
        """Count one source."""
        self._done += 1
        if outcome.error_code is not None:
            self._failed += 1
            self.say(f"{outcome.source.names[0]}: {outcome.error}")
        self._bar.update(self._task, completed=self._done, state=self._state)
        if self._bar.disable and time.perf_counter() - self._told > _LINE_EVERY_S:
            self._told = time.perf_counter()
            self._console.print(f"{self._done}/{self._total}, {self._state}", markup=False)

    def say(self, line: str) -> None:
        """Tell a line above the bar."""
        self._console.print(line, markup=False, soft_wrap=True)

    def give_up(self, reason: str) -> NoReturn:
        """Tell that the cluster failed, and end the process, which may hang in Ray."""
        self._bar.stop()
        failed(_cluster_failed(reason))
        os._exit(_CUT_SHORT)

    @property
    def _state(self) -> str:
        seconds = max(time.perf_counter() - self._start, 1e-9)
        speed = (self._done - self._before) / seconds
        return f"{speed:.1f} files/s, {self._failed} failed"
