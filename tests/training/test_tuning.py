from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_pairs import TINY
from numpy.typing import NDArray

from training.config import RunConfig, Tuning
from training.data.dataset import class_indices, labelled
from training.data.prepare import Prepared, PreparedRow
from training.divergence import Diverged
from training.folds import Fold, loso_folds
from training.methods import train_and_predict
from training.tuning import candidates, tune

Arrays = tuple[NDArray[np.uint8], NDArray[np.float32]]


def searching(grid: dict[str, tuple[Any, ...]], folds: int = 2) -> RunConfig:
    return replace(TINY, steps=2, checkpoint_every=9, tune=Tuning(grid=grid, folds=folds))


def test_every_combination_is_a_candidate_in_the_grids_order() -> None:
    tried = candidates(searching({"learning_rate": (0.1, 0.2), "network.dropkey": (0.0, 0.3)}))
    assert [(c.learning_rate, c.network.dropkey) for _, c in tried] == [
        (0.1, 0.0),
        (0.1, 0.3),
        (0.2, 0.0),
        (0.2, 0.3),
    ]
    assert tried[1][0] == {"learning_rate": 0.1, "network.dropkey": 0.3}


def test_epochs_take_the_place_of_steps() -> None:
    ((_, candidate),) = candidates(searching({"epochs": (7,)}))
    assert (candidate.steps, candidate.epochs) == (None, 7)


