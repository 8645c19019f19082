import asyncio
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from drawn_clips import encode_clip, encode_pictures, grey_steps
from drawn_expression_clips import drawn_clip
from pyarrow import parquet
from serving import MakeSettings, Pictures
from tiny_model import tiny_spec
from typer.testing import CliRunner, Result

from model.session import Session
from service.answers import AnswerWarning, FaceWarning, Options
from service.cli import app
from service.journal import Journal
from service.schemas import Reason
from service.scoring import Outcome, columns, score
from service.sources import find_sources
from service.wording import in_words

OFFLINE_PAGE = Path(__file__).parents[2] / "docs" / "offline.md"
Score = Callable[..., Result]


@pytest.fixture(scope="module")
def smile() -> bytes:
    frames, _truth = drawn_clip(fps=50, seconds=1.0, onset_s=0.3, apex_s=0.45, offset_s=0.7)
    return encode_clip(frames, 50)


@pytest.fixture
def folder(tmp_path: Path, smile: bytes, pictures: Pictures) -> Path:
    """A clip, a pair, a clip without a face, a clip cut short, and what is none of them."""
    folder = tmp_path / "recordings"
    (folder / "pair").mkdir(parents=True)
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
    monkeypatch.setenv("MFDAN_WORKER_THREADS", "2")


def run(*arguments: Path | str) -> Result:
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def read(out: Path) -> list[dict[str, str]]:
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def journal_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.journal.jsonl")


def test_a_folder_becomes_one_table_and_bad_files_rows_of_it(folder: Path, out: Path) -> None:
    result = run(folder, "--out", out)
    assert result.exit_code == 1, result.output
    assert "1 other files" in result.output
    assert "1 broken clip" in result.output
    rows = {row["file"]: row for row in read(out)}
    assert list(rows) == ["cut.mp4", "grey.gif", "pair/onset.png", "smile.mp4"]
    assert (rows["cut.mp4"]["error_code"], rows["cut.mp4"]["faces"]) == ("broken_clip", "")
    assert (rows["grey.gif"]["error_code"], rows["grey.gif"]["faces"]) == ("", "0")
    assert rows["grey.gif"]["clip_frames"] == "5"
    assert rows["pair/onset.png"]["apex_file"] == "pair/apex.png"
    assert rows["pair/onset.png"]["onset_frame"] == ""
    assert abs(int(rows["smile.mp4"]["apex_frame"]) - 22) <= 3
    assert rows["smile.mp4"]["source"] == "spotted"


def test_a_row_says_what_predict_says(folder: Path, out: Path) -> None:
    run(folder / "smile.mp4", "--out", out)
    said = CliRunner().invoke(app, ["predict", str(folder / "smile.mp4"), "--json"])
    face = json.loads(said.output)["faces"][0]
    (row,) = read(out)
    for name in ("label", "reason", "source"):
        assert row[name] == (face[name] or "")
    for name in ("onset_frame", "apex_frame", "offset_frame", "face_id"):
        assert int(row[name]) == face[name]
    for name, share in face["probabilities"].items():
        assert float(row[f"p_{name}"]) == pytest.approx(share, abs=1e-6)
    assert float(row["motion_p95_px"]) == pytest.approx(face["motion"]["p95_px"], abs=1e-3)
    assert row["abstained"] == str(face["abstained"]).lower()


def test_every_face_and_candidate_has_a_row(tmp_path: Path, pictures: Pictures, out: Path) -> None:
    for name, data in (("onset", pictures.two), ("apex", pictures.two_smile)):
        (tmp_path / f"{name}.png").write_bytes(data)
    frames = [drawn_clip(fps=50, seconds=1.0, onset_s=0.2, apex_s=0.35, offset_s=0.6)[0]] * 2
    (tmp_path / "twice.mp4").write_bytes(encode_clip(frames[0] + frames[1], 50))
    result = run(tmp_path, "--faces", "2", "--out", out)
    assert result.exit_code == 0, result.output
    rows = read(out)
    pair = [row for row in rows if row["apex_file"]]
    assert [(row["face_id"], row["candidate"]) for row in pair] == [("1", "1"), ("2", "1")]
    clip = [row for row in rows if not row["apex_file"]]
    assert [row["candidate"] for row in clip] == [str(n + 1) for n in range(len(clip))]
    assert len({row["apex_frame"] for row in clip}) == len(clip) >= 2


