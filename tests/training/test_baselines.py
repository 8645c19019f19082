from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.tensors import flow_tensor
from training.baselines import FlowSvm, StstNet, baseline_config, flow_features, majority
from training.config import RunConfig
from training.data.dataset import class_indices, labelled
from training.data.prepare import Prepared
from training.loop import FitData, fit, predict
from training.metrics import FloatArray, IntArray


def test_majority_answers_with_the_shares_of_the_training_half() -> None:
    answers = majority(np.array([2, 0, 2, 2]), 3, 4)
    assert answers.tolist() == [[0.25, 0, 0.75, 0]] * 3


def test_of_equally_frequent_classes_the_first_is_the_majority() -> None:
    for order in ([2, 1, 1, 2, 0], [1, 2, 0, 2, 1]):
        assert majority(np.array(order), 1, 3).argmax() == 1


def test_baselines_need_something_to_train_on() -> None:
    nothing = np.empty(0, np.int64)
    with pytest.raises(ValueError, match="no labelled pair"):
        majority(nothing, 1, 3)
    with pytest.raises(ValueError, match="no labelled pair"):
        FlowSvm(3).fit(np.empty((0, 12), np.float32), nothing)


def test_features_are_area_means_of_the_normalised_flow(
    prepared: Prepared, tiny_config: RunConfig
) -> None:
    rows, spec = prepared.rows[3:5], tiny_config.spec()
    features = flow_features(prepared, rows, spec, side=16).reshape(2, 3, 16, 16)
    tensor = flow_tensor(prepared.arrays(rows[1])[1], spec.normalisation)
    expected = tensor.reshape(3, 16, 4, 16, 4).mean(axis=(2, 4))
    np.testing.assert_allclose(features[1], expected, atol=1e-6)
    assert flow_features(prepared, rows, spec).shape == (2, 3 * 28 * 28)


def corners(seed: int = 0) -> tuple[FloatArray, IntArray]:
    """Draw 60 points about three corners of a plane; a fourth class is never shown.

    The axes' units differ a thousandfold, and a third feature never changes.
    """
    draw = np.random.default_rng(seed)
    classes = np.arange(60) % 3
    middles = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    points = middles[classes] + draw.normal(0, 0.1, (60, 2))
    return np.column_stack([1000 * points[:, 0], points[:, 1], np.full(60, 7.0)]), classes


def fitted_svm(classes: int = 4) -> FlowSvm:
    features, y = corners()
    return FlowSvm(classes).fit(features.astype(np.float32), y)


def test_the_svm_tells_new_points_of_three_corners_apart() -> None:
    features, y = corners(seed=1)
    answers = fitted_svm().predict(features.astype(np.float32))
    assert (answers.argmax(axis=1) == y).all()
    np.testing.assert_allclose(answers.sum(axis=1), 1)
    assert (answers[:, 3] == 0).all()


def test_the_svm_answers_a_row_alike_whatever_rows_stand_beside_it() -> None:
    """Were test rows part of the standardisation, the outlier would move all others."""
    features = corners(seed=1)[0].astype(np.float32)
    beside = np.concatenate([features[:5], np.full((1, 3), 1e6, np.float32)])
    svm = fitted_svm()
    np.testing.assert_allclose(svm.predict(beside)[:5], svm.predict(features)[:5], atol=1e-9)


def test_the_svm_takes_its_scale_from_the_training_rows() -> None:
    """In other units, both halves alike, nothing changes; in other units at test time, it does."""
    features, y = corners()
    small = features[:, :2].astype(np.float32)
    svm, in_metres = FlowSvm(3).fit(small, y), FlowSvm(3).fit(small * 1000, y)
    np.testing.assert_allclose(in_metres.predict(small * 1000), svm.predict(small), atol=1e-4)
    assert np.abs(svm.predict(small * 1000) - svm.predict(small)).max() > 0.1


def test_the_svm_repeats_itself() -> None:
    features = corners(seed=1)[0].astype(np.float32)
    np.testing.assert_array_equal(fitted_svm().predict(features), fitted_svm().predict(features))


@pytest.mark.parametrize("shown", [(0, 2), (2, 1)])
def test_the_svm_tells_two_classes_of_three_apart(shown: tuple[int, int]) -> None:
    features, y = corners()
    rows = np.isin(y, shown)
    svm = FlowSvm(3).fit(features[rows].astype(np.float32), y[rows])
    answers = svm.predict(features[rows].astype(np.float32))
    assert answers.shape == (40, 3)
    assert (answers.argmax(axis=1) == y[rows]).all()


