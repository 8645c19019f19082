from pathlib import Path

import openpyxl
import pytest
from licensed_trees import SAMM_FILE, Samm, write_frames

from training.data.datasets import load_dataset


@pytest.fixture
def tree(tmp_path: Path) -> Samm:
    tree = Samm(tmp_path)
    tree.draw()
    return tree


def test_the_header_is_found_below_the_preamble(tree: Samm) -> None:
    tree.add()
    loaded = load_dataset("samm", tree.write())
    (pair,) = loaded.pairs
    assert (pair.key, pair.label) == ("samm/006/006_1_2", "anger")
    assert Path(pair.apex).name == "006_05588.jpg"
    assert "header in row 14" in loaded.notes[0]


@pytest.mark.parametrize("subject", ["006", 6, "6"])
def test_a_subject_that_excel_made_a_number_of_is_the_same_person(
    tree: Samm, subject: object
) -> None:
    tree.add(subject=subject)
    assert [pair.subject for pair in load_dataset("samm", tree.write()).pairs] == ["006"]


@pytest.mark.parametrize("name", ["006_{}.jpg", "006_{:05}.jpg", "006_{:07}.PNG"])
def test_frames_are_found_whatever_their_padding(tmp_path: Path, name: str) -> None:
    tree = Samm(tmp_path)
    tree.draw(name=name)
    tree.add()
    assert len(load_dataset("samm", tree.write()).pairs) == 1


def test_a_subject_s_number_in_a_file_name_is_not_its_frame(tree: Samm) -> None:
    tree.add(onset=6)
    (dropped,) = load_dataset("samm", tree.write()).dropped
    assert "frame 6 has no picture" in dropped.why
    assert dropped.where == f"{SAMM_FILE} row 15 (006/006_1_2)"


def test_the_sheet_of_micro_expressions_is_read_and_no_other(tree: Samm) -> None:
    tree.add()
    tree.write()
    book = openpyxl.load_workbook(tree.root / SAMM_FILE)
    macro = book.copy_worksheet(book["MICRO_ONLY"])
    macro.title = "ALL"
    macro["J15"] = "Surprise"
    book.save(tree.root / SAMM_FILE)
    assert [pair.label for pair in load_dataset("samm", tree.root).pairs] == ["anger"]


def test_a_renamed_sheet_is_found_by_its_columns_and_said(tree: Samm) -> None:
    tree.add()
    loaded = load_dataset("samm", tree.write(sheet="Sheet1"))
    assert len(loaded.pairs) == 1
    assert "sheet Sheet1" in loaded.notes[0]


def test_two_sheets_that_may_be_meant_are_refused(tree: Samm) -> None:
    tree.add()
    tree.write(sheet="one")
    book = openpyxl.load_workbook(tree.root / SAMM_FILE)
    book.copy_worksheet(book["one"]).title = "other"
    book.save(tree.root / SAMM_FILE)
    with pytest.raises(ValueError, match="in sheets one and other"):
        load_dataset("samm", tree.root)


def test_two_trees_of_frames_are_refused_and_both_are_named(tree: Samm) -> None:
    write_frames(tree.root / "SAMM_CROP" / "006" / "006_1_2", [5562], "006_{:05}.jpg")
    tree.add()
    with pytest.raises(ValueError, match=rf"{tree.root} and {tree.root}/SAMM_CROP"):
        load_dataset("samm", tree.write())


def test_a_header_below_the_fortieth_row_is_not_looked_for(tree: Samm) -> None:
    tree.write()
    book = openpyxl.load_workbook(tree.root / SAMM_FILE)
    book["MICRO_ONLY"].insert_rows(1, 40)
    book.save(tree.root / SAMM_FILE)
    with pytest.raises(ValueError, match="has no column Subject, Filename, Onset Frame"):
        load_dataset("samm", tree.root)
