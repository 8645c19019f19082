import pytest

from training.data.labels import Labels
from training.data.pairs import NOTHING, Pair

THREE = ("negative", "positive", "surprise")
COMPOSITE = Labels(
    THREE, {"disgust": "negative", "repression": "negative", "happiness": "positive", "others": ""}
)


def pair(clip: str, label: str) -> Pair:
    return Pair(dataset="d", subject="1", clip=clip, label=label, onset="o", apex="a")


@pytest.mark.parametrize(
    ("label", "target", "place"),
    [
        ("disgust", "negative", 0),
        ("happiness", "positive", 1),
        ("surprise", "surprise", 2),
        ("others", None, None),
        (NOTHING, None, None),
    ],
)
def test_a_label_goes_to_its_class_or_out(
    label: str, target: str | None, place: int | None
) -> None:
    assert (COMPOSITE.class_of(label), COMPOSITE.index_of(label)) == (target, place)


def test_the_order_of_the_classes_is_the_network_s() -> None:
    turned = Labels(THREE[::-1], COMPOSITE.mapping)
    assert [turned.index_of(label) for label in ("disgust", "happiness", "surprise")] == [2, 1, 0]


def test_a_class_s_own_name_and_none_can_be_mapped_too() -> None:
    labels = Labels(THREE, {"surprise": "positive", "positive": "", NOTHING: "negative"})
    assert labels.class_of("surprise") == "positive"
    assert labels.class_of("positive") is None
    assert labels.class_of(NOTHING) == "negative"


def test_a_label_that_leads_nowhere_is_an_error() -> None:
    with pytest.raises(ValueError, match="label 'fear' is neither a class nor in label_map"):
        COMPOSITE.index_of("fear")


def test_a_map_to_what_is_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="label_map leads to bad, worse; the classes are negative"):
        Labels(THREE, {"a": "worse", "b": "bad", "c": "positive"})


def test_the_first_rows_outside_the_map_are_named_and_the_rest_counted() -> None:
    lost = [pair(f"clip{number}", "fear") for number in range(8)]
    with pytest.raises(ValueError, match="labels outside the class map") as raised:
        COMPOSITE.check([pair("good", "disgust"), *lost, pair("out", "others")])
    told = str(raised.value)
    assert "d/1/clip0 is 'fear'" in told
    assert "d/1/clip4 is 'fear' and 3 more" in told
    assert "clip5" not in told
    assert "good" not in told


def test_labels_that_are_all_known_pass() -> None:
    COMPOSITE.check([pair("a", "disgust"), pair("b", NOTHING), pair("c", "others")])


def test_a_class_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="classes repeat: a, a, b"):
        Labels(("a", "a", "b"))
