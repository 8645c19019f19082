from pathlib import Path

import numpy as np
import promql_parser
import pytest
from draw_dashboard import draw, fallen_into, with_gaps
from queries import (
    annotations,
    dashboards,
    filled,
    label_values,
    operands,
    panels,
    rules,
    variables,
)

VALUES = {"__rate_interval": "8s", "__interval": "2s", "__range": "1m"}


@pytest.mark.parametrize(
    ("alert", "compared"),
    [
        ("up == 0", ["up"]),
        ("rate(a[5m]) / rate(b[5m]) > 0.01", ["rate(a[5m]) / rate(b[5m])"]),
        ("(a > 2 and b) or absent(c)", ["a", "b", "c"]),
        ("a unless on (job) b == 1", ["a", "b"]),
        ("a > 2 * (b > 0)", ["a", "b"]),
        ("sum(a > 1) > 3", ["a"]),
        ("a > bool 1", ["a > bool 1"]),
    ],
)
def test_of_an_alert_both_sides_of_what_it_compares_are_asked(
    alert: str, compared: list[str]
) -> None:
    assert [*operands(alert)] == compared


def test_what_is_no_promql_is_an_error() -> None:
    with pytest.raises(ValueError, match="unclosed"):
        [*operands("rate(a[5m]")]


@pytest.mark.parametrize("written", ["$model", "${model}", "${model:regex}", "[[model]]"])
def test_variables_are_filled_in_however_they_are_written(written: str) -> None:
    text = f'rate(a{{model=~"{written}"}}[$__rate_interval])'
    assert filled(text, {"model": "(x|y)", **VALUES}) == 'rate(a{model=~"(x|y)"}[8s])'


def test_a_variable_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(KeyError, match="other"):
        filled("$other", VALUES)


def test_series_and_label_of_a_variable_are_read() -> None:
    assert label_values('label_values(a{b="c, d"}, model)') == ('a{b="c, d"}', "model")
    with pytest.raises(ValueError, match="label_values"):
        label_values("query_result(a)")


def test_panels_in_rows_are_found_and_what_is_hidden_is_not_asked() -> None:
    place = {"x": 0, "y": 1, "w": 12, "h": 8}
    asked = [{"refId": "A", "expr": "a"}, {"refId": "B", "expr": "b", "hide": True}]
    inside = {"type": "stat", "title": "why?", "gridPos": place, "targets": asked}
    row = {"type": "row", "title": "r", "gridPos": place, "panels": [inside]}
    words = {"type": "text", "title": "words", "gridPos": place}
    heading, panel = panels({"title": "d", "panels": [row, words]})
    assert (heading.kind, heading.queries) == ("row", ())
    assert [(query.where, query.text) for query in panel.queries] == [("d: why? [A]", "a")]
    assert panel.place == (0, 1, 12, 8)


def test_every_query_of_every_dashboard_and_rule_is_promql() -> None:
    texts = [rule.text for rule in rules()]
    for dashboard in dashboards():
        values = VALUES | dict.fromkeys(variables(dashboard), "(a|b)")
        lists = variables(dashboard).values()
        texts += [label_values(filled(query, values))[0] for query in lists]
        asked = [query for panel in panels(dashboard) for query in panel.queries]
        texts += [filled(query.text, values) for query in (*asked, *annotations(dashboard))]
    assert len(texts) > 100
    for text in texts:
        promql_parser.parse(text)


def test_cumulative_buckets_become_what_fell_into_each() -> None:
    below = np.array([[1.0, 1, 0], [3, 2, 0], [3, 5, 4]])
    nan = np.nan
    np.testing.assert_array_equal(fallen_into(below), [[1, 1, nan], [2, 1, nan], [nan, 3, 4]])


def test_no_line_is_drawn_over_what_was_not_there() -> None:
    at, values = with_gaps([(2, 1), (4, 2), (10, 3), (12, 4)], 2)
    np.testing.assert_array_equal(at, [2, 4, 6, 10, 12])
    np.testing.assert_array_equal(values, [1, 2, np.nan, 3, 4])


def test_a_dashboard_is_drawn_with_every_kind_of_panel(tmp_path: Path) -> None:
    def panel(kind: str, top: int, *series: dict[str, str]) -> dict:
        values = [[100.0, 0.0], [102.0, 1.0]]
        answers = [
            {"legend": "{{le}}", "series": [{"labels": s, "values": values}]} for s in series
        ]
        place = (0, top, 12, 8)
        about = {"title": kind, "kind": kind, "unit": "s", "place": place, "answers": answers}
        return {"dashboard": "d", **about}

    kinds = ("stat", "timeseries", "state-timeline")
    recorded = [panel(kind, 8 * at, {"le": "1"}) for at, kind in enumerate(kinds)]
    recorded += [panel("row", 24), panel("heatmap", 32, {"le": "1"}, {"le": "+Inf"})]
    draw(recorded, tmp_path / "d.png", "d")
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
