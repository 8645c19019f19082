import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_pairs import PEOPLE, TINY, draw_pair, write_rows
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tiny_model import tiny_spec, write_tiny_model
from typer.testing import CliRunner

from model.pipeline import Motion
from model.session import Session
from model.spec import load_spec
from training.cli import app
from training.config import RunConfig
from training.data.pairs import Pair
from training.data.prepare import PreparedRow
from training.evaluate import (
    Answer,
    answer_folder,
    calibrate,
    evaluate,
    largest_threshold,
    protocol,
    rewrite_gates,
)

SPEC = replace(tiny_spec(), motion_gate_px=0.5, abstention_threshold=0.5)
SURE = 0.9


def answer(
    label: str, said: int, *, who: str = "a", moved: float = 1.0, sure: float = SURE
) -> Answer:
    probabilities = np.full(3, (1 - sure) / 2, np.float32)
    probabilities[said] = sure
    pair = Pair(dataset="d", subject=who, clip="c", label=label, onset="o", apex="p")
    motion = Motion(mean_px=moved / 2, p95_px=moved, head_px=0.0)
    return Answer(PreparedRow(pair, motion, 0, 0), probabilities)


@given(values=st.lists(st.floats(0, 10), min_size=1, max_size=50), share=st.floats(0, 0.99))
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


def test_nothing_to_calibrate_or_score_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="calibrate"):
        calibrate([answer("none", 0)], SPEC)
    with pytest.raises(ValueError, match="score"):
        evaluate([answer("none", 0)], SPEC, "p")


def test_scores_with_and_without_abstention_worked_out_by_hand() -> None:
    answers = [
        answer("negative", 0, who="a"),
        answer("negative", 1, who="a", sure=0.45),  # wrong, but it abstains
        answer("positive", 1, who="b"),
        answer("surprise", 0, who="b", moved=0.2),  # wrong, but behind the gate
        answer("none", 2, who="b", moved=0.2),
        answer("none", 2, who="a", moved=2.0),
    ]
    result = evaluate(answers, SPEC, "protocol")
    values = {score.metric: score.value for score in result.scores}
    assert values == pytest.approx(
        {
            "uf1": (1 / 2 + 2 / 3 + 0) / 3,
            "uar": (1 / 2 + 1 + 0) / 3,
            "accuracy": 2 / 4,
            "uf1_answered": 1.0,
            "uar_answered": 1.0,
            "accuracy_answered": 1.0,
            "abstained_genuine": 2 / 4,
            "abstained_none": 1 / 2,
        }
    )
    assert result.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    first = result.scores[0]
    assert first.protocol == "protocol; 4 pairs of 2 identities"
    assert first.low <= first.value <= first.high


def test_new_gates_give_a_model_that_still_fits_its_spec(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path)
    before = load_spec(path)
    genuine = [answer("negative", 0, moved=0.7, sure=0.8)]
    rewrite_gates(path, before, calibrate(genuine, before))
    spec = Session.open(path).spec
    assert spec.motion_gate_px == pytest.approx(0.7, abs=0.0011)
    assert spec.abstention_threshold == pytest.approx(0.8, abs=0.0011)
    assert spec.onnx_sha256 != before.onnx_sha256


def write_model_of(folder: Path, config: RunConfig) -> Path:
    """Write the tiny model as if a run had made it; it reads the pairs prepared for TINY."""
    spec = config.spec()
    return write_tiny_model(
        folder,
        tiny_spec(
            input_size=spec.input_size,
            flow=spec.flow,
            alignment=spec.alignment,
            provenance=spec.provenance,
        ),
    )


