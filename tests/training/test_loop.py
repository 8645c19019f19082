import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_pairs import TINY

from model.pipeline import network_inputs
from training.config import RunConfig
from training.divergence import PATIENCE
from training.loop import (
    CHECKPOINT,
    Basis,
    Diverged,
    Event,
    FitData,
    Run,
    fit,
    predict,
    stop_on_signals,
)


def stop_after(steps: int) -> Callable[[], bool]:
    calls = iter(range(steps))
    return lambda: next(calls) == steps - 1


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path, stop: int
) -> None:
    whole = fit(tiny_config, fit_data, tmp_path / "whole")
    begun = fit(tiny_config, fit_data, tmp_path / "cut", should_stop=stop_after(stop))
    assert begun.step == stop
    resumed = fit(tiny_config, fit_data, tmp_path / "cut")
    assert resumed.step == whole.step == tiny_config.steps
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], weight), name
        assert torch.equal(resumed.average[name], whole.average[name]), name
    scores = [(tmp_path / run / "scores.csv").read_text() for run in ("whole", "cut")]
    assert scores[0] == scores[1]


def test_a_run_killed_between_checkpoints_repeats_the_lost_steps(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path
) -> None:
    def die(event: Event) -> None:
        if event.step == 5:  # the last checkpoint is of step 4
            raise KeyboardInterrupt

    whole = fit(tiny_config, fit_data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_config, fit_data, tmp_path / "cut", report=die)
    resumed = fit(tiny_config, fit_data, tmp_path / "cut")
    assert torch.equal(resumed.average["head.weight"], whole.average["head.weight"])
    steps = [
        line.split(",")[:2] for line in (tmp_path / "cut" / "steps.csv").read_text().splitlines()
    ]
    assert [step for step, _loss in steps] == ["step", "1", "2", "3", "4", "5", "6"]


def test_a_finished_run_does_nothing_more(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path
) -> None:
    fit(tiny_config, fit_data, tmp_path)
    events: list[Event] = []
    assert fit(tiny_config, fit_data, tmp_path, report=events.append).step == tiny_config.steps
    assert events == []


def test_another_config_does_not_go_on_with_a_checkpoint(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path
) -> None:
    fit(tiny_config, fit_data, tmp_path, should_stop=stop_after(1))
    changed = replace(tiny_config, learning_rate=0.5, seed=2)
    with pytest.raises(ValueError, match="another seed, learning_rate"):
        fit(changed, fit_data, tmp_path)


def test_held_out_people_are_scored_on_time_and_at_the_end(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path
) -> None:
    events: list[Event] = []
    fit(replace(tiny_config, steps=4), fit_data, tmp_path, report=events.append)
    assert [event.step for event in events if event.scores] == [3, 4]


def test_scoring_more_often_does_not_change_what_is_learned(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path
) -> None:
    often, never = (
        fit(replace(tiny_config, evaluate_every=every), fit_data, tmp_path / str(every))
        for every in (1, 100)
    )
    assert torch.equal(often.average["head.weight"], never.average["head.weight"])


def test_training_brings_the_loss_down(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path
) -> None:
    losses: list[float] = []
    config = replace(tiny_config, steps=40, learning_rate=3e-3, evaluate_every=40)
    fit(config, fit_data, tmp_path, report=lambda event: losses.append(event.loss))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_bfloat16_trains_too(fit_data: FitData, tiny_config: RunConfig, tmp_path: Path) -> None:
    events: list[Event] = []
    fit(replace(tiny_config, bfloat16=True, steps=2), fit_data, tmp_path, report=events.append)
    assert all(0 < event.loss < 10 for event in events)


def test_the_exported_weights_are_the_running_average(tiny_config: RunConfig) -> None:
    run = Run(replace(tiny_config, average_decay=0.25), Basis(steps=6))
    before = run.average["head.weight"].clone()
    batch = torch.rand(4, 3, 64, 64)
    run.train_step(batch, batch, torch.tensor([0, 1, 2, 0]))
    # After step 1 the average follows with weight .1, less than .25 asks for.
    expected = 0.1 * before + 0.9 * run.network.head.weight
    torch.testing.assert_close(run.averaged_network().head.weight, expected)


def test_a_checkpoint_tells_config_step_and_commit(tiny_config: RunConfig, tmp_path: Path) -> None:
    run = Run(tiny_config, Basis(steps=6))
    run.step = 3
    run.commit = "abc"
    run.save(tmp_path / CHECKPOINT)
    loaded = Run.load(tmp_path / CHECKPOINT)
    assert (loaded.config, loaded.step, loaded.commit) == (tiny_config, 3, "abc")
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_stop_instead_of_killing(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), number)
        assert should_stop()
    assert signal.getsignal(number) == before


