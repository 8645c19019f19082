from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from licensed_trees import write_frames

from training.data.datasets.frames import frame_number, read_frames

BEFORE = st.text(st.sampled_from("abz_-. 0123456789"), max_size=12)
AFTER = st.text(st.sampled_from("abz_-. "), max_size=6)


@given(BEFORE, st.integers(0, 10**6), st.integers(0, 9), AFTER)
def test_the_last_whole_number_of_a_name_is_its_frame_whatever_the_padding(
    before: str, number: int, padding: int, after: str
) -> None:
    assert frame_number(f"{before}x{number:0{padding}}{after}") == number


@given(AFTER)
def test_a_name_without_digits_has_no_frame_number(name: str) -> None:
    assert frame_number(name) is None


def test_each_data_set_s_way_of_naming_frames_is_read() -> None:
    stems = ("img46", "reg_img46", "006_05562", "175", "image000094")
    assert [frame_number(stem) for stem in stems] == [46, 46, 5562, 175, 94]


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    frames = read_frames(write_frames(tmp_path, (100, 9, 10), "img{}.jpg"))
    assert list(frames.names) == [9, 10, 100]


def test_files_that_are_no_pictures_or_hidden_are_no_frames(tmp_path: Path) -> None:
    write_frames(tmp_path, [46], "img{}.jpg")
    for name in ("._img46.jpg", "Thumbs46.db", "img46.txt", "cover.jpg"):
        (tmp_path / name).touch()
    assert read_frames(tmp_path).names == {46: ["img46.jpg"]}


def test_a_frame_under_two_names_is_refused_and_both_are_named(tmp_path: Path) -> None:
    write_frames(tmp_path, [46], "img{}.jpg")
    frames = read_frames(write_frames(tmp_path, [46], "img{:04}.jpg"))
    with pytest.raises(ValueError, match=r"frame 46 is img0046\.jpg and img46\.jpg"):
        frames.file(46)


def test_a_link_to_nowhere_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "img46.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(ValueError, match="frame 46 has no picture"):
        read_frames(tmp_path).file(46)
