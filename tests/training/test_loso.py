import io
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from drawn_loso import SMALL, evaluate, finished, plain_run, tables
from drawn_pairs import draw_pair
from rich.console import Console
from torch import Tensor, nn

from model.errors import MfdanError
from training.config import RunConfig, Tuning
from training.data.dataset import class_indices, labelled
from training.data.pairs import read_pairs, write_pairs
from training.data.prepare import Prepared
from training.folds import loso_folds
from training.loso import MethodPlan, Options, run_fold
from training.loso_folder import MethodFolder, file_name, locked
from training.loso_run import show_tables
from training.methods import _BestSoFar
from training.report.run_folder import read_runs
from training.run import Run
from training.run_log import Event, RunLog
from training.scoring import ScoreTable, read_predictions, score


@pytest.fixture(scope="module")
def plain(pairs_folder: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert prepared.rows
    return plain_run(pairs_folder, tmp_path_factory.getbasetemp())


@pytest.fixture
def begun(plain: Path, tmp_path: Path) -> Path:
    """The same run with two of the network's folds not done."""
    out = tmp_path / "begun"
    shutil.copytree(plain, out)
    for name in LOST:
        (out / name).unlink()
    return out


LOST = [f"mfdan/folds/seed-2/drawn%2F{number}.json" for number in (0, 4)]


def test_each_clip_is_predicted_once_with_each_seed_by_the_fold_of_its_person(
    plain: Path, prepared: Prepared
) -> None:
    classes, predictions = read_predictions(plain / "mfdan" / "predictions.csv")
    assert classes == SMALL.classes
    keys = [row.pair.key for row in prepared.rows if row.pair.label != "none"]
    assert [(p.seed, p.key) for p in predictions] == [(s, key) for s in (1, 2) for key in keys]
    assert all(p.fold == p.person for p in predictions)
    for p in predictions:
        assert sum(p.probabilities) == pytest.approx(1, abs=1e-5)


def test_the_scores_are_those_of_the_table(plain: Path) -> None:
    for method in ("mfdan", "svm", "majority"):
        classes, predictions = read_predictions(plain / method / "predictions.csv")
        expected = score(predictions, classes).to_json()
        assert (plain / method / "scores.json").read_text() == expected


def test_the_svm_learns_the_drawn_faces_and_the_majority_does_not(plain: Path) -> None:
    uf1 = {
        method: ScoreTable.from_json((plain / method / "scores.json").read_text()).row("uf1", "all")
        for method in ("svm", "majority")
    }
    assert uf1["svm"].value > 0.8
    assert uf1["majority"].value == pytest.approx(1 / 6)


def test_the_note_and_the_folds_say_what_was_done(plain: Path) -> None:
    note = json.loads((plain / "mfdan" / "run.json").read_text())
    assert note["protocol"] == "loso"
    assert note["folds"] == [f"drawn/{number}" for number in range(6)]
    assert (note["clips"], note["people"], note["seeds"]) == (18, 6, [1, 2])
    fold = json.loads((plain / "mfdan" / "folds" / "seed-2" / "drawn%2F3.json").read_text())
    assert (fold["fold"], fold["seed"], fold["device"]) == ("drawn/3", 2, "cpu")
    assert (fold["train_clips"], fold["test_clips"]) == (15, 3)
    assert [step for step, _loss in fold["losses"]] == [1, 2, 3, 4, 5]
    assert fold["tuned"] is None
    assert not (plain / "mfdan" / "work").exists()


def test_attention_maps_lie_beside_the_fold_under_the_clips_names(plain: Path) -> None:
    with np.load(plain / "mfdan" / "folds" / "seed-1" / "drawn%2F0.attention.npz") as maps:
        assert sorted(maps) == [f"drawn/0/{label}" for label in SMALL.classes]
        one = maps["drawn/0/negative"]
    assert one.shape == (2, 16, 16)
    assert one.dtype == np.float16
    assert one.mean() == pytest.approx(1, abs=0.01)


def test_two_workers_give_the_same_bytes_as_one(
    plain: Path, pairs_folder: Path, tmp_path: Path
) -> None:
    evaluate(pairs_folder, tmp_path, methods=("mfdan", "svm", "majority"), jobs=2)
    assert len(tables(plain)) == 6
    assert tables(tmp_path) == tables(plain)


def test_folds_that_are_there_are_not_run_again(
    begun: Path, plain: Path, pairs_folder: Path
) -> None:
    before = finished(begun)
    evaluate(pairs_folder, begun, methods=("mfdan", "svm"))
    after = finished(begun)
    assert {name: time for name, time in after.items() if name in before} == before
    assert after.keys() - before.keys() == {*LOST}
    assert tables(begun) == tables(plain)


def test_further_seeds_are_added_to_a_run(plain: Path, pairs_folder: Path, tmp_path: Path) -> None:
    one, two = replace(SMALL, seeds=(1,)), replace(SMALL, seeds=(1, 2))
    text = evaluate(pairs_folder, tmp_path, one, methods=("majority",))
    assert "1 seed: too few for a result to be reported" in text
    before = finished(tmp_path)
    evaluate(pairs_folder, tmp_path, two, methods=("majority",))
    assert before.items() < finished(tmp_path).items()
    assert tables(tmp_path).items() < tables(plain).items()


def interrupted(at_step: int, manifest: Path, out: Path, config: RunConfig) -> None:
    """Have Ctrl-C come in the first fold, after a step and before its checkpoint."""
    write = RunLog.write

    def die(self: RunLog, event: Event) -> None:
        write(self, event)
        if event.step == at_step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "write", die)
        evaluate(manifest, out, config)


