"""The dashboards: made by the code beside them, as Grafana reads them, of metrics there are."""

import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_files import asked, rules

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "docker" / "grafana" / "build.py"
FILES = {path.stem: path for path in sorted((BUILD.parent / "dashboards").glob("*.json"))}
VARIABLES = {"$instance": ".*", "$model": ".*", "$__rate_interval": "1m"}
"""What Grafana puts in, and what it may be."""
UNSEEN = {
    "mfdan_requests_in_flight",  # with the scrape itself; predictions_in_flight is shown
    "mfdan_process_virtual_memory_bytes",  # mostly address space that is never used
    "mfdan_faces_total",  # the labels and abstentions are its parts
}
"""Series that no panel needs."""
OF_NVIDIA = {
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_MEM_COPY_UTIL",
    "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_XID_ERRORS",
}
"""What dcgm-exporter 4.8 shows unless told otherwise (etc/default-counters.csv), and is asked for:
by its documentation, for none was run."""


@pytest.fixture(params=FILES)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param)


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILES[name].read_text())
    return found


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> list[str]:
    found = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    for variable, value in VARIABLES.items():
        found = [expression.replace(variable, value) for expression in found]
    return found


def holds(whole: Any, part: Any) -> bool:  # noqa: ANN401 - whatever JSON holds
    """Tell whether all of a part is there; what it leaves out may be anything."""
    if isinstance(part, dict):
        return all(name in whole and holds(whole[name], value) for name, value in part.items())
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(holds, whole, part))
    return bool(whole == part)


def read_by_grafanas_types(dashboard: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON again
    return json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))


def unit_of(panel: dict[str, Any]) -> str | None:
    axis = panel["options"].get("yAxis") or panel.get("fieldConfig", {}).get("defaults", {})
    unit: str | None = axis.get("unit")
    return unit


def test_what_is_stored_is_what_the_code_makes(tmp_path: Path) -> None:
    command = [sys.executable, BUILD, tmp_path]
    subprocess.run(command, check=True, timeout=60)  # noqa: S603 - a script of our own
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in FILES.values()}
    for path in tmp_path.iterdir():
        assert path.read_text() == FILES[path.stem].read_text(), "run `make dashboards`"


def test_grafanas_types_lose_nothing_of_it(dashboard: dict[str, Any]) -> None:
    register_default_plugins()
    assert holds(read_by_grafanas_types(dashboard), dashboard)


def test_grafanas_types_lose_what_they_do_not_know(dashboard: dict[str, Any]) -> None:
    register_default_plugins()
    panels(dashboard)[-1]["options"]["legendd"] = {}
    assert not holds(read_by_grafanas_types(dashboard), dashboard)


def test_every_panel_has_a_title_and_says_what_to_do(dashboard: dict[str, Any]) -> None:
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(titles) == len(set(titles))
    for panel in panels(dashboard):
        assert panel["title"]
        assert len(panel["description"].split()) >= 4, panel["title"]
        assert panel["description"].endswith("."), panel["title"]


def test_every_panel_has_a_unit_that_grafana_knows(dashboard: dict[str, Any]) -> None:
    known = {unit for unit in vars(units).values() if isinstance(unit, str)}
    for panel in panels(dashboard):
        is_text = panel["options"].get("textMode") == "name" or panel["type"] == "state-timeline"
        assert (unit_of(panel) in known) != is_text, panel["title"]


def test_no_panel_lies_upon_another(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)
    for one, other in combinations(places, 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        ), (one, other)


def test_all_is_asked_of_the_datasource_that_is_provisioned(dashboard: dict[str, Any]) -> None:
    provisioned = BUILD.parent / "provisioning" / "datasources" / "prometheus.yml"
    (uid,) = re.findall(r"uid: (\S+)", provisioned.read_text())
    sources = [panel["datasource"] for panel in panels(dashboard)]
    sources += [target["datasource"] for panel in panels(dashboard) for target in panel["targets"]]
    sources += [variable["datasource"] for variable in dashboard["templating"]["list"]]
    assert {(source["type"], source["uid"]) for source in sources} == {("prometheus", uid)}


def test_every_variable_that_is_used_can_be_chosen(dashboard: dict[str, Any]) -> None:
    used = set(re.findall(r"\$\w+", json.dumps(dashboard["panels"]))) - {"$__rate_interval"}
    assert used == {f"${variable['name']}" for variable in dashboard["templating"]["list"]}


def test_every_query_asks_for_what_there_is(
    dashboard: dict[str, Any], served_series: set[str]
) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    of_a_gpu = set(re.findall(r"mfdan_gpu_\w+", (ROOT / "service" / "gpu_memory.py").read_text()))
    known = served_series | recorded | of_a_gpu | OF_NVIDIA | {"up", "ALERTS"}
    for expression in expressions(dashboard):
        assert asked(expression) <= known


def test_a_number_is_what_is_now_and_not_the_last_that_was(dashboard: dict[str, Any]) -> None:
    numbers = [panel for panel in panels(dashboard) if panel["type"] == "stat"]
    for target in (target for panel in numbers for target in panel["targets"]):
        assert (target["instant"], target["range"]) == (True, False), target["expr"]


def test_every_series_of_the_service_is_to_be_seen(served_series: set[str]) -> None:
    queries = [expression for name in FILES for expression in expressions(read(name))]
    queries += [rule["expr"] for rule in rules()]
    seen = set().union(*map(asked, queries))
    parts = re.compile("_(bucket|count|sum)$")
    families = {parts.sub("", name) for name in seen}
    unseen = {name for name in served_series if parts.sub("", name) not in families}
    assert {name for name in unseen if not name.endswith("_created")} == UNSEEN


def test_descriptions_name_alerts_that_there_are(dashboard: dict[str, Any]) -> None:
    told = re.findall(r"\bMfdan[A-Z]\w+", json.dumps(dashboard["panels"]).replace("Mfdan.*", ""))
    assert set(told) <= {rule["alert"] for rule in rules() if "alert" in rule}


def test_panels_that_do_not_fill_a_line_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BUILD.parent)
    import panels as kinds  # noqa: PLC0415 - found beside build.py only

    narrow = kinds.text("Who?", "Ask them.", ("up", "{{job}}"), width=6)
    with pytest.raises(ValueError, match="Some: the last line of panels ends at column 6"):
        kinds.frame("uid", "title", "about", [], [("Some", [narrow])])
    wide = kinds.text("Who?", "Ask them.", ("up", "{{job}}"), width=20)
    with pytest.raises(ValueError, match="Some: a panel reaches beyond column 24"):
        kinds.frame("uid", "title", "about", [], [("Some", [wide, narrow])])