def test_two_runs_are_equal_bit_for_bit_whoever_prepares_their_samples(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path
) -> None:
    """Threads are fixed by the config; a process of its own loads for the second run."""
    runs = [
        fit(replace(tiny_config, loader_workers=workers), fit_data, tmp_path / str(workers))
        for workers in (0, 1)
    ]
    for name, weight in runs[0].network.state_dict().items():
        assert torch.equal(runs[1].network.state_dict()[name], weight), name


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "cross_entropy"},
        {"optimiser": "adamw"},
        {"balanced": True},
        {"average_decay": 0.0},
        {"network": replace(TINY.network, flow_attention=False)},
        {"network": replace(TINY.network, dropkey=0.0)},
    ],
    ids=str,
)
def test_every_ablation_trains_and_goes_on_after_an_interruption(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path, change: dict[str, Any]
) -> None:
    config = replace(tiny_config, steps=3, **change)
    whole = fit(config, fit_data, tmp_path / "whole")
    fit(config, fit_data, tmp_path / "cut", should_stop=stop_after(2))
    resumed = fit(config, fit_data, tmp_path / "cut")
    plain = fit(replace(tiny_config, steps=3), fit_data, tmp_path / "plain")
    assert resumed.average.keys() == whole.average.keys()
    for name, weight in whole.average.items():
        assert torch.equal(resumed.average[name], weight), name
    assert not torch.equal(plain.average["head.weight"], whole.average["head.weight"])


