"""How much does the service answer, how fast, and what does it lose against a bare loop?

    python benchmarks/load.py [--onset FILE --apex FILE] [--rounds 7] [--seconds 10] [--rates ...]

The service runs as `mfdan serve` in a process of its own, with the settings of this environment
(MFDAN_…). The bare loop is another process: as many threads as the service has workers, each doing
decode → flow → tensors → network for one pair after the other, with the same thread counts in
OpenCV and ONNX Runtime. It has no HTTP, no queue and no batches, and is the limit.

A lone pair's two frames are decoded at once by the service, where a worker is idle, and one after
the other by the bare loop. So what the service takes beside the work is told as well.

Both are measured in turn, pair by pair or stretch by stretch, and compared within each turn, so
that what else the machine does meets both. The generator runs on the same cores as
the service, which the bare loop has for itself: what it took is told. So is what others took, and
turns without others are told apart, if there are any.
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean, median
from urllib.request import urlopen

import cv2
import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from report import heading
from traffic import (
    Served,
    Stretch,
    drawn_pair,
    full_load,
    machine_cpu_s,
    open_loop,
    prediction_request,
    serving,
)

from model.pipeline import Preprocessor
from service.answers import Options, Upload
from service.engine import open_sessions
from service.preparation import prepare_pair
from service.settings import Settings, cores

SHARES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25)
"""Of the measured capacity: the rates of the table."""
WARM_UP_PAIRS = 10
RESTED_REQUESTS = 100
REST_S = 0.1
QUIET = 0.05
_HEAD_ENDS = b"\r\n\r\n"
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Bare:
    """The same work without a service, in the process that makes one of these."""

    def __init__(self, upload: Upload) -> None:
        self._settings = settings = Settings()
        cv2.setNumThreads(settings.opencv)
        self._session = next(iter(open_sessions(settings).values()))
        self._preprocessor = Preprocessor(self._session.spec)
        self._upload = upload

    def pair(self) -> None:
        """Answer one pair. Raises: RuntimeError when it shows no face."""
        prepared = prepare_pair(
            self._preprocessor, self._upload, Options(), self._settings.limits, lambda: None
        )
        if not prepared.faces:
            raise RuntimeError("there is no face in the pair")
        for image, flow in prepared.inputs:
            self._session.run(image[None], flow[None])

    def single_s(self) -> float:
        """Return the seconds of one pair alone."""
        start = time.perf_counter()
        self.pair()
        return time.perf_counter() - start

    def stretch(self, seconds: float) -> Stretch:
        """Work in every worker for so long."""
        workers = self._settings.workers
        start, cpu, all_cpu = time.perf_counter(), time.process_time(), machine_cpu_s()

        def work() -> int:
            done = 0
            while time.perf_counter() < start + seconds:
                self.pair()
                done += 1
            return done

        with ThreadPoolExecutor(workers) as pool:
            done = sum(pool.map(lambda _: work(), range(workers)))
        wall, spent = time.perf_counter() - start, time.process_time() - cpu
        others = machine_cpu_s() - all_cpu - spent
        return Stretch(done / wall, 1e3 * spent / done, others / wall / cores())


def bare_process(orders: Connection, upload: Upload) -> None:
    """Do what is ordered until told None: 0 is one pair alone, more are seconds of full load."""
    bare = Bare(upload)
    for _ in range(WARM_UP_PAIRS):
        bare.pair()
    while (seconds := orders.recv()) is not None:
        orders.send(bare.stretch(seconds) if seconds else bare.single_s())


@contextmanager
def bare_loop(upload: Upload) -> Iterator[Connection]:
    """Start the bare loop in a process of its own."""
    fresh = multiprocessing.get_context("spawn")
    ours, theirs = fresh.Pipe()
    process = fresh.Process(target=bare_process, args=(theirs, upload), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        with suppress(BrokenPipeError):  # it has ended, and said why
            ours.send(None)
        process.join(60)


@dataclass
class Singles:
    """Pairs sent one at a time, in turn; milliseconds."""

    bare: list[float] = field(default_factory=list)
    service: list[float] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)
    """What the service says that each stage of each took."""
    run: float = math.nan
    """Mean of the network's runs for the service's."""

    @property
    def beside(self) -> float:
        """What the service took beside the stages and the runs themselves; median.

        By its own account, so that the noise of the work, tens of times larger, is left out.
        """
        rest = [
            whole - sum(ms for stage, ms in stages.items() if stage != "total")
            for whole, stages in zip(self.service, self.stages, strict=True)
        ]
        # `infer` begins when the pair is prepared and ends where its answer is awaited.
        return median(rest) + mean(stages["infer"] for stages in self.stages) - self.run


def singles(bare: Connection, served: Served, request: bytes, pairs: int) -> Singles:
    """Answer single pairs in turn, in the bare loop and through the service.

    Asked from a plain socket: an event loop on this side would add its own wakening.
    """
    found = Singles()
    with socket.create_connection(("127.0.0.1", served.port)) as caller:
        for number in range(-WARM_UP_PAIRS, pairs):
            if number == 0:
                found, before = Singles(), _network(served)
            for which in ("bare", "service") if number % 2 else ("service", "bare"):
                if which == "bare":
                    bare.send(0)
                    found.bare.append(1e3 * bare.recv())
                    continue
                ms, body = _asked(caller, request, HTTPStatus.OK)
                found.service.append(ms)
                found.stages.append(json.loads(body)["timings_ms"])
    seconds, runs = np.subtract(_network(served), before)
    found.run = 1e3 * seconds / runs
    return found


def _asked(caller: socket.socket, request: bytes, status: HTTPStatus) -> tuple[float, bytes]:
    """Return the milliseconds to the last byte of an answer, and its body."""
    start = time.perf_counter()
    caller.sendall(request)
    answer = _received(caller)
    ms = 1e3 * (time.perf_counter() - start)
    head, _, body = answer.partition(_HEAD_ENDS)
    if not head.startswith(b"HTTP/1.1 %d " % status):
        raise SystemExit(f"the service answered a single request otherwise than {status}")
    return ms, body


def _received(caller: socket.socket) -> bytes:
    """Return a whole answer; what it says is read later, when the clock stands."""
    answer = b""
    while not _is_whole(answer):
        if not (more := caller.recv(2**16)):
            raise SystemExit("the service hung up on a single pair")
        answer += more
    return answer


def _is_whole(answer: bytes) -> bool:
    head, ends, body = answer.partition(_HEAD_ENDS)
    length = _LENGTH.search(head) if ends else None
    return length is not None and len(body) >= int(length[1])


def _network(served: Served) -> tuple[float, float]:
    """Return the seconds that the network has run, and how often."""
    with urlopen(f"http://127.0.0.1:{served.port}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
        told = {one.name: one.value for family in families for one in family.samples}
    name = "mfdan_batch_duration_seconds"
    return told[f"{name}_sum"], told[f"{name}_count"]


def print_singles(bare: Connection, served: Served, request: bytes, pairs: int) -> None:
    """Print what the service adds to a pair that comes alone."""
    found = singles(bare, served, request, pairs)
    added = np.subtract(found.service, found.bare)
    low, high = np.percentile(added, (25, 75))
    quiet = [float(np.percentile(times, 10)) for times in (found.bare, found.service)]
    print(f"One pair at a time, {pairs} in turn: median, and quickest tenth")
    print(f"  bare loop {median(found.bare):7.1f} ms {quiet[0]:7.1f} ms")
    print(f"  service   {median(found.service):7.1f} ms {quiet[1]:7.1f} ms")
    print(f"  added     {np.median(added):7.1f} ms {quiet[1] - quiet[0]:7.1f} ms", end="")
    print(f"   (half of the turns: {low:.1f} to {high:.1f})")
    print(f"  of which {found.beside:8.1f} ms beside the work, by the service's own account;")
    print("  the rest is the noise of the work, and work that is slower in the service\n")


def print_rest(served: Served) -> None:
    """Print what a request takes that asks for no work, and what it takes when nothing is warm."""
    request = prediction_request(b"no picture", b"no picture")
    with socket.create_connection(("127.0.0.1", served.port)) as caller:

        def asked_after(rest_s: float) -> float:
            time.sleep(rest_s)
            return _asked(caller, request, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)[0]

        for _ in range(WARM_UP_PAIRS):
            asked_after(0)
        in_a_row, rested = (
            median(asked_after(rest_s) for _ in range(RESTED_REQUESTS)) for rest_s in (0, REST_S)
        )
    print(f"A pair that is refused at its first bytes, {RESTED_REQUESTS} requests: medians")
    print(f"  in a row            {in_a_row:5.2f} ms")
    print(f"  after {REST_S:g} s of rest {rested:5.2f} ms: cores wake, and caches are cold\n")


def print_capacity(
    bare: Connection, served: Served, request: bytes, rounds: int, seconds: float
) -> float:
    """Print throughput of both, in turn; return the service's."""
    bares, services = [], []
    for number in range(rounds):
        for which in ("bare", "service") if number % 2 else ("service", "bare"):
            if which == "bare":
                bare.send(seconds)
                bares.append(bare.recv())
            else:
                services.append(asyncio.run(full_load(served, request, seconds)))
    turns = list(zip(bares, services, strict=True))
    print(f"Full load, {rounds} turns of {seconds:g} s (medians)")
    _print_turns(turns)
    quiet = [turn for turn in turns if max(one.others_share for one in turn) < QUIET]
    if 0 < len(quiet) < len(turns):
        print(f"Of these, the {len(quiet)} in which others took less than {QUIET:.0%} of the cores")
        _print_turns(quiet)
    return median(one.rate for one in services)


