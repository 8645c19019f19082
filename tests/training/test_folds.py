import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.movement import Motion
from training.data.labels import Labels
from training.data.pairs import Pair
from training.data.prepare import PreparedRow
from training.folds import (
    Fold,
    check_folds,
    check_people,
    inner_folds,
    lodo_folds,
    loso_folds,
    missing_classes,
)

LABELS = Labels(("negative", "positive"), {"disgust": "negative"})


def row(person: str, clip: str = "1", label: str = "negative") -> PreparedRow:
    dataset, subject = person.split("/")
    pair = Pair(dataset=dataset, subject=subject, clip=clip, label=label, onset="a", apex="b")
    return PreparedRow(pair, Motion(0.1, 0.2, 0.3), 0, 0)


def keys(rows: tuple[PreparedRow, ...]) -> list[str]:
    return [each.pair.key for each in rows]


def test_each_person_of_each_data_set_is_held_out_once_in_the_order_of_names() -> None:
    rows = [row("b/1", "y"), row("a/2"), row("b/1", "x"), row("a/1")]
    folds = loso_folds(rows)
    assert [fold.name for fold in folds] == ["a/1", "a/2", "b/1"]
    assert keys(folds[2].test) == ["b/1/y", "b/1/x"]  # in the manifest's order
    assert keys(folds[2].train) == ["a/2/1", "a/1/1"]


def test_the_same_subject_name_in_two_data_sets_is_two_people() -> None:
    folds = loso_folds([row("a/1"), row("b/1")])
    assert [(keys(fold.test), keys(fold.train)) for fold in folds] == [
        (["a/1/1"], ["b/1/1"]),
        (["b/1/1"], ["a/1/1"]),
    ]


def test_each_data_set_is_held_out_once() -> None:
    folds = lodo_folds([row("smic/1"), row("casme2/1"), row("smic/2")])
    assert [(fold.name, keys(fold.test)) for fold in folds] == [
        ("casme2", ["casme2/1/1"]),
        ("smic", ["smic/1/1", "smic/2/1"]),
    ]


def test_one_data_set_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="two data sets; here is smic"):
        lodo_folds([row("smic/1"), row("smic/2")])


@pytest.mark.parametrize(
    ("one", "other"),
    [("smic/s1", "smic/s01"), ("samm/6", "samm/006"), ("a/Anna", "a/anna"), ("a/p 7", "a/p7")],
)
def test_a_person_written_in_two_ways_would_be_in_both_halves_and_is_named(
    one: str, other: str
) -> None:
    with pytest.raises(ValueError, match="people in both halves") as fault:
        loso_folds([row(one), row("x/1"), row(other)])
    assert one in str(fault.value)
    assert other in str(fault.value)


@pytest.mark.parametrize(("one", "other"), [("a/1", "a/10"), ("a/s1", "a/s11"), ("a/0", "a/00b")])
def test_names_that_only_resemble_are_two_people(one: str, other: str) -> None:
    assert len(loso_folds([row(one), row(other)])) == 2


def test_a_data_set_written_in_two_ways_is_found_out() -> None:
    with pytest.raises(ValueError, match=r"CASME2/1 = casme2/01"):
        lodo_folds([row("casme2/01"), row("CASME2/1")])


def test_somebody_in_both_halves_is_named_and_the_rest_counted() -> None:
    people = tuple(row(f"a/{number}") for number in range(7))
    with pytest.raises(ValueError, match="a/0, a/1, a/2, a/3, a/4 and 2 more"):
        check_folds([Fold("a", train=people, test=people)])


def test_a_fold_with_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(ValueError, match="fold a/1 has no clip to train on"):
        loso_folds([row("a/1"), row("a/1", "2")])


def test_no_clips_are_no_folds() -> None:
    with pytest.raises(ValueError, match="no clip has a label that leads to a class"):
        loso_folds([])


def test_classes_that_a_half_lacks_are_named() -> None:
    assert missing_classes([row("a/1", label="disgust")], LABELS) == ["positive"]
    assert missing_classes([row("a/1"), row("a/1", label="positive")], LABELS) == []


@given(st.lists(st.integers(0, 8), min_size=1, max_size=30), st.integers(2, 5), st.integers(0, 99))
def test_inner_folds_hold_each_clip_out_once_and_part_nobody(
    owners: list[int], count: int, seed: int
) -> None:
    rows = [row(f"a/p{owner}", str(clip)) for clip, owner in enumerate([*owners, 9, 10])]
    folds = inner_folds(rows, count, seed)
    assert folds == inner_folds(rows, count, seed)
    assert len(folds) == min(count, len({each.pair.person for each in rows}))
    assert sorted(key for fold in folds for key in keys(fold.test)) == sorted(keys(tuple(rows)))
    for fold in folds:
        assert not {r.pair.person for r in fold.train} & {r.pair.person for r in fold.test}
        assert sorted(keys((*fold.train, *fold.test))) == sorted(keys(tuple(rows)))


def test_inner_folds_depend_on_the_seed_and_are_about_equally_large() -> None:
    rows = [row(f"a/p{who}", str(clip)) for who in range(9) for clip in range(4)]
    groups = {seed: [keys(fold.test) for fold in inner_folds(rows, 3, seed)] for seed in (1, 2)}
    assert groups[1] != groups[2]
    assert [len(group) for group in groups[1]] == [12, 12, 12]


def test_one_person_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="two people"):
        inner_folds([row("a/1"), row("a/1", "2")], 3, 1)


def test_a_manifest_that_writes_people_in_two_ways_is_refused_with_their_names() -> None:
    people = ["smic/s1", "smic/s01", "samm/006", "samm/6", "samm/7"]
    with pytest.raises(ValueError, match=r"samm/006 = samm/6, smic/s01 = smic/s1;"):
        check_people(row(person).pair for person in people)
    check_people(row(person).pair for person in people[1:3])
