import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drawn_pairs import TINY, Fitted, as_toml
from typer.testing import CliRunner, Result

from training.cli import app
from training.config import load_config
from training.data.pairs import read_pairs, write_pairs
from training.data.prepare import Prepared
from training.loop import CHECKPOINT, Basis, Run
from training.options import config_path


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


@pytest.mark.parametrize("command", ["prepare", "fit"])
def test_a_folder_without_its_list_is_told_in_one_line(command: str, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"] if command == "fit" else []
    assert_one_line(run(command, tmp_path, *out), "pairs.csv")


@pytest.mark.parametrize("command", ["prepare", "fit"])
def test_a_config_without_a_manifest_asks_for_one(command: str, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"] if command == "fit" else []
    assert_one_line(run(command, *out), "name a manifest")


@pytest.mark.parametrize("command", ["prepare", "fit"])
def test_a_bad_config_is_told_in_one_line(command: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('data = "d"\nlicence = "l"\nstepps = 3\nbatch_size = 0\n')
    out = ["--out", tmp_path / "run"] if command == "fit" else []
    result = run(command, tmp_path, *out, "--config", path)
    assert_one_line(result, "bad.toml", "stepps", "batch_size")


def test_a_config_that_is_neither_a_file_nor_shipped_names_those_that_are(tmp_path: Path) -> None:
    result = run("fit", tmp_path, "--out", tmp_path / "run", "--config", "casme4.toml")
    assert result.exit_code == 2
    assert "casme2.toml" in result.stderr


def test_a_shipped_config_is_known_by_its_file_name() -> None:
    path = config_path("casme2.toml")
    assert load_config(path).name == "mfdan-casme2"


def test_a_file_goes_before_a_shipped_config_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "casme2.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert config_path("casme2.toml") == Path("casme2.toml")


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
    (tmp_path / "pairs.csv").write_text(
        "dataset,subject,clip,label,onset,apex\nd,1,c,none,o.png,a.png\n"
    )
    result = run(command, "--model", tmp_path / "m.onnx", tmp_path)
    assert_one_line(result, "m.onnx.json")


def test_too_few_minutes_for_a_step_are_refused(
    pairs_folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    assert prepared.rows
    (tmp_path / "tiny.toml").write_text(as_toml(replace(TINY, steps=8)))
    options = ["--config", tmp_path / "tiny.toml", "--minutes", "0"]
    result = run("fit", pairs_folder, "--out", tmp_path / "run", *options)
    assert_one_line(result, "0 minutes are too few")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("other", ["--minutes", "--epochs"])
def test_the_length_of_a_run_is_given_once(other: str, pairs_folder: Path, tmp_path: Path) -> None:
    options = ["--steps", "3", other, "1"]
    result = run("fit", pairs_folder, "--out", tmp_path / "run", *options)
    assert result.exit_code == 2
    assert "all fix the steps" in " ".join(result.stderr.split())


def test_an_ablation_is_one_flag(pairs_folder: Path, prepared: Prepared, tmp_path: Path) -> None:
    assert prepared.rows
    (tmp_path / "tiny.toml").write_text(as_toml(replace(TINY, steps=1)))
    flags = ["--no-flow-attention", "--no-dropkey", "--cross-entropy", "--adamw", "--balanced"]
    options = ["--config", tmp_path / "tiny.toml", "--out", tmp_path / "run", *flags]
    result = run("fit", pairs_folder, *options)
    assert result.exit_code == 0, result.output
    config = Run.load(tmp_path / "run" / CHECKPOINT).config
    assert not config.network.flow_attention
    assert config.network.dropkey == 0
    assert (config.loss, config.optimiser, config.balanced) == ("cross_entropy", "adamw", True)


def test_a_person_under_two_names_is_not_trained_on_and_held_out(
    pairs_folder: Path, tmp_path: Path
) -> None:
    pairs = [
        replace(pair, onset=str(pairs_folder / pair.onset), apex=str(pairs_folder / pair.apex))
        for pair in read_pairs(pairs_folder)
    ]
    twice = [replace(pair, subject=f"00{pair.subject}", clip="again") for pair in pairs[:1]]
    write_pairs(tmp_path / "pairs.csv", [*pairs, *twice])
    (tmp_path / "tiny.toml").write_text(as_toml(TINY))
    options = ["--config", tmp_path / "tiny.toml", "--out", tmp_path / "run"]
    assert_one_line(run("fit", tmp_path, *options), "drawn/0 = drawn/000")
    assert not (tmp_path / "run").exists()


def test_a_manifest_that_is_not_made_yet_says_how_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("fit", "--config", "casme2.toml", "--out", tmp_path / "run")
    assert_one_line(result, "data/casme2", "mfdan-train prepare --dataset")