def _print_turns(turns: list[tuple[Stretch, Stretch]]) -> None:
    print(f"{'':12}{'pairs/s':>9}{'CPU ms/pair':>13}{'others took':>13}")
    for name, stretches in zip(("bare loop", "service"), zip(*turns, strict=True), strict=True):
        rate, cpu, others = (
            median(getattr(one, what) for one in stretches)
            for what in ("rate", "cpu_ms", "others_share")
        )
        print(f"  {name:10}{rate:9.2f}{cpu:13.1f}{others:13.1%}")
    generator = median(ours.generator_share for _, ours in turns)
    share = _span([ours.rate / limit.rate for limit, ours in turns])
    cpu_share = _span([limit.cpu_ms / ours.cpu_ms for limit, ours in turns])
    print(f"  share of the bare loop's throughput {share}")
    print(f"  by processor time for each pair     {cpu_share}")
    print(f"  (the generator took {generator:.1%} of the cores, which the bare loop had)\n")


def _span(shares: list[float]) -> str:
    return f"{median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"


def print_rates(served: Served, request: bytes, rates: list[float], seconds: float) -> None:
    """Print the table of rates."""
    print(f"At a constant rate, {seconds:g} s each; latency from the intended send, ms")
    print(f"{'sent/s':>9}{'200/s':>9}{'p50':>9}{'p95':>9}{'p99':>9}{'200':>8}{'429':>8}{'late':>8}")
    for rate in rates:
        own = time.process_time()
        outcome = asyncio.run(open_loop(served.port, request, rate, seconds))
        own = time.process_time() - own
        whole = outcome.statuses.total()
        shares = [outcome.statuses[status] / whole for status in (200, 429)]
        print(
            f"{rate:9.2f}{outcome.answered_rate:9.2f}"
            + "".join(f"{outcome.percentile_ms(percent):9.0f}" for percent in (50, 95, 99))
            + "".join(f"{share:8.1%}" for share in shares)
            + f"{1e3 * outcome.lag_s:8.1f}"
        )
        if whole > outcome.statuses[200] + outcome.statuses[429]:
            print(f"          other statuses: {dict(outcome.statuses)}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--onset", type=Path, help="picture; none: a drawn pair")
    parser.add_argument("--apex", type=Path)
    parser.add_argument("--singles", type=int, default=100, help="pairs sent one at a time")
    parser.add_argument(
        "--rounds", type=int, default=7, help="turns at full load; 0: only single pairs"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of a turn")
    parser.add_argument("--rates", type=float, nargs="*", help="default: shares of the capacity")
    parser.add_argument("--rate-seconds", type=float, default=20.0, help="at each rate")
    arguments = parser.parse_args()
    if (arguments.onset is None) != (arguments.apex is None):
        parser.error("--onset and --apex go together")
    pair = (
        drawn_pair()
        if arguments.onset is None
        else (arguments.onset.read_bytes(), arguments.apex.read_bytes())
    )
    request = prediction_request(*pair)
    settings = Settings()
    print(heading("How much does the service answer, and what does it lose against a bare loop?"))
    print(
        f"{cores()} cores; {settings.workers} workers, {settings.opencv} thread(s) in OpenCV, "
        f"{settings.onnx} in ONNX Runtime; batches of {settings.batch_sizes}; "
        f"{len(request) / 1e3:.0f} kB for each request; load before: {os.getloadavg()[0]:.1f}\n"
    )
    with serving() as served, bare_loop(Upload(*pair)) as bare:
        print_singles(bare, served, request, arguments.singles)
        print_rest(served)
        if not arguments.rounds:
            return
        capacity = print_capacity(bare, served, request, arguments.rounds, arguments.seconds)
        rates = arguments.rates
        if rates is None:
            rates = [share * capacity for share in SHARES]
        print_rates(served, request, rates, arguments.rate_seconds)
    print(f"\nload after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
