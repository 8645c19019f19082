import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.journal import Journal, JournalInUse, JournalMismatch
from service.sources import Source

RUN = {"model": "tiny", "faces": 1}
STAMP = ((10, 20),)


def source(name: str) -> Source:
    return Source((name,), (Path(name),))


def fill(path: Path, count: int) -> bytes:
    with Journal(path, RUN) as journal:
        for number in range(count):
            journal.append(source(f"{number}.gif"), STAMP, [{"n": number}], final=True)
    return path.read_bytes()


def test_what_one_run_wrote_the_next_one_knows(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    fill(path, 2)
    with Journal(path, RUN) as journal:
        assert journal.is_done(source("1.gif"), STAMP)
        assert journal.rows(source("1.gif")) == [{"n": 1}]
        assert not journal.is_done(source("2.gif"), STAMP)
        assert journal.rows(source("2.gif")) == []


def test_a_changed_file_is_not_done(tmp_path: Path) -> None:
    fill(tmp_path / "journal", 1)
    with Journal(tmp_path / "journal", RUN) as journal:
        assert not journal.is_done(source("0.gif"), ((10, 21),))


def test_a_fault_that_may_heal_is_told_but_not_done(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal", RUN) as journal:
        journal.append(source("a"), STAMP, [{"error_code": "unreadable"}], final=False)
        assert not journal.is_done(source("a"), STAMP)
        assert journal.rows(source("a")) == [{"error_code": "unreadable"}]


def test_the_newest_line_of_a_file_counts(tmp_path: Path) -> None:
    for number in range(2):
        with Journal(tmp_path / "journal", RUN) as journal:
            journal.append(source("a"), ((number, 0),), [{"n": number}], final=True)
    with Journal(tmp_path / "journal", RUN) as journal:
        assert journal.rows(source("a")) == [{"n": 1}]
        assert journal.is_done(source("a"), ((1, 0),))


@given(cut=st.integers(min_value=0), more=st.booleans())
def test_a_journal_cut_anywhere_loses_the_torn_line_only(
    tmp_path_factory: pytest.TempPathFactory, *, cut: int, more: bool
) -> None:
    path = tmp_path_factory.mktemp("cut") / "journal"
    whole = fill(path, 3)
    os.truncate(path, cut % (len(whole) + 1))
    kept = max(0, path.read_bytes().count(b"\n") - 1)
    with Journal(path, RUN) as journal:
        done = [journal.is_done(source(f"{number}.gif"), STAMP) for number in range(3)]
        assert done == [number < kept for number in range(3)]
        if more:
            journal.append(source("new"), STAMP, [], final=True)
    lines = path.read_bytes().splitlines()
    assert len([json.loads(line) for line in lines]) == 1 + kept + more


def test_a_line_that_says_nothing_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    fill(path, 1)
    with path.open("ab") as file:
        file.write(b'rubbish\n[]\n{"names": 1}\n{"names": ["x"], "stamp": [1], "final": 1}\n\xff\n')
    with Journal(path, RUN) as journal:
        assert journal.is_done(source("0.gif"), STAMP)
        assert not journal.is_done(source("x"), STAMP)


def test_a_journal_of_other_options_is_refused_and_kept(tmp_path: Path) -> None:
    whole = fill(tmp_path / "journal", 2)
    with pytest.raises(JournalMismatch):
        Journal(tmp_path / "journal", {**RUN, "faces": 2})
    assert (tmp_path / "journal").read_bytes() == whole


@pytest.mark.parametrize("text", ["mine\nof importance\n", "mine"])
def test_a_file_that_is_no_journal_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / "journal").write_text(text)
    with pytest.raises(JournalMismatch):
        Journal(tmp_path / "journal", RUN)
    assert (tmp_path / "journal").read_text() == text


def test_two_runs_do_not_write_one_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal", RUN), pytest.raises(JournalInUse):
        Journal(tmp_path / "journal", RUN)
    Journal(tmp_path / "journal", RUN).__exit__()
