from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.decode import decode_image
from model.pipeline import Preprocessor, network_inputs
from training.augment import mirror
from training.config import RunConfig
from training.data.dataset import (
    Draw,
    EvaluationPairs,
    StepSampler,
    TrainingPairs,
    labelled,
    rows_of,
    training_loader,
)
from training.data.prepare import Prepared


def test_no_person_is_in_two_splits_and_none_is_lost(
    prepared: Prepared, tiny_config: RunConfig
) -> None:
    splits = [rows_of(prepared, tiny_config.holdout, name) for name in ("train", "val", "test")]
    people = [{row.pair.person for row in rows} for rows in splits]
    assert all(people)
    assert sum(map(len, people)) == len(set.union(*people))
    assert sum(map(len, splits)) == len(prepared.rows)


def test_pairs_in_which_nothing_happens_are_not_trained_on(
    prepared: Prepared, tiny_config: RunConfig
) -> None:
    pairs = TrainingPairs(prepared, prepared.rows, tiny_config)
    assert {row.pair.label for row in pairs.rows} == set(tiny_config.classes)


def test_labels_reach_the_class_that_the_config_says(
    prepared: Prepared, tiny_config: RunConfig
) -> None:
    classes = ("surprise", "other")
    config = replace(
        tiny_config,
        classes=classes,
        network=replace(tiny_config.network, classes=2),
        label_map={"negative": "other", "positive": "", "none": "other"},
    )
    pairs = TrainingPairs(prepared, prepared.rows, config)
    seen = {(row.pair.label, target) for row, target in zip(pairs.rows, pairs.targets, strict=True)}
    assert seen == {("surprise", 0), ("negative", 1), ("none", 1)}
    assert all(pairs[Draw(row, 0)][2] == pairs.targets[row] for row in range(len(pairs)))


def test_a_label_outside_the_map_is_an_error_that_names_its_row(
    prepared: Prepared, tiny_config: RunConfig
) -> None:
    config = replace(tiny_config, classes=("negative", "positive", "other"))
    with pytest.raises(ValueError, match="drawn/0/surprise is 'surprise'"):
        labelled(prepared.rows, config)


def test_training_on_nothing_is_refused(prepared: Prepared, tiny_config: RunConfig) -> None:
    with pytest.raises(ValueError, match="no labelled pair"):
        TrainingPairs(prepared, [], tiny_config)


def test_evaluation_sees_what_serving_sees(
    prepared: Prepared, tiny_config: RunConfig, pairs_folder: Path
) -> None:
    """No skew: one clip through training's dataset and through serving's functions."""
    pairs = EvaluationPairs(prepared, prepared.rows, tiny_config)
    row = pairs.rows[4]
    spec = tiny_config.spec()
    onset, apex = (
        decode_image((pairs_folder / name).read_bytes()) for name in (row.pair.onset, row.pair.apex)
    )
    (served,) = Preprocessor(spec).align_pair(onset, apex)
    stored = served.flow.astype(np.float16).astype(np.float32)
    image, flow = network_inputs(served.onset, stored, spec)
    seen_image, seen_flow, label = pairs[4]
    np.testing.assert_array_equal(seen_image.numpy(), image)
    np.testing.assert_array_equal(seen_flow.numpy(), flow)
    assert tiny_config.classes[label] == row.pair.label


def test_without_augmentation_training_sees_what_evaluation_sees(
    prepared: Prepared, tiny_config: RunConfig
) -> None:
    plain = replace(
        tiny_config,
        flip_probability=0.0,
        brightness=0.0,
        alpha_min=tiny_config.magnification,
        alpha_max=tiny_config.magnification,
    )
    trained = TrainingPairs(prepared, prepared.rows, plain)[Draw(row=5, number=99)]
    evaluated = EvaluationPairs(prepared, prepared.rows, plain)[5]
    for seen, expected in zip(trained, evaluated, strict=True):
        assert np.array_equal(seen, expected)


def test_a_mirrored_pair_magnifies_to_the_mirrored_picture(
    prepared: Prepared, tiny_config: RunConfig
) -> None:
    onset, flow = prepared.arrays(prepared.rows[1])
    spec = tiny_config.spec()
    image, motion = network_inputs(onset, flow, spec)
    mirrored_image, mirrored_motion = network_inputs(*mirror(onset, flow), spec)
    np.testing.assert_allclose(mirrored_image, image[:, :, ::-1], atol=2.1 / 255)
    np.testing.assert_allclose(mirrored_motion[0], -motion[0, :, ::-1], atol=1e-5)
    np.testing.assert_allclose(mirrored_motion[1:], motion[1:, :, ::-1], atol=1e-5)


