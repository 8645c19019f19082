from pathlib import Path

import pytest
from licensed_trees import COMPOSITE_FILE, Casme2, Samm, draw_smic, write_composite, write_csv

from training.data.datasets import load_dataset, summary
from training.data.datasets.composite import PUBLISHED, check_counts
from training.data.pairs import Pair

LINES = [
    ["casme2", "sub01", "EP02_01f", 1],
    ["smic", "s01", "s01_ne_01", 0],
    ["samm", 6, "006_1_2", 0],
]
KEYS = ["casme2/01/EP02_01f", "smic/s01/s01_ne_01", "samm/006/006_1_2"]


def test_listed_clips_of_all_three_get_the_common_classes(tmp_path: Path) -> None:
    loaded = load_dataset("composite", write_composite(tmp_path, LINES))
    assert [pair.key for pair in loaded.pairs] == KEYS
    assert [pair.label for pair in loaded.pairs] == ["positive", "negative", "negative"]
    assert not loaded.dropped
    assert [(row.dataset, row.clips) for row in summary(loaded)] == [
        ("casme2", 1),
        ("smic", 1),
        ("samm", 1),
    ]


@pytest.mark.parametrize(
    "lines",
    [
        [["CASME II", "01", "EP02_01f", "1"], ["SMIC-HS", "s1", "s1_ne_01", "0"]],
        [["CASME2", 1, "ep02_01f", 1], ["SMIC", "s1", "s01_ne_01", 0]],
        [["casmeII", "sub1", "EP02_01f", 1], ["Smic", "S01", "s1_ne_01", 0]],
    ],
)
def test_spellings_of_data_sets_subjects_and_clips_do_not_matter(
    tmp_path: Path, lines: list[list[object]]
) -> None:
    loaded = load_dataset("composite", write_composite(tmp_path, lines))
    assert [pair.key for pair in loaded.pairs] == KEYS[:2]


