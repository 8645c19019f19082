import hashlib
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_clips import write_clip, write_flow_picture
from drawn_pairs import MOVES, PEOPLE, TINY, draw, draw_pair, write_rows

import training.data.prepare
from model.decode import decode_image
from model.pipeline import Preprocessor
from training.config import RunConfig
from training.data.pairs import Pair, write_pairs
from training.data.prepare import (
    Prepared,
    PreparedRow,
    open_prepared,
    prepare,
    prepared_folder,
)
from training.data.sources import align_row, read_ready

PREPARE = """
import resource, sys
from pathlib import Path
import training.data.prepare
from model.spec import ModelSpec
training.data.prepare.SHARD_PAIRS = int(sys.argv[3])
if int(sys.argv[4]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
def report(done, total):
    print(done, flush=True)
spec = ModelSpec.from_json(Path(sys.argv[2]).read_text())
training.data.prepare.prepare(Path(sys.argv[1]), spec, workers=1, report=report)
"""
"""A run in a process of its own, to be starved or killed."""


def preparing(folder: Path, shard_pairs: int, largest_file: int = 0) -> list[str]:
    spec = folder / "spec.json"
    spec.write_text(TINY.spec().to_json())
    numbers = (str(shard_pairs), str(largest_file))
    return [sys.executable, "-c", PREPARE, str(folder), str(spec), *numbers]


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def files_of(*rows: PreparedRow) -> set[str]:
    kinds = ("onset.npy", "flow.npy", "json")
    return {f"{row.shard}.{kind}" for row in rows for kind in kinds}


def cut(good: Pair, ends: str, shard_pairs: int) -> list[Pair]:
    """Return a row for each letter: a shard of about `shard_pairs` ends after an "E"."""
    rows: list[Pair] = []
    for number in itertools.count():
        if len(rows) == len(ends):
            break
        row = replace(good, clip=f"clip {number}")
        first = int(hashlib.sha256(row.key.encode()).hexdigest()[:8], 16)
        if (first % shard_pairs == 0) == (ends[len(rows)] == "E"):
            rows.append(row)
    return rows


def test_every_pair_with_a_face_is_prepared(prepared: Prepared) -> None:
    assert len(prepared.rows) == PEOPLE * len(MOVES)
    assert prepared.dropped == {}


def test_prepared_arrays_are_what_serving_computes(
    pairs_folder: Path, prepared: Prepared, tiny_config: RunConfig
) -> None:
    """But for the flow's storage in half precision."""
    preprocessor = Preprocessor(tiny_config.spec())
    for row in prepared.rows[::7]:
        frames = [
            decode_image((pairs_folder / name).read_bytes())
            for name in (row.pair.onset, row.pair.apex)
        ]
        (served,) = preprocessor.align_pair(frames[0], frames[1])
        onset, flow = prepared.arrays(row)
        np.testing.assert_array_equal(onset, served.onset)
        np.testing.assert_array_equal(flow, served.flow.astype(np.float16).astype(np.float32))
        assert row.motion == served.motion


def test_unusable_pairs_are_left_out_with_the_reason(tmp_path: Path) -> None:
    good = draw_pair(tmp_path, 1, "positive")
    cv2.imwrite(str(tmp_path / "wall.png"), np.full((120, 160, 3), 128, np.uint8))
    (tmp_path / "torn.png").write_bytes((tmp_path / good.onset).read_bytes()[:900])
    cv2.imwrite(str(tmp_path / "other.png"), np.zeros((100, 100, 3), np.uint8))
    rows = [
        replace(good, clip="wall", onset="wall.png", apex="wall.png"),
        replace(good, clip="torn", onset="torn.png"),
        replace(good, clip="size", apex="other.png"),
        replace(good, clip="gone", apex="gone.png"),
        good,
    ]
    write_rows(tmp_path, rows)
    result = prepare(tmp_path, TINY.spec(), workers=1)
    assert [row.pair for row in result.rows] == [good]
    assert set(result.dropped) == {f"drawn/1/{clip}" for clip in ("wall", "torn", "size", "gone")}
    assert result.dropped["drawn/1/wall"] == "no face was found"
    assert result.dropped["drawn/1/torn"] == "torn.png: the picture is truncated or corrupt"
    assert result.dropped["drawn/1/gone"] == "gone.png is missing"
    assert "100x100" in result.dropped["drawn/1/size"]


