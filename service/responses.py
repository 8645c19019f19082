"""How the API description tells what a route may answer, with an example of each status."""

from collections.abc import Mapping
from typing import Any

from service.errors import PROBLEM_JSON
from service.examples import PROBLEMS, V2_ERRORS
from service.open_inference_schemas import V2Error

__all__ = ["answered", "errors_v2", "problems"]

_MEANINGS = {
    400: "A picture or clip is empty, truncated or corrupt, or the body is malformed.",
    401: "The service asks for an API key, and none that it knows was sent.",
    404: "There is no model of that name.",
    408: "The body did not arrive in time.",
    413: "The body, or a picture or clip in bytes, pixels, frames or seconds, is too large.",
    415: "A part is not a picture or a clip of a known format.",
    422: "Fields are missing, unknown, repeated or at odds; a picture or clip is too small.",
    429: "As much work waits as may wait, or the API key is used up; Retry-After says when to "
    "come back.",
    500: "The service failed.",
    503: "The model is not ready, or the service is shutting down.",
    504: "No answer within the deadline.",
}
_MEANINGS_V2 = _MEANINGS | {
    400: "The tensors are not what the model takes, or the body is malformed.",
    404: "There is no model of that name and version.",
    413: "The body is too large, or as JSON larger than JSON may be.",
    415: "The body is compressed.",
    422: "The name of a model is too long for one.",
}
Responses = dict[int | str, dict[str, Any]]


def answered(**examples: Mapping[str, Any] | list[Any]) -> Responses:
    """Describe a route's 200 by one or more named examples."""
    return {200: {"content": {"application/json": {"examples": _named(examples)}}}}


def problems(*codes: str) -> Responses:
    """Describe the problems that a route may answer, by their codes."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {PROBLEM_JSON: {**schema, "examples": _named(examples)}},
        }
        for status, examples in _by_status(codes, PROBLEMS).items()
    }


def errors_v2(*codes: str) -> Responses:
    """Do the same for a route of the Open Inference Protocol, which has errors of its own shape."""
    return {
        status: {
            "description": _MEANINGS_V2[status],
            "model": V2Error,
            "content": {"application/json": {"examples": _named(examples)}},
        }
        for status, examples in _by_status(codes, V2_ERRORS).items()
    }


def _by_status(
    codes: tuple[str, ...], examples: Mapping[str, Mapping[str, Any]]
) -> dict[int, dict[str, Mapping[str, Any]]]:
    found: dict[int, dict[str, Mapping[str, Any]]] = {}
    for code in codes:
        found.setdefault(PROBLEMS[code]["status"], {})[code] = examples[code]
    return dict(sorted(found.items()))


def _named(examples: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: {"value": value} for name, value in examples.items()}