def test_an_svm_that_saw_one_class_knows_no_other() -> None:
    svm = FlowSvm(3).fit(np.ones((4, 5), np.float32), np.array([1, 1, 1, 1]))
    assert svm.predict(np.zeros((2, 5), np.float32)).tolist() == [[0, 1, 0]] * 2


@pytest.mark.parametrize(("batch", "side", "classes"), [(1, 28, 3), (3, 96, 5), (2, 224, 3)])
def test_ststnet_takes_flow_of_any_size(batch: int, side: int, classes: int) -> None:
    flow = torch.randn(batch, 3, side, side)
    logits = StstNet(classes).eval()(flow, flow)
    assert logits.shape == (batch, classes)
    assert logits.isfinite().all()


def test_ststnet_is_as_small_as_the_published_one() -> None:
    """Convolutions 27·(3 + 5 + 8), a shift and our batch norm's scale for each, head 400·3 + 3."""
    assert sum(p.numel() for p in StstNet(3).parameters()) == 432 + 2 * 16 + 1203


def test_ststnet_reads_area_means_of_the_flow_and_no_image() -> None:
    network = StstNet(3).eval()
    small = torch.randn(2, 3, 28, 28)
    large = small.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    one = network(torch.zeros_like(large), large)
    torch.testing.assert_close(one, network(torch.ones_like(small), small))


def test_every_weight_of_ststnet_gets_a_gradient() -> None:
    torch.manual_seed(0)
    network = StstNet(3)
    flow = torch.randn(4, 3, 64, 64)
    network(flow, flow).logsumexp(dim=1).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_ststnet_learns_eight_clips(prepared: Prepared, tiny_config: RunConfig) -> None:
    rows = labelled(prepared.rows, tiny_config)[:8]
    features = flow_features(prepared, rows, tiny_config.spec())
    flow = torch.from_numpy(features).reshape(8, 3, 28, 28)
    truth = torch.tensor(class_indices(rows, tiny_config))
    torch.manual_seed(0)
    network = StstNet(3, dropout=0.0)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.02)
    for _step in range(60):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(flow, flow), truth)
        loss.backward()  # type: ignore[no-untyped-call] # torch's own
        optimiser.step()
    assert len(set(truth.tolist())) == 3
    assert loss.item() < 0.05
    assert (network.eval()(flow, flow).argmax(dim=1) == truth).all()


def test_ststnet_trains_in_the_same_loop_on_the_same_rows(
    prepared: Prepared, tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = replace(baseline_config(tiny_config, "ststnet"), epochs=2)
    run = fit(config, FitData(prepared, prepared.rows[4:]), tmp_path)
    answers = predict(run.averaged_network(), prepared, prepared.rows[:4], config)
    assert run.step == run.steps == 2  # 15 labelled rows of 20, in batches of 16
    assert answers.shape == (4, 3)
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)


KEPT = [
    "data",
    "pairs",
    "classes",
    "label_map",
    "seeds",
    "flow",
    "alignment",
    "normalisation",
    "flip_probability",
    "rotation_degrees",
    "zoom",
    "shift",
    "flow_noise_px",
]


@pytest.mark.parametrize("method", ["mfdan", "majority", "svm", "ststnet"])
def test_baselines_run_on_the_same_data_as_the_network(tiny_config: RunConfig, method: str) -> None:
    config = replace(
        tiny_config,
        init="weights.onnx",
        label_map={"disgust": "negative", "others": ""},
        pairs="data/casme2",
        seeds=(3, 8),
        zoom=0.1,
        flow_noise_px=0.03,
    )
    own = baseline_config(config, method)  # type: ignore[arg-type] # one of METHODS
    assert own.method == method
    for name in KEPT:
        assert getattr(own, name) == getattr(config, name), name
    assert own.spec().preprocessing_key() == config.spec().preprocessing_key()
    assert own.init == ("weights.onnx" if method == "mfdan" else "")


def test_ststnet_has_settings_of_its_own_and_draws_nothing_about_the_image(
    tiny_config: RunConfig,
) -> None:
    config = replace(tiny_config, balanced=True, loss="focal", learning_rate=0.5)
    own = baseline_config(config, "ststnet")
    assert (own.optimiser, own.loss, own.balanced) == ("adamw", "cross_entropy", False)
    assert own.steps is None
    assert own.steps_for(160) == 400
    assert own.alpha_min == own.alpha_max == own.brightness == own.image_noise == 0
    assert own == baseline_config(replace(tiny_config, learning_rate=0.1), "ststnet")
    assert baseline_config(config, "mfdan") == config
