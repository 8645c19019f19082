"""Starting from an exported model: by name, whole or not at all."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from rich.console import Console

from model.errors import ModelNotFound, SpecMismatch
from model.spec import ModelSpec, Normalisation, file_sha256, load_spec, spec_path
from training.config import RunConfig
from training.data.pairs import Holdout, read_pairs
from training.export import round_to_half
from training.fitting import fit_pairs_folder
from training.initial import initial_notes, read_initial, start_from
from training.loop import CHECKPOINT, FitData, Run, fit
from training.networks import build_network
from training.scored_people import check_shares


@pytest.fixture
def from_exported(tiny_config: RunConfig, exported: Path) -> RunConfig:
    return replace(tiny_config, init=str(exported))


def stop_at_once() -> bool:
    return True


def copy_model(exported: Path, folder: Path) -> Path:
    for path in (exported, spec_path(exported)):
        shutil.copy(path, folder)
    return folder / exported.name


def rewrite(path: Path, proto: onnx.ModelProto, **changes: object) -> None:
    """Store another graph, and a spec that vouches for it."""
    path.write_bytes(proto.SerializeToString())
    spec = ModelSpec.from_json(spec_path(path).read_text())
    changed = replace(spec, onnx_sha256=file_sha256(path), **changes)
    spec_path(path).write_text(changed.to_json())


def test_a_run_starts_from_the_exported_weights_its_average_too(
    from_exported: RunConfig, fit_data: FitData, wide_run: Path, tmp_path: Path
) -> None:
    rate = replace(from_exported, learning_rate=1e-12, weight_decay=0.0)
    run = fit(rate, fit_data, tmp_path, should_stop=stop_at_once)
    source = Run.load(wide_run / CHECKPOINT).averaged_network()
    round_to_half(source)
    for name, weight in source.named_parameters():
        torch.testing.assert_close(run.network.state_dict()[name], weight, msg=name)
        torch.testing.assert_close(run.average[name], weight, msg=name)


def test_what_is_random_in_training_stays_what_it_was(
    from_exported: RunConfig, tiny_config: RunConfig, fit_data: FitData, tmp_path: Path
) -> None:
    """DropKey's and dropout's numbers do not depend on where the weights came from."""
    states = []
    for config in (from_exported, tiny_config):
        fit(config, fit_data, tmp_path / str(len(states)), should_stop=stop_at_once)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_other_classes_draw_the_head_anew_and_keep_all_else(
    from_exported: RunConfig, exported: Path
) -> None:
    config = replace(from_exported, classes=("positive", "negative", "surprise"))
    initial = read_initial(config)
    assert initial is not None
    torch.manual_seed(1)
    drawn = build_network(config).state_dict()
    torch.manual_seed(1)
    network = build_network(config)
    start_from(initial, network, config)
    for name, weight in network.state_dict().items():
        given = torch.from_numpy(initial.weights[name])
        assert torch.equal(weight, drawn[name] if name.startswith("head.") else given), name
    (note,) = initial_notes(config, [])
    assert "answers negative, positive, surprise, this run positive, negative, surprise" in note
    assert exported.name in note


def test_more_classes_draw_the_head_anew_too(from_exported: RunConfig) -> None:
    config = replace(
        from_exported,
        classes=("a", "b", "c", "d", "e"),
        network=replace(from_exported.network, classes=5),
    )
    initial = read_initial(config)
    assert initial is not None
    network = build_network(config)
    start_from(initial, network, config)
    assert network.head.weight.shape[0] == 5


def test_a_network_without_flow_attention_takes_what_it_has(from_exported: RunConfig) -> None:
    config = replace(from_exported, network=replace(from_exported.network, flow_attention=False))
    initial = read_initial(config)
    assert initial is not None
    network = build_network(config)
    start_from(initial, network, config)
    name = "stage1.w_driven.attention.qkv.weight"
    np.testing.assert_array_equal(network.state_dict()[name].numpy(), initial.weights[name])


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        ({"image_size": 128, "window": 4}, "takes pictures of 64 pixels, this run's network 128"),
        ({"channels": 24}, r"holds \S+ as \(.*\), this run's network has \(.*\)"),
        ({"flow_vector": 16}, r"holds flow_encoder.vector.0.weight as \(8, 8\)"),
    ],
)
def test_a_network_of_another_size_is_refused_and_named(
    from_exported: RunConfig,
    fit_data: FitData,
    tmp_path: Path,
    network: dict[str, int],
    complaint: str,
) -> None:
    config = replace(from_exported, network=replace(from_exported.network, **network))
    with pytest.raises(ValueError, match=complaint):
        fit(config, fit_data, tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_file_without_the_names_says_to_export_again(
    from_exported: RunConfig, exported: Path, tmp_path: Path
) -> None:
    path = copy_model(exported, tmp_path)
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.replace("embed_image", "val_7")
    rewrite(path, proto)
    config = replace(from_exported, init=str(path))
    initial = read_initial(config)
    assert initial is not None
    with pytest.raises(
        ValueError, match=r"no weight named embed_image.project.*export its run again"
    ):
        start_from(initial, build_network(config), config)


def test_a_file_that_its_spec_does_not_vouch_for_is_refused(
    from_exported: RunConfig, exported: Path, tmp_path: Path
) -> None:
    path = copy_model(exported, tmp_path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(SpecMismatch, match=path.name):
        read_initial(replace(from_exported, init=str(path)))
    path.unlink()
    with pytest.raises(ModelNotFound, match=path.name):
        read_initial(replace(from_exported, init=str(path)))


def test_a_resumed_run_takes_the_same_file_from_anywhere_and_no_other(
    from_exported: RunConfig, fit_data: FitData, exported: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fit(from_exported, fit_data, out, should_stop=stop_at_once)
    moved = replace(from_exported, init=str(copy_model(exported, tmp_path)))
    fit(moved, fit_data, out, should_stop=stop_at_once)
    proto = onnx.load(moved.init)
    (bias,) = (tensor for tensor in proto.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * 2, bias.name))
    rewrite(Path(moved.init), proto)
    with pytest.raises(ValueError, match=r"started from tiny 2, SHA-256 .*, this run from tiny 2"):
        fit(moved, fit_data, out)
    with pytest.raises(ValueError, match="this run from fresh weights"):
        fit(replace(moved, init=""), fit_data, out)


def test_a_run_tells_what_its_weights_have_seen(
    from_exported: RunConfig, fit_data: FitData, exported: Path, tmp_path: Path
) -> None:
    path = copy_model(exported, tmp_path)
    provenance = replace(load_spec(path).provenance, data="sketches", datasets=("a", "z"))
    rewrite(path, onnx.load(path), provenance=provenance)
    config = replace(from_exported, init=str(path))
    fit(config, fit_data, tmp_path / "run", should_stop=stop_at_once)
    basis = Run.load(tmp_path / "run" / CHECKPOINT).basis
    assert basis.datasets == ("a", "drawn", "z")
    assert basis.init == "tiny 2 (sketches; licence MIT)"
    assert basis.init_sha256 == file_sha256(path)


def test_notes_name_each_difference_of_the_preprocessing(from_exported: RunConfig) -> None:
    assert initial_notes(from_exported, []) == []
    other = replace(from_exported, normalisation=Normalisation(flow_floor=0.7), magnification=2.0)
    (note,) = initial_notes(other, [])
    assert "normalisation" in note
    assert "flow_floor=0.7" in note
    assert initial_notes(replace(from_exported, init=""), []) == []


def test_the_spec_of_a_model_tells_who_was_seen(exported: Path) -> None:
    document = json.loads(spec_path(exported).read_text())
    assert document["provenance"]["datasets"] == ["drawn"]


def test_a_run_does_not_start_from_weights_that_have_seen_the_scored_people(
    from_exported: RunConfig, pairs_folder: Path
) -> None:
    """Fine-tuned, such weights would know the held-out half: nobody is in both."""
    pairs = read_pairs(pairs_folder)
    holdout = from_exported.holdout
    seen = next(pair for pair in pairs if holdout.split_of(pair.person) == "train")
    kept = [pair for pair in pairs if holdout.split_of(pair.person) != "train"]
    assert kept
    with pytest.raises(ValueError, match=f"trained on people who are to be scored: {seen.person}"):
        initial_notes(from_exported, [seen])
    assert initial_notes(from_exported, kept) == []
    assert initial_notes(from_exported, [replace(seen, dataset="elsewhere")]) == []


def test_fit_keeps_to_the_split_of_the_model_that_it_starts_from(
    from_exported: RunConfig, pairs_folder: Path, tmp_path: Path
) -> None:
    other_split = replace(from_exported, split_seed=from_exported.split_seed + 1)
    with pytest.raises(ValueError, match="held out other people"):
        fit_pairs_folder(
            other_split, pairs_folder, tmp_path, minutes=None, workers=1, console=Console()
        )
    assert not list(tmp_path.iterdir())


def test_a_larger_share_than_the_start_held_out_is_refused(exported: Path) -> None:
    spec = load_spec(exported)
    kept = Holdout(seed=1, val=0.1, test=0.2)
    check_shares(spec, kept)
    with pytest.raises(ValueError, match="held out other people"):
        check_shares(spec, replace(kept, test=0.4))
    check_shares(replace(spec, provenance=replace(spec.provenance, datasets=())), kept)
