from dataclasses import replace
from pathlib import Path

import pytest

from training.data.pairs import (
    Holdout,
    Pair,
    manifest_path,
    read_lines,
    read_pairs,
    write_pairs,
)

FROZEN = ["val", "test", "train", "train", "train", "test", "train", "train"]
HEADER = "dataset,subject,clip,label,onset,apex,image,flow\n"
FRAMES = Pair(dataset="d", subject="007", clip="c", label="x", onset="o.jpg", apex="a.jpg")
READY = Pair(dataset="d", subject="007", clip="r", label="x", image="i.png", flow="f.npy")
VIDEO = Pair(dataset="d", subject="007", clip="in/v.mp4", label="x")


def split(person: str, seed: int = 1) -> str:
    return Holdout(seed=seed, val=0.1, test=0.2).split_of(person)


def manifest(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "mine.csv"
    path.write_text(header + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def test_columns_beyond_the_needed_ones_are_passed_over(tmp_path: Path) -> None:
    header = "dataset,subject,clip,true_flow,label,onset,apex\n"
    (pair,) = read_pairs(manifest(tmp_path, "d,007,c,f.npz,negative,o.jpg,a.jpg", header=header))
    assert (pair.person, pair.key, pair.label) == ("d/007", "d/007/c", "negative")
    assert (pair.kind, pair.files) == ("frames", ("o.jpg", "a.jpg"))


def test_a_row_says_by_its_columns_where_its_frames_come_from() -> None:
    assert [(pair.kind, pair.files) for pair in (FRAMES, READY, VIDEO)] == [
        ("frames", ("o.jpg", "a.jpg")),
        ("ready", ("i.png", "f.npy")),
        ("video", ("in/v.mp4",)),
    ]


def test_what_is_written_is_read_again_whatever_the_names_hold(tmp_path: Path) -> None:
    pairs = [
        FRAMES,
        replace(READY, clip='with, comma and "quotes"'),
        replace(VIDEO, subject="Žofie"),
    ]
    write_pairs(tmp_path / "pairs.csv", pairs)
    assert read_pairs(tmp_path) == pairs


def test_a_folder_means_its_pairs_csv_and_a_file_itself(tmp_path: Path) -> None:
    assert manifest_path(tmp_path) == tmp_path / "pairs.csv"
    assert manifest_path(tmp_path / "mine.csv") == tmp_path / "mine.csv"


def test_a_spreadsheet_s_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(HEADER + "d,1,c,x,o,a,,\n", encoding="utf-8-sig")
    assert read_pairs(path)[0].dataset == "d"


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine\.csv has no column clip, label"):
        read_pairs(manifest(tmp_path, header="dataset,subject,onset\n"))


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("d,1,c", "the row is cut short"),
        ("d,1,c,x,o,a,,,more", "more fields than there are columns"),
        ("d, ,c,x,o,a,,", "subject is empty"),
        ("d,1,c,,o,a,,", "label is empty"),
        ("d,1,c,x,o,,,", "d/1/c: onset and apex go together"),
        ("d,1,c,x,,,,f", "d/1/c: image and flow go together"),
        ("d,1,c,x,o,a,i,f", "not both"),
        ("d,1/2,c,x,o,a,,", "subject '1/2' must not hold a slash"),
        ("d,1,first,y,o,a,,", "d/1/first is in line 2 already"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: str, fault: str) -> None:
    path = manifest(tmp_path, "d,1,first,x,o,a,,", row)
    with pytest.raises(ValueError, match=r"mine\.csv, line 3: ") as raised:
        read_pairs(path)
    assert fault in str(raised.value)


def test_every_bad_row_can_be_read_past(tmp_path: Path) -> None:
    rows = ["d,1,a,x,o,a,,", "d,1,b", "d,1,c,x,o,a,,", "d,1,a,x,o,a,,", "d,2,a,x,o,a,,"]
    lines = list(read_lines(manifest(tmp_path, *rows)))
    assert [(line.number, line.pair is not None) for line in lines] == [
        (2, True),
        (3, False),
        (4, True),
        (5, False),
        (6, True),
    ]
    assert [line.clip for line in lines] == ["d/1/a", "d/1/b", "d/1/c", "d/1/a", "d/2/a"]


def test_what_is_no_text_in_utf_8_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(HEADER.encode() + "d,Žofie,c,x,o,a,,\n".encode("cp1250"))
    with pytest.raises(ValueError, match=r"mine\.csv is not in UTF-8"):
        read_pairs(path)


def test_what_csv_cannot_read_is_named_by_its_line(tmp_path: Path) -> None:
    path = manifest(tmp_path, "d,1,c," + "x" * 200_000 + ",o,a,,")
    with pytest.raises(ValueError, match=r"mine\.csv, after line 1: field larger"):
        read_pairs(path)


def test_the_split_of_a_person_never_changes() -> None:
    """Frozen answers: another hash would move people from test to training unnoticed."""
    people = [f"synthetic/face-{number:03d}" for number in range(8)]
    assert [split(person) for person in people] == FROZEN


def test_shares_of_people_are_about_the_asked_for() -> None:
    splits = [split(f"d/{number}") for number in range(4000)]
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.02)
    assert splits.count("val") / 4000 == pytest.approx(0.1, abs=0.02)


def test_another_seed_holds_out_other_people() -> None:
    people = [f"d/{number}" for number in range(200)]
    assert [split(p, 1) for p in people] != [split(p, 2) for p in people]