def test_a_sample_depends_on_its_number_alone(prepared: Prepared, tiny_config: RunConfig) -> None:
    pairs = TrainingPairs(prepared, prepared.rows, tiny_config)
    first = pairs[Draw(3, 17)][0]
    other = pairs[Draw(3, 18)][0]
    assert torch.equal(pairs[Draw(3, 17)][0], first)
    assert not torch.equal(first, other)


def test_each_epoch_sees_every_row_once_in_an_order_of_its_own(tiny_config: RunConfig) -> None:
    batches = list(StepSampler([0] * 12, tiny_config, 0, 6))  # two epochs of three batches of four
    rows = [draw.row for batch in batches for draw in batch]
    assert sorted(rows[:12]) == sorted(rows[12:]) == list(range(12))
    assert rows[:12] != rows[12:]
    assert [draw.number for batch in batches for draw in batch] == list(range(24))


def balanced_epochs(targets: list[int], config: RunConfig, epochs: int) -> list[list[int]]:
    steps = epochs * len(targets) // config.batch_size
    batches = StepSampler(targets, replace(config, balanced=True), 0, steps)
    rows = [draw.row for batch in batches for draw in batch]
    return [rows[start : start + len(targets)] for start in range(0, len(rows), len(targets))]


def test_balanced_epochs_show_every_class_equally_often(tiny_config: RunConfig) -> None:
    targets = [0] * 9 + [1] * 2 + [2] * 1
    for epoch in balanced_epochs(targets, tiny_config, 4):
        assert [sum(targets[row] == target for row in epoch) for target in range(3)] == [4, 4, 4]
        assert [epoch.count(row) for row in (9, 10, 11)] == [2, 2, 4]  # its rows take turns
        assert max(epoch.count(row) for row in range(9)) == 1


def test_balanced_epochs_that_do_not_divide_favour_no_class_for_long(
    tiny_config: RunConfig,
) -> None:
    targets = [0] * 6 + [2] * 2  # no row of class 1
    odd = [*targets, 0]
    epochs = balanced_epochs(odd, tiny_config, 40)
    counts = [sum(odd[row] == 0 for row in epoch) for epoch in epochs]
    assert set(counts) == {4, 5}


def test_balanced_epochs_follow_from_seed_and_epoch_alone(tiny_config: RunConfig) -> None:
    targets = [0] * 9 + [1] * 3
    epochs = balanced_epochs(targets, tiny_config, 3)
    assert epochs == balanced_epochs(targets, tiny_config, 3)
    assert epochs[0] != epochs[1]
    assert epochs != balanced_epochs(targets, replace(tiny_config, seed=2), 3)
    balanced = replace(tiny_config, balanced=True)
    late = list(StepSampler(targets, balanced, 4, 9))
    assert late == list(StepSampler(targets, balanced, 0, 9))[4:]


@pytest.mark.parametrize("start", [1, 3, 4])
def test_a_run_that_goes_on_draws_what_an_uninterrupted_one_would(
    tiny_config: RunConfig, start: int
) -> None:
    whole = list(StepSampler([0, 1] * 5, tiny_config, 0, 6))
    assert list(StepSampler([0, 1] * 5, tiny_config, start, 6)) == whole[start:]


def test_loading_draws_nothing_from_torch_s_global_numbers(
    prepared: Prepared, tiny_config: RunConfig
) -> None:
    pairs = TrainingPairs(prepared, prepared.rows, tiny_config)
    before = torch.get_rng_state()
    batches = list(training_loader(pairs, tiny_config, 0, 2))
    assert torch.equal(torch.get_rng_state(), before)
    image, flow, labels = batches[0]
    assert image.shape == flow.shape == (4, 3, 64, 64)
    assert labels.shape == (4,)


def test_a_network_that_passes_the_image_over_gets_the_same_flow_and_a_blank_image(
    prepared: Prepared, tiny_config: RunConfig
) -> None:
    draw = Draw(3, 3)
    image, flow, label = TrainingPairs(prepared, prepared.rows, tiny_config)[draw]
    baseline = replace(tiny_config, method="ststnet")
    blank, same_flow, same_label = TrainingPairs(prepared, prepared.rows, baseline)[draw]
    assert image.any()
    assert not blank.any()
    assert torch.equal(flow, same_flow)
    assert label == same_label
