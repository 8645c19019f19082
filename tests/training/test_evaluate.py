import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_answers import SPEC, answer, write_model_of
from drawn_pairs import PEOPLE, TINY, draw_pair, write_rows
from rich.console import Console
from tiny_model import write_tiny_model

from model.session import Session
from model.spec import ModelSpec, load_spec
from training.data.labels import Labels
from training.data.pairs import Pair
from training.data.prepare import prepared_folder
from training.evaluate import (
    Answered,
    answer_manifest,
    evaluate,
    protocol,
    spec_reference,
    spec_scores,
    write_evaluation,
    write_spec,
)
from training.scored_people import choose_people, holdout_of
from training.scoring import read_predictions, score

SILENT = Console(quiet=True)


BY_HAND = [
    answer("negative", 0, who="a"),
    answer("negative", 1, who="a", sure=0.45),  # wrong, but it abstains
    answer("positive", 1, who="b"),
    answer("surprise", 0, who="b", moved=0.2, dataset="e"),  # wrong, but behind the gate
    answer("none", 2, who="b", moved=0.2),
    answer("none", 2, who="a", moved=2.0),
]


def answered_of(spec: ModelSpec, manifest: Path, pairs: list[Pair], **changes: object) -> Answered:
    known = {
        "spec": spec,
        "manifest": manifest,
        "labels": Labels(spec.classes),
        "people": "test",
        "scored": choose_people(spec, pairs, "test"),
        "answers": (),
    }
    return Answered(**(known | changes))


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="score"):
        evaluate([answer("none", 0)], SPEC)


def test_scores_with_and_without_abstention_worked_out_by_hand() -> None:
    result = evaluate(BY_HAND, SPEC)
    forced = {m: result.forced.row(m).value for m in ("uf1", "uar", "accuracy")}
    assert forced == pytest.approx(
        {"uf1": (1 / 2 + 2 / 3 + 0) / 3, "uar": (1 / 2 + 1 + 0) / 3, "accuracy": 2 / 4}
    )
    assert result.answered is not None
    assert [result.answered.row(m).value for m in ("uf1", "uar", "accuracy")] == [1.0, 1.0, 1.0]
    assert result.answered.row("uf1").clips == 2
    assert result.coverage == 2 / 4
    (counts,) = result.forced.confusions.values()
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_abstention_is_counted_by_data_set_and_class() -> None:
    shares = {(e.kind, e.group): e for e in evaluate(BY_HAND, SPEC).abstained}
    assert {key: e.value for key, e in shares.items()} == {
        ("genuine", "all"): 2 / 4,
        ("genuine", "dataset:d"): 1 / 3,
        ("genuine", "dataset:e"): 1.0,
        ("genuine", "class:negative"): 1 / 2,
        ("genuine", "class:positive"): 0.0,
        ("genuine", "class:surprise"): 1.0,
        ("none", "all"): 1 / 2,
        ("none", "dataset:d"): 1 / 2,
    }
    half = shares["none", "all"]
    # Of two people one abstains: a quarter of the resamples draws her twice, a quarter never.
    assert (half.low, half.high, half.clips, half.people) == (0.0, 1.0, 2, 2)


def test_a_model_that_never_answers_has_no_second_table() -> None:
    result = evaluate([answer("negative", 0, moved=0.1)], SPEC)
    assert result.answered is None
    assert result.coverage == 0
    assert {s.metric for s in spec_scores(result, "p")} == {
        *("uf1", "uar", "accuracy", "abstained_genuine", "ece")
    }


