"""The model that is shipped: whole, small enough, and what its card says."""

from pathlib import Path

import numpy as np
import pytest
from drawn_face import draw_face

import model
from model.pipeline import Preprocessor, network_inputs
from model.session import Session
from model.verdict import Verdict, judge

WEIGHTS = Path(model.__path__[0]) / "weights"
ONNX = WEIGHTS / "mfdan-synthetic.onnx"


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.open(ONNX)


def verdict(session: Session, onset: np.ndarray, apex: np.ndarray) -> Verdict:
    (pair,) = Preprocessor(session.spec).align_pair(onset, apex)
    image, flow = network_inputs(pair.onset, pair.flow, session.spec)
    return judge(session.spec, session.run(image[None], flow[None])[0], pair.motion, pair.quality)


def test_it_is_at_most_45_megabytes() -> None:
    assert ONNX.stat().st_size <= 45e6


def test_raised_brows_are_a_surprise(session: Session) -> None:
    answer = verdict(session, draw_face(), draw_face(brow_lift=1.5))
    assert (answer.label, answer.abstained) == ("surprise", False)


def test_the_same_frame_twice_abstains(session: Session) -> None:
    assert verdict(session, draw_face(), draw_face()).reason == "no_movement"


def test_a_head_that_only_moves_abstains(session: Session) -> None:
    assert verdict(session, draw_face(), draw_face(centre=(321.0, 219.5))).abstained


def test_answers_do_not_depend_on_the_rest_of_the_batch(session: Session) -> None:
    draw = np.random.default_rng(0)
    image, flow = draw.uniform(-1, 1, (2, 3, 3, 224, 224)).astype(np.float32)
    alone = np.concatenate([session.run(image[i : i + 1], flow[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(session.run(image, flow), alone, atol=1e-5)


def test_its_card_states_each_score_of_its_spec(session: Session) -> None:
    card = (WEIGHTS / "README.md").read_text()
    assert session.spec.scores
    for score in session.spec.scores:
        row = f"| {score.metric} | {score.value:.3f} | {score.low:.3f} to {score.high:.3f} |"
        assert row in card


def test_its_card_states_how_often_it_gives_each_answer(session: Session) -> None:
    reference = session.spec.reference
    assert reference is not None
    assert "clips with an expression only" in reference.protocol
    card = (WEIGHTS / "README.md").read_text()
    assert f"| {' | '.join(reference.shares)} |" in card
    assert f"| {' | '.join(f'{share:.3f}' for share in reference.shares.values())} |" in card
    assert f"Of {reference.answers} pairs" in card


def test_its_spec_says_what_it_is_made_from_and_by_which_commit(session: Session) -> None:
    origin = session.spec.provenance
    assert "synthetic" in origin.data
    assert origin.licence == "MIT"
    assert len(origin.training_commit) == 40  # a clean commit; a dirty tree would add to it