def test_a_run_that_lacks_folds_shows_no_table(begun: Path, pairs_folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(1, pairs_folder, begun, SMALL)
    assert not (begun / "mfdan" / "scores.json").exists()
    assert not (begun / "mfdan" / "predictions.csv").exists()


def test_a_fold_goes_on_inside_from_its_checkpoint(
    begun: Path, plain: Path, pairs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, checkpoint_every=1)
    step = Run.train_step
    steps: list[int] = []

    def counted(self: Run, *batch: Tensor) -> float:
        steps.append(self.step)
        return step(self, *batch)

    with pytest.raises(KeyboardInterrupt):
        interrupted(3, pairs_folder, begun, config)
    monkeypatch.setattr(Run, "train_step", counted)
    elsewhere_held_out = replace(config, split_seed=4, val_fraction=0.3, test_fraction=0.0)
    evaluate(pairs_folder, begun, elsewhere_held_out)
    assert Counter(steps) == {0: 1, 1: 1, 2: 2, 3: 2, 4: 2}
    assert tables(begun) == tables(plain)
    losses = [json.loads((out / LOST[0]).read_text())["losses"] for out in (begun, plain)]
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def oracle(plain: Path, pairs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert plain.exists()
    out = tmp_path_factory.mktemp("oracle")
    text = evaluate(pairs_folder, out, replace(SMALL, seeds=(1,)), options=Options(oracle=True))
    (out / "printed.txt").write_text(text)
    return out


def test_the_oracle_epoch_does_not_change_the_result(plain: Path, oracle: Path) -> None:
    honest = (plain / "mfdan" / "predictions.csv").read_text().splitlines()
    beside = (oracle / "mfdan" / "predictions.csv").read_text().splitlines()
    assert beside == honest[: 1 + 18]


class Answering(nn.Module):
    """Says the same of each batch."""

    def __init__(self, answers: list[int], certainty: float) -> None:
        super().__init__()
        self.logits = certainty * torch.eye(3)[answers]

    def forward(self, image: Tensor, flow: Tensor) -> Tensor:
        assert len(image) == len(flow) == len(self.logits)
        return self.logits

    def averaged_network(self) -> nn.Module:
        return self


def test_the_oracle_epoch_is_the_first_with_the_most_right_clips(
    prepared: Prepared, tmp_path: Path
) -> None:
    fold = loso_folds(labelled(prepared.rows, SMALL))[0]
    assert class_indices(fold.test, SMALL) == [0, 1, 2]
    best = _BestSoFar(tmp_path / "best_epoch.json", SMALL, prepared, fold, "cpu")
    epochs = [[0, 0, 0], [0, 1, 2], [0, 1, 2], [0, 1, 1]]  # 1, 3, 3 and 2 are right
    for epoch, answers in enumerate(epochs, start=1):
        best.hear(epoch, cast("Run", Answering(answers, certainty=epoch)))
    found = best.read()
    assert (found.epoch, found.right) == (2, 3)
    expected = (2 * torch.eye(3)).softmax(dim=1).numpy()
    np.testing.assert_array_equal(found.probabilities, expected)


def test_the_oracles_table_holds_the_answers_of_each_folds_best_epoch(oracle: Path) -> None:
    classes, honest = read_predictions(oracle / "mfdan" / "predictions.csv")
    _classes, leaking = read_predictions(oracle / "mfdan" / "oracle.csv")
    right = [
        Counter(p.fold for p in table if p.predicted(classes) == p.label)
        for table in (honest, leaking)
    ]
    for path in (oracle / "mfdan" / "folds" / "seed-1").glob("*.json"):
        fold = json.loads(path.read_text())
        assert fold["oracle"]["right"] == right[1][fold["fold"]] >= right[0][fold["fold"]]
        assert 1 <= fold["oracle"]["epoch"] <= 3
        if fold["oracle"]["epoch"] == 3:
            assert fold["oracle"]["predictions"] == fold["predictions"]


def test_the_oracle_score_is_printed_beside_the_result_as_one_that_leaks(oracle: Path) -> None:
    text = (oracle / "printed.txt").read_text()
    assert "chosen by the held-out people's own labels, which leaks them" in text
    assert "never the result" in text
    assert "last epoch: the result" in text


def test_a_run_begun_otherwise_is_refused_and_what_differs_is_named(
    begun: Path, pairs_folder: Path
) -> None:
    before = tables(begun)
    for changed, complaint in (
        (replace(SMALL, learning_rate=0.5, loss="cross_entropy"), "another learning_rate, loss;"),
        (replace(SMALL, label_map={"none": "negative"}), "another label_map, set of clips"),
    ):
        with pytest.raises(ValueError, match=complaint):
            evaluate(pairs_folder, begun, changed)
    with pytest.raises(ValueError, match="another --oracle-epoch; choose another --out"):
        evaluate(pairs_folder, begun, options=Options(oracle=True))
    assert tables(begun) == before


def test_what_changes_nothing_may_change(plain: Path, pairs_folder: Path) -> None:
    before = finished(plain)
    config = replace(SMALL, loader_workers=3, checkpoint_every=7, seed=9, val_fraction=0.0)
    evaluate(pairs_folder, plain, config)
    assert finished(plain) == before


def test_methods_of_one_run_have_the_same_clips(begun: Path, pairs_folder: Path) -> None:
    shutil.rmtree(begun / "svm")
    changed = replace(SMALL, label_map={"surprise": ""})
    with pytest.raises(ValueError, match="holds mfdan with another set of clips"):
        evaluate(pairs_folder, begun, changed, methods=("svm",))


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (replace(SMALL, classes=SMALL.classes[::-1]), "holds mfdan with another order of classes"),
        (
            replace(SMALL, label_map={"surprise": "positive"}),
            "holds mfdan with another set of clips",
        ),
    ],
    ids=["order", "target"],
)
def test_methods_of_one_run_have_the_same_classes(
    changed: RunConfig, complaint: str, begun: Path, pairs_folder: Path
) -> None:
    shutil.rmtree(begun / "svm")
    with pytest.raises(ValueError, match=complaint):
        evaluate(pairs_folder, begun, changed, methods=("svm",))
    assert not (begun / "svm").exists()


