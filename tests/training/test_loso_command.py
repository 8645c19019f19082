import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from drawn_loso import SMALL, finished, plain_run, tables
from drawn_pairs import as_toml
from typer.testing import CliRunner, Result

from training.cli import app
from training.config import RunConfig, Tuning
from training.data.pairs import read_pairs, write_pairs
from training.data.prepare import Prepared


@pytest.fixture(scope="module")
def plain(pairs_folder: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert prepared.rows
    return plain_run(pairs_folder, tmp_path_factory.getbasetemp())


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(as_toml(SMALL))
    return tmp_path / "small.toml"


def command(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["loso", *map(str, words)])


def start(*words: str | Path, before: str = "") -> subprocess.Popen[str]:
    """Start the command as a program, in a process group of its own."""
    code = f"{before}\nimport training.cli\ntraining.cli.app()"
    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", code, "loso", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_folds(process: subprocess.Popen[str], out: Path, folds: int) -> None:
    while len(finished(out)) < folds:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_a_killed_run_goes_on_with_the_folds_it_lost(
    plain: Path, pairs_folder: Path, toml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with start(pairs_folder, "--config", toml, "--out", out, "--jobs", "2") as process:
        wait_for_folds(process, out, 2)
        os.killpg(process.pid, signal.SIGKILL)
    kept = finished(out)
    assert 2 <= len(kept) < 12
    result = command(pairs_folder, "--config", toml, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert kept.items() < finished(out).items()
    assert len(finished(out)) == 12
    assert tables(out) == tables(plain, "mfdan")


def test_ctrl_c_stops_the_workers_and_keeps_what_is_finished(
    pairs_folder: Path, prepared: Prepared, toml: Path, tmp_path: Path
) -> None:
    assert prepared.rows
    out = tmp_path / "run"
    with start(pairs_folder, "--config", toml, "--out", out, "--jobs", "2") as process:
        wait_for_folds(process, out, 1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        _out, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert err.rstrip().splitlines()[-1].startswith("Stopped. The same command goes on")
    assert "Traceback" not in err
    end = time.monotonic() + 10
    while group_lives(process.pid):  # Python's own tracker of resources ends a moment later
        assert time.monotonic() < end
        time.sleep(0.05)
    kept = finished(out)
    assert 1 <= len(kept) < 12
    for name in kept:
        assert (out / name).read_text().startswith('{"fold": "drawn/')


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_full_disk_loses_no_finished_fold(
    plain: Path, pairs_folder: Path, toml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(plain / "mfdan", out / "mfdan")
    shutil.rmtree(out / "mfdan" / "folds" / "seed-2")
    before = finished(out)
    big = replace(SMALL, checkpoint_every=1)  # what is written after each step is over the limit
    toml.write_text(as_toml(big))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    with start(pairs_folder, "--config", toml, "--out", out, before=limit) as process:
        _out, err = process.communicate(timeout=100)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert "mfdan, seed 2, fold drawn/0: " in err.rstrip().splitlines()[-1]
    assert finished(out) == before
    assert len(before) == 6


def test_a_ray_cluster_gives_the_same_bytes(
    plain: Path, pairs_folder: Path, toml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ray = ("--ray", "local", "--jobs", "2")
    with start(pairs_folder, "--config", toml, "--out", out, *ray) as process:
        _out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert tables(out) == tables(plain, "mfdan")


def test_baselines_are_compared_on_the_same_folds(
    pairs_folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    assert prepared.rows
    config = replace(SMALL, steps=1, seeds=(1,))
    (tmp_path / "one.toml").write_text(as_toml(config))
    words = [pairs_folder, "--config", tmp_path / "one.toml", "--out", tmp_path / "run"]
    result = command(*words, "--method", "mfdan", "--method", "svm", "--method", "majority")
    assert result.exit_code == 0, result.stderr
    for title in ("mfdan: loso, 6 folds", "svm: loso, 6 folds", "majority: loso, 6 folds"):
        assert title in result.stdout
    assert "mfdan above" in result.stdout
    assert "1 seed: too few for a result to be reported; give 5 or more" in result.stderr
    assert "18 of 18 folds" in result.stderr


def test_a_search_is_recorded_in_each_fold_and_summed_up(
    pairs_folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    assert prepared.rows
    three = [pair for pair in read_pairs(pairs_folder) if pair.subject in {"0", "1", "2"}]
    write_pairs(pairs_folder / "three.csv", three)
    grid = Tuning(grid={"learning_rate": (0.01, 0.001)}, folds=2)
    (tmp_path / "tune.toml").write_text(as_toml(replace(SMALL, steps=1, seeds=(1,), tune=grid)))
    out = tmp_path / "run"
    words = [pairs_folder / "three.csv", "--config", tmp_path / "tune.toml", "--out", out]
    result = command(*words, "--tune", "--workers", "1")
    assert result.exit_code == 0, result.stderr
    folds = [json.loads((out / name).read_text()) for name in finished(out)]
    assert [fold["tuned"]["learning_rate"] in {0.01, 0.001} for fold in folds] == [True] * 3
    assert [len(fold["tuning_scores"]) for fold in folds] == [2, 2, 2]
    assert "chosen inside the training halves" in result.stdout
    assert result.stdout.count(" of 3 folds") == 2


def test_an_ablation_is_a_flag_and_another_run(
    pairs_folder: Path,
    prepared: Prepared,
    toml: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert prepared.rows
    monkeypatch.chdir(tmp_path)
    words = [pairs_folder, "--config", toml, "--method", "majority", "--seeds", "3"]
    assert command(*words).exit_code == 0
    flags = ["--no-flow-attention", "--no-dropkey", "--cross-entropy"]
    flags += ["--adamw", "--balanced", "--no-average"]
    assert command(*words, *flags).exit_code == 0
    ablated = tmp_path / "runs" / "".join(["mfdan-synthetic", *(flag[1:] for flag in flags)])
    config = note_config(ablated / "majority" / "run.json")
    assert not config.network.flow_attention
    assert (config.network.dropkey, config.loss, config.optimiser) == (0, "cross_entropy", "adamw")
    assert (config.balanced, config.average_decay, config.seeds) == (True, 0, (3,))
    result = command(*words, "--adamw", "--out", tmp_path / "runs" / "mfdan-synthetic")
    assert result.exit_code == 1
    assert "was begun with another optimiser" in result.stderr


def note_config(path: Path) -> RunConfig:
    return RunConfig.from_json(json.dumps(json.loads(path.read_text())["config"]))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--seeds", "1,x"], "--seeds takes numbers with commas between"),
        (["--method", "cnn"], "there is no method cnn, only mfdan"),
        (["--epochs", "1", "--steps", "2"], "--epochs and --steps both fix the steps"),
        (["--jobs", "0"], "jobs"),
    ],
)
def test_a_wrong_option_is_refused(
    words: list[str], complaint: str, pairs_folder: Path, toml: Path
) -> None:
    result = command(pairs_folder, "--config", toml, *words)
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--seeds", "-1"], "seeds must not be negative"),
        (["--seeds", "1,1"], "seeds repeat"),
        (["--tune"], "--tune needs [tune.grid]"),
        (["--protocol", "lodo", "--method", "majority"], "two data sets; here is drawn"),
        (["--device", "cuda"], "CUDA"),
    ],
)
def test_bad_input_is_told_in_one_line_before_anything_is_trained(
    words: list[str], complaint: str, pairs_folder: Path, toml: Path, tmp_path: Path
) -> None:
    result = command(pairs_folder, "--config", toml, "--out", tmp_path / "run", *words)
    assert result.exit_code == 1
    assert complaint in result.stderr.rstrip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_without_a_manifest_the_config_must_name_one(toml: Path) -> None:
    result = command("--config", toml)
    assert result.exit_code == 1
    assert "name a manifest" in result.stderr


def test_a_person_written_in_two_ways_is_told_before_anything_is_prepared(
    pairs_folder: Path, toml: Path, tmp_path: Path
) -> None:
    text = (pairs_folder / "pairs.csv").read_text()
    (tmp_path / "twice.csv").write_text(text.replace("drawn,1,", "drawn,01,", 1))
    result = command(tmp_path / "twice.csv", "--config", toml, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "drawn/01 = drawn/1" in result.stderr
    assert not list(tmp_path.glob("prepared*"))


def test_a_label_outside_the_class_map_is_told_before_anything_is_prepared(
    pairs_folder: Path, toml: Path, tmp_path: Path
) -> None:
    text = (pairs_folder / "pairs.csv").read_text()
    (tmp_path / "joy.csv").write_text(text.replace(",positive,positive,", ",positive,joy,", 1))
    result = command(tmp_path / "joy.csv", "--config", toml, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "drawn/0/positive is 'joy'" in " ".join(result.stderr.split())
    assert not list(tmp_path.glob("prepared*"))
