import json
import re
from pathlib import Path
from typing import Any

import pytest
from serving import MakeSettings, Pictures, served

from service.app import create_app
from service.examples import PAIR_PREDICTION
from service.settings import Settings
from service.telemetry import Telemetry

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_every_setting_is_in_the_operations_page_and_no_other() -> None:
    named = set(re.findall(r"`(MFDAN_[A-Z0-9_]+)`", (DOCS / "operations.md").read_text()))
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


def test_the_readme_shows_a_program_that_runs_once_make_serve_has_installed(
    make_settings: MakeSettings,
    pictures: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "'.[cpu,client]'" in (ROOT / "Makefile").read_text()
    (tmp_path / "example").mkdir()
    for name, picture in pictures.pair.items():
        (tmp_path / "example" / f"{name}.png").write_bytes(picture)
    monkeypatch.chdir(tmp_path)
    with served(create_app(make_settings())) as url:
        assert "http://127.0.0.1:8000" in program
        exec(program.replace("http://127.0.0.1:8000", url), {})  # noqa: S102 - our own page
    assert re.search(r"^\w+ {'negative': [\d.]+, 'positive'", capsys.readouterr().out, re.MULTILINE)


def test_the_readmes_answer_has_every_field_that_a_pair_fills() -> None:
    block = re.search("```json\n(.*?)```", (DOCS.parent / "README.md").read_text(), re.DOTALL)
    shown = json.loads(block[1])
    assert fields(shown) == fields(PAIR_PREDICTION) - {".faces[].candidates"}


def fields(value: Any, place: str = "") -> set[str]:  # noqa: ANN401 - whatever JSON holds
    """Return where a value holds something; of a list's members, and of free names, only that."""
    if isinstance(value, list):
        return {place}.union(*(fields(one, f"{place}[]") for one in value))
    if not isinstance(value, dict) or place in {".timings_ms", ".faces[].probabilities"}:
        return set() if value is None else {place}
    return {place}.union(*(fields(one, f"{place}.{name}") for name, one in value.items()))