def test_runs_with_another_order_of_classes_are_not_compared(
    plain: Path, pairs_folder: Path, tmp_path: Path
) -> None:
    other = replace(SMALL, classes=SMALL.classes[::-1])
    evaluate(pairs_folder, tmp_path / "other", other, methods=("majority",))
    shutil.copytree(plain / "mfdan", tmp_path / "mfdan")
    shutil.copytree(tmp_path / "other" / "majority", tmp_path / "majority")
    with pytest.raises(ValueError, match=r"negative, positive, surprise in mfdan, and surprise, p"):
        show_tables(tmp_path, Console(file=io.StringIO()))
    with pytest.raises(ValueError, match="runs of different classes cannot be compared"):
        read_runs([tmp_path])


def test_another_picture_under_the_same_name_is_another_set_of_clips(
    odd_manifest: Path, tmp_path: Path
) -> None:
    """Ready-made flow, of whose motion nothing is known: its numbers alone differ."""
    manifest = tmp_path / "ready.csv"
    rows = [
        replace(pair, onset="", apex="", image=pair.onset, flow=f"{place}.npy")
        for place, pair in enumerate(read_pairs(odd_manifest))
    ]
    write_pairs(manifest, rows)
    for pair in rows:
        shutil.copy(odd_manifest.parent / pair.image, tmp_path)
        np.save(tmp_path / pair.flow, np.ones((2, 240, 320), np.float32))
    evaluate(manifest, tmp_path / "run", methods=("majority",))
    evaluate(manifest, tmp_path / "run", methods=("majority",))
    np.save(tmp_path / "2.npy", np.full((2, 240, 320), 2, np.float32))
    with pytest.raises(ValueError, match="was begun with another set of clips"):
        evaluate(manifest, tmp_path / "run", methods=("majority",))


