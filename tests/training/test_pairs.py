from pathlib import Path

import pytest

from training.data.pairs import Holdout, read_pairs

FROZEN = ["val", "test", "train", "train", "train", "test", "train", "train"]


def split(person: str, seed: int = 1) -> str:
    return Holdout(seed=seed, val=0.1, test=0.2).split_of(person)


def test_columns_beyond_the_needed_ones_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(
        "dataset,subject,clip,label,onset,apex,flow\nd,007,c,negative,o.jpg,a.jpg,f.npz\n"
    )
    (pair,) = read_pairs(tmp_path)
    assert (pair.person, pair.clip, pair.label, pair.onset) == ("d/007", "c", "negative", "o.jpg")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("dataset,subject,clip,label,onset\n")
    with pytest.raises(ValueError, match="no column apex"):
        read_pairs(tmp_path)


def test_a_row_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("dataset,subject,clip,label,onset,apex\nd,1,c,negative\n")
    with pytest.raises(ValueError, match=r"line 2 of pairs\.csv"):
        read_pairs(tmp_path)


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
