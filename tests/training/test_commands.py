import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drawn_pairs import TINY, Fitted, as_toml
from typer.testing import CliRunner, Result

from training.cli import app
from training.data.prepare import Prepared, prepared_folder
from training.loop import CHECKPOINT, Basis, Run


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.rstrip("\n").splitlines()[-1:]
    assert "Traceback" not in result.output
    for part in parts:
        assert part in line


def test_fit_stops_at_ctrl_c_and_the_same_command_finishes_the_run(fitted: Fitted) -> None:
    assert fitted.stopped.returncode == 130, fitted.stopped.stderr
    assert "the same command goes on from there" in fitted.stopped.stderr
    assert fitted.resumed.returncode == 0, fitted.resumed.stderr
    assert "trained 40 steps" in fitted.resumed.stderr
    with (fitted.folder / "steps.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 41))
    assert Run.load(fitted.folder / CHECKPOINT).step == 40


def test_prepare_makes_what_fit_reads(
    pairs_folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    pictures = {row.pair.onset for row in prepared.rows} | {row.pair.apex for row in prepared.rows}
    for name in (*sorted(pictures)[:8], "pairs.csv"):
        shutil.copy(pairs_folder / name, tmp_path)
    (tmp_path / "tiny.toml").write_text(as_toml(TINY))
    result = run("prepare", "--pairs", tmp_path, "--config", tmp_path / "tiny.toml")
    assert result.exit_code == 0, result.output
    assert "20 pairs are left out" in result.stderr
    assert (prepared_folder(tmp_path, TINY.spec()) / "0.json").is_file()


@pytest.mark.parametrize("command", ["prepare", "fit"])
def test_a_folder_without_its_list_is_told_in_one_line(command: str, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"] if command == "fit" else []
    assert_one_line(run(command, "--pairs", tmp_path, *out), "pairs.csv")


@pytest.mark.parametrize("command", ["prepare", "fit"])
def test_a_bad_config_is_told_in_one_line(command: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('data = "d"\nlicence = "l"\nstepps = 3\nbatch_size = 0\n')
    out = ["--out", tmp_path / "run"] if command == "fit" else []
    result = run(command, "--pairs", tmp_path, *out, "--config", path)
    assert_one_line(result, "bad.toml", "stepps", "batch_size")


@pytest.mark.parametrize("content", ["nothing", "junk", "cut", "other", "part"])
def test_a_bad_checkpoint_is_told_in_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    if content == "junk":
        path.write_bytes(b"junk")
    elif content == "cut":
        Run(TINY, Basis(steps=6)).save(path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif content == "other":
        torch.save([1, 2], path)
    elif content == "part":
        torch.save({"config": TINY.to_json()}, path)
    result = run("export", "--run", tmp_path, "--out", tmp_path / "out.onnx")
    assert_one_line(result, CHECKPOINT)


@pytest.mark.parametrize("command", ["calibrate", "evaluate"])
def test_a_model_without_its_spec_is_told_in_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"junk")
    result = run(command, "--model", tmp_path / "m.onnx", "--pairs", tmp_path)
    assert_one_line(result, "m.onnx.json")


def test_too_few_minutes_for_a_step_are_refused(
    pairs_folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    assert prepared.rows
    (tmp_path / "tiny.toml").write_text(as_toml(replace(TINY, steps=8)))
    options = ["--config", tmp_path / "tiny.toml", "--minutes", "0"]
    result = run("fit", "--pairs", pairs_folder, "--out", tmp_path / "run", *options)
    assert_one_line(result, "0 minutes are too few")
    assert not (tmp_path / "run").exists()


def test_steps_and_minutes_are_not_both_taken(pairs_folder: Path, tmp_path: Path) -> None:
    options = ["--steps", "3", "--minutes", "1"]
    result = run("fit", "--pairs", pairs_folder, "--out", tmp_path / "run", *options)
    assert result.exit_code == 2
    assert "--steps and --minutes" in result.stderr
