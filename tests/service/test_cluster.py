"""On a real local Ray with two workers: starting one takes seconds, so two runs show it all."""

import csv
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from drawn_clips import encode_clip, encode_pictures, grey_steps
from drawn_expression_clips import drawn_clip
from serving import MakeSettings, Pictures
from typer.testing import CliRunner, Result

from service.answers import Options
from service.cli import app
from service.cluster import _room, _Tally, _Worker

MFDAN = "from service.cli import app; app()"
DEADLY_FILES = """
import os, pathlib
from service import scoring
read = scoring.read_upload
def deadly(paths, settings):
    name = pathlib.Path(paths[0]).name
    if name == "deadly.gif":
        os._exit(1)
    if name == "once.gif":
        try:
            (pathlib.Path(os.environ["PYTHONPATH"]) / "died").touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os._exit(1)
    return read(paths, settings)
scoring.read_upload = deadly
"""
"""Run by every process that has its folder in PYTHONPATH: no test can reach into Ray's workers."""


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
    """What one `mfdan score --ray local` left."""

    status: int
    said: str
    journal: int
    """Files that are noted."""
    has_results: bool


@dataclass(frozen=True)
class Runs:
    """Of one command, and where."""

    out: Path
    ray: Path
    """Ray's own folder."""
    stopped: Run
    """By Ctrl-C."""
    ended: Run
    """The same command again."""


@pytest.fixture(scope="module")
def runs(
    recordings: Path, models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    """Stop a run and go on with it, while some files kill the workers that read them."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "sitecustomize.py").write_text(DEADLY_FILES)
    environment = {"PYTHONPATH": str(folder), "MFDAN_MODELS_DIR": str(models_dir)}
    ray = tempfile.TemporaryDirectory(prefix="ray")  # sockets have room for a short path only
    environment["RAY_TMPDIR"] = ray.name
    out = folder / "results.csv"
    command = [recordings, "--out", out, "--ray", "local", "--ray-workers", "2"]

    def run(*, stop: bool) -> Run:
        with start(*command, **environment) as process:
            end = time.monotonic() + 120
            while stop and noted(out) == 0:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < end
                time.sleep(0.01)
            if stop:
                process.send_signal(signal.SIGINT)
            said = "".join(process.communicate(timeout=180))
        return Run(process.returncode, said, noted(out), out.exists())

    with ray:
        yield Runs(out, Path(ray.name), run(stop=True), run(stop=False))


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


def test_ctrl_c_keeps_what_is_done(runs: Runs) -> None:
    assert runs.stopped.status == 130, runs.stopped.said
    assert "the same command goes on from here" in runs.stopped.said
    assert "Traceback" not in runs.stopped.said
    assert 0 < runs.stopped.journal < 15
    assert not runs.stopped.has_results


def test_the_same_command_goes_on_where_it_was_stopped(runs: Runs) -> None:
    assert runs.ended.status == 1, runs.ended.said
    assert f"{runs.stopped.journal} of 15 were done before" in runs.ended.said
    assert "1 broken clip" in runs.ended.said
    assert "1 worker died" in runs.ended.said
    assert "Traceback" not in runs.ended.said


def test_ray_writes_down_neither_a_name_nor_an_answer(runs: Runs, recordings: Path) -> None:
    written = b"".join(path.read_bytes() for path in runs.ray.rglob("*") if path.is_file())
    assert b"default_autoscaling_coordinator.py" in written  # Ray Data does keep a log
    for word in (str(recordings), ".mp4", ".gif", "onset.png", "clip_frames", "abstained"):
        assert word.encode() not in written, word


def test_two_workers_of_ray_find_what_one_process_finds(
    runs: Runs, recordings: Path, tmp_path: Path
) -> None:
    """All of it, though a worker died of one file and was replaced."""
    assert (runs.out.parent / "died").exists()
    assert here(recordings, "--out", tmp_path / "plain.csv").exit_code == 1
    expected = rows(tmp_path / "plain.csv")
    assert list(rows(runs.out)) == list(expected)
    del expected["deadly.gif"]
    assert expected.items() <= rows(runs.out).items()


def test_a_file_that_kills_each_of_its_workers_is_a_row_and_tried_again_next_time(
    runs: Runs, recordings: Path, tmp_path: Path
) -> None:
    """The next run is of this machine alone: it goes on with what Ray noted."""
    assert rows(runs.out)["deadly.gif"]["error_code"] == "worker_died"
    out = tmp_path / "results.csv"
    for path in runs.out.parent.glob("results.csv*"):
        shutil.copy(path, tmp_path)
    again = here(recordings, "--out", out)
    assert again.exit_code == 1
    assert "14 of 15 were done before" in again.stderr
    assert rows(out)["deadly.gif"]["error_code"] == ""


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
    tally = _Tally(2)
    assert [tally.may_begin([("a",), ("b",)]) for _ in range(3)] == [True, True, False]
    assert tally.may_begin([("c",)])
    assert not tally.may_begin([("c",), ("a",)])


def test_a_machine_with_another_model_says_which_machine_it_is(make_settings: MakeSettings) -> None:
    worker = _Worker(make_settings(), Options(), "0" * 64, _Tally(1))
    (answer,) = worker({"source": np.empty(1, object)})["answer"]
    told = pickle.loads(answer)  # noqa: S301 - our own
    assert told.startswith(f"{socket.gethostname()}: the model ")
    assert told.endswith(" is another here than where the run was started")


@pytest.mark.parametrize(
    ("resources", "device", "room"),
    [
        ({"CPU": 8.0}, "cpu", 2),
        ({"CPU": 2.0}, "cpu", 0),
        ({}, "cpu", 0),
        ({"CPU": 8.0}, "cuda", 0),
        ({"CPU": 64.0, "GPU": 2.0}, "cuda", 2),
    ],
)
def test_a_worker_takes_its_threads_and_a_card_where_one_is_asked_for(
    resources: dict[str, float], device: str, room: int, make_settings: MakeSettings
) -> None:
    assert _room(resources, make_settings(worker_threads=3, device=device)) == room
