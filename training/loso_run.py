"""A whole run of `mfdan-train loso`: prepare, plan, work through the folds, print the tables."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from training.config import Method, RunConfig
from training.data.pairs import manifest_path, read_pairs
from training.data.prepare import Prepared
from training.folds import check_people, missing_classes
from training.initial import initial_notes
from training.loso import FoldJob, MethodPlan, Options, folds_of, run_fold
from training.loso_folder import MethodFolder, locked, methods_in
from training.methods import NETWORKS
from training.preparing import prepare_pairs_folder
from training.scoring import ScoreTable, difference, read_predictions, score
from training.tuning import check_grid
from training.workers import Failure, Place, run_jobs

__all__ = ["ORACLE_LABEL", "LosoRun"]

_ENOUGH_SEEDS = 5
_NAMED = 5
"""Failed folds that a fault names; the rest are counted."""
_LINES = 20
"""Of progress, where there is no terminal."""
ORACLE_LABEL = (
    "Oracle epoch: each fold's epoch is chosen by the held-out people's own labels, which leaks "
    "them. For comparison with the literature; never the result."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LosoRun:
    """What one command asks for."""

    config: RunConfig
    manifest: Path
    """CSV, or a folder that holds a `pairs.csv`."""
    methods: Sequence[Method]
    out: Path
    options: Options
    place: Place
    prepare_workers: int = 0

    def execute(self, log: Console, console: Console) -> None:
        """Do what is not yet done; progress goes to `log`, tables to `console`.

        Raises: ValueError naming bad input before anything is trained, or, once all others are
        done, the folds that failed; OSError; KeyboardInterrupt.
        """
        config = self._located()
        self._check(config)
        for note in self._initial_notes(config):
            _tell(log, note, "yellow")
        prepared = prepare_pairs_folder(
            config.spec(), Path(config.pairs), self.prepare_workers, log
        )
        plans = [self._plan(config, method, prepared) for method in self.methods]
        for plan in plans:
            plan.folder.check(plan.note)
        self._tell_before(plans[0], log)
        with locked(self.out):
            failures = self._work(plans, log)
            for plan in plans:
                if not plan.missing:
                    plan.write_results()
        show_tables(self.out, console)
        for plan in plans:
            if plan.note["tune"] and not plan.missing:
                _show_tuning(plan, console)
        _raise_failures(failures)

    def _located(self) -> RunConfig:
        """Make the paths absolute: workers stand elsewhere, and so may a report."""
        manifest = manifest_path(self.manifest).resolve()
        init = str(Path(self.config.init).resolve()) if self.config.init else ""
        return replace(self.config, pairs=str(manifest), init=init)

    def _check(self, config: RunConfig) -> None:
        """Find what is wrong before hours of preparation, not after."""
        pairs = read_pairs(Path(config.pairs))
        config.labels.check(pairs)
        check_people(pairs)
        if min(config.seeds) < 0:
            raise ValueError(f"seeds must not be negative, got {min(config.seeds)}")
        if config.init and not Path(config.init).is_file():
            raise FileNotFoundError(f"there is no file {config.init} to take weights from")
        if self.options.tune:
            if config.method not in NETWORKS:
                raise ValueError(f"--tune searches for a network; {config.method} has no settings")
            if config.method not in self.methods:
                raise ValueError(
                    f"--tune searches for {config.method}, the method of the config; only "
                    f"{', '.join(self.methods)} would be run: add --method {config.method}"
                )
            check_grid(config)

    def _initial_notes(self, config: RunConfig) -> list[str]:
        """Return what is to be said of the model that the network starts from, if one is asked."""
        if config.method not in self.methods or config.method not in NETWORKS:
            return []
        pairs = read_pairs(Path(config.pairs))
        scored = [pair for pair in pairs if config.labels.class_of(pair.label) is not None]
        return initial_notes(config, scored)

    def _plan(self, config: RunConfig, method: Method, prepared: Prepared) -> MethodPlan:
        own = method == config.method
        if not own:
            from training.baselines import baseline_config  # noqa: PLC0415 - loads scikit-learn

            config = baseline_config(config, method)
        options = replace(self.options, tune=self.options.tune and own)
        return MethodPlan.of(config, prepared, self.out, options)

    def _tell_before(self, plan: MethodPlan, log: Console) -> None:
        labels = plan.config.labels
        for fold in folds_of(plan.rows, self.options.protocol):
            missing = missing_classes(fold.train, labels)
            if missing:
                _tell(log, f"fold {fold.name}: no clip of {', '.join(missing)} to train on")
        seeds = len(self.config.seeds)
        if seeds < _ENOUGH_SEEDS:
            _tell(
                log,
                f"{seeds} seed{'s' if seeds > 1 else ''}: too few for a result to be reported; "
                f"give {_ENOUGH_SEEDS} or more",
                "yellow",
            )
        if self.options.tune and len(self.methods) > 1:
            _tell(
                log, f"--tune searches for {self.config.method} only; the others stay as they are"
            )

    def _work(self, plans: Sequence[MethodPlan], log: Console) -> list[Failure[FoldJob]]:
        missing: list[FoldJob] = []
        for plan in plans:
            for changed in plan.folder.claim(plan.note):
                _tell(log, f"{plan.folder.root.name} was begun with another {changed}", "yellow")
            if plan.missing:
                plan.folder.withdraw_results()
            missing += plan.missing
        total = sum(len(plan.jobs) for plan in plans)
        with _progress(total, total - len(missing), log) as bar:
            return run_jobs(missing, run_fold, self.place, bar.done)


def _tell(console: Console, line: str, style: str | None = None) -> None:
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


class _Bar:
    """Folds done; plain lines where there is no terminal. No score: nobody shall stop on one."""

    def __init__(self, progress: Progress, total: int, before: int) -> None:
        self._progress = progress
        self._total = total
        self._done = before
        self._task = progress.add_task("folds", total=total, completed=before)

    def done(self, _job: FoldJob) -> None:
        """Count a fold."""
        self._done += 1
        self._progress.update(self._task, completed=self._done)
        console = self._progress.console
        if not console.is_terminal and self._done % max(1, self._total // _LINES) == 0:
            _tell(console, f"{self._done} of {self._total} folds")


@contextmanager
def _progress(total: int, before: int, console: Console) -> Iterator[_Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, disable=not console.is_terminal) as progress:
        yield _Bar(progress, total, before)


def show_tables(out: Path, console: Console) -> None:
    """Print the scores of every finished method in a run's folder, and how they compare."""
    finished = [method for method in methods_in(out) if MethodFolder(out / method).scores.is_file()]
    for method in finished:
        folder = MethodFolder(out / method)
        note = folder.read_note() or {}
        scores = ScoreTable.from_json(folder.scores.read_text())
        scores.show(console, f"{method}: {note['protocol']}, {len(note['folds'])} folds")
        if folder.oracle.is_file():
            _tell(console, ORACLE_LABEL, "yellow")
            console.print(_beside_oracle(scores, folder))
    if "mfdan" in finished and len(finished) > 1:
        console.print(_differences(out, [method for method in finished if method != "mfdan"]))