def test_a_second_run_does_nothing_again(folder: Path, out: Path) -> None:
    run(folder, "--out", out)
    first, noted = out.read_bytes(), journal_of(out).read_bytes()
    out.unlink()
    result = run(folder, "--out", out)
    assert result.exit_code == 1  # the broken clip still is
    assert "4 of 4 were done before" in result.stderr
    assert out.read_bytes() == first
    assert journal_of(out).read_bytes() == noted


def test_only_new_and_changed_files_are_scored_again(folder: Path, out: Path) -> None:
    run(folder, "--out", out)
    (folder / "grey2.gif").write_bytes((folder / "grey.gif").read_bytes())
    os.utime(folder / "pair/apex.png", ns=(0, 1))
    (folder / "cut.mp4").unlink()
    result = run(folder, "--out", out)
    assert result.exit_code == 0
    assert "2 of 4 were done before" in result.stderr
    assert [row["file"] for row in read(out)] == [
        "grey.gif",
        "grey2.gif",
        "pair/onset.png",
        "smile.mp4",
    ]


@pytest.mark.parametrize(
    "change", [("--faces", "2"), ("--candidates", "1"), ("env", "MFDAN_MAX_CLIP_FRAMES")]
)
def test_results_of_other_options_are_kept_until_overwrite_is_asked_for(
    folder: Path, out: Path, change: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder / "grey.gif", "--out", out)
    before = out.read_bytes()
    if change[0] == "env":
        monkeypatch.setenv(change[1], "100")
        change = ("--faces", "1")
    refused = run(folder / "grey.gif", "--out", out, *change)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert out.read_bytes() == before
    assert run(folder / "grey.gif", "--out", out, *change, "--overwrite").exit_code == 0


def test_a_file_that_nobody_wrote_here_is_not_replaced(folder: Path, out: Path) -> None:
    out.write_text("mine")
    result = run(folder, "--out", out)
    assert result.exit_code == 2
    assert "--overwrite replaces it" in result.stderr
    assert out.read_text() == "mine"


def test_a_fault_that_may_heal_is_tried_again(tmp_path: Path, smile: bytes, out: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("clip\nlater.mp4\n")
    assert run("--manifest", manifest, "--out", out).exit_code == 1
    assert read(out)[0]["error_code"] == "unreadable"
    (tmp_path / "later.mp4").write_bytes(smile)
    assert run("--manifest", manifest, "--out", out).exit_code == 0
    assert read(out)[0]["error_code"] == ""


def test_a_file_over_the_cap_is_refused_unread(tmp_path: Path, out: Path) -> None:
    with (tmp_path / "huge.mp4").open("wb") as file:
        file.truncate(2**40)  # a hole: reading it would take minutes and all memory
    assert run(tmp_path, "--out", out).exit_code == 1
    assert read(out)[0]["error_code"] == "clip_too_large"


def test_all_three_formats_hold_the_same(folder: Path, tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl", ".parquet"):
        run(folder, "--out", tmp_path / f"r{suffix}")
    table = parquet.read_table(tmp_path / "r.parquet")
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert table.to_pylist() == lines
    assert table.column_names == list(columns(tiny_spec())) == list(read(tmp_path / "r.csv")[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["."], "there is nothing to score: no clip and no pair; 1 other files"),
        ([], "there is nothing to score"),
        (["nowhere"], "there is no nowhere"),
        (["*.mp4"], "nothing is called *.mp4"),
    ],
)
def test_nothing_to_do_is_told(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, "--out", "results.csv")
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "notes.txt"]


def test_a_format_that_nobody_writes_is_refused_before_the_work(folder: Path) -> None:
    result = run(folder, "--out", "results.xlsx")
    assert result.exit_code == 2
    assert "results.xlsx must end in .parquet, .csv, .jsonl" in result.stderr


