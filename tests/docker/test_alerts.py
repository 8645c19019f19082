"""Alerts: each tried by promtool's tests, of metrics that there are, and with a runbook entry."""

import json
import re
from functools import cache
from typing import Any

import yaml
from prometheus_files import PROMETHEUS, asked, rules

ROOT = PROMETHEUS.parents[1]
DASHBOARDS = ROOT / "docker" / "grafana" / "dashboards"
ALERTS = [rule for rule in rules() if "alert" in rule]
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def runbook() -> dict[str, str]:
    """Return the entries by their headings."""
    page = (ROOT / "docs" / "operations.md").read_text()
    section = page.partition("\n## What to alert on\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", section, re.MULTILINE | re.DOTALL))


@cache
def expected() -> list[dict[str, Any]]:
    """Return what promtool is to find: expression, time, samples."""
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    return [case for test in tests for case in test["promql_expr_test"]]


def test_each_alert_has_a_runbook_entry_and_each_entry_an_alert() -> None:
    assert {rule["alert"] for rule in ALERTS} == set(runbook())


def test_each_alert_leads_to_its_entry() -> None:
    for rule in ALERTS:
        anchor = rule["alert"].lower()
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{anchor}"


def test_each_alert_says_how_urgent_it_is_and_what_is_wrong() -> None:
    for rule in ALERTS:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}


def test_each_entry_names_urgency_and_delay_and_says_where_to_look_and_what_to_do() -> None:
    for name, entry in runbook().items():
        named = set(re.findall(r"\*\*(page|ticket)\*\*, (\d+[mh]|at once)", entry))
        rules_of = [rule for rule in ALERTS if rule["alert"] == name]
        delays = {(rule["labels"]["severity"], rule.get("for", "at once")) for rule in rules_of}
        assert named == delays, name
        assert "\n- Look at: " in entry, name
        assert "\n- Do: " in entry, name


def test_every_panel_that_an_entry_names_is_on_a_dashboard() -> None:
    boards = [json.loads(path.read_text()) for path in DASHBOARDS.glob("*.json")]
    titles = {panel["title"] for board in boards for panel in board["panels"]}
    named = set(re.findall(r'"(.*?)"', " ".join("\n".join(runbook().values()).split())))
    assert len(named) > 10
    assert named <= titles


def test_every_rule_asks_for_what_there_is(served_series: set[str]) -> None:
    of_a_gpu = {"mfdan_gpu_memory_used_bytes", "mfdan_gpu_memory_total_bytes"}
    for rule in rules():
        assert asked(rule["expr"]) <= served_series | RECORDED | of_a_gpu | {"up"}, rule["expr"]


def test_promtool_is_to_see_each_alert_fire_and_not_fire() -> None:
    for rule in ALERTS:
        name, severity = rule["alert"], rule["labels"]["severity"]
        cases = [case for case in expected() if f'alertname="{name}"' in case["expr"]]
        fires = [one["labels"] for case in cases for one in case["exp_samples"]]
        assert any(f'severity="{severity}"' in labels for labels in fires), name


def test_promtool_is_to_see_the_value_of_each_recording_rule() -> None:
    for name in RECORDED:
        tried = [case for case in expected() if asked(case["expr"]) == {name}]
        assert any(case["exp_samples"] for case in tried), name
