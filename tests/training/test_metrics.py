import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, recall_score

from training.metrics import (
    IntArray,
    accuracy,
    accuracy_of,
    bootstrap_interval,
    bootstrap_weights,
    confusion,
    f1_of,
    interval,
    recall_of,
    uar,
    uar_of,
    uf1,
    uf1_of,
)

LABELS = np.array([0, 0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 0, 1, 1, 2, 2])


def test_confusion_has_true_classes_in_rows() -> None:
    expected = [[3, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert confusion(LABELS, PREDICTIONS, 3).tolist() == expected


def test_uf1_worked_out_by_hand() -> None:
    """F1: 6/(6+0+1), 2/(2+1+1), 2/(2+1+0)."""
    assert uf1(LABELS, PREDICTIONS, 3) == pytest.approx((6 / 7 + 1 / 2 + 2 / 3) / 3)


def test_uar_worked_out_by_hand() -> None:
    assert uar(LABELS, PREDICTIONS, 3) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)


def test_accuracy_worked_out_by_hand() -> None:
    assert accuracy(LABELS, PREDICTIONS) == pytest.approx(5 / 7)


def test_rows_and_columns_are_not_the_same_thing() -> None:
    """One class taken for the other six times, the reverse once: recalls and F1 tell which."""
    counts = np.array([[2, 6], [1, 11]])
    np.testing.assert_allclose(recall_of(counts), [2 / 8, 11 / 12])
    np.testing.assert_allclose(recall_of(counts.T), [2 / 3, 11 / 17])
    np.testing.assert_allclose(f1_of(counts), [4 / (4 + 6 + 1), 22 / (22 + 1 + 6)])
    assert uar_of(counts) == pytest.approx((1 / 4 + 11 / 12) / 2)
    assert accuracy_of(counts) == pytest.approx(13 / 20)


def test_a_class_that_never_occurs_does_not_count() -> None:
    labels, predictions = np.array([0, 0, 1]), np.array([0, 1, 1])
    assert uf1(labels, predictions, 3) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert uar(labels, predictions, 3) == pytest.approx((1 / 2 + 1) / 2)


def test_a_class_that_is_only_predicted_has_f1_zero_and_no_recall() -> None:
    labels, predictions = np.array([0, 0]), np.array([0, 2])
    assert uf1(labels, predictions, 3) == pytest.approx((2 / 3 + 0) / 2)
    assert uar(labels, predictions, 3) == pytest.approx(1 / 2)
    np.testing.assert_array_equal(
        recall_of(confusion(labels, predictions, 3)), [1 / 2, np.nan, np.nan]
    )


def test_a_fold_without_a_class_changes_the_mean_over_folds_but_not_the_pooled_score() -> None:
    """The second person shows class 0 only. Pooled F1: 2·3/(6+1+1) and 2·1/(2+1+1).

    Alone, the first person's are 2/(2+0+1) and 2/(2+1+0); the second's are 4/(4+1+0) and, as class
    1 was predicted once, 0.
    """
    folds = np.array([[[1, 0], [1, 1]], [[2, 1], [0, 0]]])
    assert uf1_of(folds.sum(axis=0)) == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert uf1_of(folds).mean() == pytest.approx(((2 / 3 + 2 / 3) / 2 + (4 / 5 + 0) / 2) / 2)
    assert uar_of(folds.sum(axis=0)) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert uar_of(folds).mean() == pytest.approx(((1 + 1 / 2) / 2 + 2 / 3) / 2)


def test_leading_dimensions_are_kept() -> None:
    counts = np.random.default_rng(0).integers(0, 9, size=(4, 2, 3, 3))
    for function in (uf1_of, uar_of, accuracy_of):
        scores = function(counts)
        assert scores.shape == (4, 2)
        assert scores[2, 1] == function(counts[2, 1])
    assert f1_of(counts).shape == recall_of(counts).shape == (4, 2, 3)


def test_no_pairs_score_nothing() -> None:
    nothing = np.zeros((3, 3), np.int64)
    assert uf1_of(nothing) == uar_of(nothing) == accuracy_of(nothing) == 0


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_scores_equal_scikit_learn_s(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(pairs).T
    expected = f1_score(labels, predictions, average="macro", zero_division=0.0)
    assert uf1(labels, predictions, 4) == pytest.approx(expected)
    present = sorted(set(labels))
    expected = recall_score(labels, predictions, labels=present, average="macro")
    assert uar(labels, predictions, 4) == pytest.approx(expected)
    counts = confusion(labels, predictions, 4)
    assert accuracy_of(counts) == pytest.approx(accuracy_score(labels, predictions))
    each = f1_score(labels, predictions, labels=range(4), average=None, zero_division=np.nan)
    np.testing.assert_allclose(f1_of(counts), each)


def test_the_bootstrap_draws_subjects_not_pairs() -> None:
    """Two subjects, one always right and one always wrong: a draw may hold only one of them."""
    right = np.array([1.0] * 20 + [0.0] * 20)

    def score(rows: IntArray) -> float:
        return float(right[rows].mean())

    assert bootstrap_interval(score, ["a"] * 20 + ["b"] * 20) == (0.0, 1.0)
    each_alone = bootstrap_interval(score, [str(row) for row in range(40)])
    assert 0.3 < each_alone[0] < 0.5 < each_alone[1] < 0.7


def test_the_bootstrap_repeats_itself() -> None:
    def score(rows: IntArray) -> float:
        return float(rows.mean())

    subjects = list("aabbbcdde")
    assert bootstrap_interval(score, subjects) == bootstrap_interval(score, subjects)


def test_every_resample_holds_as_many_people_as_there_are() -> None:
    weights = bootstrap_weights(7, 500)
    assert weights.shape == (500, 7)
    assert (weights.sum(axis=1) == 7).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.2)
    assert (weights == bootstrap_weights(7, 500)).all()
    assert (weights != bootstrap_weights(7, 500, seed=1)).any()


def test_an_interval_leaves_unknown_scores_out() -> None:
    scores = np.array([np.nan, *np.linspace(0, 1, 41)])
    assert interval(scores) == pytest.approx((0.025, 0.975))
    assert np.isnan(interval(np.full(3, np.nan))).all()
