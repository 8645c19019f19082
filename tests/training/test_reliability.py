import numpy as np
import pytest

from training.reliability import BINS, reliability


def test_the_error_of_two_bins_worked_out_by_hand() -> None:
    """Each clip is its own bin: gaps .4, -.9, .2 and .1."""
    found = reliability([0.6, 0.9, 0.8, 0.9], [True, False, True, True], ["a", "a", "b", "b"])
    assert found.ece == pytest.approx((0.4 + 0.9 + 0.2 + 0.1) / 4)
    assert [each.clips for each in found.bins] == [1, 1, 1, 1]
    assert [each.confidence for each in found.bins] == pytest.approx([0.6, 0.8, 0.9, 0.9])
    assert (found.clips, found.people) == (4, 2)
    assert found.low <= found.ece <= found.high


def test_bins_hold_equally_many_clips_and_all_of_them() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.4, 1, 1000)
    found = reliability(list(sure), list(rng.random(1000) < sure), ["a"] * 500 + ["b"] * 500)
    counts = [each.clips for each in found.bins]
    assert len(counts) == BINS
    assert sum(counts) == 1000
    assert max(counts) - min(counts) <= 1
    assert [each.confidence for each in found.bins] == sorted(e.confidence for e in found.bins)


def test_honest_confidence_has_a_small_error_and_boasting_a_large_one() -> None:
    rng = np.random.default_rng(1)
    sure = rng.uniform(0.5, 1, 4000)
    right = list(rng.random(4000) < sure)
    people = [str(k % 40) for k in range(4000)]
    honest = reliability(list(sure), right, people)
    boasting = reliability(list(np.sqrt(sure)), right, people)
    assert honest.ece < 0.04
    assert boasting.ece > honest.high
    assert boasting.ece == pytest.approx(np.mean(np.sqrt(sure) - sure), abs=0.02)


def test_no_clips_are_an_error() -> None:
    with pytest.raises(ValueError, match="confidence"):
        reliability([], [], [])
