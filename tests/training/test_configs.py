"""What the shipped configs promise. Labels are the data sets' own, as their loaders give them."""

import itertools
import tomllib
from pathlib import Path

import pytest

import training
from model.network import MfdanConfig
from training.config import RunConfig, load_config

FOLDER = Path(training.__file__).parent / "configs"
THREE = ("negative", "positive", "surprise")
CASME2 = {"disgust", "fear", "happiness", "others", "repression", "sadness", "surprise"}
SAMM = {"anger", "contempt", "disgust", "fear", "happiness", "other", "sadness", "surprise"}
CASME3 = {"anger", "disgust", "fear", "happy", "others", "sad", "surprise"}
LABELS = {
    "casme2": CASME2,
    "casme2-5": CASME2,
    "samm": SAMM,
    "samm-5": SAMM,
    "smic": {*THREE},
    "casme3": CASME3,
    "composite": {*THREE},
}
"""Shipped config → every label that its data set's annotation holds."""
NEGATIVE = {
    "casme2": {"disgust", "repression"},
    "samm": {"anger", "contempt", "disgust", "fear", "sadness"},
    "casme3": {"anger", "disgust", "fear", "sad"},
}


def shipped(name: str) -> RunConfig:
    return load_config(FOLDER / f"{name}.toml")


def labels_of(config: RunConfig, name: str, target: str | None) -> set[str]:
    return {label for label in LABELS[name] if config.labels.class_of(label) == target}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_read_and_named_for_its_file(path: Path) -> None:
    config = load_config(path)
    assert config.name == f"mfdan-{path.stem}"
    assert len(config.classes) == config.network.classes
    assert config.data
    assert config.licence


@pytest.mark.parametrize("name", LABELS)
def test_every_label_of_the_data_set_is_a_class_or_left_out_by_name(name: str) -> None:
    config = shipped(name)
    assert {label for label in LABELS[name] if not config.labels.knows(label)} == set()
    assert {config.labels.class_of(label) for label in LABELS[name]} - {None} == {*config.classes}
    assert not config.labels.knows("contented")


@pytest.mark.parametrize("name", ["casme2", "samm", "smic", "casme3", "composite"])
def test_three_classes_stand_in_one_order_whatever_the_data(name: str) -> None:
    """So that a network trained on one set can be scored on another."""
    config = shipped(name)
    assert config.classes == THREE
    assert labels_of(config, name, "negative") == NEGATIVE.get(name, {"negative"})
    assert labels_of(config, name, "surprise") == {"surprise"}


def test_what_names_no_class_is_left_out() -> None:
    assert labels_of(shipped("casme2"), "casme2", None) == {"fear", "sadness", "others"}
    assert labels_of(shipped("samm"), "samm", None) == {"other"}
    assert labels_of(shipped("casme3"), "casme3", None) == {"others"}


def test_five_classes_are_those_of_the_literature() -> None:
    config = shipped("casme2-5")
    assert config.classes == ("disgust", "happiness", "repression", "surprise", "others")
    assert labels_of(config, "casme2-5", None) == {"fear", "sadness"}
    config = shipped("samm-5")
    assert config.classes == ("anger", "happiness", "contempt", "surprise", "other")
    assert labels_of(config, "samm-5", None) == {"disgust", "fear", "sadness"}


@pytest.mark.parametrize("name", LABELS)
def test_what_the_paper_gives_is_the_paper_s(name: str) -> None:
    config = shipped(name)
    dropkey = 0.4 if name.startswith("casme2") else 0.3
    assert config.network == MfdanConfig(classes=len(config.classes), dropkey=dropkey)
    assert (config.optimiser, config.learning_rate, config.batch_size) == ("adan", 1e-4, 16)
    assert (config.loss, config.focal_gamma, config.balanced) == ("focal", 2.0, False)
    assert (config.flow.algorithm, dict(config.flow.parameters)) == ("tvl1", {})
    assert config.method == "mfdan"
    assert config.time_reversal_probability == 0
    assert config.alpha_min < config.alpha_max


@pytest.mark.parametrize("name", LABELS)
def test_a_shipped_run_has_five_seeds_and_its_length_fixed_beforehand(name: str) -> None:
    config = shipped(name)
    assert len(config.seeds) >= 5
    assert config.epochs == 60
    assert config.steps_for(442) == 1658  # 60 · 442 / 16 = 1657.5
    assert config.steps_for(145) == 544


@pytest.mark.parametrize("name", LABELS)
def test_nobody_may_pass_weights_from_licensed_clips_on(name: str) -> None:
    assert "may not be passed on" in shipped(name).spec().provenance.licence


@pytest.mark.parametrize("name", LABELS)
def test_each_point_of_the_grid_is_a_config_and_the_shipped_one_is_among_them(name: str) -> None:
    config = shipped(name)
    grid = config.tune.grid
    points = [
        load_config(FOLDER / f"{name}.toml", dict(zip(grid, values, strict=True)))
        for values in itertools.product(*grid.values())
    ]
    assert config in points
    assert 1 < len(points) <= 6


@pytest.mark.parametrize("name", LABELS)
def test_values_that_are_not_the_paper_s_are_called_ours(name: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text()
    blocks = text.split("\n\n")
    for field in ("seeds", "epochs", "average_decay", "bfloat16", "rotation_degrees", "zoom"):
        assert field in tomllib.loads(text)
        (block,) = [block for block in blocks if f"\n{field} = " in f"\n{block}"]
        (line,) = [line for line in block.splitlines() if line.startswith(f"{field} = ")]
        assert "# ours" in line or block.startswith("# Ours, all of it"), field