def test_every_kind_of_row_is_prepared_in_the_manifest_s_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.data.prepare, "SHARD_PAIRS", 2)
    frames = draw_pair(tmp_path, 1, "positive")
    moving = [draw(1.0, {"smile": 1.5 * number}) for number in range(5)]
    write_clip(tmp_path / "smile.avi", moving)
    y, x = np.mgrid[:28, :28].astype(np.float32)
    flow = np.stack([np.exp(-((x - 9) ** 2) / 20), np.exp(-((y - 20) ** 2) / 20)])
    write_flow_picture(tmp_path / "flow.png", flow)
    np.save(tmp_path / "flow.npy", flow)
    cv2.imwrite(str(tmp_path / "face.png"), moving[0][..., ::-1])
    row = {"dataset": "d", "subject": "1", "label": "positive"}
    rows = [
        Pair(**row, clip="picture", image="face.png", flow="flow.png"),
        Pair(**row, clip="smile.avi"),
        frames,
        Pair(**row, clip="gone.mp4"),
        Pair(**row, clip="array", image="face.png", flow="flow.npy"),
    ]
    write_rows(tmp_path, rows)
    result = prepare(tmp_path, TINY.spec(), workers=1)
    assert [row.pair for row in result.rows] == [*rows[:3], rows[4]]
    assert result.dropped == {"d/1/gone.mp4": "gone.mp4 is missing"}
    unknown = [bool(np.isnan(row.motion.p95_px)) for row in result.rows]
    assert unknown == [True, False, False, False]
    assert open_prepared(tmp_path, TINY.spec()).rows == result.rows
    live = align_row(rows[1], tmp_path, Preprocessor(TINY.spec()))
    assert live is not None
    for row, made in (
        (result.rows[1], live),
        (result.rows[0], read_ready(rows[0], tmp_path, 64)),
        (result.rows[3], read_ready(rows[4], tmp_path, 64)),
    ):
        onset, stored = result.arrays(row)
        np.testing.assert_array_equal(onset, made.onset)
        np.testing.assert_array_equal(stored, made.flow.astype(np.float16).astype(np.float32))


def test_what_was_put_right_or_changed_is_prepared_again_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.data.prepare, "SHARD_PAIRS", 1)
    rows = [draw_pair(tmp_path, subject, "positive") for subject in range(3)]
    write_rows(tmp_path, rows)
    (tmp_path / rows[0].apex).rename(tmp_path / "elsewhere.png")
    first = prepare(tmp_path, TINY.spec(), workers=1)
    assert set(first.dropped) == {rows[0].key}
    assert [row.pair for row in first.rows] == rows[1:]
    folder = prepared_folder(tmp_path, TINY.spec())
    before = times(folder)
    (tmp_path / "elsewhere.png").rename(tmp_path / rows[0].apex)
    shutil.copy(tmp_path / rows[1].onset, tmp_path / rows[1].apex)
    with pytest.raises(
        ValueError, match=r"2 rows of pairs\.csv are not prepared.*drawn/0/positive"
    ):
        open_prepared(tmp_path, TINY.spec())
    second = prepare(tmp_path, TINY.spec(), workers=1)
    assert second.dropped == {}
    assert [row.pair for row in second.rows] == rows
    assert second.rows[1].motion.p95_px == pytest.approx(0, abs=1e-3)
    after = times(folder)
    assert {name for name in after if after[name] != before.get(name)} == files_of(*second.rows[:2])
    assert set(after) == files_of(*second.rows)


@pytest.mark.parametrize(
    ("edit", "at"),
    [
        (lambda rows: [replace(rows[0], clip="new"), *rows], 0),
        (lambda rows: [*rows[:4], *rows[5:]], 4),
        (lambda rows: [*rows[:4], replace(rows[4], label="none"), *rows[5:]], 4),
    ],
    ids=["inserted in front", "removed", "changed"],
)
def test_a_row_that_comes_goes_or_changes_disturbs_its_own_shard_only(
    edit: Callable[[list[Pair]], list[Pair]],
    at: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training.data.prepare, "SHARD_PAIRS", 3)
    rows = cut(draw_pair(tmp_path, 1, "positive"), "--E---E-E-", 3)
    write_rows(tmp_path, rows)
    first = prepare(tmp_path, TINY.spec(), workers=1)
    folder = prepared_folder(tmp_path, TINY.spec())
    before = times(folder)
    assert len(before) == 4 * 3
    write_rows(tmp_path, edit(rows))
    second = prepare(tmp_path, TINY.spec(), workers=1)
    assert [row.pair for row in second.rows] == edit(rows)
    after = times(folder)
    disturbed = files_of(first.rows[at])
    assert before.keys() - after.keys() == disturbed
    assert len(after) == 4 * 3
    assert {name for name in before if after.get(name) != before[name]} == disturbed