def test_the_spec_takes_the_pooled_scores_with_their_protocol() -> None:
    scores = {s.metric: s for s in spec_scores(evaluate(BY_HAND, SPEC), "protocol")}
    assert list(scores) == [
        *("uf1", "uar", "accuracy", "uf1_answered", "uar_answered", "accuracy_answered"),
        *("abstained_genuine", "abstained_none", "ece"),
    ]
    assert scores["uf1"].protocol == "protocol; 4 clips of 3 people"
    assert scores["uf1_answered"].protocol == "protocol; 2 clips of 2 people"
    assert scores["uf1"].low <= scores["uf1"].value <= scores["uf1"].high


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(
    ("val", "test", "split_seed"), [(0.2, 0.2, 1), (0.1, 0.7, 1), (0.2, 0.2, 8)]
)
def test_the_model_s_own_run_decides_whom_it_is_scored_on(
    pairs_folder: Path, tmp_path: Path, val: float, test: float, split_seed: int
) -> None:
    config = replace(TINY, val_fraction=val, test_fraction=test, split_seed=split_seed, seed=9)
    path = write_model_of(tmp_path, config)
    held_out = {
        f"drawn/{who}" for who in range(PEOPLE) if config.holdout.split_of(f"drawn/{who}") == "test"
    }
    for people in ("auto", "test"):
        answered = answer_manifest(path, pairs_folder, people, SILENT)
        assert {a.row.pair.person for a in answered.answers} == held_out
        words = protocol(answered)
        assert f"test split ({test} of them, by a hash of the identity, seed {split_seed})" in words
        assert "never trained on" in words
        assert "one run, seed 9" in words
        assert f"MANIFEST --split {people}`" in words


@pytest.mark.usefixtures("prepared")
def test_the_answers_are_those_of_the_served_session(pairs_folder: Path, tmp_path: Path) -> None:
    path = write_model_of(tmp_path, replace(TINY, val_fraction=0.0), "elsewhere")
    answered = answer_manifest(path, pairs_folder, "auto", SILENT)
    assert len({a.row.pair.person for a in answered.answers}) == PEOPLE
    assert [a.label for a in answered.answers if not a.genuine] == ["none"] * PEOPLE
    # The tiny model names the direction of the motion, and a drawn smile moves up.
    session = Session.open(path)
    image = np.zeros((1, 3, 64, 64), np.float32)
    flow = image.copy()
    flow[:, 1] = 1.0
    assert session.run(image, flow).argmax() == 2
    smiles = [a.probabilities.argmax() for a in answered.answers if a.label == "positive"]
    assert smiles == [2] * PEOPLE


def test_labels_go_through_the_map_and_left_out_ones_are_not_answered(tmp_path: Path) -> None:
    pair = draw_pair(tmp_path, 1, "positive")
    still = replace(pair, clip="still", label="none", apex=pair.onset)
    rows = [
        replace(pair, label="happiness"),
        replace(pair, clip="other", label="others"),
        still,
    ]
    write_rows(tmp_path, rows)
    path = write_model_of(tmp_path, replace(TINY, val_fraction=0.0, test_fraction=0.99))
    labels = Labels(TINY.classes, {"happiness": "positive", "others": "", "sadness": "negative"})
    answered = answer_manifest(path, tmp_path, "test", SILENT, labels=labels, workers=1)
    assert [a.label for a in answered.answers] == ["positive", "none"]
    words = protocol(answered)
    assert "labels mapped (happiness → positive, others → left out)" in words
    assert "--config FILE" in words
    result = evaluate(answered.answers, answered.spec)
    assert [p.label for p in result.predictions] == ["positive"]


def test_labels_are_checked_before_anything_is_prepared(tmp_path: Path) -> None:
    pair = draw_pair(tmp_path, 1, "positive")
    write_rows(tmp_path, [pair, replace(pair, clip="other", label="others")])
    path = write_model_of(tmp_path, replace(TINY, val_fraction=0.0, test_fraction=0.99))
    with pytest.raises(ValueError, match="drawn/1/other is 'others'"):
        answer_manifest(path, tmp_path, "test", SILENT)
    six = Labels((*TINY.classes, "others"))
    with pytest.raises(ValueError, match="knows only negative, positive, surprise: drawn/1/other"):
        answer_manifest(path, tmp_path, "test", SILENT, labels=six)
    assert not prepared_folder(tmp_path / "pairs.csv", TINY.spec()).exists()


