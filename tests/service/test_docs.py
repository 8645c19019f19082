import re
from pathlib import Path

from serving import MakeSettings

from service.app import create_app
from service.settings import Settings
from service.telemetry import Telemetry

DOCS = Path(__file__).parents[2] / "docs"


def test_every_setting_is_in_the_operations_page_and_no_other() -> None:
    named = set(re.findall(r"`(MFDAN_[A-Z_]+)`", (DOCS / "operations.md").read_text()))
    assert named == {f"MFDAN_{name.upper()}" for name in Settings.model_fields}


def test_every_metric_family_is_in_the_operations_page() -> None:
    page = (DOCS / "operations.md").read_text()
    for family in Telemetry().registry.collect():
        name = family.name if family.type != "counter" else f"{family.name}_total"
        assert name in page or name.startswith("mfdan_process_")


def test_every_route_is_in_the_api_page(make_settings: MakeSettings) -> None:
    page = (DOCS / "api.md").read_text()
    for path in create_app(make_settings()).openapi()["paths"]:
        assert path in page
