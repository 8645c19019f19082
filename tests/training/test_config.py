import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from drawn_pairs import TINY, as_toml

import training
from model.spec import FlowMethod
from training.config import RunConfig, load_config
from training.data.pairs import Holdout
from training.loop import learning_rate
from training.scored_people import holdout_of

CONFIGS = sorted((Path(training.__file__).parent / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path: Path) -> None:
    config = load_config(path)
    assert config.spec().input_size == config.network.image_size == 224


def test_there_is_a_config_of_the_bundled_model() -> None:
    assert "synthetic" in [path.stem for path in CONFIGS]


def test_json_gives_the_same_config_back(tiny_config: RunConfig) -> None:
    assert RunConfig.from_json(tiny_config.to_json()) == tiny_config


def test_overrides_replace_fields_unless_they_are_none() -> None:
    (path,) = [path for path in CONFIGS if path.stem == "synthetic"]
    config = load_config(path, {"steps": 7, "seed": None})
    assert config == replace(load_config(path), steps=7)


def test_steps_on_the_command_line_take_the_place_of_epochs_and_the_reverse(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.toml"
    path.write_text('data = "d"\nlicence = "l"\nepochs = 3\n')
    assert load_config(path).steps_for(100) == 19  # 300 samples in batches of 16
    stepped = load_config(path, {"steps": 5})
    assert (stepped.steps, stepped.epochs, stepped.steps_for(100)) == (5, None, 5)
    path.write_text('data = "d"\nlicence = "l"\nsteps = 7\n')
    assert load_config(path, {"epochs": 1}).steps_for(17) == 2


def test_an_override_reaches_into_a_table(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('data = "d"\nlicence = "l"\nsteps = 7\n')
    config = load_config(path, {"network.dropkey": 0.1, "network.flow_attention": False})
    assert (config.network.dropkey, config.network.flow_attention) == (0.1, False)


def test_toml_gives_the_same_config_back(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(as_toml(TINY))
    assert load_config(tmp_path / "tiny.toml") == TINY


def test_the_spec_says_who_is_held_out(tiny_config: RunConfig) -> None:
    config = replace(tiny_config, split_seed=5, val_fraction=0.25, test_fraction=0.5)
    assert holdout_of(config.spec()) == config.holdout == Holdout(seed=5, val=0.25, test=0.5)


def test_the_spec_names_who_computed_the_flow_that_was_trained_on(tiny_config: RunConfig) -> None:
    assert tiny_config.spec().flow_backends == ("opencv-cpu",)
    config = replace(tiny_config, flow=FlowMethod(algorithm="tvl1"), flow_backend="onnx")
    assert config.spec().flow_backends == ("onnx",)


def test_the_spec_names_the_data_sets_that_were_seen(tiny_config: RunConfig) -> None:
    assert tiny_config.spec("abc", ("a", "b")).provenance.datasets == ("a", "b")
    assert tiny_config.spec("abc").provenance.training_commit == "abc"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("stepps = 3", "stepps"),
        ("steps = 0", "steps"),
        ('classes = ["a", "b"]', "2 classes are named, the network has 3"),
        ("alpha_min = 9.0", "above alpha_max"),
        ("val_fraction = 0.6\ntest_fraction = 0.5", "no subject to train on"),
        ("[network]\nimage_size = 100", "image_size 100"),
        ("steps =", "Invalid value"),
        ("steps = 3\nepochs = 3", "either steps or epochs"),
        ("", "either steps or epochs"),
        ("steps = 3\nseeds = [1, 2, 1]", "seeds repeat"),
        ('steps = 3\n[label_map]\nfear = "negativ"', "label_map leads to negativ"),
        ("steps = 3\nrotation_degrees = 90.0", "rotation_degrees"),
        ('steps = 3\nloss = "hinge"', "loss"),
        ('steps = 3\nflow_backend = "onnx"', "flow_backends: onnx has no dis"),
        ('steps = 3\n[flow]\nalgorithm = "brox"', "opencv-cpu has no brox; opencv-cuda can"),
    ],
)
def test_a_bad_config_is_refused_with_its_field_named(
    tmp_path: Path, line: str, complaint: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f'data = "d"\nlicence = "l"\n{line}\n')
    with pytest.raises(ValueError, match=complaint) as refusal:
        load_config(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


def test_the_learning_rate_rises_linearly_then_falls_along_half_a_cosine(
    tiny_config: RunConfig,
) -> None:
    config = replace(tiny_config, warmup_fraction=1 / 6, learning_rate=1.0, final_rate=0.1)
    assert learning_rate(config, 0, 120) == pytest.approx(1 / 20)
    assert learning_rate(config, 19, 120) == pytest.approx(1)
    assert learning_rate(config, 20, 120) == pytest.approx(1)
    assert learning_rate(config, 70, 120) == pytest.approx(0.55)
    assert learning_rate(config, 119, 120) == pytest.approx(0.1, abs=0.001)


def test_an_override_into_what_is_no_table_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('data = "d"\nlicence = "l"\nsteps = 3\nnetwork = 3\n')
    with pytest.raises(ValueError, match="network: must be a table"):
        load_config(path, {"network.dropkey": 0.0})


def test_a_config_is_utf_8_whatever_the_locale() -> None:
    """The shipped `casme3.toml` names its data set as its owners do."""
    code = "from pathlib import Path; from training.config import load_config as load; import sys;"
    code += "load(Path(sys.argv[1]))"
    config = Path(training.__file__).parent / "configs" / "casme3.toml"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", code, config],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
