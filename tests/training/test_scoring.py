import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from training.metrics import bootstrap_interval, uf1
from training.scoring import (
    Prediction,
    ScoreTable,
    difference,
    read_predictions,
    score,
    write_predictions,
)

CLASSES = ("negative", "positive", "surprise")


def prediction(
    key: str, label: int, answer: int, *, seed: int = 1, classes: Sequence[str] = CLASSES
) -> Prediction:
    """Answer one class with .6 and share the rest; `key` is dataset/subject/clip."""
    dataset, subject, clip = key.split("/")
    rest = 0.4 / (len(classes) - 1)
    return Prediction(
        dataset=dataset,
        subject=subject,
        clip=clip,
        label=classes[label],
        seed=seed,
        fold=f"{dataset}/{subject}",
        probabilities=tuple(0.6 if place == answer else rest for place in range(len(classes))),
    )


ANSWERS = {
    # clip: (true, with seed 1, with seed 2); subject 1 of casme2 is not subject 1 of samm
    "casme2/1/a": (0, 0, 0),
    "casme2/1/b": (0, 1, 0),
    "casme2/2/a": (1, 1, 1),
    "samm/1/a": (0, 0, 0),
    "samm/1/b": (2, 0, 2),
    "samm/3/a": (2, 2, 1),
}


def two_seeds() -> list[Prediction]:
    return [
        prediction(key, label, answers[seed - 1], seed=seed)
        for seed in (1, 2)
        for key, (label, *answers) in ANSWERS.items()
    ]


def drawn(clips: int, people: int, seeds: int, classes: int = 3) -> list[Prediction]:
    """Draw clips, each right about two times of three."""
    draw = np.random.default_rng(7)
    names = tuple("abcdefgh"[:classes])
    labels = draw.integers(classes, size=clips)
    return [
        prediction(
            f"d{clip % 3}/{clip % people}/{clip}",
            int(label),
            int(label) if draw.random() < 2 / 3 else int(draw.integers(classes)),
            seed=seed,
            classes=names,
        )
        for seed in range(seeds)
        for clip, label in enumerate(labels)
    ]


def test_pooled_scores_are_means_over_the_seeds_with_ddof_1() -> None:
    """Seed 1 F1: 2·2/(4+1+1), 2/(2+0+1), 2/(2+1+0); seed 2: 1, 2/(2+0+1), 2/(2+1+0)."""
    table = score(two_seeds(), CLASSES)
    first, second = (2 / 3 + 2 / 3 + 2 / 3) / 3, (1 + 2 / 3 + 2 / 3) / 3
    row = table.row("uf1")
    assert row.value == pytest.approx((first + second) / 2)
    assert row.sd == pytest.approx(abs(first - second) / math.sqrt(2))
    assert (row.clips, row.people, row.seeds) == (6, 4, (1, 2))
    assert table.row("accuracy").value == pytest.approx((4 / 6 + 5 / 6) / 2)
    uar = table.row("uar").value
    assert uar == pytest.approx(((2 / 3 + 1 + 1 / 2) / 3 + (1 + 1 + 1 / 2) / 3) / 2)


def test_one_seed_has_no_deviation() -> None:
    table = score(two_seeds()[:6], CLASSES)
    assert math.isnan(table.row("uf1").sd)
    assert table.row("uf1").value == pytest.approx(2 / 3)


def test_every_data_set_is_scored_on_its_own_people() -> None:
    """CASME II shows no surprise: with seed 1 its F1 are 2/(2+0+1) and 2/(2+1+0)."""
    table = score(two_seeds()[:6], CLASSES)
    row = table.row("uf1", "dataset:casme2")
    assert row.value == pytest.approx(2 / 3)
    assert (row.clips, row.people) == (3, 2)
    assert table.row("accuracy", "dataset:samm").value == pytest.approx(2 / 3)


def test_every_class_has_its_f1_and_recall() -> None:
    table = score(two_seeds(), CLASSES)
    assert table.row("f1", "class:negative").value == pytest.approx((2 / 3 + 1) / 2)
    row = table.row("recall", "class:negative")
    assert row.value == pytest.approx((2 / 3 + 1) / 2)
    assert (row.clips, row.people) == (3, 2)


def test_a_class_nobody_shows_has_no_recall_and_no_part_in_the_means() -> None:
    table = score([prediction("d/1/a", 0, 0), prediction("d/2/a", 1, 0)], CLASSES)
    assert math.isnan(table.row("recall", "class:surprise").value)
    assert math.isnan(table.row("f1", "class:surprise").low)
    assert table.row("uf1").value == pytest.approx((2 / 3 + 0) / 2)


def test_confusions_have_true_classes_in_rows_and_one_table_for_each_seed() -> None:
    table = score(two_seeds(), CLASSES)
    assert table.confusions[1].tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert table.confusions[2].tolist() == [[3, 0, 0], [0, 1, 0], [0, 1, 1]]


