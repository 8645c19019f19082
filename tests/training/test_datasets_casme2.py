from pathlib import Path

import openpyxl
import pytest
from licensed_trees import CASME2_FILE, Casme2, spoil_extent, write_csv, write_frames

from training.data.datasets import Dropped, Loaded, load_dataset, summary


@pytest.fixture
def tree(tmp_path: Path) -> Casme2:
    tree = Casme2(tmp_path)
    tree.draw()
    return tree


def load(tree: Casme2, **options: object) -> Loaded:
    return load_dataset("casme2", tree.write(), **options)


def why(loaded: Loaded) -> str:
    assert not loaded.pairs
    (dropped,) = loaded.dropped
    return dropped.why


def test_a_row_becomes_a_pair_of_pictures_by_absolute_path(tree: Casme2) -> None:
    tree.add(emotion="Happiness ")
    (pair,) = load(tree).pairs
    assert pair.key == "casme2/01/EP02_01f"
    assert pair.label == "happiness"
    folder = tree.root / "sub01" / "EP02_01f"
    assert pair.files == (str(folder / "img46.jpg"), str(folder / "img59.jpg"))
    assert Path(pair.onset).is_absolute()


def test_columns_are_found_by_their_header_wherever_they_stand(tree: Casme2) -> None:
    book = openpyxl.Workbook()
    page = book.worksheets[0]
    page.append(["a remark"])
    page.append([None, "estimated  emotion", "Apex Frame", "ONSETFRAME", "OffsetFrame"])
    page.cell(2, 6, "Filename")
    page.cell(2, 8, "Subject")
    page.append([None, "disgust", 59, 46, 86, "EP02_01f", None, 1])
    book.save(tree.root / CASME2_FILE)
    (pair,) = load_dataset("casme2", tree.root).pairs
    assert (pair.subject, pair.label, Path(pair.apex).name) == ("01", "disgust", "img59.jpg")


@pytest.mark.parametrize("subject", [1, 1.0, "01", "1", "sub01", "Sub1"])
def test_a_subject_has_one_name_however_the_sheet_spells_it(tree: Casme2, subject: object) -> None:
    tree.add(subject=subject)
    assert [pair.subject for pair in load(tree).pairs] == ["01"]


@pytest.mark.parametrize("apex", ["/", None, " ", "-", "N/A"])
def test_a_row_without_an_apex_is_dropped_and_named(tree: Casme2, apex: object) -> None:
    tree.add(clip="EP02_01f", apex=apex)
    loaded = load(tree)
    where = f"{CASME2_FILE} row 2 (sub01/EP02_01f)"
    assert loaded.dropped == [Dropped(where, "no apex is annotated", "casme2")]
    assert not loaded.pairs


def test_a_missing_apex_may_be_taken_from_the_middle_and_is_noted(tree: Casme2) -> None:
    tree.add(onset=46, apex="/", offset=56)
    loaded = load(tree, missing_apex="middle")
    assert Path(loaded.pairs[0].apex).name == "img51.jpg"
    assert "1 clip of casme2 without an apex" in loaded.notes[-1]
    assert "casme2/01/EP02_01f" in loaded.notes[-1]


def test_without_an_offset_there_is_no_middle(tree: Casme2) -> None:
    tree.add(apex="/", offset="/")
    assert "neither apex nor offset" in why(load(tree, missing_apex="middle"))


def test_the_offset_may_be_missing_where_the_apex_is_not(tree: Casme2) -> None:
    tree.add(offset=None)
    assert len(load(tree).pairs) == 1


def test_an_apex_on_the_offset_is_no_fault(tree: Casme2) -> None:
    tree.add(apex=86, offset=86)
    assert len(load(tree).pairs) == 1


@pytest.mark.parametrize("frame", [46.0, "46", "46.0", " 46 "])
def test_a_frame_number_may_be_text_or_have_a_point(tree: Casme2, frame: object) -> None:
    tree.add(onset=frame)
    assert Path(load(tree).pairs[0].onset).name == "img46.jpg"


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"onset": 59}, "apex 59 does not come after its onset 59"),
        ({"onset": 60}, "apex 59 does not come after its onset 60"),
        ({"apex": 87}, "apex 87 lies beyond its offset 86"),
        ({"onset": None}, "no onset is annotated"),
        ({"onset": "#REF!"}, "onset '#REF!' is no whole number"),
        ({"apex": 59.5}, "apex '59.5' is no whole number"),
        ({"offset": "end"}, "offset 'end' is no whole number"),
        ({"emotion": None}, "no emotion is annotated"),
        ({"clip": "EP99_99"}, "there is no folder sub01/EP99_99"),
        ({"subject": 9}, "there is no folder sub09/EP02_01f"),
        ({"subject": "nobody"}, "subject 'nobody' and file name 'EP02_01f' name no clip"),
        ({"clip": ""}, "subject '1' and file name '' name no clip"),
        ({"onset": 45}, "frame 45 has no picture (there are 46 to 86)"),
        ({"apex": 90, "offset": 95}, "frame 90 has no picture (there are 46 to 86)"),
    ],
)
def test_a_fault_of_one_row_drops_it_with_its_reason(
    tree: Casme2, cells: dict[str, object], reason: str
) -> None:
    tree.add(**cells)
    assert reason in why(load(tree))


