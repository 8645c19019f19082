from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_pairs import MOVES, TINY

from training.contact_sheet import flow_colours, prepared_sheet
from training.data.prepare import Prepared

TILE, LINE = 160, 160 + 34


def test_a_sheet_shows_clips_of_each_label_from_first_to_last(
    prepared: Prepared, tmp_path: Path
) -> None:
    prepared_sheet(prepared, TINY.spec(), tmp_path / "sheet.png")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (len(MOVES) * LINE, 3 * 3 * TILE, 3)
    for line, label in enumerate(MOVES):
        rows = [row for row in prepared.rows if row.pair.label == label]
        for place, row in enumerate((rows[0], rows[2], rows[5])):
            onset, _ = prepared.arrays(row)
            shown = sheet[line * LINE :, 3 * place * TILE :][:TILE, :TILE]
            small = cv2.resize(onset[..., ::-1], (TILE, TILE), interpolation=cv2.INTER_AREA)
            np.testing.assert_array_equal(shown, small)


def test_a_tile_shows_flow_and_magnified_picture_and_says_what_it_is(
    prepared: Prepared, tmp_path: Path
) -> None:
    prepared_sheet(prepared, TINY.spec(), tmp_path / "sheet.png")
    line = list(MOVES).index("surprise")
    tile = cv2.imread(str(tmp_path / "sheet.png"))[line * LINE :][:LINE, : 3 * TILE]
    onset, flow, magnified = (tile[:TILE, at * TILE :][:, :TILE] for at in range(3))
    hue = cv2.cvtColor(flow, cv2.COLOR_BGR2HSV)[flow.max(axis=2) > 200][:, 0]
    up = cv2.cvtColor(flow_colours(np.float32([[[0]], [[-1]]]), 1), cv2.COLOR_BGR2HSV)[0, 0, 0]
    assert np.median(hue) == pytest.approx(up, abs=12)  # the brows go up
    assert np.abs(magnified.astype(int) - onset).max() > 60
    assert tile[TILE:].max() == 255


def test_of_nothing_there_is_no_sheet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no clip was prepared"):
        prepared_sheet(Prepared([]), TINY.spec(), tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