@pytest.mark.usefixtures("prepared")
def test_who_was_trained_on_is_scored_only_with_a_warning(
    pairs_folder: Path, tmp_path: Path
) -> None:
    path = write_model_of(tmp_path, replace(TINY, val_fraction=0.0, test_fraction=0.5), "drawn")
    console = Console(record=True, width=200, file=io.StringIO())
    answered = answer_manifest(path, pairs_folder, "all", console)
    holdout = holdout_of(answered.spec)
    trained = sum(holdout.split_of(f"drawn/{who}") == "train" for who in range(PEOPLE))
    assert 0 < trained < PEOPLE
    assert f"WARNING: tiny was trained on {trained} of these people" in console.export_text()
    assert f"all people, {trained} of {PEOPLE} TRAINED ON" in protocol(answered)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    pairs = [each.row.pair for each in BY_HAND]
    held_out = replace(TINY, val_fraction=0.0, test_fraction=0.99)
    spec = replace(SPEC, provenance=held_out.spec().provenance)
    answered = answered_of(spec, tmp_path / "pairs.csv", pairs, answers=BY_HAND)
    result = evaluate(BY_HAND, spec)
    write_evaluation(tmp_path / "out", answered, result)
    classes, predictions = read_predictions(tmp_path / "out" / "predictions.csv")
    assert classes == spec.classes
    assert [p.abstained for p in predictions] == [False, True, False, True]
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        assert [row["abstained"] for row in csv.DictReader(file)] == [
            *("false", "true", "false", "true")
        ]
    document = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert document["coverage"] == 0.5
    assert document["forced"] == json.loads(score(predictions, classes).to_json())
    assert document["answered"]["rows"][0]["clips"] == 2
    assert document["protocol"] == protocol(answered)
    assert document["people_left_out"] == {}


def test_scores_in_the_spec_change_nothing_else(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path)
    before = load_spec(path)
    write_spec(path, replace(before, scores=spec_scores(evaluate(BY_HAND, SPEC), "p")))
    after = Session.open(path).spec
    assert len(after.scores) == 9
    assert replace(after, scores=()) == before


def test_the_reference_is_how_often_the_service_gives_each_answer_to_an_expression() -> None:
    pairs = [each.row.pair for each in BY_HAND]
    held_out = replace(TINY, val_fraction=0.0, test_fraction=0.99)
    spec = replace(SPEC, provenance=held_out.spec().provenance)
    answered = answered_of(spec, Path("pairs.csv"), pairs, answers=BY_HAND)
    reference = spec_reference(evaluate(BY_HAND, spec), answered)
    shares = {"negative": 1 / 4, "positive": 1 / 4, "surprise": 0, "abstained": 2 / 4}
    assert reference.shares == shares
    assert reference.answers == 4
    assert "clips with an expression only" in reference.protocol
    assert "interval" not in reference.protocol
    assert reference.protocol.endswith("4 clips of 3 people")
    assert replace(spec, reference=reference).reference == reference


@pytest.mark.parametrize(
    ("blendshapes", "moves"), [(None, "own table"), ("5207b1f0", "measured blendshapes")]
)
def test_a_protocol_names_seed_and_displacements_of_synthetic_pairs(
    tmp_path: Path, blendshapes: str | None, moves: str
) -> None:
    note = {"seed": 7, "blendshapes_sha256": blendshapes}
    (tmp_path / "synth.json").write_text(json.dumps(note))
    pairs = [each.row.pair for each in BY_HAND]
    spec = replace(TINY, val_fraction=0.0, test_fraction=0.99).spec()
    words = protocol(answered_of(spec, tmp_path / "pairs.csv", pairs))
    assert "`mfdan-train synth`, seed 7," in words
    assert moves in words


def test_a_protocol_names_the_data_sets_of_other_pairs(tmp_path: Path) -> None:
    pairs = [each.row.pair for each in BY_HAND]
    spec = replace(TINY, val_fraction=0.0, test_fraction=0.99).spec()
    assert protocol(answered_of(spec, tmp_path, pairs)).startswith("clips of d, e, people of the")