def test_a_faulty_row_leaves_the_others_alone(tree: Casme2) -> None:
    tree.add(clip="EP99_99")
    tree.add()
    loaded = load(tree)
    assert [pair.clip for pair in loaded.pairs] == ["EP02_01f"]
    assert len(loaded.dropped) == 1


def test_a_clip_listed_twice_is_taken_once_and_a_second_label_is_told(tree: Casme2) -> None:
    tree.add(emotion="happiness")
    tree.add(emotion="disgust")
    loaded = load(tree)
    assert [pair.label for pair in loaded.pairs] == ["happiness"]
    assert "row 2 (sub01/EP02_01f), as happiness and not disgust" in loaded.dropped[0].why
    assert "row 3" in loaded.dropped[0].where


def test_blank_rows_are_passed_over_and_row_numbers_stay_those_of_the_sheet(tree: Casme2) -> None:
    tree.rows += [[None] * 9, [None] * 9]
    tree.add(clip="EP99_99")
    (dropped,) = load(tree).dropped
    assert dropped.where == f"{CASME2_FILE} row 4 (sub01/EP99_99)"


def test_a_sheet_that_lies_about_its_extent_is_read_whole(tree: Casme2) -> None:
    tree.add()
    tree.write()
    spoil_extent(tree.root / CASME2_FILE)
    assert len(load_dataset("casme2", tree.root).pairs) == 1


def test_of_raw_and_cropped_trees_the_raw_one_is_taken_and_said(tmp_path: Path) -> None:
    tree = Casme2(tmp_path, frames=tmp_path / "CASME2_RAW_selected")
    write_frames(tmp_path / "Cropped" / "sub01" / "EP02_01f", range(46, 87), "reg_img{}.jpg")
    tree.draw()
    tree.add()
    loaded = load(tree)
    assert "CASME2_RAW_selected" in loaded.pairs[0].onset
    (note,) = [note for note in loaded.notes if note.startswith("frames from")]
    assert "CASME2_RAW_selected" in note
    assert f"left aside: {tmp_path / 'Cropped'}" in note


def test_the_cropped_tree_serves_when_it_is_the_only_one(tmp_path: Path) -> None:
    write_frames(tmp_path / "Cropped" / "sub01" / "EP02_01f", range(46, 87), "reg_img{}.jpg")
    tree = Casme2(tmp_path)
    tree.add()
    loaded = load(tree)
    assert Path(loaded.pairs[0].apex).name == "reg_img59.jpg"
    assert any("named like reg_img46.jpg" in note for note in loaded.notes)


def test_two_raw_trees_are_refused_and_both_are_named(tree: Casme2) -> None:
    write_frames(tree.root / "copy" / "sub01" / "EP02_01f", [46], "img{}.jpg")
    tree.add()
    with pytest.raises(ValueError, match="copy: give one of these as the root") as fault:
        load(tree)
    assert f"{tree.root} and {tree.root / 'copy'}" in str(fault.value)


def test_a_tree_of_videos_is_not_taken_for_frames(tree: Casme2) -> None:
    videos = tree.root / "CASME2_compressed" / "sub01"
    videos.mkdir(parents=True)
    (videos / "EP02_01f.avi").touch()
    tree.add()
    assert len(load(tree).pairs) == 1


def test_two_folders_of_one_person_are_refused(tree: Casme2) -> None:
    tree.draw("sub1/EP02_01f")
    tree.add()
    with pytest.raises(ValueError, match="folders of one person"):
        load(tree)


def test_an_annotation_elsewhere_can_be_given(tree: Casme2, tmp_path: Path) -> None:
    tree.add()
    tree.write()
    elsewhere = tmp_path.with_name(f"{tmp_path.name}.xlsx")
    (tree.root / CASME2_FILE).rename(elsewhere)
    assert len(load_dataset("casme2", tree.root, annotation=elsewhere).pairs) == 1


def test_without_an_annotation_the_name_that_was_looked_for_is_told(tree: Casme2) -> None:
    with pytest.raises(FileNotFoundError, match=r"CASME2-coding\*\.xlsx"):
        load_dataset("casme2", tree.root)
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*mine\.xlsx"):
        load_dataset("casme2", tree.root, annotation=tree.root / "mine.xlsx")


