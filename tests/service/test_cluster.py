"""On a real local Ray with two workers. Starting it takes seconds, so one run shows many things.

What takes more runs is marked `slow`: `.ci/run` has it, `make test` leaves it out.
"""

import csv
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from drawn_clips import encode_clip, encode_pictures, grey_steps
from drawn_expression_clips import drawn_clip
from serving import MakeSettings, Pictures
from typer.testing import CliRunner, Result

from service.cli import app
from service.cluster import BadCluster, _model, _of_this_machine, _room, _Tally

MFDAN = "from service.cli import app; app()"
DEADLY_FILES = """
import os, pathlib
from service import scoring
read = scoring.read_upload
def deadly(paths, settings):
    name, died = pathlib.Path(paths[0]).name, pathlib.Path(os.environ["PYTHONPATH"]) / "died"
    if name == "deadly.gif" or name == "once.gif" and not died.exists():
        died.touch()
        os._exit(1)
    return read(paths, settings)
scoring.read_upload = deadly
"""
"""Run by every process that has its folder in PYTHONPATH: no test can reach into Ray's workers."""
DEADLY_ONCE = DEADLY_FILES.replace('name == "deadly.gif" or ', "")
DEADLY_MODEL = """
import os, sys
if any("default_worker.py" in argument for argument in sys.orig_argv):
    from service import engine
    engine.open_sessions = lambda settings: os._exit(1)
"""


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory, pictures: Pictures) -> Path:
    """Many clips, a pair, a clip without a face, a clip cut short, and what is none of them."""
    folder = tmp_path_factory.mktemp("recordings")
    frames, _truth = drawn_clip(fps=50, seconds=1.0, onset_s=0.3, apex_s=0.45, offset_s=0.7)
    smile = encode_clip(frames, 50)
    for number in range(10):
        (folder / f"{number}.mp4").write_bytes(smile)
    (folder / "pair").mkdir()
    (folder / "pair/onset.png").write_bytes(pictures.onset)
    (folder / "pair/apex.png").write_bytes(pictures.smile)
    for name in ("grey", "once", "deadly"):
        (folder / f"{name}.gif").write_bytes(encode_pictures(grey_steps(5), 25, "gif"))
    (folder / "cut.mp4").write_bytes(smile[: len(smile) // 2])
    (folder / "notes.txt").write_text("nothing to see")
    return folder


@dataclass(frozen=True)
class Run:
    """What one `mfdan score` on two workers of Ray left."""

    out: Path
    status: int
    said: str
    complained: str
    """On standard error."""


Score = Callable[..., Run]


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """Ray's own folder; short, for sockets have no room for a long path."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def score(
    recordings: Path, models_dir: Path, ray_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Score:
    """Run the command in a folder; every process of it begins with `first`."""

    def run(
        folder: Path | None = None,
        *,
        ray: str = "local",
        first: str = "",
        after_one: Callable[[subprocess.Popen[str]], object] | None = None,
    ) -> Run:
        folder = folder or tmp_path_factory.mktemp("run")
        (folder / "sitecustomize.py").write_text(first)
        out = folder / "results.csv"
        command = [recordings, "--out", out, "--ray", ray, "--ray-workers", "2"]
        environment = {
            "PYTHONPATH": str(folder),
            "MFDAN_MODELS_DIR": str(models_dir),
            "RAY_TMPDIR": str(ray_folder),
        }
        with start(*command, **environment) as process:
            if after_one is not None:
                await_answer(out, process)
                after_one(process)
            said, complained = process.communicate(timeout=180)
        return Run(out, process.returncode, said, complained)

    return run


@pytest.fixture(scope="module")
def run(score: Score) -> Run:
    """While a file kills the first worker that reads it."""
    return score(first=DEADLY_ONCE)


@pytest.fixture
def head(ray_folder: Path) -> Iterator[tuple[str, int]]:
    """Address of a cluster's head node, and the process to kill for it to be dead."""
    port = free_port()
    ray = Path(sys.executable).with_name("ray")
    command = f"start --head --port {port} --num-cpus 2 --include-dashboard false --block"
    with subprocess.Popen(  # noqa: S603 - our own command
        [ray, *command.split(), "--temp-dir", ray_folder, "--disable-usage-stats"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        told = iter(process.stdout.readline, "")
        try:
            assert any("Ray runtime started" in line for line in told)
            yield f"127.0.0.1:{port}", child_called("gcs_server", process.pid)
        finally:
            process.terminate()
            process.stdout.read()  # or it waits for somebody who reads
            process.wait()
            with suppress(ProcessLookupError):  # what a dead head leaves behind
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results.csv"


@pytest.fixture(autouse=True)
def _tiny_models(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFDAN_MODELS_DIR", str(models_dir))
    monkeypatch.delenv("MFDAN_WORKER_THREADS", raising=False)


@contextmanager
def start(*arguments: Path | str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start `mfdan score` as a person does; kill it, should the test end before it does."""
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-c", MFDAN, "score", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def here(*arguments: Path | str) -> Result:
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def rows(out: Path) -> dict[str, dict[str, str]]:
    with out.open(newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def noted(out: Path) -> int:
    journal = out.with_name(f"{out.name}.journal.jsonl")
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def await_answer(out: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while noted(out) == 0:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def child_called(name: str, parent: int) -> int:
    """Return the process that a process started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (child,) = (one for one in children if name in Path(f"/proc/{one}/cmdline").read_text())
    return int(child)


def test_two_workers_of_ray_find_what_one_process_finds(
    run: Run, recordings: Path, tmp_path: Path
) -> None:
    """All of it, though a worker died of one file and was replaced."""
    assert run.status == 1, run.complained
    assert (run.out.parent / "died").exists()
    assert here(recordings, "--out", tmp_path / "plain.csv").exit_code == 1
    assert run.out.read_bytes() == (tmp_path / "plain.csv").read_bytes()


def test_nothing_is_told_but_what_failed(run: Run) -> None:
    """Ray itself tells every worker's end, and its C++ how it was started."""
    complained = run.complained.splitlines()
    failed = [line for line in complained if " files/s, " not in line]  # on a slow machine
    assert failed == ["cut.mp4: the clip is cut short"]
    assert run.said.splitlines() == [
        f"{run.out}: 15 rows of 15 files",
        "1 other files are neither clips nor pairs",
        "1 files failed:",
        "     1 broken clip",
    ]


def test_ray_writes_down_neither_a_name_nor_an_answer(
    run: Run, ray_folder: Path, recordings: Path
) -> None:
    """Not even while a worker dies and a file fails."""
    assert run.out.exists()
    written = b"".join(path.read_bytes() for path in ray_folder.rglob("*") if path.is_file())
    assert b"default_autoscaling_coordinator.py" in written  # Ray Data does keep a log
    for word in (str(recordings), ".mp4", ".gif", "onset.png", "clip_frames", "abstained"):
        assert word.encode() not in written, word


@pytest.mark.slow
def test_a_file_that_kills_each_of_its_workers_is_a_row_and_tried_again_next_time(
    score: Score, recordings: Path
) -> None:
    """The next run is of this machine alone: it goes on with what Ray noted."""
    deadly = score(first=DEADLY_FILES)
    assert deadly.status == 1
    found = rows(deadly.out)
    assert found["deadly.gif"]["error_code"] == "worker_died"
    again = here(recordings, "--out", deadly.out)
    assert again.exit_code == 1
    assert "14 of 15 were done before" in again.stderr
    healed = rows(deadly.out)
    assert healed.pop("deadly.gif")["error_code"] == ""
    assert healed.items() <= found.items()


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    score: Score, tmp_path: Path
) -> None:
    stopped = score(tmp_path, after_one=lambda process: process.send_signal(signal.SIGINT))
    assert stopped.status == 130
    assert stopped.complained.splitlines()[-1] == "stopped; the same command goes on from here"
    assert not stopped.out.exists()
    done = noted(stopped.out)
    assert 0 < done < 15
    ended = score(tmp_path)
    assert ended.status == 1
    assert f"{done} of 15 were done before" in ended.complained
    assert len(rows(ended.out)) == 15


@pytest.mark.slow
def test_a_head_node_that_dies_ends_the_run_in_seconds_and_keeps_what_is_done(
    score: Score, head: tuple[str, int]
) -> None:
    address, gcs = head
    died = 0.0

    def kill(_process: object) -> None:
        nonlocal died
        died = time.monotonic()
        os.kill(gcs, signal.SIGKILL)

    run = score(ray=address, after_one=kill)
    assert time.monotonic() - died < 30
    assert run.status == 3
    assert run.complained.splitlines()[-1] == (
        "mfdan: the cluster failed (its head node is silent); the same command goes on from here"
    )
    assert noted(run.out) > 0
    assert not run.out.exists()


@pytest.mark.slow
def test_workers_that_die_while_they_open_the_model_end_the_run(score: Score) -> None:
    run = score(first=DEADLY_MODEL)
    assert run.status == 2
    told = "mfdan: workers die while they open the model (out of memory?)"
    assert run.complained.splitlines() == [told]
    assert run.said == ""


@pytest.mark.slow
@pytest.mark.parametrize("speaks", [False, True], ids=["silent", "http"])
def test_what_listens_but_is_no_cluster_is_one_sentence(
    recordings: Path, out: Path, *, speaks: bool
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        if speaks:
            threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        address = f"127.0.0.1:{server.server_port}"
        result = here(recordings, "--out", out, "--ray", address)
        if speaks:
            server.shutdown()
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        f"mfdan: --ray {address}: no cluster answers: is it the port of the head"
    )


def test_a_key_in_an_address_is_not_sent_to_a_cluster(out: Path) -> None:
    result = here("s3://mine:hidden@bucket/day", "--out", out, "--ray", "local")
    assert result.exit_code == 2
    assert "with --ray an address holds no key" in result.stderr
    assert "hidden" not in result.stderr


def test_without_ray_installed_the_extra_is_named(
    recordings: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = here(recordings, "--out", out, "--ray", "local")
    assert result.exit_code == 2
    assert "--ray needs the extra `ray`: pip install 'mfdan[ray]'" in result.stderr


def test_a_cluster_that_nobody_runs_is_told_at_once(recordings: Path, out: Path) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unheard.getsockname()[1]}"
        result = here(recordings, "--out", out, "--ray", address)
    assert result.exit_code == 2
    assert f"--ray {address}: no cluster answers: " in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", "host:", "http://a:1"])
def test_what_is_no_address_is_refused(recordings: Path, out: Path, address: str) -> None:
    result = here(recordings, "--out", out, "--ray", address)
    assert result.exit_code == 2
    assert '--ray takes HOST:PORT of a head node, "auto" or "local"' in result.stderr


def test_workers_without_a_cluster_are_refused(recordings: Path, out: Path) -> None:
    result = here(recordings, "--out", out, "--ray-workers", "2")
    assert result.exit_code == 2
    assert "--ray-workers are those of --ray" in result.stderr


def test_a_file_may_be_begun_as_often_as_there_are_tries() -> None:
    tally = _Tally(2, workers=1)
    assert [tally.may_begin([("a",), ("b",)]) for _ in range(3)] == [True, True, False]
    assert tally.may_begin([("c",)])
    assert not tally.may_begin([("c",), ("a",)])


def test_workers_may_open_the_model_again_as_long_as_they_come_to_its_end() -> None:
    tally = _Tally(2, workers=3)
    for _ in range(100):
        assert tally.may_open()
        tally.opened()
    assert [tally.may_open() for _ in range(8)] == [True] * 7 + [False]


def test_a_machine_with_another_model_is_refused(make_settings: MakeSettings) -> None:
    with pytest.raises(BadCluster, match=r"is another here than where the run was started$"):
        _model(make_settings(), "0" * 64)


def test_what_keeps_a_machine_from_its_model_is_one_line_that_names_the_machine() -> None:
    host = socket.gethostname()
    assert _of_this_machine(BadCluster("another model")) == f"{host}: another model"
    denied = PermissionError(13, "Permission denied", "/home/somebody/model.onnx")
    told = "the model cannot be opened: PermissionError, permission denied"
    assert _of_this_machine(denied) == f"{host}: {told}"
    told = "the model cannot be opened: ValueError"
    assert _of_this_machine(ValueError("two\nlines")) == f"{host}: {told}"


@pytest.mark.parametrize(
    ("resources", "device", "flow", "room"),
    [
        ({"CPU": 8.0}, "cpu", "auto", 2),
        ({"CPU": 2.0}, "cpu", "auto", 0),
        ({}, "cpu", "auto", 0),
        ({"CPU": 8.0}, "cuda", "auto", 0),
        ({"CPU": 64.0, "GPU": 2.0}, "cuda", "auto", 2),
        ({"CPU": 64.0, "GPU": 2.0}, "cpu", "auto", 21),  # and its workers see no GPU
        ({"CPU": 64.0, "GPU": 2.0}, "cpu", "opencv-cuda", 2),
    ],
)
def test_a_worker_takes_its_threads_and_a_card_where_one_is_asked_for(
    resources: dict[str, float], device: str, flow: str, room: int, make_settings: MakeSettings
) -> None:
    assert _room(resources, make_settings(worker_threads=3, device=device, flow=flow)) == room
