"""Whatever the description allows, and whatever it does not: never a 5xx."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import MakeSettings, served

from service.app import create_app

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
ROUTES = [
    ("/predict", "POST", POSITIVE),
    ("/predict", "POST", NEGATIVE),
    ("/predict/batch", "POST", POSITIVE),
    ("/predict/batch", "POST", NEGATIVE),
    ("/models", "GET", POSITIVE),
    ("/models/{name}", "GET", POSITIVE),
    ("/health/live", "GET", POSITIVE),
    ("/health/ready", "GET", POSITIVE),
    ("/metrics", "GET", POSITIVE),
    ("/v2", "GET", POSITIVE),
    ("/v2/health/live", "GET", POSITIVE),
    ("/v2/health/ready", "GET", POSITIVE),
    ("/v2/repository/index", "POST", POSITIVE),
    ("/v2/models/{name}", "GET", POSITIVE),
    ("/v2/models/{name}/ready", "GET", POSITIVE),
    ("/v2/models/{name}/infer", "POST", POSITIVE),
    ("/v2/models/{name}/infer", "POST", NEGATIVE),
    ("/v2/models/{name}/versions/{version}", "GET", POSITIVE),
    ("/v2/models/{name}/versions/{version}/ready", "GET", POSITIVE),
    ("/v2/models/{name}/versions/{version}/infer", "POST", POSITIVE),
    ("/v2/models/{name}/versions/{version}/infer", "POST", NEGATIVE),
]
"""The GET routes take nothing that the description could forbid."""


@pytest.fixture(scope="module")
def description(make_settings: MakeSettings) -> Iterator[schemathesis.BaseSchema]:
    with served(create_app(make_settings())) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize(("path", "method", "mode"), ROUTES)
def test_answers_are_as_described(
    description: schemathesis.BaseSchema, path: str, method: str, mode: GenerationMode
) -> None:
    @settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=description[path][method].as_strategy(generation_mode=mode))
    def answers(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    answers()


def test_every_described_route_is_tried(description: schemathesis.BaseSchema) -> None:
    described = {
        (path, method.upper())
        for path, methods in description.raw_schema["paths"].items()
        for method in methods
    }
    assert described == {(path, method) for path, method, _ in ROUTES}
