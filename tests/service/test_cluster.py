"""Real local Ray clusters: starting one takes seconds, so one run shows several things."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from drawn_clips import encode_clip, encode_pictures, grey_steps
from drawn_expression_clips import drawn_clip
from serving import Pictures
from typer.testing import CliRunner, Result

from service.cli import app
from service.cluster import _Tally

MFDAN = "from service.cli import app; app()"
KILLED_BY_ONE_FILE = """
import os
from service import scoring
read = scoring.read_upload
def deadly(paths, settings):
    if paths[0].name == "deadly.gif":
        os._exit(1)
    return read(paths, settings)
scoring.read_upload = deadly
"""


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory, pictures: Pictures) -> Path:
    """A clip, a pair, a clip without a face, a clip cut short, and what is none of them."""
    folder = tmp_path_factory.mktemp("recordings")
    frames, _truth = drawn_clip(fps=50, seconds=1.0, onset_s=0.3, apex_s=0.45, offset_s=0.7)
    smile = encode_clip(frames, 50)
    (folder / "pair").mkdir()
    (folder / "smile.mp4").write_bytes(smile)
    (folder / "pair/onset.png").write_bytes(pictures.onset)
    (folder / "pair/apex.png").write_bytes(pictures.smile)
    (folder / "grey.gif").write_bytes(encode_pictures(grey_steps(5), 25, "gif"))
    (folder / "cut.mp4").write_bytes(smile[: len(smile) // 2])
    (folder / "notes.txt").write_text("nothing to see")
    return folder


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


def on_ray(*arguments: Path | str, **environment: str) -> tuple[int, str]:
    with start(*arguments, "--ray", "local", "--ray-workers", "2", **environment) as process:
        said, complained = process.communicate(timeout=120)
    return process.returncode, said + complained


def here(*arguments: Path | str) -> Result:
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def errors(out: Path) -> dict[str, str]:
    with out.open(newline="") as file:
        return {row["file"]: row["error_code"] for row in csv.DictReader(file)}


def journal_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.journal.jsonl")


def test_two_workers_of_ray_write_the_same_bytes_as_one_process(
    recordings: Path, out: Path, tmp_path: Path
) -> None:
    status, said = on_ray(recordings, "--out", out)
    assert status == 1, said
    assert "1 broken clip" in said
    assert "Traceback" not in said
    plain = tmp_path / "plain.csv"
    assert here(recordings, "--out", plain).exit_code == 1
    assert out.read_bytes() == plain.read_bytes()


def test_what_one_machine_began_ray_goes_on_with_and_the_other_way_round(
    recordings: Path, out: Path
) -> None:
    """A file that kills its workers costs no other its answer; the next run tries it again."""
    clip = (recordings / "grey.gif").read_bytes()
    folder = out.parent / "more"
    folder.mkdir()
    (folder / "done.gif").write_bytes(clip)
    assert here(folder, "--out", out).exit_code == 0
    for name in ("a", "b", "c", "deadly"):
        (folder / f"{name}.gif").write_bytes(clip)
    (out.parent / "sitecustomize.py").write_text(KILLED_BY_ONE_FILE)
    status, said = on_ray(folder, "--out", out, PYTHONPATH=str(out.parent))
    assert status == 1, said
    assert "1 of 5 were done before" in said
    assert "deadly.gif: the process that worked on it died" in said
    others = dict.fromkeys(("a.gif", "b.gif", "c.gif", "done.gif"), "")
    assert errors(out) == {**others, "deadly.gif": "worker_died"}
    again = here(folder, "--out", out)
    assert again.exit_code == 0
    assert "4 of 5 were done before" in again.stderr
    assert errors(out) == {**others, "deadly.gif": ""}


def test_ctrl_c_keeps_what_is_done_and_leaves_no_worker(recordings: Path, out: Path) -> None:
    folder = out.parent / "many"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02d}.mp4").symlink_to(recordings / "smile.mp4")
    with start(folder, "--out", out, "--ray", "local", "--ray-workers", "2") as process:
        end = time.monotonic() + 60
        while not (journal_of(out).exists() and journal_of(out).read_bytes().count(b"\n") > 2):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "the same command goes on from here" in told
    assert "Traceback" not in told
    assert not out.exists()
    assert 0 < journal_of(out).read_bytes().count(b"\n") - 1 < 40


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
