import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score

from training.metrics import IntArray, accuracy, bootstrap_interval, confusion, uar, uf1

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


def test_a_class_that_never_occurs_does_not_count() -> None:
    labels, predictions = np.array([0, 0, 1]), np.array([0, 1, 1])
    assert uf1(labels, predictions, 3) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert uar(labels, predictions, 3) == pytest.approx((1 / 2 + 1) / 2)


def test_a_class_that_is_only_predicted_has_f1_zero_and_no_recall() -> None:
    labels, predictions = np.array([0, 0]), np.array([0, 2])
    assert uf1(labels, predictions, 3) == pytest.approx((2 / 3 + 0) / 2)
    assert uar(labels, predictions, 3) == pytest.approx(1 / 2)


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_scores_equal_scikit_learn_s(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(pairs).T
    expected = f1_score(labels, predictions, average="macro", zero_division=0.0)
    assert uf1(labels, predictions, 4) == pytest.approx(expected)
    present = sorted(set(labels))
    expected = recall_score(labels, predictions, labels=present, average="macro")
    assert uar(labels, predictions, 4) == pytest.approx(expected)


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