@given(order=st.permutations(range(12)))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    rows = two_seeds()
    shuffled = score([rows[place] for place in order], CLASSES, resamples=20)
    assert shuffled.to_json() == score(rows, CLASSES, resamples=20).to_json()


def test_intervals_equal_those_of_resampling_the_clips_themselves() -> None:
    rows = drawn(clips=60, people=12, seeds=1)
    labels = np.array(["abc".index(row.label) for row in rows])
    answers = np.array([row.answer for row in rows])
    expected = bootstrap_interval(
        lambda chosen: uf1(labels[chosen], answers[chosen], 3),
        [row.person for row in rows],
        resamples=300,
    )
    row = score(rows, ("a", "b", "c"), resamples=300).row("uf1")
    assert (row.low, row.high) == pytest.approx(expected, abs=1e-12)


def test_people_are_drawn_not_clips() -> None:
    """Of two people one is always right and one always wrong: a draw may hold only one of them."""
    rows = [prediction(f"d/1/{clip}", 0, 0) for clip in range(20)]
    rows += [prediction(f"d/2/{clip}", 0, 1) for clip in range(20)]
    row = score(rows, CLASSES).row("accuracy")
    assert (row.value, row.low, row.high) == (0.5, 0, 1)


def test_the_composite_with_five_seeds_is_scored_at_once() -> None:
    rows = drawn(clips=442, people=68, seeds=5)
    started = time.perf_counter()
    table = score(rows, ("a", "b", "c"))
    assert time.perf_counter() - started < 1
    row = table.row("uf1")
    assert 0.6 < row.low < row.value < row.high < 0.9


def test_a_seed_that_lacks_a_clip_is_named() -> None:
    with pytest.raises(ValueError, match=r"seed 2 lacks samm/3/a$"):
        score(two_seeds()[:-1], CLASSES)


def test_many_missing_clips_are_counted() -> None:
    rows = [prediction(f"d/1/{clip}", 0, 0, seed=1) for clip in range(10, 20)]
    with pytest.raises(ValueError, match=r"seed 2 lacks d/1/10, .*, d/1/14 and 4 more$"):
        score([*rows, prediction("d/1/19", 0, 0, seed=2)], CLASSES)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (prediction("samm/3/a", 2, 2), "samm/3/a is predicted twice with seed 1"),
        (replace(prediction("d/1/a", 0, 0), label="joy"), "d/1/a is 'joy'; the classes are neg"),
        (replace(prediction("d/1/a", 0, 0), probabilities=(1.0, 0.0)), "2 probabilities for 3"),
    ],
)
def test_predictions_that_do_not_fit_are_refused_with_the_clip_named(
    row: Prediction, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        score([*two_seeds(), row], CLASSES)


def test_a_clip_whose_true_class_changes_with_the_seed_is_named() -> None:
    rows = [prediction("d/1/a", 0, 0), prediction("d/1/a", 1, 0, seed=2)]
    with pytest.raises(ValueError, match="d/1/a is 'positive', but 'negative' in seed 1"):
        score(rows, CLASSES)


def test_a_probability_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="d/1/a, seed 1: a probability is no finite number"):
        replace(prediction("d/1/a", 0, 0), probabilities=(float("nan"), 0.5, 0.5))


def test_nothing_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="no predictions"):
        score([], CLASSES)


def test_a_run_does_not_differ_from_itself() -> None:
    rows = two_seeds()
    assert difference(rows, reversed(rows), CLASSES) == (0, 0, 0)


def test_the_difference_of_two_runs_is_paired_by_person() -> None:
    """`better` is right where `worse` is, and once more for every person, however hard the person:
    unpaired, the interval would hold both signs.
    """
    better, worse = [], []
    for person in range(12):
        for clip in range(12):
            right = clip < person
            better.append(prediction(f"d/{person}/{clip}", 0, 0 if right or clip == 11 else 1))
            worse.append(prediction(f"d/{person}/{clip}", 0, 0 if right else 1))
    value, low, high = difference(better, worse, CLASSES, "accuracy")
    assert (value, low, high) == pytest.approx((1 / 12, 1 / 12, 1 / 12))
    alone = score(worse, CLASSES).row("accuracy")
    assert alone.high - alone.low > 0.2
    assert difference(worse, better, CLASSES, "accuracy")[0] == pytest.approx(-1 / 12)


def test_runs_with_different_seeds_can_be_compared() -> None:
    rows = two_seeds()
    value, low, high = difference(rows, rows[:6], CLASSES)
    assert value == pytest.approx(score(rows, CLASSES).row("uf1").value - 2 / 3)
    assert low <= value <= high


