"""The rules of docker/prometheus, and what an expression asks for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml
from prometheus_client.parser import text_string_to_metric_families

PROMETHEUS = Path(__file__).parents[1] / "docker" / "prometheus"


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules" / "mfdan.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def asked(expression: str) -> set[str]:
    """Return the names of the metrics that an expression selects."""
    return {one.name for one in _selectors(promql.parse(expression))}


def _selectors(expression: Any) -> Iterator[promql.VectorSelector]:  # noqa: ANN401 - of many types
    if isinstance(expression, promql.VectorSelector):
        yield expression
    for field in ("expr", "lhs", "rhs", "param", "vector_selector"):
        if hasattr(expression, field):
            yield from _selectors(getattr(expression, field))
    for argument in getattr(expression, "args", ()):
        yield from _selectors(argument)


def series_names(exposition: str) -> set[str]:
    """Return the names of the series that a scrape brings, those without a sample too."""
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
    return {
        f"{family.name}{ending}"
        for family in text_string_to_metric_families(exposition)
        for ending in endings.get(family.type, ("",))
    }