def test_members_may_be_links_of_any_spelling(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    write_composite(there, LINES[:1])
    (here / "CASME II").symlink_to(there / "casme2")
    write_csv(here / COMPOSITE_FILE, LINES[:1])
    assert len(load_dataset("composite", here).pairs) == 1


def test_a_listed_clip_without_an_apex_takes_its_middle_frame_and_is_noted(tmp_path: Path) -> None:
    write_composite(tmp_path, LINES)
    tree = Casme2(tmp_path / "casme2")
    tree.add(apex="/")
    tree.write()
    loaded = load_dataset("composite", tmp_path, missing_apex="drop")
    assert Path(loaded.pairs[0].apex).name == "img66.jpg"
    assert any("1 clip of casme2 without an apex" in note for note in loaded.notes)


def test_a_listed_clip_that_nobody_has_is_dropped_with_its_row(tmp_path: Path) -> None:
    lines = [*LINES, ["samm", 7, "007_3_1", 2]]
    (dropped,) = load_dataset("composite", write_composite(tmp_path, lines)).dropped
    assert dropped.where == f"{COMPOSITE_FILE} row 4 (samm/7/007_3_1)"
    assert dropped.why == "SAMM has no such clip"


def test_a_clip_that_is_not_listed_is_left_out_in_silence(tmp_path: Path) -> None:
    write_composite(tmp_path, LINES)
    draw_smic(tmp_path / "smic", "HS/s2/micro/surprise/s2_sur_01")
    loaded = load_dataset("composite", tmp_path)
    assert [pair.key for pair in loaded.pairs] == KEYS
    assert not loaded.dropped


def test_a_clip_listed_twice_is_taken_once(tmp_path: Path) -> None:
    loaded = load_dataset("composite", write_composite(tmp_path, [*LINES, LINES[0]]))
    assert len(loaded.pairs) == 3
    assert "row 1 (casme2/sub01/EP02_01f)" in loaded.dropped[0].why


def test_a_listed_clip_without_its_pictures_is_dropped_with_the_row_of_the_list(
    tmp_path: Path,
) -> None:
    write_composite(tmp_path, LINES)
    tree = Samm(tmp_path / "samm")
    (tree.root / "006/006_1_2/006_05588.jpg").unlink()
    (dropped,) = load_dataset("composite", tmp_path).dropped
    assert dropped.where.startswith(f"{COMPOSITE_FILE} row 3")
    assert "frame 5588 has no picture" in dropped.why


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (["smic", "s01", "s01_ne_01", 3], "row 2: label '3' is none of 0, 1, 2"),
        (["dataset", "subject", "clip", "label"], "row 2: 'dataset' is none of CASME II"),
        (["smic", "s01", "s01_ne_01"], "row 2 has 3 cells"),
    ],
)
def test_a_wrong_line_of_the_list_is_an_error_that_names_it(
    tmp_path: Path, line: list[object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        load_dataset("composite", write_composite(tmp_path, [LINES[0], line]))


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{COMPOSITE_FILE} is empty"):
        load_dataset("composite", write_composite(tmp_path, []))


def test_a_list_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    write_composite(tmp_path, LINES)
    (tmp_path / COMPOSITE_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=rf"{COMPOSITE_FILE} is no CSV in UTF-8"):
        load_dataset("composite", tmp_path)


def test_a_missing_member_is_told(tmp_path: Path) -> None:
    write_composite(tmp_path, LINES)
    (tmp_path / "samm").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="no folder samm"):
        load_dataset("composite", tmp_path)


def test_two_folders_of_one_member_are_refused(tmp_path: Path) -> None:
    write_composite(tmp_path, LINES)
    (tmp_path / "CASME II").mkdir()
    with pytest.raises(ValueError, match="are both of CASME II"):
        load_dataset("composite", tmp_path)


def test_a_label_that_contradicts_the_member_s_emotion_is_noted(tmp_path: Path) -> None:
    lines = [["casme2", "sub01", "EP02_01f", 2], *LINES[1:]]
    loaded = load_dataset("composite", write_composite(tmp_path, lines))
    assert loaded.pairs[0].label == "surprise"
    (note,) = [note for note in loaded.notes if note.startswith("labels differ")]
    assert "row 1 (casme2/sub01/EP02_01f) is surprise" in note
    assert "is happiness" in note
    assert "smic" not in note


def test_counts_other_than_the_published_are_noted_member_by_member(tmp_path: Path) -> None:
    notes = load_dataset("composite", write_composite(tmp_path, LINES)).notes
    assert (
        "smic: 1 negative, 0 positive, 0 surprise of 1 people; "
        "published: 70 negative, 51 positive, 43 surprise of 16 people"
    ) in notes


def test_the_published_counts_pass_without_a_note() -> None:
    pairs = [
        Pair(dataset=name, subject=str(number % people), clip=f"{label}{number}.mp4", label=label)
        for name, (*counts, people) in PUBLISHED.items()
        for label, count in zip(("negative", "positive", "surprise"), counts, strict=True)
        for number in range(count)
    ]
    assert len(pairs) == 442
    assert len({pair.person for pair in pairs}) == 68
    assert check_counts(pairs) == []
    assert len(check_counts(pairs[1:])) == 1


def test_of_two_rows_of_a_listed_clip_the_first_counts(tmp_path: Path) -> None:
    write_composite(tmp_path, LINES)
    tree = Casme2(tmp_path / "casme2")
    tree.add(apex=59)
    tree.add(apex=70)
    tree.write()
    assert Path(load_dataset("composite", tmp_path).pairs[0].apex).name == "img59.jpg"


def test_a_list_of_apexes_serves_all_members(tmp_path: Path) -> None:
    write_composite(tmp_path, LINES)
    rows = [["clip", "apex"], ["smic/s1/s1_ne_01", 101], ["sub01/EP02_01f", 70]]
    loaded = load_dataset("composite", tmp_path, apexes=write_csv(tmp_path / "apexes.csv", rows))
    assert [Path(pair.apex).name for pair in loaded.pairs] == [
        "img70.jpg",
        "image000101.bmp",
        "006_05588.jpg",
    ]
