import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.config import RunConfig
from training.loop import CHECKPOINT, Basis, Event, FitData, Run, fit, stop_on_signals


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
