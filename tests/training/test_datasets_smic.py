from pathlib import Path

import pytest
from licensed_trees import draw_smic, write_csv, write_frames

from training.data.datasets import load_dataset


def test_a_clip_runs_from_its_first_frame_to_its_middle_one(tmp_path: Path) -> None:
    loaded = load_dataset("smic", draw_smic(tmp_path, numbers=range(94, 105)))
    (pair,) = loaded.pairs
    assert [Path(name).name for name in pair.files] == ["image000094.bmp", "image000099.bmp"]
    assert pair.label == "negative"
    assert any("1 clip of smic without an apex" in note for note in loaded.notes)


def test_the_middle_is_the_middle_picture_where_numbers_are_left_out(tmp_path: Path) -> None:
    loaded = load_dataset("smic", draw_smic(tmp_path, numbers=(1, 2, 3, 90, 100)))
    assert Path(loaded.pairs[0].apex).name == "image000003.bmp"


@pytest.mark.parametrize("folder", ["s1/micro/negative/s1_ne_01", "s01/micro/Negative/s01_ne_01"])
def test_both_forms_of_an_id_name_the_same_clip(tmp_path: Path, folder: str) -> None:
    (pair,) = load_dataset("smic", draw_smic(tmp_path, f"HS/{folder}")).pairs
    assert (pair.key, pair.label) == ("smic/s01/s01_ne_01", "negative")


@pytest.mark.parametrize("root", ["", "HS", "SMIC_all_raw"])
def test_the_root_may_hold_hs_or_be_it(tmp_path: Path, root: str) -> None:
    draw_smic(tmp_path, "SMIC_all_raw/HS/s1/micro/negative/s1_ne_01")
    draw_smic(tmp_path, "HS/s1/micro/negative/s1_ne_01")
    if not root:
        with pytest.raises(ValueError, match="give one of these as the root"):
            load_dataset("smic", tmp_path)
        return
    assert len(load_dataset("smic", tmp_path / root).pairs) == 1


def test_raw_frames_are_taken_before_cropped_ones_and_it_is_said(tmp_path: Path) -> None:
    draw_smic(tmp_path, "SMIC_all_raw/HS/s1/micro/negative/s1_ne_01")
    cropped = "SMIC_all_cropped/HS/s1/micro/negative/s1_ne_01"
    draw_smic(tmp_path, cropped, name="reg_image{:06}.bmp")
    loaded = load_dataset("smic", tmp_path)
    assert "SMIC_all_raw" in loaded.pairs[0].onset
    assert "left aside" in loaded.notes[0]


def test_vis_nir_and_clips_without_an_expression_are_passed_over(tmp_path: Path) -> None:
    draw_smic(tmp_path)
    draw_smic(tmp_path, "VIS/s1/micro/negative/s1_ne_01")
    draw_smic(tmp_path, "NIR/s1/micro/negative/s1_ne_01")
    draw_smic(tmp_path, "HS/s1/non_micro/s1_n_01")
    assert len(load_dataset("smic", tmp_path).pairs) == 1


def test_the_twenty_five_frames_a_second_of_vis_are_not_taken_for_hs(tmp_path: Path) -> None:
    draw_smic(tmp_path, "VIS/s1/micro/negative/s1_ne_01")
    with pytest.raises(FileNotFoundError, match="HS/s01/micro/negative/s01_ne_01"):
        load_dataset("smic", tmp_path / "VIS")


def test_a_person_s_folder_under_both_forms_is_refused(tmp_path: Path) -> None:
    draw_smic(tmp_path)
    draw_smic(tmp_path, "HS/s01/micro/positive/s01_po_01")
    with pytest.raises(ValueError, match=r"s01 and .*s1 are folders of one person"):
        load_dataset("smic", tmp_path)


def test_one_clip_under_two_emotions_is_taken_once(tmp_path: Path) -> None:
    draw_smic(tmp_path)
    draw_smic(tmp_path, "HS/s1/micro/surprise/s1_ne_01")
    loaded = load_dataset("smic", tmp_path)
    assert [pair.label for pair in loaded.pairs] == ["negative"]
    assert "as negative and not surprise" in loaded.dropped[0].why


def test_a_clip_of_one_frame_or_none_is_dropped_with_its_reason(tmp_path: Path) -> None:
    draw_smic(tmp_path)
    draw_smic(tmp_path, "HS/s1/micro/positive/s1_po_01", numbers=[7])
    (tmp_path / "HS/s1/micro/positive/s1_po_02").mkdir()
    loaded = load_dataset("smic", tmp_path)
    assert {row.where: row.why for row in loaded.dropped} == {
        "HS/s1/micro/positive/s1_po_01": "its apex 7 does not come after its onset 7",
        "HS/s1/micro/positive/s1_po_02": "it holds no numbered picture",
    }


def test_a_person_without_micro_expressions_is_no_fault(tmp_path: Path) -> None:
    draw_smic(tmp_path)
    draw_smic(tmp_path, "HS/s2/non_micro/s2_n_01")
    assert len(load_dataset("smic", tmp_path).pairs) == 1


@pytest.mark.parametrize("name", ["s1_ne_01", "s01_ne_01", "s1/s1_ne_01", "s01/S01_NE_1"])
def test_a_list_of_apexes_may_use_either_form_of_an_id(tmp_path: Path, name: str) -> None:
    draw_smic(tmp_path)
    apexes = write_csv(tmp_path / "apexes.csv", [["clip", "apex"], [name, "00101"]])
    loaded = load_dataset("smic", tmp_path, apexes=apexes)
    assert Path(loaded.pairs[0].apex).name == "image000101.bmp"
    assert not any("middle" in note for note in loaded.notes)


def test_an_apex_for_a_clip_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    draw_smic(tmp_path)
    apexes = write_csv(tmp_path / "apexes.csv", [["clip", "apex"], ["s9_ne_01", 101]])
    with pytest.raises(ValueError, match=r"apexes\.csv, line 2: there is no clip 's9_ne_01'"):
        load_dataset("smic", tmp_path, apexes=apexes)


def test_a_listed_apex_without_a_picture_drops_the_clip(tmp_path: Path) -> None:
    draw_smic(tmp_path)
    apexes = write_csv(tmp_path / "apexes.csv", [["clip", "apex"], ["s1_ne_01", 104]])
    (tmp_path / "HS/s1/micro/negative/s1_ne_01/image000104.bmp").unlink()
    write_frames(tmp_path / "HS/s1/micro/negative/s1_ne_01", [105], "image{:06}.bmp")
    (dropped,) = load_dataset("smic", tmp_path, apexes=apexes).dropped
    assert "frame 104 has no picture (there are 94 to 105)" in dropped.why


def test_an_annotation_file_is_refused_as_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SMIC has no annotation file"):
        load_dataset("smic", draw_smic(tmp_path), annotation=tmp_path / "smic.xlsx")
