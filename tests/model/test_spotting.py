import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.spotting import (
    Sketch,
    SpotOptions,
    Trajectory,
    around,
    search,
    threshold,
    unfinished,
)

REGIONS = 11
FLOOR = SpotOptions().floor_px


def there_and_back(
    times: np.ndarray, onset: float, apex: float, offset: float, peak: float = 1.5
) -> np.ndarray:
    """(N, R, 2): two neighbouring regions rise smoothly by `peak` pixels and fall again."""
    ramp = np.interp(times, [onset, apex, offset], [0, 1, 0])
    places = np.zeros((len(times), REGIONS, 2))
    places[:, 3:5, 1] = -peak * (0.5 - 0.5 * np.cos(np.pi * ramp))[:, None]
    return places


def trajectory(times: np.ndarray, places: np.ndarray) -> Trajectory:
    return Trajectory(np.arange(len(times)), times, places)


def heights(given: Trajectory) -> np.ndarray:
    return search(given)[0]


def sketches(given: Trajectory) -> list[Sketch]:
    return search(given)[1]


def seconds(fps: float, length: float = 2.0) -> np.ndarray:
    return np.arange(round(length * fps)) / fps


def noise(times: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, deviation, (len(times), REGIONS, 2))


@pytest.mark.parametrize("fps", [30, 50, 100, 200])
def test_the_interval_of_a_smooth_expression_is_found_at_any_frame_rate(fps: float) -> None:
    times = seconds(fps)
    found = sketches(trajectory(times, there_and_back(times, 0.8, 1.0, 1.3) + noise(times, 0.03)))[
        0
    ]
    assert times[found.apex] == pytest.approx(1.0, abs=max(1 / fps, 0.02))
    assert times[found.onset] == pytest.approx(0.8, abs=max(2 / fps, 0.06))
    assert times[found.offset] == pytest.approx(1.3, abs=max(2 / fps, 0.08))
    assert found.height > 2 * FLOOR


@given(
    shift=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    onset=st.floats(0.4, 1.0),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_constant_motion_of_everything_changes_nothing(
    shift: tuple[float, float], onset: float, seed: int
) -> None:
    times = seconds(30)
    places = there_and_back(times, onset, onset + 0.2, onset + 0.4) + noise(times, 0.05, seed)
    still, moved = trajectory(times, places), trajectory(times, places + np.array(shift))
    assert heights(moved) == pytest.approx(heights(still), abs=1e-6)
    assert [(s.onset, s.apex, s.offset) for s in sketches(moved)] == [
        (s.onset, s.apex, s.offset) for s in sketches(still)
    ]


@given(
    onset=st.floats(0.4, 0.9),
    rise=st.floats(0.1, 0.3),
    fall=st.floats(0.1, 0.3),
    fps=st.sampled_from([25, 30, 60, 100]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_in_reversed_time_onset_and_offset_are_swapped(
    onset: float, rise: float, fall: float, fps: int, seed: int
) -> None:
    times = seconds(fps)
    places = there_and_back(times, onset, onset + rise, onset + rise + fall)
    places += noise(times, 0.02, seed)
    forth = sketches(trajectory(times, places))[0]
    back = sketches(trajectory(times, places[::-1].copy()))[0]
    last = len(times) - 1
    assert abs(back.apex - (last - forth.apex)) <= 1
    assert abs(back.onset - (last - forth.offset)) <= 2
    assert abs(back.offset - (last - forth.onset)) <= 2


def test_times_count_and_not_frames() -> None:
    even = seconds(100)
    uneven = np.delete(even, np.arange(20, 160, 3))
    for times in (even, uneven):
        found = sketches(trajectory(times, there_and_back(times, 0.8, 1.0, 1.3)))[0]
        assert times[found.apex] == pytest.approx(1.0, abs=0.021)


def test_a_face_that_drifts_evenly_has_no_height() -> None:
    times = seconds(60)
    places = times[:, None, None] * np.ones((REGIONS, 2)) * 3
    assert heights(trajectory(times, places)).max() < 1e-6


def test_drift_neither_hides_an_expression_nor_moves_it() -> None:
    times = seconds(60)
    places = there_and_back(times, 0.8, 1.0, 1.3) + 0.4 * times[:, None, None]
    found = sketches(trajectory(times, places))[0]
    assert times[found.apex] == pytest.approx(1.0, abs=0.04)


def test_a_step_that_stays_is_no_expression() -> None:
    times = seconds(60)
    places = np.zeros((len(times), REGIONS, 2))
    places[:, 3:6, 1] = (2 * np.interp(times, [0.9, 1.1], [0, 1]))[:, None]
    assert not [s for s in sketches(trajectory(times, places)) if s.height > FLOOR]


def test_a_large_expression_of_three_seconds_is_none_either() -> None:
    times = seconds(60, 4)
    places = there_and_back(times, 0.5, 2.0, 3.5, peak=12)
    assert not sketches(trajectory(times, places))


def test_motion_without_rest_is_not_taken_apart_into_expressions() -> None:
    times = seconds(30, 4)
    steps = np.random.default_rng(1).normal(0, 0.5, (len(times), REGIONS, 2))
    talking = trajectory(times, np.cumsum(steps, axis=0))
    line = threshold(heights(talking), 4.0)
    assert not [s for s in sketches(talking) if s.height > line]


def test_two_expressions_are_two_intervals_the_stronger_first() -> None:
    times = seconds(60, 3)
    places = there_and_back(times, 0.5, 0.7, 0.9, peak=1.0)
    places += there_and_back(times, 1.8, 2.0, 2.2, peak=2.0)
    first, second = sketches(trajectory(times, places))[:2]
    assert times[first.apex] == pytest.approx(2.0, abs=0.04)
    assert times[second.apex] == pytest.approx(0.7, abs=0.04)


def test_noise_alone_stays_below_the_threshold() -> None:
    times = seconds(100)
    for seed in range(10):
        still = heights(trajectory(times, noise(times, 0.08, seed)))
        assert still.max() < threshold(still, 2.0)


def test_a_short_clip_has_no_rest_so_its_threshold_is_the_floor() -> None:
    assert threshold(np.full(30, 9.0), 0.5) == FLOOR
    assert threshold(np.full(90, 9.0), 3.0) == pytest.approx(9.0)


def test_a_clip_that_ends_at_its_apex_has_an_unfinished_expression() -> None:
    times = seconds(100, 0.5)
    places = there_and_back(times, 0.1, 0.4, 0.8)
    found = unfinished(trajectory(times, places))
    assert found is not None
    assert not found.returned
    assert times[found.apex] == pytest.approx(0.4, abs=0.03)
    whole = seconds(100, 1.0)
    assert unfinished(trajectory(whole, there_and_back(whole, 0.1, 0.4, 0.8))) is None


@pytest.mark.parametrize(("onset", "apex"), [(78, None), (None, 100), (80, 100)])
def test_what_a_caller_names_is_kept_and_the_rest_completed(
    onset: int | None, apex: int | None
) -> None:
    times = seconds(100)
    found = around(trajectory(times, there_and_back(times, 0.8, 1.0, 1.3)), onset, apex)
    assert found.onset == onset or (onset is None and abs(found.onset - 80) < 8)
    assert found.apex == apex or (apex is None and abs(found.apex - 100) < 3)
    assert found.returned
    assert abs(found.offset - 130) < 12
