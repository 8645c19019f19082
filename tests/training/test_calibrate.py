from pathlib import Path

import numpy as np
import pytest
from drawn_answers import SPEC, answer
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_model import write_tiny_model

from model.session import Session
from model.spec import load_spec
from training.calibrate import calibrate, largest_threshold, rewrite_gates


@given(values=st.lists(st.floats(0, 10), min_size=1, max_size=50), share=st.floats(0, 0.99))
@example(values=[1.0, 2, 3, 4, 5, 6], share=0.8333333333333333)  # below 5/6, but times 6 it is 5
def test_at_most_the_share_lies_below_the_threshold_and_more_below_any_larger_one(
    values: list[float], share: float
) -> None:
    threshold = largest_threshold(values, share)
    assert np.mean([value < threshold for value in values]) <= share
    assert np.mean([value <= threshold for value in values]) > share


def test_gates_are_chosen_from_pairs_with_an_expression_alone() -> None:
    """25 pairs moving .1 … 2.5 px: 8 % are two, so the gate stands at the third, .3 px; of the
    23 that pass, one may be too uncertain, so the threshold stands at the second least sure.
    """
    genuine = [
        answer("negative", 0, moved=0.1 * step, sure=0.5 + 0.01 * step) for step in range(1, 26)
    ]
    still = [answer("none", 1, moved=moved) for moved in (0.0, 0.1, 0.2, 0.4)]
    chosen = calibrate(genuine + still, SPEC)
    assert chosen.motion_gate_px == pytest.approx(0.3, abs=0.0011)
    assert chosen.abstention_threshold == pytest.approx(0.54, abs=0.0011)
    assert chosen.genuine_abstain == pytest.approx(3 / 25)
    assert chosen.nothing_abstains == pytest.approx(3 / 4)


def test_nothing_to_calibrate_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="calibrate"):
        calibrate([answer("none", 0)], SPEC)


def test_new_gates_give_a_model_that_still_fits_its_spec(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path)
    before = load_spec(path)
    genuine = [answer("negative", 0, moved=0.7, sure=0.8)]
    rewrite_gates(path, before, calibrate(genuine, before), "people of the val split")
    spec = Session.open(path).spec
    assert spec.provenance.gates == "people of the val split"
    assert spec.motion_gate_px == pytest.approx(0.7, abs=0.0011)
    assert spec.abstention_threshold == pytest.approx(0.8, abs=0.0011)
    assert spec.onnx_sha256 != before.onnx_sha256


def test_clips_of_unknown_motion_choose_no_gate() -> None:
    """A picture of flow has lost its size: NaN would sort anywhere and poison the threshold."""
    known = [answer("negative", 0, moved=0.1 * step) for step in range(1, 26)]
    unknown = [answer("positive", 1, moved=float("nan")) for _clip in range(9)]
    assert calibrate(known + unknown, SPEC).motion_gate_px == calibrate(known, SPEC).motion_gate_px
    with pytest.raises(ValueError, match="a known motion"):
        calibrate(unknown, SPEC)
