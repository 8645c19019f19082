"""The rows of `benchmarks/gpu.py`: each is measured, or says why it could not be."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

__all__ = [
    "Contender",
    "NotHere",
    "Pace",
    "Row",
    "attempt",
    "in_words",
    "report_progress",
    "side_by_side",
    "to_markdown",
]

Numbers = Mapping[str, float]
Run = Callable[[], object]
_SLOT_S = 0.02
"""What is faster is repeated within its turn until this has gone by: clocks and caches settle."""
_WHOLE_FROM = 1000
_LONGEST_REASON = 240


class NotHere(Exception):
    """What cannot be measured on this machine, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the results."""

    section: str
    name: str
    batch: int = 1
    numbers: Numbers = field(default_factory=dict)
    """By name and unit; empty where it was not measured."""
    reason: str = ""
    """Why it was not measured."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to do the work of a row, for `side_by_side`."""

    name: str
    pairs: int
    """Pairs (or whatever is counted) that one run does."""
    open: Callable[[], Run]
    """Returns what runs once. Raises: NotHere, or whatever is wrong."""
    shares: Callable[[float], Numbers] = lambda _seconds: {}
    """Shares of the machine's limits that a run of so many seconds reaches."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long to measure."""

    rounds: int
    """At the least; a round has every contender run in turn."""
    budget_s: float
    """Of one contender's runs together; past it no further round begins."""
    longest_s: float
    """A run that would take longer, by the rate of the last smaller batch, is left out."""


@dataclass(frozen=True)
class _Ready:
    contender: Contender
    run: Run
    repeats: int
    seconds: list[float] = field(default_factory=list)

    def turn(self) -> None:
        start = time.perf_counter()
        for _ in range(self.repeats):
            self.run()
        self.seconds.append((time.perf_counter() - start) / self.repeats)


def report_progress(what: str) -> None:
    """Say what is measured now: the whole takes minutes."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def attempt(section: str, name: str, measure: Callable[[], Numbers], batch: int = 1) -> Row:
    """Return the row that `measure` fills, or its reason. A fault of one row ends no other."""
    try:
        return Row(section=section, name=name, batch=batch, numbers=measure())
    except NotHere as reason:
        return Row(section=section, name=name, batch=batch, reason=str(reason))
    except Exception as error:  # noqa: BLE001 - the row says what; a benchmark of an hour goes on
        return Row(section=section, name=name, batch=batch, reason=in_words(error))


def side_by_side(
    section: str, contenders: Sequence[Contender], pace: Pace, rates: dict[str, float]
) -> list[Row]:
    """Run the contenders in turn, round by round, so that what else the machine does meets all.

    `rates` holds seconds a pair by name, of the last batch size that was measured; it is read and
    written. Returns a row each, in order: medians over rounds.
    """
    opened = [_opened(one, pace, rates) for one in contenders]
    ready = [one for one in opened if isinstance(one, _Ready)]
    start, done = time.perf_counter(), 0
    while ready and (
        done < pace.rounds or time.perf_counter() - start < pace.budget_s * len(ready)
    ):
        for one in ready:
            one.turn()
        done += 1
    rows = []
    for contender, one in zip(contenders, opened, strict=True):
        if isinstance(one, str):
            rows.append(
                Row(section=section, name=contender.name, batch=contender.pairs, reason=one)
            )
            continue
        rates[contender.name] = median(one.seconds) / contender.pairs
        rows.append(attempt(section, contender.name, lambda o=one: _numbers(o), contender.pairs))
    return rows


def _opened(contender: Contender, pace: Pace, rates: dict[str, float]) -> _Ready | str:
    expected = rates.get(contender.name, 0.0) * contender.pairs
    if expected > pace.longest_s:
        return f"left out: a run would take {expected:.1f} s, the limit is {pace.longest_s:g} s"
    try:
        run = contender.open()
        run()  # what is allocated, compiled or captured once
        start = time.perf_counter()
        run()
        once = time.perf_counter() - start
    except NotHere as reason:
        return str(reason)
    except Exception as error:  # noqa: BLE001 - as in `attempt`
        return in_words(error)
    return _Ready(contender, run, max(1, int(_SLOT_S / max(once, 1e-9))))


def _numbers(one: _Ready) -> Numbers:
    seconds = median(one.seconds)
    return {
        "ms": 1e3 * seconds,
        "pairs/s": one.contender.pairs / seconds,
        "rounds": len(one.seconds),
        **one.contender.shares(seconds),
    }


def in_words(error: Exception) -> str:
    """Name the fault in a line: libraries put whole stacks into their messages."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST_REASON]


def to_markdown(rows: Sequence[Row]) -> str:
    """Return a table for each section; what was not measured stands last in it, with its reason."""
    parts = []
    for section in dict.fromkeys(row.section for row in rows):
        own = [row for row in rows if row.section == section]
        measured = [row for row in own if row.numbers]
        columns = list(dict.fromkeys(key for row in measured for key in row.numbers))
        lines = [f"### {section}", ""]
        if measured:
            lines += [_line(["", "batch", *columns]), _line(["---"] * (2 + len(columns)))]
            lines += [
                _line([row.name, str(row.batch), *(_cell(row.numbers.get(key)) for key in columns)])
                for row in measured
            ]
            lines.append("")
        if missing := [row for row in own if not row.numbers]:
            lines += [_line(["not measured here", "batch", "why"]), _line(["---"] * 3)]
            lines += [_line([row.name, str(row.batch), row.reason]) for row in missing]
            lines.append("")
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "¦") for cell in cells) + " |"


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value == int(value) or abs(value) >= _WHOLE_FROM else f"{value:.3g}"
