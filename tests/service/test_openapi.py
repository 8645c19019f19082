import json
from pathlib import Path

import pytest
from serving import MakeSettings

from service.app import create_app
from service.examples import CLIP_PREDICTION, PAIR_PREDICTION
from service.schemas import Prediction

CHECKED_IN = Path(__file__).parents[2] / "openapi.json"


def test_the_checked_in_description_is_what_the_app_says(make_settings: MakeSettings) -> None:
    """`make openapi` writes it anew: a change of the API is deliberate."""
    assert json.loads(CHECKED_IN.read_text()) == create_app(make_settings()).openapi()


def test_the_description_names_intended_and_prohibited_uses(make_settings: MakeSettings) -> None:
    description = create_app(make_settings()).openapi()["info"]["description"]
    for words in ("Meant for", "Not to be used", "Article 5(1)(f)", "Article 50(3)"):
        assert words in description


def test_every_error_is_described_as_a_problem(make_settings: MakeSettings) -> None:
    paths = create_app(make_settings()).openapi()["paths"]
    for operations in paths.values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status != "200":
                    assert list(response["content"]) == ["application/problem+json"]


def test_predictions_and_problems_have_examples(make_settings: MakeSettings) -> None:
    responses = create_app(make_settings()).openapi()["paths"]["/predict"]["post"]["responses"]
    assert "example" in responses["400"]["content"]["application/problem+json"]
    assert set(responses["200"]["content"]["application/json"]["examples"]) == {"pair", "clip"}


@pytest.mark.parametrize("example", [CLIP_PREDICTION, PAIR_PREDICTION])
def test_the_examples_are_what_the_schema_allows(example: dict) -> None:
    assert Prediction.model_validate(example).model_dump(mode="json") == example