def test_copied_clips_are_the_same_set(odd_manifest: Path, tmp_path: Path) -> None:
    evaluate(odd_manifest, tmp_path / "run", methods=("majority",))
    for path in odd_manifest.parent.iterdir():
        if path.is_file():
            shutil.copyfile(path, tmp_path / path.name)
    before = finished(tmp_path / "run")
    evaluate(tmp_path / "odd.csv", tmp_path / "run", methods=("majority",))
    assert finished(tmp_path / "run") == before


def test_a_run_that_goes_on_on_another_device_says_so(plain: Path, pairs_folder: Path) -> None:
    before = finished(plain)
    on_card = Options(device="cuda")  # every fold is there: no card is asked
    text = evaluate(pairs_folder, plain, methods=("mfdan", "svm"), options=on_card)
    assert "mfdan was begun with another device" in text
    assert "svm was begun" not in text
    assert "another device" not in evaluate(pairs_folder, plain)
    assert finished(plain) == before


def test_a_search_is_refused_where_its_method_is_not_run(
    pairs_folder: Path, tmp_path: Path
) -> None:
    config = replace(SMALL, tune=Tuning(grid={"learning_rate": (0.1, 0.2)}))
    with pytest.raises(ValueError, match=r"--tune searches for mfdan, .* only svm would be run"):
        evaluate(pairs_folder, tmp_path, config, methods=("svm",), options=Options(tune=True))


def test_weights_to_start_from_are_read_only_for_a_network(
    pairs_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "weights.onnx").write_bytes(b"none")
    config = replace(SMALL, init=str(tmp_path / "weights.onnx"))
    evaluate(pairs_folder, tmp_path / "run", config, methods=("majority",))
    assert (tmp_path / "run" / "majority" / "scores.json").is_file()
    with pytest.raises(MfdanError, match=r"there is no file weights\.onnx\.json"):
        evaluate(pairs_folder, tmp_path / "run", config, methods=("mfdan", "majority"))


