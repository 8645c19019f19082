"""`mfdan-train report`: its options. The work is imported inside, with what it needs to load."""

# ruff: noqa: PLC0415 - see above

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

__all__ = ["report"]


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            exists=True,
            file_okay=False,
            metavar="RUN",
            help="Folders that `loso` wrote; several are compared.",
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, show_default=False, help="Folder of the page; report in the first RUN."
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            show_default=False,
            help="Manifest whose prepared pictures show the worst clips; the config's.",
        ),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="How many clips to show.")] = 12,
) -> None:
    """Write one HTML page, and its pictures, of what one or more runs measured."""
    from training.report.page import write_report

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    log = Console(stderr=True)
    with Progress(*columns, console=log, disable=not log.is_terminal) as progress:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        page = write_report(
            runs, out or runs[0] / "report", manifest=pairs, worst=worst, report=show
        )
    Console().print(str(page), markup=False, highlight=False, soft_wrap=True)
