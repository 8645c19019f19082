import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from serving import MakeSettings

from service.app import create_app

CHECKED_IN = Path(__file__).parents[2] / "openapi.json"


def test_the_checked_in_description_is_what_the_app_says(make_settings: MakeSettings) -> None:
    """`make openapi` writes it anew: a change of the API is deliberate."""
    assert json.loads(CHECKED_IN.read_text()) == create_app(make_settings()).openapi()


def test_the_description_names_intended_and_prohibited_uses(make_settings: MakeSettings) -> None:
    description = create_app(make_settings()).openapi()["info"]["description"]
    for words in ("Meant for", "Not to be used", "Article 5(1)(f)", "Article 50(3)"):
        assert words in description


def operations(app: FastAPI) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield path, method and description of every route."""
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def test_every_error_is_described_in_its_protocols_shape(make_settings: MakeSettings) -> None:
    for path, _, operation in operations(create_app(make_settings())):
        kind = "application/json" if path.startswith("/v2") else "application/problem+json"
        for status, response in operation["responses"].items():
            if status != "200":
                assert list(response["content"]) == [kind]


def test_every_status_of_every_route_has_an_example(make_settings: MakeSettings) -> None:
    for path, _, operation in operations(create_app(make_settings())):
        for status, response in operation["responses"].items():
            contents = response["content"].items()
            texts = [content for kind, content in contents if kind != "application/octet-stream"]
            assert texts
            for content in texts:
                assert content.get("examples") or content.get("example"), (path, status)
