import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from drawn_answers import write_model_of
from drawn_pairs import TINY, as_toml
from tiny_model import write_tiny_model
from typer.testing import CliRunner, Result

from model.session import Session
from model.spec import load_spec
from training.cli import app
from training.scoring import ScoreTable, read_predictions


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.usefixtures("prepared")
def test_calibrate_and_evaluate_run_the_served_model_on_people_held_out(
    pairs_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model_of(tmp_path, replace(TINY, val_fraction=0.4, test_fraction=0.4), "drawn")
    chosen = run("calibrate", "--model", path, pairs_folder)
    assert chosen.exit_code == 0, chosen.output
    assert "motion gate" in chosen.stdout
    assert "those without" in chosen.stdout
    gated = load_spec(path)
    assert gated.scores == ()
    monkeypatch.chdir(tmp_path)
    scored = run("evaluate", "--model", path, pairs_folder, "--write-spec")
    assert scored.exit_code == 0, scored.output
    assert "of its training split" in scored.stderr
    spec = Session.open(path).spec
    assert {score.metric for score in spec.scores} >= {"uf1", "uar", "accuracy", "abstained_none"}
    assert all("people of drawn of the test split" in score.protocol for score in spec.scores)
    assert spec.reference is not None
    assert sum(spec.reference.shares.values()) == pytest.approx(1)
    assert "people of drawn of the test split" in spec.reference.protocol
    assert replace(spec, scores=(), reference=None) == gated
    out = tmp_path / "runs" / f"evaluate-tiny-{pairs_folder.name}"
    document = json.loads((out / "scores.json").read_text())
    forced = ScoreTable.from_json(json.dumps(document["forced"]))
    assert forced.row("uf1").value == spec.scores[0].value
    assert len(read_predictions(out / "predictions.csv")[1]) == forced.row("uf1").clips


@pytest.mark.usefixtures("prepared")
def test_a_reference_can_be_stored_without_touching_the_scores(
    pairs_folder: Path, tmp_path: Path
) -> None:
    path = write_model_of(tmp_path, TINY, "elsewhere")
    before = load_spec(path)
    options = ("--model", path, pairs_folder, "--out", tmp_path / "out")
    assert run("evaluate", *options, "--write-reference").exit_code == 0
    after = Session.open(path).spec
    assert after.reference is not None
    assert f"answers: negative {after.reference.shares['negative']:.1%}" in run(
        "evaluate", *options
    ).stdout.replace("\n", " ")
    assert replace(after, reference=None) == before


@pytest.mark.usefixtures("prepared")
def test_another_manifest_is_scored_whole_with_the_config_s_labels(
    pairs_folder: Path, tmp_path: Path
) -> None:
    path = write_model_of(tmp_path, TINY, "elsewhere")
    mapped = replace(TINY, label_map={"negative": "", "none": "negative"})
    (tmp_path / "labels.toml").write_text(as_toml(mapped))
    options = ("--config", tmp_path / "labels.toml", "--out", tmp_path / "out")
    result = run("evaluate", "--model", path, pairs_folder / "pairs.csv", *options)
    assert result.exit_code == 0, result.output
    assert "(negative → left out, none → negative)" in result.stdout
    _classes, predictions = read_predictions(tmp_path / "out" / "predictions.csv")
    assert {(p.clip, p.label) for p in predictions} == {
        ("none", "negative"),
        ("positive", "positive"),
        ("surprise", "surprise"),
    }


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("command", ["evaluate", "calibrate"])
def test_a_model_that_does_not_say_who_was_held_out_is_not_taken(
    command: str, pairs_folder: Path, tmp_path: Path
) -> None:
    path = write_tiny_model(tmp_path)
    result = run(command, "--model", path, pairs_folder)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "held out" in result.stderr


def test_a_manifest_that_is_not_there_is_told_before_anything_else(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path)
    result = run("evaluate", "--model", path, tmp_path / "no.csv", "--split", "all")
    assert result.exit_code == 2
    assert "no.csv" in result.stderr


@pytest.mark.usefixtures("prepared")
def test_a_write_that_fails_leaves_the_model_s_scores_as_they_were(
    pairs_folder: Path, tmp_path: Path
) -> None:
    path = write_model_of(tmp_path, TINY, "elsewhere")
    before = load_spec(path)
    (tmp_path / "out" / "scores.json").mkdir(parents=True)
    options = ("--out", tmp_path / "out", "--write-spec")
    result = run("evaluate", "--model", path, pairs_folder, *options)
    assert result.exit_code == 1
    assert "scores.json" in result.stderr
    assert load_spec(path) == before
    shutil.rmtree(tmp_path / "out")
