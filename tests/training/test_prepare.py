import resource
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_pairs import MOVES, PEOPLE, TINY, draw_pair, write_rows

import training.data.prepare
from model.decode import decode_image
from model.pipeline import Preprocessor
from training.config import RunConfig
from training.data.prepare import Prepared, prepare, prepared_folder


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


def test_a_shard_without_its_index_is_made_again_and_leaves_no_scraps(tmp_path: Path) -> None:
    write_rows(tmp_path, [draw_pair(tmp_path, 2, "surprise")])
    first = prepare(tmp_path, TINY.spec(), workers=1)
    folder = prepared_folder(tmp_path, TINY.spec())
    (folder / "0.json").unlink()
    (folder / "0.flow.npy").write_bytes(b"interrupted")
    second = prepare(tmp_path, TINY.spec(), workers=1)
    np.testing.assert_array_equal(first.arrays(first.rows[0])[0], second.arrays(second.rows[0])[0])
    assert sorted(path.name for path in folder.iterdir()) == ["0.flow.npy", "0.json", "0.onset.npy"]


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
