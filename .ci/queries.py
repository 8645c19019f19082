"""The queries of the repository's dashboards and rules, as Prometheus is to be asked them."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

DOCKER = Path(__file__).parents[1] / "docker"
DASHBOARDS = DOCKER / "grafana" / "dashboards"
RULES = DOCKER / "prometheus" / "rules"
_FILTERS = {"==", "!=", ">", "<", ">=", "<=", "and", "or", "unless"}
_NAME = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)|\[\[(\w+)\]\]")


@dataclass(frozen=True)
class Query:
    """One expression, and the words that a reader would find it by."""

    where: str
    text: str
    legend: str = ""
    instant: bool = False
    """Whether only the present value is asked for."""


@dataclass(frozen=True)
class Panel:
    """What one panel of a dashboard asks, and how it shows it."""

    dashboard: str
    title: str
    kind: str
    """`timeseries`, `heatmap`, `stat` and whatever else Grafana knows."""
    unit: str
    place: tuple[int, int, int, int]
    """Left, top, width, height, in Grafana's grid of 24 columns."""
    queries: tuple[Query, ...]
    """None of a heading above a row of panels."""


@dataclass(frozen=True)
class Rule:
    """One recording or alerting rule."""

    name: str
    text: str
    alerts: bool


def dashboards() -> list[dict[str, Any]]:
    """Read every dashboard. Raises: SystemExit where there is none."""
    found = [json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))]
    if not found:
        raise SystemExit("docker/grafana/dashboards holds no *.json: make dashboards")
    return found


def panels(dashboard: Mapping[str, Any]) -> Iterator[Panel]:
    """Yield headings and the panels that ask something, those in rows too, in their order."""
    for one in _flat(dashboard["panels"]):
        title = one.get("title", "")
        where = f"{dashboard['title']}: {title}"
        queries = [
            Query(
                f"{where} [{target.get('refId', '')}]",
                target["expr"],
                _legend(target),
                bool(target.get("instant")),
            )
            for target in one.get("targets", ())
            if not target.get("hide")
        ]
        if queries or one["type"] == "row":
            unit = one.get("fieldConfig", {}).get("defaults", {}).get("unit", "")
            place = (
                one["gridPos"]["x"],
                one["gridPos"]["y"],
                one["gridPos"]["w"],
                one["gridPos"]["h"],
            )
            yield Panel(dashboard["title"], title, one["type"], unit, place, tuple(queries))


def _flat(found: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in found:
        yield one
        yield from _flat(one.get("panels") or ())


def _legend(target: Mapping[str, Any]) -> str:
    legend = str(target.get("legendFormat") or "")
    return "" if legend == "__auto" else legend


def variables(dashboard: Mapping[str, Any]) -> dict[str, str]:
    """Return the query of each variable that asks Prometheus, by the variable's name."""
    found = {}
    for one in dashboard.get("templating", {}).get("list", ()):
        if one["type"] == "query":
            query = one["query"]
            found[one["name"]] = query if isinstance(query, str) else query["query"]
    return found


def annotations(dashboard: Mapping[str, Any]) -> Iterator[Query]:
    """Yield what is asked for the marks that all panels of a dashboard show."""
    for one in dashboard.get("annotations", {}).get("list", ()):
        text = one.get("expr") or one.get("target", {}).get("expr")
        if text:
            yield Query(f"{dashboard['title']}: marks of {one['name']}", text)


def label_values(query: str) -> tuple[str, str]:
    """Return series and label of a variable's `label_values(…)`. Raises: ValueError."""
    found = re.fullmatch(r"label_values\((.+),\s*(\w+)\)", query.strip(), re.DOTALL)
    if found is None:
        raise ValueError(f"of the queries of variables only label_values is known, not {query}")
    return found[1].strip(), found[2]


def filled(text: str, values: Mapping[str, str]) -> str:
    """Put the values of Grafana's variables into an expression. Raises: KeyError."""
    return _NAME.sub(lambda found: values[found[1] or found[2] or found[3]], text)


def rules() -> list[Rule]:
    """Read every rule. Raises: SystemExit where there is none."""
    found = [
        Rule(one.get("alert") or one["record"], str(one["expr"]), "alert" in one)
        for path in sorted(RULES.glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for one in group["rules"]
    ]
    if not found:
        raise SystemExit("docker/prometheus/rules holds no rules")
    return found


def operands(text: str) -> Iterator[str]:
    """Yield what an expression compares: while all is well it returns nothing itself.

    Numbers and strings are left out, and of `absent(x)` what is missed is yielded. Raises:
    ValueError for what is no PromQL.
    """
    yield from _operands(promql.parse(text))


def _operands(node: promql.Expr) -> Iterator[str]:
    if isinstance(node, promql.NumberLiteral | promql.StringLiteral):
        return
    if _is_absent(node) or _filters(node):
        for below in _below(node):
            yield from _operands(below)
    else:
        yield node.prettify()


def _filters(node: promql.Expr) -> bool:
    """Whether an expression, or one within it, returns only what fulfils something."""
    here = isinstance(node, promql.BinaryExpr) and str(node.op) in _FILTERS and not _is_bool(node)
    return here or _is_absent(node) or any(map(_filters, _below(node)))


def _is_bool(node: promql.BinaryExpr) -> bool:
    return node.modifier is not None and node.modifier.return_bool


def _is_absent(node: promql.Expr) -> bool:
    return isinstance(node, promql.Call) and node.func.name.startswith("absent")


def _below(node: promql.Expr) -> list[promql.Expr]:
    if isinstance(node, promql.BinaryExpr):
        return [node.lhs, node.rhs]
    if isinstance(node, promql.Call):
        return list(node.args)
    if isinstance(node, promql.ParenExpr | promql.UnaryExpr | promql.AggregateExpr):
        return [node.expr]
    return []
