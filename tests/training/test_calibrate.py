import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_answers import SPEC, answer
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_model import write_tiny_model

from model.session import Session
from model.spec import Reference, Score, load_spec
from training.calibrate import (
    STILL_SHARE,
    calibrate,
    fit_temperature,
    largest_threshold,
    rewrite_gates,
)
from training.evaluate import Answer


@given(values=st.lists(st.floats(0, 10), min_size=1, max_size=50), share=st.floats(0, 0.99))
@example(values=[1.0, 2, 3, 4, 5, 6], share=0.8333333333333333)  # below 5/6, but times 6 it is 5
def test_at_most_the_share_lies_below_the_threshold_and_more_below_any_larger_one(
    values: list[float], share: float
) -> None:
    threshold = largest_threshold(values, share)
    assert np.mean([value < threshold for value in values]) <= share
    assert np.mean([value <= threshold for value in values]) > share


def test_without_still_pairs_shares_of_the_genuine_ones_choose() -> None:
    """25 pairs moving .1 … 2.5 px: 8 % are two, so the gate stands at the third, .3 px; of the
    23 that pass, one may be too uncertain, so the threshold stands at the second least sure.
    """
    genuine = [
        answer("negative", 0, moved=0.1 * step, sure=0.5 + 0.01 * step) for step in range(1, 26)
    ]
    chosen = calibrate(genuine, SPEC)
    assert chosen.motion_gate_px == pytest.approx(0.3, abs=0.0011)
    second = genuine[3].at(SPEC, chosen.temperature).probabilities.max()
    assert chosen.abstention_threshold == pytest.approx(second, abs=0.0011)
    assert chosen.genuine_abstain == pytest.approx(3 / 25)
    assert math.isnan(chosen.nothing_abstains)


def mixed(still_sure: float, still_moved: float) -> list[Answer]:
    """100 genuine pairs far from both gates, and 100 still ones, of which 10 are hard to tell."""
    genuine = [
        answer("negative", 0, moved=0.6 + 0.01 * k, sure=0.6 + 0.003 * k) for k in range(100)
    ]
    wrong = [answer("positive", 0, moved=1.0, sure=0.9)]  # or no temperature would be too cold
    easy = [answer("none", 1, moved=0.1, sure=0.5, clip=str(k)) for k in range(90)]
    hard = [
        answer("none", 1, moved=still_moved, sure=still_sure, clip=f"hard {k}") for k in range(10)
    ]
    return [*genuine, *wrong, *easy, *hard]


@pytest.mark.parametrize(
    ("sure", "moved"),
    [(0.95, 0.5), (0.5, 1.3)],  # only the gate can stop these, only the threshold those
)
def test_still_pairs_are_stopped_by_whichever_gate_loses_fewer_genuine_ones(
    sure: float, moved: float
) -> None:
    answers = mixed(sure, moved)
    chosen = calibrate(answers, SPEC)
    assert chosen.nothing_abstains >= STILL_SHARE
    assert chosen.genuine_abstain == 0
    assert (chosen.motion_gate_px > moved) == (moved < 0.6)


def test_still_pairs_like_genuine_ones_cost_genuine_ones_and_no_more_than_needed() -> None:
    """Hard still pairs move .795 px: twenty genuine pairs move less, none is less sure."""
    chosen = calibrate(mixed(0.95, 0.795), SPEC)
    assert chosen.nothing_abstains >= STILL_SHARE
    assert chosen.genuine_abstain == pytest.approx(20 / 101)


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.0])
def test_the_temperature_that_spoiled_the_probabilities_is_found(truth: float) -> None:
    """Labels are drawn from honest probabilities; then these are sharpened or flattened."""
    rng = np.random.default_rng(3)
    answers = []
    for clip in range(3000):
        outputs = rng.normal(0, 1.5, 3)
        honest = np.exp(outputs) / np.exp(outputs).sum()
        label = SPEC.classes[rng.choice(3, p=honest)]
        told = np.exp(outputs * truth)
        given = answer(label, 0, clip=str(clip))
        answers.append(replace(given, probabilities=np.float32(told / told.sum())))
    assert fit_temperature(answers, SPEC) == pytest.approx(truth, rel=0.08)
    warm = replace(SPEC, temperature=3.0)  # answers of a spec that has one already
    assert fit_temperature(answers, warm) == pytest.approx(3 * truth, rel=0.08)


def test_a_few_pairs_that_are_all_right_make_nobody_infallible() -> None:
    few = [answer("negative", 0, sure=0.7, clip=str(clip)) for clip in range(4)]
    found = few[0].at(SPEC, fit_temperature(few, SPEC)).probabilities.max()
    assert found == pytest.approx(5 / 7, abs=0.01)


def test_a_temperature_changes_how_sure_an_answer_is_and_never_what_it_says() -> None:
    given = answer("negative", 1, sure=0.8)
    cool, warm = given.at(SPEC, 0.5), given.at(SPEC, 2.0)
    assert cool.probabilities.max() > 0.8 > warm.probabilities.max()
    assert {int(a.probabilities.argmax()) for a in (cool, given, warm)} == {1}
    np.testing.assert_allclose(given.at(SPEC, SPEC.temperature).probabilities, given.probabilities)
    assert warm.probabilities.sum() == pytest.approx(1)


def test_nothing_to_calibrate_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="calibrate"):
        calibrate([answer("none", 0)], SPEC)


def test_new_gates_give_a_model_that_still_fits_its_spec(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path)
    before = load_spec(path)
    genuine = [answer("negative", 0, moved=0.7, sure=0.8)]
    chosen = calibrate(genuine, before)
    rewrite_gates(path, before, chosen, "people of the val split")
    spec = Session.open(path).spec
    assert spec.provenance.gates == "people of the val split"
    assert spec.motion_gate_px == pytest.approx(0.7, abs=0.0011)
    assert spec.abstention_threshold == chosen.abstention_threshold
    assert spec.temperature == chosen.temperature
    assert spec.onnx_sha256 != before.onnx_sha256


def test_new_gates_make_scores_and_reference_stale() -> None:
    measured = replace(
        SPEC,
        scores=(Score(metric="uf1", value=1, low=1, high=1, protocol="by hand"),),
        reference=Reference(
            shares={"negative": 1, "positive": 0, "surprise": 0, "abstained": 0},
            answers=1,
            protocol="by hand",
        ),
    )
    chosen = calibrate([answer("negative", 0, moved=0.7, sure=0.8)], measured)
    assert (chosen.applied_to(measured).scores, chosen.applied_to(measured).reference) == ((), None)


def test_clips_of_unknown_motion_choose_no_gate() -> None:
    """A picture of flow has lost its size: NaN would sort anywhere and poison the threshold."""
    known = [answer("negative", 0, moved=0.1 * step) for step in range(1, 26)]
    unknown = [answer("positive", 1, moved=float("nan")) for _clip in range(9)]
    assert calibrate(known + unknown, SPEC).motion_gate_px == calibrate(known, SPEC).motion_gate_px
    with pytest.raises(ValueError, match="a known motion"):
        calibrate(unknown, SPEC)
