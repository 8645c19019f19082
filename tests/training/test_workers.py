import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from worker_jobs import FileJob, do

from training.workers import Place, run_jobs

ONE, TWO = Place(), Place(jobs=2)


def jobs(folder: Path, **fates: str) -> list[FileJob]:
    return [FileJob(folder / name, fate) for name, fate in fates.items()]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("place", [ONE, TWO], ids=["here", "processes"])
def test_every_job_is_run_and_heard_of_once(place: Place, tmp_path: Path) -> None:
    todo = jobs(tmp_path, a="write", b="write", c="write")
    done: list[FileJob] = []
    assert run_jobs(todo, do, place, done.append) == []
    assert sorted(map(str, done)) == ["a", "b", "c"]
    processes = {int((tmp_path / name).read_text()) for name in "abc"}
    assert (os.getpid() in processes) == (place is ONE)


@pytest.mark.parametrize("place", [ONE, TWO, Place(ray="nonsense")], ids=["here", "two", "ray"])
def test_no_jobs_are_no_work(place: Place) -> None:
    assert run_jobs([], do, place) == []


@pytest.mark.parametrize("place", [ONE, TWO], ids=["here", "processes"])
def test_a_job_that_fails_lets_the_others_finish(place: Place, tmp_path: Path) -> None:
    todo = jobs(tmp_path, a="value", b="write", c="write")
    done: list[FileJob] = []
    (failure,) = run_jobs(todo, do, place, done.append)
    assert (failure.job, failure.reason) == (todo[0], "bad value")
    assert sorted(map(str, done)) == ["b", "c"]


@pytest.mark.parametrize("place", [ONE, TWO], ids=["here", "processes"])
def test_a_full_disk_stops_all_and_names_the_job(place: Place, tmp_path: Path) -> None:
    todo = jobs(tmp_path, a="write", b="disk", c="long", d="write")
    with pytest.raises(OSError, match=r"b: \[Errno 28\] No space left"):
        run_jobs(todo, do, place)
    assert (tmp_path / "a").exists()
    assert not (tmp_path / "d").exists()


def test_a_bug_is_not_swallowed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run_jobs(jobs(tmp_path, a="bug"), do, ONE)


def test_a_killed_worker_is_an_error_that_names_what_was_lost(tmp_path: Path) -> None:
    done: list[FileJob] = []
    with pytest.raises(ChildProcessError, match=r"lost with it: .*b.*the same command goes on"):
        run_jobs(jobs(tmp_path, a="write", b="killed", c="long"), do, TWO, done.append)
    assert {str(job) for job in done} <= {"a"}
    assert (tmp_path / "a").exists()


def test_ctrl_c_stops_at_once_and_leaves_no_worker_behind(tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_for(lambda: (tmp_path / "b-begun").exists() and (tmp_path / "c").exists())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    done: list[FileJob] = []
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs(tmp_path, a="write", b="long", c="write"), do, TWO, done.append)
    thread.join()
    assert "a" in map(str, done)
    assert not alive(int((tmp_path / "b-begun").read_text()))


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from worker_jobs import FileJob, do\n"
        "from training.workers import Place, run_jobs\n"
        "if __name__ == '__main__':\n"
        "    names = [Path(sys.argv[1]) / name for name in 'ab']\n"
        "    run_jobs([FileJob(name, 'long') for name in names], do, Place(jobs=2))\n"
    )
    (tmp_path / "program.py").write_text(program)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1])])
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, tmp_path / "program.py", tmp_path],
        env={**os.environ, "PYTHONPATH": paths},
    ) as parent:
        begun = [tmp_path / f"{name}-begun" for name in "ab"]
        wait_for(lambda: all(path.exists() and path.read_text() for path in begun))
        parent.kill()
    wait_for(lambda: not any(alive(int(path.read_text())) for path in begun), seconds=10)


def test_without_ray_installed_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"needs the extra `ray`: pip install 'mfdan\[ray\]'"):
        run_jobs(jobs(tmp_path, a="write"), do, Place(ray="local"))


@pytest.mark.parametrize("address", ["nonsense", "foo://x"])
def test_an_address_that_is_none_is_told_in_one_line(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^--ray {address}: [^\n]+$"):
        run_jobs(jobs(tmp_path, a="write"), do, Place(ray=address))
    assert not (tmp_path / "a").exists()


def test_a_cluster_that_is_not_there_is_told_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # a head that ran here left its address
    with pytest.raises(ConnectionError, match=r"^--ray auto: no cluster answers: "):
        run_jobs(jobs(tmp_path, a="write"), do, Place(ray="auto"))


@pytest.mark.parametrize("wrong", [{"jobs": 0}, {"gpus": -0.5}, {"gpus": 1.5}])
def test_a_place_without_room_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|a share of a card"):
        Place(**wrong)  # type: ignore[arg-type] # that is the point