@pytest.mark.usefixtures("prepared")
def test_calibrate_and_evaluate_run_the_served_model_on_people_held_out(
    pairs_folder: Path, tmp_path: Path
) -> None:
    """The tiny model names the direction of the motion; drawn smiles and brows move up."""
    path = write_model_of(tmp_path, replace(TINY, val_fraction=0.4, test_fraction=0.4))
    folder = ["--model", str(path), "--pairs", str(pairs_folder)]
    runner = CliRunner()
    chosen = runner.invoke(app, ["calibrate", *folder])
    assert chosen.exit_code == 0, chosen.output
    assert "motion gate" in chosen.output
    assert "those without" in chosen.output
    gated = load_spec(path)
    assert gated.scores == ()
    scored = runner.invoke(app, ["evaluate", *folder, "--write-spec"])
    assert scored.exit_code == 0, scored.output
    spec = Session.open(path).spec
    assert {score.metric for score in spec.scores} >= {"uf1", "uar", "accuracy", "abstained_none"}
    assert all("test split" in score.protocol for score in spec.scores)
    assert replace(spec, scores=()) == gated


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(
    ("val", "test", "split_seed"), [(0.2, 0.2, 1), (0.1, 0.7, 1), (0.2, 0.2, 4)]
)
def test_the_model_s_own_run_decides_whom_it_is_scored_on(
    pairs_folder: Path, tmp_path: Path, val: float, test: float, split_seed: int
) -> None:
    config = replace(TINY, val_fraction=val, test_fraction=test, split_seed=split_seed, seed=9)
    path = write_model_of(tmp_path, config)
    spec, answers = answer_folder(path, pairs_folder, "test", Console(quiet=True))
    held_out = {
        f"drawn/{who}" for who in range(PEOPLE) if config.holdout.split_of(f"drawn/{who}") == "test"
    }
    assert {a.row.pair.person for a in answers} == held_out
    words = protocol(spec, "test", pairs_folder)
    assert f"test split ({test} of them, by a hash of the identity, seed {split_seed})" in words
    assert "one run, seed 9" in words


def test_a_model_that_does_not_say_who_was_held_out_is_not_scored(
    pairs_folder: Path, tmp_path: Path
) -> None:
    path = write_tiny_model(tmp_path)
    options = ["--model", str(path), "--pairs", str(pairs_folder)]
    result = CliRunner().invoke(app, ["evaluate", *options])
    assert result.exit_code == 1
    assert "does not say who was held out" in result.stderr


def test_pairs_of_a_label_the_model_does_not_know_are_left_out(tmp_path: Path) -> None:
    """CASME's "others", say: neither one of the classes nor nothing."""
    pair = draw_pair(tmp_path, 1, "positive")
    still = replace(pair, clip="still", label="none", apex=pair.onset)
    write_rows(tmp_path, [pair, replace(pair, clip="other", label="others"), still])
    path = write_model_of(tmp_path, replace(TINY, val_fraction=0.0, test_fraction=0.99))
    spec, answers = answer_folder(path, tmp_path, "test", Console(quiet=True))
    assert [a.row.pair.label for a in answers] == ["positive", "none"]
    assert calibrate(answers, spec).pairs == 2
    assert evaluate(answers, spec, "p").confusion.sum() == 1


@pytest.mark.parametrize(
    ("blendshapes", "moves"), [(None, "own table"), ("5207b1f0", "measured blendshapes")]
)
def test_a_protocol_names_seed_and_displacements_of_synthetic_pairs(
    tmp_path: Path, blendshapes: str | None, moves: str
) -> None:
    note = {"seed": 7, "blendshapes_sha256": blendshapes}
    (tmp_path / "synth.json").write_text(json.dumps(note))
    words = protocol(TINY.spec(), "test", tmp_path)
    assert "`mfdan-train synth`, seed 7," in words
    assert moves in words
    assert "identities of the test split" in words
    assert "`mfdan-train evaluate --model FILE --pairs DIR --split test`" in words


def test_a_protocol_calls_other_pairs_the_users_own(tmp_path: Path) -> None:
    assert "user's own" in protocol(TINY.spec(), "val", tmp_path)