def _beside_oracle(scores: ScoreTable, folder: MethodFolder) -> Table:
    classes, predictions = read_predictions(folder.oracle)
    oracle = score(predictions, classes)
    table = Table("metric", "last epoch: the result", "oracle epoch: leaks")
    for metric in ("uf1", "uar", "accuracy"):
        honest, leaking = scores.row(metric, "all"), oracle.row(metric, "all")
        table.add_row(metric, f"{honest.value:.3f}", f"{leaking.value:.3f}")
    return table


def _differences(out: Path, baselines: Sequence[str]) -> Table:
    table = Table("mfdan above", "metric", "difference", "95 % interval over people")
    classes, ours = read_predictions(MethodFolder(out / "mfdan").predictions)
    for method in baselines:
        others, theirs = read_predictions(MethodFolder(out / method).predictions)
        if others != classes:
            raise ValueError(
                f"{out}: the classes are {', '.join(classes)} in mfdan, and {', '.join(others)} in "
                f"{method}"
            )
        for metric in ("uf1", "uar"):
            value, low, high = difference(ours, theirs, classes, metric)
            table.add_row(method, metric, f"{value:+.3f}", f"{low:+.3f} – {high:+.3f}")
    return table


def _show_tuning(plan: MethodPlan, console: Console) -> None:
    """Print how often each value won."""
    chosen = plan.tuned()
    table = Table("field", "value", "chosen in", title="chosen inside the training halves")
    for field, values in plan.config.tune.grid.items():
        wins = Counter(json.dumps(each[field]) for each in chosen)
        for value in map(json.dumps, values):
            table.add_row(Text(field), Text(value), f"{wins[value]} of {len(chosen)} folds")
    console.print(table)


def _raise_failures(failures: Sequence[Failure[FoldJob]]) -> None:
    if failures:
        named = "; ".join(f"{each.job}: {each.reason}" for each in failures[:_NAMED])
        more = f"; and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
        raise ValueError(
            f"{len(failures)} fold{'s' if len(failures) > 1 else ''} failed, the others are kept: "
            f"{named}{more}"
        )
