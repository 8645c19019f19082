from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_clips import grey_steps, write_clip, write_flow_picture

from training.data.labels import Labels
from training.data.validate import validate

HEADER = "dataset,subject,clip,label,onset,apex,image,flow\n"
LABELS = Labels(("negative", "positive"), {"disgust": "negative", "others": ""})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of every kind, good and bad."""
    picture = np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)
    for name in ("onset.png", "apex.png"):
        cv2.imwrite(str(tmp_path / name), picture)
    cv2.imwrite(str(tmp_path / "wide.png"), np.hstack([picture, picture]))
    (tmp_path / "torn.png").write_bytes((tmp_path / "apex.png").read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "none.png").touch()
    np.save(tmp_path / "flow.npy", np.zeros((2, 28, 28), np.float32))
    np.save(tmp_path / "turned.npy", np.zeros((28, 28, 2), np.float32))
    np.save(tmp_path / "nan.npy", np.full((2, 28, 28), np.nan, np.float32))
    write_flow_picture(tmp_path / "flow.png", np.float32(np.indices((28, 28))))
    clip = write_clip(tmp_path / "clip.mp4", grey_steps(5))
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:-50])
    return tmp_path


def write(folder: Path, rows: list[str]) -> Path:
    path = folder / "mine.csv"
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return path


BAD = [
    ("d,1,short,positive", "cut short"),
    ("d,1,long,positive,onset.png,apex.png,,,more", "more fields"),
    (",1,a,positive,onset.png,apex.png,,", "dataset is empty"),
    ("d,1,half,positive,onset.png,,,", "onset and apex go together"),
    ("d,1,both,positive,onset.png,apex.png,onset.png,flow.npy", "not both"),
    ("d,1,good,positive,onset.png,apex.png,,", "d/1/good is in line 2 already"),
    ("d,1,gone,positive,onset.png,gone.png,,", "gone.png is missing"),
    ("d,1,folder,positive,onset.png,.,,", ". is a folder"),
    ("d,1,torn,positive,onset.png,torn.png,,", "torn.png: the picture is truncated"),
    ("d,1,text,positive,text.png,apex.png,,", "text.png: the bytes are not"),
    ("d,1,none,positive,none.png,apex.png,,", "none.png: the picture holds no bytes"),
    ("d,1,wide,positive,onset.png,wide.png,,", "the onset is 60x40 pixels, the apex 120x40"),
    ("d,1,turned,positive,,,onset.png,turned.npy", "turned.npy: a flow field is (2, H, W)"),
    ("d,1,nan,positive,,,onset.png,nan.npy", "nan.npy: the field holds values"),
    ("d,1,noface,positive,,,gone.png,flow.npy", "gone.png is missing"),
    ("d,1,cut.mp4,positive,,,,", "cut.mp4: the clip is cut short"),
    ("d,1,apex.png,positive,,,,", "apex.png: the bytes are not an MP4"),
    ("d,1,gone.mp4,positive,,,,", "gone.mp4 is missing"),
    ("d,1,fear,fear,onset.png,apex.png,,", "label 'fear' is neither a class nor in label_map"),
    ("d,1,two,fear,onset.png,gone.png,,", "in label_map; gone.png is missing"),
]
GOOD = [
    "d,1,good,positive,onset.png,apex.png,,",
    "d,1,picture,disgust,,,onset.png,flow.png",
    "d,2,array,others,,,onset.png,flow.npy",
    "d,2,clip.mp4,none,,,,",
]


def test_every_bad_row_is_named_and_no_good_one(folder: Path) -> None:
    """Bad and good rows in turn, over more than one of the chunks that processes take."""
    rows = [GOOD[0], *(row for row, _ in BAD), *GOOD[1:]]
    heard: list[tuple[int, int]] = []
    checked = validate(
        write(folder, rows), LABELS, workers=2, report=lambda *counts: heard.append(counts)
    )
    assert [pair.clip for pair in checked.good] == ["good", "picture", "array", "clip.mp4"]
    assert [row.line for row in checked.bad] == list(range(3, 3 + len(BAD)))
    for bad, (row, reason) in zip(checked.bad, BAD, strict=True):
        assert reason in bad.reason
        assert bad.clip == "/".join(row.split(",")[:3])
        assert str(bad).startswith(f"line {bad.line}, {bad.clip}: ")
        assert reason in str(bad)
        assert str(bad).count(bad.clip) == 1 or "already" in reason
    assert (heard[0], heard[-1]) == ((0, len(rows)), (len(rows), len(rows)))
    # Without a config any label will do.
    unlabelled = validate(folder / "mine.csv", workers=1)
    assert len(checked.bad) - len(unlabelled.bad) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dataset,subject,clip,onset\n", "no column label"),
        ("", "no column dataset, subject, clip, label"),
        (HEADER, "mine.csv holds no row"),
    ],
)
def test_a_manifest_without_rows_is_bad_as_a_whole(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "mine.csv").write_text(text)
    checked = validate(tmp_path / "mine.csv")
    (bad,) = checked.bad
    assert (checked.good, bad.line) == ([], 0)
    assert told in bad.reason
    assert str(bad).startswith("the manifest: ")


def test_rows_before_what_is_no_text_are_checked_all_the_same(folder: Path) -> None:
    path = write(folder, [GOOD[0], BAD[6][0]])
    path.write_bytes(path.read_bytes() + b"d,1,\xff,x,o,a,,\n" + b"d,1,later,x,o,a,,\n" * 1000)
    checked = validate(path, workers=1)
    assert "not in UTF-8" in checked.bad[-1].reason


def test_a_missing_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"pairs\.csv"):
        validate(tmp_path)


def test_a_file_that_the_machine_cannot_read_is_named(folder: Path) -> None:
    (folder / "apex.png").unlink()
    (folder / "apex.png").symlink_to("apex.png")
    (bad,) = validate(write(folder, GOOD[:1]), workers=1).bad
    assert "symbolic links" in bad.reason
    assert "apex.png" in bad.reason


def test_a_person_written_in_two_ways_is_named(folder: Path) -> None:
    """They would be in both halves of a fold, or of a split."""
    sources = "positive,onset.png,apex.png,,"
    rows = [f"d,{who},{clip},{sources}" for clip, who in enumerate(("s01", "S1", "s2"))]
    checked = validate(write(folder, rows), workers=1)
    assert [row.line for row in checked.bad] == [2, 3]
    assert "one person is written in two ways: d/S1, d/s01" in checked.bad[0].reason
