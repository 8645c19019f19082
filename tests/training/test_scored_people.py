from dataclasses import replace

import pytest
from tiny_model import tiny_spec

from model.spec import ModelSpec, Provenance
from training.data.pairs import Holdout, Pair
from training.scored_people import check_start, choose_people, holdout_of

HOLDOUT = Holdout(seed=3, val=0.25, test=0.25)
PAIRS = [
    Pair(dataset=dataset, subject=str(who), clip=clip, label="positive", onset="o", apex="a")
    for dataset in ("home", "away")
    for who in range(16)
    for clip in ("1", "2")
]


def spec_of(*datasets: str, held_out: bool = True) -> ModelSpec:
    made = Provenance(
        data="d",
        licence="l",
        training_commit="c",
        datasets=datasets,
        split_seed=HOLDOUT.seed if held_out else None,
        val_fraction=HOLDOUT.val if held_out else None,
        test_fraction=HOLDOUT.test if held_out else None,
    )
    return tiny_spec(provenance=made)


def people_of(dataset: str, split: str) -> set[str]:
    return {
        pair.person
        for pair in PAIRS
        if pair.dataset == dataset and HOLDOUT.split_of(pair.person) == split
    }


def test_auto_takes_everybody_of_other_data_sets_and_the_held_out_of_its_own() -> None:
    scored = choose_people(spec_of("home"), PAIRS, "auto")
    away = {pair.person for pair in PAIRS if pair.dataset == "away"}
    assert {pair.person for pair in scored.pairs} == away | people_of("home", "test")
    assert scored.left_out == {
        "of its training split": len(people_of("home", "train")),
        "of its calibration split": len(people_of("home", "val")),
    }
    assert scored.words.startswith("all people of away, never trained on; people of home of the ")
    assert scored.warning == ""


def test_auto_trusts_the_hash_alone_where_the_data_sets_are_not_named() -> None:
    scored = choose_people(spec_of(), PAIRS, "auto")
    assert {pair.person for pair in scored.pairs} == people_of("home", "test") | people_of(
        "away", "test"
    )


def test_auto_leaves_out_a_data_set_trained_on_if_nobody_was_held_out_by_name() -> None:
    scored = choose_people(spec_of("home", held_out=False), PAIRS, "auto")
    assert {pair.dataset for pair in scored.pairs} == {"away"}
    assert list(scored.left_out.values()) == [16]


def test_nobody_left_says_why() -> None:
    home = [pair for pair in PAIRS if pair.dataset == "home"]
    with pytest.raises(ValueError, match=r"nobody is left .*16 people of a data set"):
        choose_people(spec_of("home", held_out=False), home, "auto")


def test_a_spec_that_says_nothing_is_scored_on_the_user_s_word_only() -> None:
    silent = spec_of(held_out=False)
    with pytest.raises(ValueError, match=r"neither .* nor .*--split all"):
        choose_people(silent, PAIRS, "auto")
    with pytest.raises(ValueError, match="does not say who was held out"):
        choose_people(silent, PAIRS, "test")
    scored = choose_people(silent, PAIRS, "all")
    assert len(scored.pairs) == len(PAIRS)
    assert scored.words == "all people, 32 of 32 unknown to it by the user's word alone"
    assert "does not tell whether 32" in scored.warning


def test_all_of_other_data_sets_needs_no_warning() -> None:
    away = [pair for pair in PAIRS if pair.dataset == "away"]
    scored = choose_people(spec_of("home"), away, "all")
    assert scored.words == "all people, never trained on"
    assert scored.warning == ""


@pytest.mark.parametrize(
    ("split", "seen"), [("train", "trained on"), ("val", "never trained on"), ("test", "never")]
)
def test_a_split_is_named_with_what_training_saw_of_it(split: str, seen: str) -> None:
    home = [pair for pair in PAIRS if pair.dataset == "home"]
    scored = choose_people(spec_of("home"), home, split)
    assert {pair.person for pair in scored.pairs} == people_of("home", split)
    assert f"seed 3), {seen}" in scored.words
    assert bool(scored.warning) == (split == "train")
    assert scored.left_out == {"of another split": 16 - len(people_of("home", split))}


def test_an_empty_manifest_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        choose_people(spec_of("home"), [], "all")


def test_the_holdout_is_read_from_the_spec() -> None:
    assert holdout_of(spec_of()) == HOLDOUT
    with pytest.raises(ValueError, match="does not say who was held out"):
        holdout_of(spec_of(held_out=False))


def test_a_data_set_is_known_however_its_name_is_written() -> None:
    """A manifest that says HOME must not pass its people off as never trained on."""
    loud = [replace(pair, dataset="HOME") for pair in PAIRS if pair.dataset == "home"]
    scored = choose_people(spec_of("home"), loud, "auto")
    assert scored.left_out
    assert "test split" in scored.words
    with pytest.raises(ValueError, match="trained on people"):
        check_start(spec_of("home"), loud)