def test_people_whose_clips_are_left_out_are_no_hindrance_to_a_start(
    pairs_folder: Path, exported: Path, tmp_path: Path
) -> None:
    """The model was trained on `drawn`; with no clip of theirs left, none is scored."""
    rows = read_pairs(pairs_folder)
    others = [
        replace(pair, dataset="other", label=f"their {pair.label}")
        for pair in rows
        if pair.subject in {"1", "2", "3"} and pair.label != "none"
    ]
    write_pairs(pairs_folder / "others.csv", [*rows, *others])
    away = dict.fromkeys((*SMALL.classes, "none"), "")
    theirs = {f"their {name}": name for name in SMALL.classes}
    config = replace(SMALL, init=str(exported), steps=1, seeds=(1,), label_map={**away, **theirs})
    evaluate(pairs_folder / "others.csv", tmp_path, config)
    assert (tmp_path / "mfdan" / "scores.json").is_file()
    with pytest.raises(ValueError, match="was trained on people who are to be scored: drawn/"):
        evaluate(pairs_folder / "others.csv", tmp_path, replace(config, label_map=theirs))


def test_a_damaged_fold_is_named(begun: Path, pairs_folder: Path) -> None:
    path = begun / "svm" / "folds" / "seed-1" / "drawn%2F1.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=r"drawn%2F1.json is damaged: delete it"):
        evaluate(pairs_folder, begun, methods=("svm",))


def test_two_runs_do_not_share_a_folder(begun: Path, pairs_folder: Path) -> None:
    with locked(begun), pytest.raises(ValueError, match="another `mfdan-train loso` is at work"):
        evaluate(pairs_folder, begun)


def test_diverged_folds_are_named_and_the_other_methods_finish(
    plain: Path, pairs_folder: Path, tmp_path: Path
) -> None:
    config = replace(SMALL, seeds=(2,), learning_rate=1e30, optimiser="adamw")
    with pytest.raises(
        ValueError, match=r"6 folds failed.*mfdan, seed 2, fold drawn/0: training diverged"
    ):
        evaluate(pairs_folder, tmp_path, config, methods=("mfdan", "svm"))
    assert not (tmp_path / "mfdan" / "scores.json").exists()
    ours, theirs = (
        (out / "svm" / "predictions.csv").read_text().splitlines() for out in (tmp_path, plain)
    )
    assert ours[1:] == theirs[1 + 18 :]


def test_a_damaged_checkpoint_costs_its_fold_one_try(
    begun: Path, plain: Path, pairs_folder: Path
) -> None:
    work = begun / "mfdan" / "work" / "seed-2" / "drawn%2F4"
    checkpoint = work / "fit" / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"torn")
    searched = work / "tuning" / "candidate-0" / "inner-0.json"
    searched.parent.mkdir(parents=True)
    searched.write_text("[]")
    with pytest.raises(ValueError, match=r"1 fold failed.*fold drawn/4: .*checkpoint"):
        evaluate(pairs_folder, begun)
    assert not checkpoint.parent.exists()
    assert searched.exists()
    evaluate(pairs_folder, begun)
    assert tables(begun) == tables(plain)


def test_a_damaged_checkpoint_of_a_search_costs_no_finished_part_of_it(
    pairs_folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    grid = Tuning(grid={"learning_rate": (0.001, 1e12)}, folds=2)
    manifest = str(pairs_folder / "pairs.csv")
    config = replace(SMALL, steps=8, optimiser="adamw", seeds=(1,), pairs=manifest, tune=grid)
    job = MethodPlan.of(config, prepared, tmp_path, Options(tune=True)).jobs[0]
    search = tmp_path / "mfdan" / "work" / "seed-1" / "drawn%2F0" / "tuning" / "candidate-0"
    checkpoint = search / "inner-1" / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"torn")
    with pytest.raises(ValueError, match="checkpoint"):
        run_fold(job)
    assert [path.name for path in search.iterdir()] == ["inner-0.json"]
    run_fold(job)
    fold = MethodFolder(job.out).read_fold(1, "drawn/0")
    assert fold["tuned"] == {"learning_rate": 0.001}
    assert fold["tuning_scores"][0] >= 0
    assert fold["tuning_scores"][1] is None