def test_runs_on_different_clips_cannot_be_compared() -> None:
    rows = two_seeds()[:6]
    with pytest.raises(ValueError, match="the second run lacks samm/3/a"):
        difference(rows, rows[:-1], CLASSES)
    with pytest.raises(ValueError, match="the first run lacks samm/3/a"):
        difference(rows[:-1], rows, CLASSES)


Row = tuple[str, tuple[float, ...], bool]
ROWS = st.tuples(
    st.text("aé,\"' \n;学/", min_size=1, max_size=8),
    st.tuples(*[st.floats(0, 1)] * 3),
    st.booleans(),
)


@given(rows=st.lists(ROWS, max_size=5))
def test_predictions_survive_the_csv(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    before = [
        Prediction(
            dataset="smic,hs",
            subject="s01",
            clip=clip,
            label="surprise",
            seed=3,
            fold="smic,hs/s01",
            probabilities=probabilities,
            abstained=abstained,
        )
        for clip, probabilities, abstained in rows
    ]
    path = tmp_path_factory.getbasetemp() / "drawn-predictions.csv"
    write_predictions(path, before, CLASSES)
    assert read_predictions(path) == (CLASSES, before)


def test_the_csv_names_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    row = replace(prediction("casme2/01/EP02_01f", 0, 2), probabilities=(0.25, 0.25, 0.5))
    write_predictions(path, [row], CLASSES)
    assert path.read_text().splitlines() == [
        "dataset,subject,clip,label,seed,fold,prediction,abstained,p_negative,p_positive,p_surprise",
        "casme2,01,EP02_01f,negative,1,casme2/01,surprise,false,0.25,0.25,0.5",
    ]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("fold,", "", "has no column fold"),
        (",0.5\n", "\n", "line 2: the row is cut short"),
        (",1,", ",one,", "line 2: .*'one'"),
        (",0.5\n", ",half\n", "line 2: .*'half'"),
        ("false", "maybe", "line 2: abstained is 'maybe'"),
        ("surprise,false", "positive,false", "line 2: prediction is 'positive', but 'surprise'"),
        ("f,negative", "f,joy", "line 2: casme2/01/EP02_01f is 'joy'"),
    ],
)
def test_a_damaged_csv_is_refused_with_its_line_named(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    path = tmp_path / "predictions.csv"
    row = replace(prediction("casme2/01/EP02_01f", 0, 2), probabilities=(0.25, 0.25, 0.5))
    write_predictions(path, [row], CLASSES)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=complaint):
        read_predictions(path)


def test_a_table_of_scores_survives_json() -> None:
    table = score([prediction("d/1/a", 0, 0), prediction("d/2/a", 1, 0)], CLASSES)
    again = ScoreTable.from_json(table.to_json())
    assert again.to_json() == table.to_json()
    assert again.row("uf1") == replace(table.row("uf1"), sd=again.row("uf1").sd)
    assert math.isnan(again.row("uf1").sd)
    assert again.confusions[1].tolist() == table.confusions[1].tolist()
    rows = json.loads(table.to_json())["rows"]
    assert next(row["sd"] for row in rows if row["metric"] == "uf1") is None


@pytest.mark.parametrize("text", ["", "[]", '{"classes": []}', '{"classes": 3, "rows": []}'])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a table of scores"):
        ScoreTable.from_json(text)


def test_a_score_that_is_not_there_is_named() -> None:
    with pytest.raises(KeyError, match="there is no uf1 of dataset:smic"):
        score(two_seeds(), CLASSES).row("uf1", "dataset:smic")


def shown(table: ScoreTable) -> str:
    out = io.StringIO()
    table.show(Console(file=out, width=100), "MFDAN [composite]")
    return out.getvalue()


def test_the_printed_table_holds_scores_of_data_sets_and_classes_and_the_confusions() -> None:
    text = shown(score(two_seeds(), CLASSES))
    assert "MFDAN [composite]" in text
    for words in (
        ["uf1", "0.722", "±", "0.079", "6", "4", "2"],
        ["casme2", "uf1", "0.833"],
        ["negative", "f1", "0.833"],
        ["negative", "2.5", "0.5", "0.0"],
    ):
        assert any(all(word in line for word in words) for line in text.splitlines()), words


def test_scores_by_data_set_are_printed_where_there_is_more_than_one() -> None:
    only = [row for row in two_seeds() if row.dataset == "samm"]
    assert "by data set" not in shown(score(only, CLASSES))
    assert "by data set" in shown(score(two_seeds(), CLASSES))


def test_one_person_has_no_interval() -> None:
    """Drawn again and again they show no spread, which is not certainty."""
    rows = [prediction(f"d/1/{clip}", clip % 3, clip % 2) for clip in range(9)]
    table = score(rows, CLASSES)
    assert math.isnan(table.row("uf1", "all").low)
    console = Console(file=io.StringIO(), width=120)
    table.show(console, "one")
    assert "nan" not in console.file.getvalue()
