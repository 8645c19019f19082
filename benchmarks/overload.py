"""Does the service stay itself when twice as much is asked of it as it can answer?

    python benchmarks/overload.py [--seconds 600] [--warm-up 60] [--factor 2]

`mfdan serve` in a process of its own, with the settings of this environment, first kept full to
measure what it can answer, then sent twice that at a constant rate. Ends with status 1 when an
answer is neither 200 nor 429, when the 99th percentile of the accepted comes later than the
deadline, or when memory grows by 5 % after the warm-up, which is under the same load.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from statistics import median

from report import heading
from traffic import Outcome, Served, drawn_pair, full_load, open_loop, prediction_request, serving

from service.settings import Settings

CAPACITY_S = 10.0
EVERY_S = 1.0
"""Between two looks at the memory."""
MOST_GROWTH = 0.05
ENDS = 30
"""Looks at the memory that are its beginning, and its end."""
MIB = 2**20


async def overload(
    served: Served, request: bytes, rate: float, seconds: float
) -> tuple[Outcome, list[int]]:
    """Send at a rate for so long; return what came of it, and the memory every second, bytes."""
    memory: list[int] = []

    async def look() -> None:
        while True:
            memory.append(served.resident_bytes())
            await asyncio.sleep(EVERY_S)

    looking = asyncio.create_task(look())
    outcome = await open_loop(served.port, request, rate, seconds)
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking
    return outcome, memory


def growth(memory: list[int]) -> float:
    """Return by what share the end holds more than the beginning, medians of 30 looks each."""
    return median(memory[-ENDS:]) / median(memory[:ENDS]) - 1


def faults(outcome: Outcome, memory: list[int], deadline_ms: int) -> Iterator[str]:
    """Yield what an operator could not trust."""
    others = {status: n for status, n in outcome.statuses.items() if status not in {200, 429}}
    if others:
        yield f"answers that are neither 200 nor 429 (0: a broken connection): {others}"
    if not outcome.latency_s:
        yield "nothing was answered"
    elif outcome.percentile_ms(99) > deadline_ms:
        yield f"99 % of the accepted were answered within {outcome.percentile_ms(99):.0f} ms only"
    if growth(memory) >= MOST_GROWTH:
        yield f"memory grew by {growth(memory):.1%}"


def main() -> None:
    """Print the outcome; exit with 1 when there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--warm-up", type=float, default=60.0, help="seconds before they count")
    parser.add_argument("--factor", type=float, default=2.0, help="times the capacity")
    arguments = parser.parse_args()
    request = prediction_request(*drawn_pair())
    deadline_ms = Settings().deadline_ms
    print(heading(f"What does {arguments.factor:g} times the capacity do to the service?"))
    with serving() as served:
        asyncio.run(full_load(served, request, CAPACITY_S))  # so that everything is warm
        capacity = asyncio.run(full_load(served, request, CAPACITY_S)).rate
        rate = arguments.factor * capacity
        print(f"capacity {capacity:.2f} pairs/s, so {rate:.2f} are sent each second", flush=True)
        asyncio.run(overload(served, request, rate, arguments.warm_up))
        own = time.process_time()
        outcome, memory = asyncio.run(overload(served, request, rate, arguments.seconds))
        own = time.process_time() - own
    whole = outcome.statuses.total()
    print(f"{whole} requests in {outcome.seconds:.0f} s: ", end="")
    print(", ".join(f"{count} {status}" for status, count in sorted(outcome.statuses.items())))
    latency = ", ".join(f"p{p} {outcome.percentile_ms(p):.0f} ms" for p in (50, 95, 99))
    print(f"accepted: {outcome.answered_rate:.2f}/s, {latency} (deadline {deadline_ms} ms)")
    print(
        f"memory: {memory[0] / MIB:.0f} MiB at first, {max(memory) / MIB:.0f} at most, "
        f"{memory[-1] / MIB:.0f} at last; growth {growth(memory):+.1%} (last 30 s over first)"
    )
    print(
        f"the generator took {own / outcome.seconds:.1%} of one core and was late by at most ",
        end="",
    )
    print(f"{1e3 * outcome.lag_s:.0f} ms; load after: {os.getloadavg()[0]:.1f}")
    found = list(faults(outcome, memory, deadline_ms))
    for fault in found:
        print(f"FAULT: {fault}", file=sys.stderr)
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