def test_two_annotations_are_refused_and_both_are_named(tree: Casme2) -> None:
    tree.add()
    tree.write("CASME2-coding-20190701.xlsx")
    with pytest.raises(ValueError, match=r"20140508\.xlsx and .*20190701\.xlsx"):
        load(tree)


def test_the_lock_file_of_an_open_spreadsheet_is_no_annotation(tree: Casme2) -> None:
    tree.add()
    (tree.root / f"~${CASME2_FILE}").touch()
    assert len(load(tree).pairs) == 1


def test_a_missing_column_is_named_with_its_file_and_sheet(tree: Casme2) -> None:
    tree.write()
    book = openpyxl.load_workbook(tree.root / CASME2_FILE)
    book["Sheet1"]["E1"] = "Peak"
    book.save(tree.root / CASME2_FILE)
    with pytest.raises(ValueError, match=rf"{CASME2_FILE}, sheet Sheet1, has no column ApexFrame"):
        load_dataset("casme2", tree.root)


def test_a_sheet_without_rows_is_refused(tree: Casme2) -> None:
    with pytest.raises(ValueError, match="no row below its header"):
        load(tree)


def test_a_file_that_is_no_workbook_is_refused_by_name(tree: Casme2) -> None:
    (tree.root / CASME2_FILE).write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(ValueError, match=rf"{CASME2_FILE} is no \.xlsx workbook"):
        load_dataset("casme2", tree.root)


def test_a_root_without_frames_tells_the_layout_that_was_looked_for(tmp_path: Path) -> None:
    tree = Casme2(tmp_path)
    tree.add()
    with pytest.raises(FileNotFoundError, match="sub01/EP02_01f/img46"):
        load(tree)


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        load_dataset("casme2", tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is no folder"):
        load_dataset("casme2", tmp_path / "file")


def test_an_unknown_data_set_is_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="casme2, samm, smic, casme3, composite"):
        load_dataset("casme", tmp_path)


@pytest.mark.parametrize(
    "name", ["EP02_01f", "01/EP02_01f", "sub01/ep02_01f", "casme2/01/EP02_01f"]
)
def test_a_list_of_apexes_overrules_the_annotation(tree: Casme2, name: str) -> None:
    tree.add(apex="/")
    apexes = write_csv(tree.root / "apexes.csv", [["clip", "apex"], [name, 70]])
    loaded = load(tree, apexes=apexes)
    assert Path(loaded.pairs[0].apex).name == "img70.jpg"
    assert "apexes.csv gives the apex of 1 clip" in loaded.notes


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "no header with the columns clip and apex"),
        ([["clip", "peak"]], "no header with the columns clip and apex"),
        ([["clip", "apex"], ["EP99_99", 70]], "line 2: there is no clip 'EP99_99'"),
        ([["clip", "apex"], ["EP02_01f", "x"]], "line 2: the apex of 'EP02_01f' is no whole"),
        ([["clip", "apex"], ["EP02_01f"]], "line 2: the row is cut short"),
        (
            [["clip", "apex"], ["01/EP02_01f", 70], [], ["1/EP02_01f", 71]],
            "line 4: 1/EP02_01f stands there twice",
        ),
    ],
)
def test_a_faulty_list_of_apexes_is_refused_by_its_line(
    tree: Casme2, rows: list[list[object]], reason: str
) -> None:
    tree.add()
    apexes = write_csv(tree.root / "apexes.csv", rows)
    with pytest.raises(ValueError, match=rf"apexes\.csv.*{reason}"):
        load(tree, apexes=apexes)


def test_a_clip_name_that_two_people_have_needs_its_subject(tree: Casme2) -> None:
    tree.add()
    tree.add(subject=2)
    apexes = write_csv(tree.root / "apexes.csv", [["clip", "apex"], ["EP02_01f", 70]])
    with pytest.raises(ValueError, match="casme2/01/EP02_01f or casme2/02/EP02_01f"):
        load(tree, apexes=apexes)


def test_a_summary_counts_labels_people_and_dropped_rows(tree: Casme2) -> None:
    for number, emotion in enumerate(("disgust", "others", "others")):
        tree.draw(f"sub02/EP0{number}_01", [46, 59])
        tree.add(subject=2, clip=f"EP0{number}_01", emotion=emotion)
    tree.add()
    tree.add(clip="gone")
    (row,) = summary(load(tree))
    assert (row.dataset, row.clips, row.people, row.dropped) == ("casme2", 4, 2, 1)
    assert list(row.labels.items()) == [("others", 2), ("disgust", 1), ("happiness", 1)]


@pytest.mark.parametrize("apex", [0, -1, "-1"])
def test_an_apex_of_nothing_is_none_annotated_and_may_be_the_middle(
    tree: Casme2, apex: object
) -> None:
    tree.add(clip="EP02_01f", apex=apex)
    assert "apex" in why(load(tree))
    (pair,) = load(tree, missing_apex="middle").pairs
    assert pair.apex != pair.onset
