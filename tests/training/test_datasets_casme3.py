from pathlib import Path

import pytest
from licensed_trees import CASME3_FILE, Casme3, write_csv

from training.data.datasets import load_dataset
from training.data.datasets.casme3 import LONGEST_CLIP


@pytest.fixture
def tree(tmp_path: Path) -> Casme3:
    tree = Casme3(tmp_path)
    tree.draw()
    return tree


def test_several_clips_of_one_recording_are_told_apart_by_their_onset(tree: Casme3) -> None:
    tree.draw(numbers=(300, 305))
    tree.add()
    tree.add(onset=300, apex=305, offset=309, emotion="Fear")
    loaded = load_dataset("casme3", tree.write())
    assert [(pair.key, pair.label) for pair in loaded.pairs] == [
        ("casme3/spNO.1/b_175", "disgust"),
        ("casme3/spNO.1/b_300", "fear"),
    ]
    assert Path(loaded.pairs[0].onset) == tree.root / "spNO.1/b/color/175.jpg"
    assert not loaded.dropped


def test_the_same_clip_twice_is_taken_once(tree: Casme3) -> None:
    tree.add()
    tree.add()
    loaded = load_dataset("casme3", tree.write())
    assert len(loaded.pairs) == 1
    expected = f"it is the same clip as {CASME3_FILE} row 2 (spNO.1/b_175)"
    assert loaded.dropped[0].why == expected


def test_a_good_row_is_kept_where_a_broken_one_names_the_same_clip(tree: Casme3) -> None:
    tree.add(apex=None)
    tree.add()
    loaded = load_dataset("casme3", tree.write())
    assert len(loaded.pairs) == 1
    assert loaded.dropped[0].why == "no apex is annotated"


def test_a_row_of_thousands_of_frames_is_dropped_as_broken(tree: Casme3) -> None:
    tree.draw(numbers=(6000, 6010))
    tree.add(apex=6000, offset=6010)
    (dropped,) = load_dataset("casme3", tree.write()).dropped
    assert "it lasts 5835 frames, 175 to 6010; a row of more than 120 is broken" in dropped.why


def test_a_long_row_without_an_offset_is_judged_by_its_apex(tree: Casme3) -> None:
    tree.add(apex=6000, offset=None)
    (dropped,) = load_dataset("casme3", tree.write()).dropped
    assert "it lasts 5825 frames" in dropped.why


def test_a_row_of_the_longest_length_is_kept(tree: Casme3) -> None:
    tree.add(offset=175 + LONGEST_CLIP)
    assert len(load_dataset("casme3", tree.write()).pairs) == 1


def test_depth_pictures_of_the_same_name_are_not_taken(tree: Casme3) -> None:
    tree.draw("spNO.1/b/depth")
    tree.add()
    (pair,) = load_dataset("casme3", tree.write()).pairs
    assert "/color/" in pair.onset


def test_a_recording_without_colour_pictures_drops_its_rows(tree: Casme3) -> None:
    tree.draw("spNO.2/c/depth")
    tree.add(subject="spNO.2", letter="c")
    (dropped,) = load_dataset("casme3", tree.write()).dropped
    assert dropped.why == "there is no folder spNO.2/c_175"


@pytest.mark.parametrize(
    ("folder", "subject", "letter"),
    [("spNo.1/B/color", "spNO.1", "b"), ("spNO.1/b/color", "SPNO.1", "B")],
)
def test_capitals_of_folders_and_labels_need_not_agree(
    tmp_path: Path, folder: str, subject: str, letter: str
) -> None:
    tree = Casme3(tmp_path)
    tree.draw(folder)
    tree.add(subject=subject, letter=letter)
    assert [pair.key for pair in load_dataset("casme3", tree.write()).pairs] == [
        "casme3/spNO.1/b_175"
    ]


def test_the_cut_edition_is_read_and_depth_and_macro_left_aside(tmp_path: Path) -> None:
    tree = Casme3(tmp_path)
    tree.draw("Part_A_ME_clip/frame/spNo.1_b_175")
    tree.draw("Part_A_ME_clip/depth/spNo.1_b_175")
    tree.draw("Part_A_MaE_clip/frame/spNo.1_b_175")
    tree.add()
    tree.add(letter="c")
    loaded = load_dataset("casme3", tree.write())
    assert "Part_A_ME_clip/frame" in loaded.pairs[0].onset
    assert loaded.dropped[0].why == "there is no folder spNO.1/c_175"


def test_an_onset_that_is_no_number_is_told_as_it_stands(tree: Casme3) -> None:
    tree.add(onset="17S")
    (dropped,) = load_dataset("casme3", tree.write()).dropped
    assert dropped.why == "its onset '17S' is no whole number"


def test_a_subject_of_another_form_is_dropped_by_name(tree: Casme3) -> None:
    tree.add(subject="person 1")
    (dropped,) = load_dataset("casme3", tree.write()).dropped
    assert "subject 'person 1'" in dropped.why


def test_a_list_of_apexes_is_keyed_on_letter_and_onset(tree: Casme3) -> None:
    tree.add(apex="")
    apexes = write_csv(tree.root / "apexes.csv", [["clip", "apex"], ["spNO.1/b_175", 180]])
    (pair,) = load_dataset("casme3", tree.write(), apexes=apexes).pairs
    assert Path(pair.apex).name == "180.jpg"


def test_a_root_without_frames_tells_both_layouts(tmp_path: Path) -> None:
    tree = Casme3(tmp_path)
    tree.add()
    with pytest.raises(FileNotFoundError, match=r"spNO\.1/b/color/175\.jpg or spNO\.1_b_175"):
        load_dataset("casme3", tree.write())