def test_an_interrupted_run_goes_on_where_it_was_stopped(
    tmp_path: Path, smile: bytes, out: Path
) -> None:
    """A real process, stopped as a person at a terminal stops it."""
    for number in range(20):
        (tmp_path / f"{number:02d}.mp4").write_bytes(smile)
    command = [sys.executable, "-c", "from service.cli import app; app()"]
    process = subprocess.Popen(  # noqa: S603 - our own command
        [*command, "score", str(tmp_path), "--out", str(out)], stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not (journal_of(out).exists() and journal_of(out).read_bytes().count(b"\n") > 2):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "the same command goes on from here" in told
    assert not out.exists()
    done = journal_of(out).read_bytes().count(b"\n") - 1
    assert 0 < done < 20
    again = run(tmp_path, "--out", out)
    assert again.exit_code == 0, again.output
    assert f"{done} of 20 were done before" in again.stderr
    assert len({row["file"] for row in read(out)}) == 20


def test_a_pipe_and_a_device_of_a_manifest_are_rows_of_their_own(tmp_path: Path, out: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    manifest = tmp_path / "list.csv"
    manifest.write_text("clip\npipe.mp4\n/dev/zero\n")
    assert run("--manifest", manifest, "--out", out).exit_code == 1
    assert [row["error_code"] for row in read(out)] == ["unreadable"] * 2
    assert {row["error"] for row in read(out)} == {"not a regular file"}


class FailingSession:
    """A real session whose first run fails as no file should make it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.spec, self.provider = session.spec, session.provider
        self.path = session.path
        self.fell_back = session.fell_back
        self.failed = False

    def warm_up(self, batch_sizes: tuple[int, ...]) -> None:
        self._session.warm_up(batch_sizes)

    def run(self, image: np.ndarray, flow: np.ndarray) -> np.ndarray:
        if not self.failed:
            self.failed = True
            raise ZeroDivisionError("of one file")
        return self._session.run(image, flow)


def test_a_failure_of_ours_costs_one_file_and_is_tried_again(
    folder: Path, tmp_path: Path, make_settings: MakeSettings
) -> None:
    settings = make_settings(worker_threads=1)
    session = FailingSession(Session.open(next(settings.models_dir.glob("*.onnx"))))
    sources = find_sources([str(folder / "pair"), str(folder / "smile.mp4")]).sources
    outcomes: list[Outcome] = []
    with Journal(tmp_path / "journal", {}) as journal:
        sessions = {session.spec.name: session}
        asyncio.run(score(sources, journal, settings, sessions, Options(), outcomes.append))
        assert [outcome.error_code for outcome in outcomes] == ["internal_error", None]
        assert "ZeroDivisionError" in journal.rows(sources[0])[0]["error"]
        assert [journal.is_done(one, one.stamp()) for one in sources] == [False, True]


def test_a_journal_that_cannot_grow_stops_the_run(
    folder: Path, tmp_path: Path, make_settings: MakeSettings
) -> None:
    class FullDisk(Journal):
        def append(self, *_given: object, **_options: object) -> None:
            raise OSError(28, "no space left on device")

    sources = find_sources([str(folder)]).sources
    settings = make_settings()
    session = Session.open(next(settings.models_dir.glob("*.onnx")))
    sessions = {session.spec.name: session}
    with FullDisk(tmp_path / "journal", {}) as journal:
        run = score(sources, journal, settings, sessions, Options(), lambda _outcome: None)
        with pytest.raises(OSError, match="no space"):
            asyncio.run(run)


def test_the_page_names_every_column() -> None:
    page = OFFLINE_PAGE.read_text()
    named = set(re.findall(r"`([a-z0-9_]+)`", page))
    families = {"p_": "`p_CLASS`", "motion_": "`motion_…`", "quality_": "`quality_…`"}
    wanted = {name for name in columns(tiny_spec()) if not name.startswith(tuple(families))}
    assert wanted <= named
    assert all(family in page for family in families.values())


def test_every_reason_and_warning_has_words() -> None:
    for code in (*get_args(Reason), *get_args(FaceWarning), *get_args(AnswerWarning)):
        assert in_words(code) != code.replace("_", " "), code