def test_a_worker_refuses_clips_other_than_those_the_run_was_planned_with(
    pairs_folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    config = replace(SMALL, method="majority", pairs=str(pairs_folder / "pairs.csv"))
    job = MethodPlan.of(config, prepared, tmp_path, Options()).jobs[0]
    with pytest.raises(ValueError, match="is not what the run began with"):
        run_fold(replace(job, rows_sha256="0" * 64))
    assert not list(tmp_path.rglob("*.json"))


@pytest.fixture(scope="module")
def odd_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets; one of the people has a name that no file system likes."""
    folder = tmp_path_factory.mktemp("odd")
    rows = [
        replace(draw_pair(folder, who, label), dataset=dataset, subject=subject)
        for dataset, who, subject, label in (
            ("one", 0, "..ä b:*", "negative"),
            ("one", 0, "..ä b:*", "positive"),
            ("one", 1, "1", "negative"),
            ("two", 2, "1", "positive"),
            ("two", 3, "2", "surprise"),
        )
    ]
    write_pairs(folder / "odd.csv", rows)
    return folder / "odd.csv"


def test_one_data_set_is_left_out(odd_manifest: Path, tmp_path: Path) -> None:
    text = evaluate(odd_manifest, tmp_path, methods=("majority",), options=Options(protocol="lodo"))
    _classes, predictions = read_predictions(tmp_path / "majority" / "predictions.csv")
    assert {(p.fold, p.dataset) for p in predictions} == {("one", "one"), ("two", "two")}
    assert "fold two: no clip of surprise to train on" in text
    assert "fold one: no clip of negative to train on" in text
    assert "majority: lodo, 2 folds" in text


def test_odd_names_of_people_stay_inside_the_runs_folder(
    odd_manifest: Path, tmp_path: Path
) -> None:
    evaluate(odd_manifest, tmp_path / "run", methods=("majority",))
    names = [path.name for path in (tmp_path / "run" / "majority" / "folds" / "seed-1").iterdir()]
    assert "one%2F..%C3%A4%20b%3A%2A.json" in names
    assert len(names) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    _classes, predictions = read_predictions(tmp_path / "run" / "majority" / "predictions.csv")
    assert {p.subject for p in predictions} == {"..ä b:*", "1", "2"}


def test_file_names_are_plain_and_differ() -> None:
    long = ["a" * 300 + end for end in "xy"]
    names = [file_name(name) for name in ("..", ".a", "a/b", "a%2Fb", "é" * 99, *long)]
    assert names[:4] == ["%2E.", "%2Ea", "a%2Fb", "a%252Fb"]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 120


def test_temporary_files_of_a_killed_process_are_removed(begun: Path, pairs_folder: Path) -> None:
    left = begun / "svm" / "folds" / "seed-1" / ".drawn%2F0.json.123.tmp"
    left.write_text("half a")
    evaluate(pairs_folder, begun, methods=("svm",))
    assert not left.exists()


def test_a_fold_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = MethodFolder(tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        folder.write_fold({"seed": 1, "fold": "a", "seconds": float("nan")}, {})
    assert not folder.finished(1, "a")
    assert list((tmp_path / "folds" / "seed-1").iterdir()) == []


def test_dropped_clips_are_printed_and_recorded(odd_manifest: Path, tmp_path: Path) -> None:
    rows = read_pairs(odd_manifest)
    rows[1] = replace(rows[1], apex="missing.png")
    manifest = odd_manifest.with_name("holes.csv")
    write_pairs(manifest, rows)
    text = evaluate(manifest, tmp_path, methods=("majority",))
    note = json.loads((tmp_path / "majority" / "run.json").read_text())
    assert list(note["dropped"]) == ["one/..ä b:*/positive"]
    assert "missing.png" in note["dropped"]["one/..ä b:*/positive"]
    assert "missing.png" in text
    assert note["clips"] == 4


def test_every_fold_leaves_its_curves_for_tensorboard_and_no_checkpoint(plain: Path) -> None:
    for number in range(6):
        folder = plain / "mfdan" / "tensorboard" / "seed-1" / f"drawn%2F{number}"
        assert list(folder.glob("events.out.tfevents.*"))
    assert not list(plain.rglob("checkpoint.pt"))
