"""A real, tiny pairs folder of drawn faces, prepared by the code that prepares real ones."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from drawn_pairs import MOVES, PEOPLE, TINY, Fitted, as_toml, draw_pair, write_rows
from typer.testing import CliRunner

from training.commands import export
from training.config import RunConfig
from training.data.dataset import rows_of
from training.data.prepare import Prepared, prepare
from training.loop import CHECKPOINT, Basis, FitData, Run


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
    return TINY


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each of six people makes each expression once, and once none."""
    folder = tmp_path_factory.mktemp("pairs")
    write_rows(folder, [draw_pair(folder, who, label) for who in range(PEOPLE) for label in MOVES])
    return folder


@pytest.fixture(scope="session")
def prepared(pairs_folder: Path, tiny_config: RunConfig) -> Prepared:
    return prepare(pairs_folder, tiny_config.spec(), workers=1)


@pytest.fixture(scope="session")
def fit_data(prepared: Prepared, tiny_config: RunConfig) -> FitData:
    """The training people; those of `val` are watched."""
    train, watch = (rows_of(prepared, tiny_config.holdout, split) for split in ("train", "val"))
    return FitData(prepared, train, watch)


@pytest.fixture(scope="session")
def fitted(
    pairs_folder: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Fitted:
    assert prepared.rows
    folder = tmp_path_factory.mktemp("fit")
    config = replace(TINY, steps=40, evaluate_every=40, checkpoint_every=40)
    (folder / "tiny.toml").write_text(as_toml(config))
    run = folder / "run"
    command = [sys.executable, "-c", "from training.cli import app; app()", "fit"]
    command += [str(pairs_folder), "--out", str(run), "--device", "cpu"]
    command += ["--config", str(folder / "tiny.toml")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:  # noqa: S603 - our own command
        while not (run / "config.json").is_file() and process.poll() is None:
            time.sleep(0.01)  # written just before the first step
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    stopped = subprocess.CompletedProcess(command, process.returncode, out, err)
    resumed = subprocess.run(command, timeout=300, check=False, **pipes)  # noqa: S603 - likewise
    return Fitted(run, config, stopped, resumed)


@pytest.fixture(scope="session")
def wide_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights are drawn wide: a silent network proves no parity."""
    folder = tmp_path_factory.mktemp("run")
    run = Run(TINY, Basis(steps=40, datasets=("drawn",)))
    run.step = 40
    torch.manual_seed(1)
    for weight in run.average.values():
        if weight.dim() > 1:
            weight.normal_(std=weight.shape[-1] ** -0.5)
    run.average["head.bias"] += torch.tensor([0.1, 0.2, 0.3])
    run.save(folder / CHECKPOINT)
    return folder


@pytest.fixture(scope="session")
def exported(wide_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `mfdan-train export` writes; torch takes its time, so there is one."""
    path = tmp_path_factory.mktemp("export") / "tiny.onnx"
    app = typer.Typer()
    app.command()(export)
    options = ["--run", str(wide_run), "--out", str(path), "--name", "tiny", "--version", "2"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert "after 40 steps" in result.output
    return path