def test_no_shard_grows_beyond_twice_its_mean_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.data.prepare, "SHARD_PAIRS", 2)
    write_rows(tmp_path, cut(draw_pair(tmp_path, 1, "positive"), "-----", 2))
    rows = prepare(tmp_path, TINY.spec(), workers=1).rows
    assert [row.position for row in rows] == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("left", [2, 0])
def test_a_manifest_that_lost_rows_leaves_no_array_of_them_behind(
    left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor an unfinished file, nor a numbered shard as they were before; all else stays."""
    monkeypatch.setattr(training.data.prepare, "SHARD_PAIRS", 1)
    rows = [draw_pair(tmp_path, subject, "positive") for subject in range(3)]
    write_rows(tmp_path, rows)
    first = prepare(tmp_path, TINY.spec(), workers=1)
    folder = prepared_folder(tmp_path, TINY.spec())
    lost = first.rows[2].shard
    for name in (f".{lost}.onset.npy.123.tmp", "7.onset.npy", ".7.json.123.tmp"):
        shutil.copy(folder / f"{lost}.onset.npy", folder / name)
    others = {"contact_sheet.png", "face.json", f"{lost}.txt", f"my {lost}.json"}
    for name in others:
        (folder / name).write_text("mine")
    write_pairs(tmp_path / "pairs.csv", rows[:left])
    before = times(folder)
    assert open_prepared(tmp_path, TINY.spec()).rows == first.rows[:left]
    assert times(folder) == before
    assert prepare(tmp_path, TINY.spec(), workers=1).rows == first.rows[:left]
    assert set(times(folder)) == files_of(*first.rows[:left]) | others


def test_a_full_disk_is_told_and_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second shard's arrays are larger than a file may be."""
    rows = cut(draw_pair(tmp_path, 1, "positive"), "E--", 2)
    write_rows(tmp_path, rows)
    folder = prepared_folder(tmp_path, TINY.spec())
    folder.mkdir()
    unlisted = f"{0:016x}.json"
    (folder / unlisted).write_text("of an earlier manifest")
    full = subprocess.run(  # noqa: S603 - our own command
        preparing(tmp_path, 2, largest_file=20_000),
        capture_output=True,
        text=True,
        check=False,
    )
    assert full.returncode == 1
    told = full.stderr.rstrip().splitlines()[-1]
    assert "File too large; what is finished is kept" in told
    before = times(folder)
    monkeypatch.setattr(training.data.prepare, "SHARD_PAIRS", 2)
    result = prepare(tmp_path, TINY.spec(), workers=1)
    assert [row.pair for row in result.rows] == rows
    assert str(folder / f"{result.rows[1].shard}.onset.npy") in told
    assert set(before) == {*files_of(result.rows[0]), unlisted}
    del before[unlisted]
    assert times(folder).items() >= before.items()


def test_a_killed_run_keeps_what_is_finished_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = draw_pair(tmp_path, 1, "positive")
    write_rows(tmp_path, [replace(good, clip=str(number)) for number in range(200)])
    with subprocess.Popen(  # noqa: S603 - our own command
        preparing(tmp_path, 1), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        assert run.stdout is not None
        assert [run.stdout.readline(), run.stdout.readline()] == ["0\n", "1\n"]
        run.kill()
    deadline = time.monotonic() + 20
    while _group_lives(run.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _group_lives(run.pid)
    write_rows(tmp_path, [replace(good, clip=str(number)) for number in range(2)])
    folder = prepared_folder(tmp_path, TINY.spec())
    before = times(folder)
    monkeypatch.setattr(training.data.prepare, "SHARD_PAIRS", 1)
    rows = prepare(tmp_path, TINY.spec(), workers=1).rows
    assert len(rows) == 2
    after = times(folder)
    for name in files_of(rows[0]):
        assert after[name] == before[name]


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, signal.SIG_DFL)
    except ProcessLookupError:
        return False
    return True


def test_what_is_prepared_is_not_prepared_again(
    pairs_folder: Path, prepared: Prepared, tiny_config: RunConfig
) -> None:
    folder = prepared_folder(pairs_folder, tiny_config.spec())
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    heard: list[tuple[int, int]] = []
    again = prepare(pairs_folder, tiny_config.spec(), report=lambda *counts: heard.append(counts))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert again.rows == prepared.rows
    assert heard == [(24, 24)]
    assert open_prepared(pairs_folder, tiny_config.spec()).rows == prepared.rows


def test_a_damaged_shard_is_made_again_and_leaves_no_scraps(tmp_path: Path) -> None:
    write_rows(tmp_path, [draw_pair(tmp_path, 2, "surprise")])
    spec = TINY.spec()
    first = prepare(tmp_path, spec, workers=1)
    arrays = first.arrays(first.rows[0])
    folder = prepared_folder(tmp_path, spec)
    shard = first.rows[0].shard
    index = (folder / f"{shard}.json").read_bytes()
    for name, damage in (("json", index[:40]), ("flow.npy", b"interrupted")):
        (folder / f"{shard}.{name}").write_bytes(damage)
        with pytest.raises(ValueError, match="1 rows"):
            open_prepared(tmp_path, spec)
        again = prepare(tmp_path, spec, workers=1)
        for one, other in zip(arrays, again.arrays(again.rows[0]), strict=True):
            np.testing.assert_array_equal(one, other)
        assert set(times(folder)) == files_of(*first.rows)


def test_other_rows_make_another_shard(tmp_path: Path) -> None:
    pair = draw_pair(tmp_path, 3, "negative")
    write_rows(tmp_path, [pair])
    prepare(tmp_path, TINY.spec(), workers=1)
    write_rows(tmp_path, [replace(pair, label="none")])
    assert prepare(tmp_path, TINY.spec(), workers=1).rows[0].pair.label == "none"


def test_another_flow_has_another_folder(tiny_config: RunConfig, tmp_path: Path) -> None:
    spec = tiny_config.spec()
    other = replace(spec, flow=replace(spec.flow, algorithm="dis"))
    assert prepared_folder(tmp_path, spec) != prepared_folder(tmp_path, other)
    brighter = replace(spec, magnification=9.0)
    assert prepared_folder(tmp_path, spec) == prepared_folder(tmp_path, brighter)


def test_each_manifest_of_a_folder_has_its_own_prepared_folder(tmp_path: Path) -> None:
    spec = TINY.spec()
    key = spec.preprocessing_key()
    assert prepared_folder(tmp_path, spec) == tmp_path / f"prepared-pairs-{key}"
    assert prepared_folder(tmp_path / "mine.csv", spec) == tmp_path / f"prepared-mine-{key}"


def test_a_cache_of_another_spec_is_told_by_its_key_and_not_prepared(tmp_path: Path) -> None:
    spec = TINY.spec()
    other = replace(spec, input_size=96)
    write_rows(tmp_path, [draw_pair(tmp_path, 1, "positive")])
    with pytest.raises(ValueError, match=f"not prepared for the spec {spec.preprocessing_key()}: "):
        open_prepared(tmp_path, spec)
    prepare(tmp_path, other, workers=1)
    with pytest.raises(ValueError, match=f"it is for {other.preprocessing_key()}: ") as raised:
        open_prepared(tmp_path, spec)
    assert f"mfdan-train prepare {tmp_path / 'pairs.csv'}" in str(raised.value)
    assert not prepared_folder(tmp_path, spec).exists()


def test_a_folder_without_its_list_is_an_error_and_stays_as_it_was(
    tmp_path: Path, tiny_config: RunConfig
) -> None:
    with pytest.raises(FileNotFoundError):
        prepare(tmp_path, tiny_config.spec())
    assert list(tmp_path.iterdir()) == []


def _limit_leaving(count: int) -> int:
    """Return the limit under which a process that has files open may open so many more."""
    with ExitStack() as stack:
        free = [stack.enter_context(Path("/dev/null").open()).fileno() for _ in range(count)]
    return max(free) + 1


def test_more_shards_than_a_process_may_open_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.data.prepare, "SHARD_PAIRS", 1)
    pair = draw_pair(tmp_path, 1, "positive")
    write_rows(tmp_path, [replace(pair, clip=str(number)) for number in range(8)])
    many = prepare(tmp_path, TINY.spec(), workers=1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_limit_leaving(6), before[1]))
    try:
        arrays = [many.arrays(row) for row in many.rows]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(arrays) == 8