@pytest.mark.parametrize(
    ("grid", "complaint"),
    [
        ({}, r"needs \[tune.grid\]"),
        ({"learning_rate": ()}, r"needs \[tune.grid\]"),
        ({"learning_rat": (0.1,)}, "no field learning_rat"),
        ({"network.dropky": (0.1,)}, "no field network.dropky"),
        ({"network.dropkey.deep": (0.1,)}, "no field network.dropkey.deep"),
        ({"no.dropkey": (0.1,)}, "no field no.dropkey"),
        ({"learning_rate": (0.1, -1.0)}, "learning_rate = -1.0: .*greater than 0"),
        ({"network.window": (5,)}, "network.window = 5: .*multiple of the window"),
        ({"seed": (1, 2)}, "seed must not be searched"),
        ({"classes": ("a",)}, "classes must not be searched"),
        ({"flow.algorithm": ("dis",)}, "flow.algorithm must not be searched"),
        ({"network.image_size": (128,)}, "network.image_size must not be searched"),
        ({"threads": (1, 2)}, "threads must not be searched"),
    ],
)
def test_a_grid_that_cannot_be_searched_is_refused_with_its_field_named(
    grid: dict[str, tuple[Any, ...]], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        candidates(searching(grid))


@pytest.fixture
def fold(prepared: Prepared) -> Fold:
    return loso_folds(labelled(prepared.rows, TINY))[0]


class Rated:
    """Trains nothing: answers the share `skill` of the clips right, by the learning rate."""

    def __init__(self, skill: dict[float, float]) -> None:
        self._skill = skill
        self.asked: list[tuple[float, Fold]] = []

    def __call__(self, config: RunConfig, fold: Fold, work: Path) -> NDArray[np.float32]:
        assert work.is_dir()
        self.asked.append((config.learning_rate, fold))
        truth = np.array(class_indices(fold.test, config))
        right = np.arange(len(truth)) < self._skill[config.learning_rate] * len(truth)
        return np.eye(3, dtype=np.float32)[np.where(right, truth, (truth + 1) % 3)]


RATES = searching({"learning_rate": (0.1, 0.2, 0.3)})


def test_the_best_candidate_wins(fold: Fold, tmp_path: Path) -> None:
    choice = tune(RATES, fold, tmp_path, Rated({0.1: 0.2, 0.2: 1.0, 0.3: 0.6}))
    assert choice.values == {"learning_rate": 0.2}
    assert choice.config.learning_rate == 0.2
    assert choice.scores[1] == 1.0
    assert choice.scores[0] < choice.scores[2] < 1.0


def test_of_equally_good_candidates_the_first_wins(fold: Fold, tmp_path: Path) -> None:
    choice = tune(RATES, fold, tmp_path, Rated({0.1: 0.3, 0.2: 0.8, 0.3: 0.8}))
    assert choice.values == {"learning_rate": 0.2}


def test_every_candidate_meets_the_same_inner_folds_of_the_training_half(
    fold: Fold, tmp_path: Path
) -> None:
    train = Rated({0.1: 1.0, 0.2: 1.0, 0.3: 1.0})
    tune(RATES, fold, tmp_path, train)
    by_rate = [[inner for asked, inner in train.asked if asked == rate] for rate in (0.1, 0.2, 0.3)]
    assert len(by_rate[0]) == 2
    assert by_rate[0] == by_rate[1] == by_rate[2]
    assert {row.pair.key for inner in by_rate[0] for row in inner.test} == {
        row.pair.key for row in fold.train
    }


def test_an_interrupted_search_goes_on_where_it_stopped(fold: Fold, tmp_path: Path) -> None:
    skill = {0.1: 0.2, 0.2: 1.0, 0.3: 0.6}
    rated = Rated(skill)

    def stopped(config: RunConfig, inner: Fold, work: Path) -> NDArray[np.float32]:
        if len(rated.asked) == 3:
            raise KeyboardInterrupt
        return rated(config, inner, work)

    with pytest.raises(KeyboardInterrupt):
        tune(RATES, fold, tmp_path, stopped)
    again = Rated(skill)
    choice = tune(RATES, fold, tmp_path, again)
    assert len(again.asked) == 6 - 3
    assert choice.values == {"learning_rate": 0.2}


class Failing(Rated):
    """Diverges at one learning rate, and answers with no number at another."""

    diverging, silent = 0.1, 0.3

    def __call__(self, config: RunConfig, fold: Fold, work: Path) -> NDArray[np.float32]:
        answers = super().__call__(config, fold, work)
        if config.learning_rate == self.diverging:
            raise Diverged(config, 1, "the loss is nan", config.learning_rate)
        return answers * np.float32("nan") if config.learning_rate == self.silent else answers


def test_a_candidate_that_fails_is_out_and_is_not_tried_again(fold: Fold, tmp_path: Path) -> None:
    train = Failing({0.1: 1.0, 0.2: 0.4, 0.3: 1.0})
    choice = tune(RATES, fold, tmp_path, train)
    assert choice.values == {"learning_rate": 0.2}
    assert choice.scores[::2] == [-np.inf, -np.inf]
    assert [rate for rate, _inner in train.asked] == [0.1, 0.2, 0.2, 0.3]
    again = Failing({})
    assert tune(RATES, fold, tmp_path, again) == choice
    assert again.asked == []


def test_a_search_in_which_all_fail_names_the_candidates(fold: Fold, tmp_path: Path) -> None:
    train = Failing({0.1: 1.0, 0.3: 1.0})
    config = searching({"learning_rate": (0.1, 0.3)})
    with pytest.raises(ValueError, match=r"every cand.*learning_rate = 0.1; learning_rate = 0.3"):
        tune(config, fold, tmp_path, train)


def test_a_real_training_at_an_absurd_learning_rate_loses_the_search(
    prepared: Prepared, fold: Fold, tmp_path: Path
) -> None:
    def train(config: RunConfig, inner: Fold, work: Path) -> NDArray[np.float32]:
        return train_and_predict(config, prepared, inner, work).probabilities

    config = replace(searching({"learning_rate": (1e12, 1e-3)}), steps=8, optimiser="adamw")
    choice = tune(config, fold, tmp_path, train)
    assert choice.scores[0] == -np.inf < choice.scores[1]
    assert choice.values == {"learning_rate": 1e-3}


def test_a_real_search_never_reads_a_clip_of_the_held_out_person(
    prepared: Prepared, fold: Fold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    arrays = Prepared.arrays

    def spy(self: Prepared, row: PreparedRow) -> Arrays:
        read.append(row.pair.person)
        return arrays(self, row)

    monkeypatch.setattr(Prepared, "arrays", spy)

    def train(config: RunConfig, inner: Fold, work: Path) -> NDArray[np.float32]:
        return train_and_predict(config, prepared, inner, work).probabilities

    tune(searching({"learning_rate": (0.01, 0.001)}), fold, tmp_path, train)
    assert set(read) == {row.pair.person for row in fold.train}
    assert fold.name not in read