def test_epochs_fix_the_steps_by_the_rows_that_are_trained_on(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path
) -> None:
    """Pairs in which nothing happens are passed over: they make no epoch longer."""
    kept = sum(row.pair.label != "none" for row in fit_data.train)
    config = replace(tiny_config, steps=None, epochs=2)
    run = fit(config, fit_data, tmp_path)
    assert run.steps == run.step == -(-2 * kept // config.batch_size)
    assert Run.load(tmp_path / CHECKPOINT).basis == run.basis
    assert run.basis.datasets == ("drawn",)


def test_each_epoch_is_told_and_the_last_part_of_one(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    kept = sum(row.pair.label != "none" for row in fit_data.train)
    config = replace(tiny_config, steps=7, batch_size=kept // 3)
    fit(config, fit_data, tmp_path, each_epoch=lambda epoch, run: told.append((epoch, run.step)))
    assert told == [(1, 3), (2, 6), (3, 7)]


def test_what_is_done_after_an_epoch_costs_the_run_no_random_numbers(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, batch_size=2)

    def draw(_epoch: int, run: Run) -> None:
        torch.rand(100)
        predict(run.averaged_network(), fit_data.prepared, fit_data.train, config)

    plain = fit(config, fit_data, tmp_path / "plain")
    disturbed = fit(config, fit_data, tmp_path / "disturbed", each_epoch=draw)
    assert torch.equal(plain.average["head.weight"], disturbed.average["head.weight"])


def test_predictions_are_what_serving_s_inputs_give_in_the_order_of_the_rows(
    fit_data: FitData, tiny_config: RunConfig
) -> None:
    network = Run(tiny_config, Basis(steps=1)).averaged_network()
    rows = list(reversed(fit_data.prepared.rows))[:7]  # two batches; some of label "none"
    answers = predict(network, fit_data.prepared, rows, tiny_config)
    assert answers.shape == (7, 3)
    assert answers.dtype == np.float32
    for row, answer in zip(rows, answers, strict=True):
        inputs = network_inputs(*fit_data.prepared.arrays(row), tiny_config.spec())
        with torch.no_grad():
            logits = network(*(torch.from_numpy(part)[None] for part in inputs))
        np.testing.assert_allclose(answer, logits.softmax(dim=1)[0].numpy(), atol=1e-6)


def test_predicting_nothing_gives_an_empty_table(fit_data: FitData, tiny_config: RunConfig) -> None:
    network = Run(tiny_config, Basis(steps=1)).averaged_network()
    assert predict(network, fit_data.prepared, [], tiny_config).shape == (0, 3)


def test_a_label_outside_the_map_stops_a_run_before_anything_is_written(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, classes=("negative", "positive", "other"))
    with pytest.raises(ValueError, match="is 'surprise'"):
        fit(config, fit_data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_watched_label_outside_the_map_does_too(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path
) -> None:
    watch = [replace(row, pair=replace(row.pair, label="fear")) for row in fit_data.watch]
    with pytest.raises(ValueError, match="is 'fear'"):
        fit(tiny_config, replace(fit_data, watch=watch), tmp_path / "run")


@pytest.mark.parametrize("change", ["one less", "another order", "another label"])
def test_a_run_does_not_go_on_with_other_rows(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path, change: str
) -> None:
    fit(tiny_config, fit_data, tmp_path, should_stop=stop_after(1))
    train = list(fit_data.train)
    if change == "one less":
        train = train[1:]
    elif change == "another order":
        train.reverse()
    else:
        label = "positive" if train[0].pair.label == "negative" else "negative"
        train[0] = replace(train[0], pair=replace(train[0].pair, label=label))
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(ValueError, match="trained on other rows"):
        fit(tiny_config, replace(fit_data, train=train), tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_checkpoint_of_version_0_1_still_loads(tiny_config: RunConfig, tmp_path: Path) -> None:
    """It held neither rows nor steps."""
    run = Run(tiny_config, Basis(steps=6, rows_sha256="abc"))
    run.save(tmp_path / CHECKPOINT)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del state["basis"]
    document = json.loads(state["config"])
    for new in ("label_map", "epochs", "init", "optimiser", "loss", "balanced", "tune"):
        del document[new]
    state["config"] = json.dumps(document)
    torch.save(state, tmp_path / CHECKPOINT)
    loaded = Run.load(tmp_path / CHECKPOINT, tiny_config, Basis(steps=6, rows_sha256="other"))
    assert loaded.steps == 6
    assert Run.load(tmp_path / CHECKPOINT).basis == Basis(steps=6)


@pytest.mark.parametrize("optimiser", ["adan", "adamw"])
def test_an_absurd_learning_rate_is_told_early_and_the_last_good_checkpoint_stays(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path, optimiser: str
) -> None:
    config = replace(
        tiny_config,
        optimiser=optimiser,
        learning_rate=1e3,
        warmup_fraction=0.0,
        steps=200,
        checkpoint_every=1,
    )
    told = r"diverged at step \d+: .*loss.* at learning rate \d.\de\+0[23]; try a lower"
    with pytest.raises(Diverged, match=told):
        fit(config, fit_data, tmp_path)
    taken = [row.split(",") for row in (tmp_path / "steps.csv").read_text().splitlines()[1:]]
    assert len(taken) <= PATIENCE
    # The loss of step 2 is the first to show what step 1 did to the weights.
    assert float(taken[0][1]) < 1
    assert float(taken[1][1]) > 1000
    assert Run.load(tmp_path / CHECKPOINT).step == 1


def test_weights_that_are_no_numbers_are_not_saved(tiny_config: RunConfig, tmp_path: Path) -> None:
    run = Run(tiny_config, Basis(steps=6))
    run.step = 1
    run.save(tmp_path / CHECKPOINT)
    good = (tmp_path / CHECKPOINT).read_bytes()
    torch.nn.init.constant_(run.network.head.bias, math.nan)
    with pytest.raises(Diverged, match="step 1: a weight is no number"):
        run.save(tmp_path / CHECKPOINT)
    assert (tmp_path / CHECKPOINT).read_bytes() == good


_SAVE_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from training.run import Run
path = Path(sys.argv[1])
run = Run.load(path)
run.step += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    run.save(path)
except OSError as fault:
    print(fault)
"""


def test_a_full_disk_leaves_the_old_checkpoint_whole_and_names_the_file(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    path = tmp_path / CHECKPOINT
    Run(tiny_config, Basis(steps=6)).save(path)
    before = path.read_bytes()
    assert len(before) > 200_000
    saved = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", _SAVE_ON_A_FULL_DISK, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert saved.returncode == 0, saved.stderr
    assert "File too large" in saved.stdout
    assert str(path) in saved.stdout
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_on_a_gpu_an_interrupted_run_equals_an_uninterrupted_one_and_goes_on_on_a_cpu(
    fit_data: FitData, tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, bfloat16=True)
    whole = fit(config, fit_data, tmp_path / "whole", device="cuda")
    fit(config, fit_data, tmp_path / "cut", device="cuda", should_stop=stop_after(3))
    shutil.copytree(tmp_path / "cut", tmp_path / "moved")
    resumed = fit(config, fit_data, tmp_path / "cut", device="cuda")
    for name, weight in whole.average.items():
        assert torch.equal(resumed.average[name], weight), name
    moved = fit(config, fit_data, tmp_path / "moved", device="cpu")
    assert moved.average["head.weight"].device.type == "cpu"
    answers = [
        predict(run.averaged_network(), fit_data.prepared, fit_data.train, config, run.device)
        for run in (whole, moved)
    ]
    np.testing.assert_allclose(*answers, atol=0.2)
