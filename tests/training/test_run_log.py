from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.run_log import Event, RunLog, Scores


def event(step: int, loss: float, scores: Scores | None = None) -> Event:
    return Event(step, loss, 1e-4 * step, 0.5, scores)


def steps_of(path: Path) -> list[str]:
    return [row.split(",")[0] for row in path.read_text().splitlines()[1:]]


def curve(out: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [(point.step, point.value) for point in events.Scalars(name)]


def test_each_step_is_a_row_and_a_point_of_every_curve(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0, tmp_path / "tensorboard") as log:
        log.write(event(1, 0.5))
        log.write(event(2, 0.25, Scores(0.75, 0.5, 0.625)))
    assert (tmp_path / "steps.csv").read_text().splitlines() == [
        "step,loss,learning_rate,seconds",
        "1,0.500000,1.000e-04,0.500",
        "2,0.250000,2.000e-04,0.500",
    ]
    assert (tmp_path / "scores.csv").read_text().splitlines() == [
        "step,val_loss,val_uf1,val_uar",
        "2,0.750000,0.5000,0.6250",
    ]
    assert curve(tmp_path, "loss") == [(1, 0.5), (2, 0.25)]
    assert curve(tmp_path, "learning_rate") == [(1, pytest.approx(1e-4)), (2, pytest.approx(2e-4))]
    assert curve(tmp_path, "seconds") == [(1, 0.5), (2, 0.5)]
    assert curve(tmp_path, "val_loss") == [(2, 0.75)]
    assert curve(tmp_path, "val_uf1") == [(2, 0.5)]
    assert curve(tmp_path, "val_uar") == [(2, 0.625)]


def test_steps_that_are_taken_again_are_written_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0, tmp_path / "tensorboard") as log:
        for step in (1, 2, 3):
            log.write(event(step, 1.0, Scores(1.0, 0.0, 0.0)))
    with RunLog(tmp_path, 1, tmp_path / "tensorboard") as log:  # the checkpoint was of step 1
        for step in (2, 3, 4):
            log.write(event(step, 2.0, Scores(2.0, 0.0, 0.0)))
    for name in ("steps.csv", "scores.csv"):
        assert steps_of(tmp_path / name) == ["1", "2", "3", "4"]
    assert curve(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]


def test_half_a_row_that_a_full_disk_left_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_text(
        "step,loss,learning_rate,seconds\n11,0.5,1e-4,0.5\n12,0.5,1e-4,0.5\n1"
    )
    (tmp_path / "scores.csv").write_text("")  # not even its header
    with RunLog(tmp_path, 12, tmp_path / "tensorboard"):
        pass
    assert steps_of(tmp_path / "steps.csv") == ["11", "12"]
