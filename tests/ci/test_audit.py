import datetime as dt
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / ".ci" / "audit.py"
SCRIPT = runpy.run_path(str(PATH))
TODAY = dt.date(2026, 1, 1)
FAULT = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.1"]}
CANARY = {"name": "django", "version": "1.11", "vulns": [FAULT]}
SOUND = {"name": "sound", "version": "1", "vulns": []}
BAD = {"name": "bad", "version": "2.0", "vulns": [FAULT]}
UNHEARD_OF = {"name": "unheard-of", "skip_reason": "not found"}


def judged(*report: dict, accepted: tuple[dict, ...] = ()) -> tuple[int, str]:
    found = SCRIPT["verdict"](report, accepted, TODAY)
    return found.status, "\n".join(found.lines)


def accept(**changes: object) -> tuple[dict, ...]:
    until = dt.date(2026, 2, 1)
    entry = {"package": "bad", "id": "CVE-1", "reason": "not called", "until": until}
    return ({**entry, **changes},)


def test_pins_without_vulnerabilities_pass() -> None:
    assert judged(SOUND, CANARY) == (0, "1 pins have no known vulnerability")


@pytest.mark.parametrize(
    "canary", [[], [{**CANARY, "vulns": []}], [{"name": "django", "skip_reason": "not found"}]]
)
def test_a_service_that_knows_of_no_vulnerability_has_audited_nothing(canary: list[dict]) -> None:
    status, words = judged(SOUND, *canary)
    assert status == 2
    assert "does not know" in words


def test_a_vulnerability_fails_also_where_the_service_knows_little() -> None:
    status, words = judged(UNHEARD_OF, BAD)
    assert status == 1
    assert words.startswith("bad 2.0: CVE-1, PYSEC-1, fixed in 2.1\nthe service does not know")
    assert judged(UNHEARD_OF, BAD, accepted=accept())[0] == 2
    assert judged(SOUND, accepted=accept())[0] == 2


def test_a_vulnerability_fails_and_is_named_with_its_cure() -> None:
    assert judged(SOUND, BAD, CANARY) == (1, "bad 2.0: CVE-1, PYSEC-1, fixed in 2.1")


def test_a_pin_that_was_not_found_fails() -> None:
    assert judged(UNHEARD_OF, CANARY) == (1, "unheard-of: not found")


def test_an_accepted_vulnerability_passes_by_any_of_its_names() -> None:
    for name in ("CVE-1", "PYSEC-1"):
        status, words = judged(BAD, CANARY, accepted=accept(id=name))
        assert status == 0
        assert "but for 1 accepted" in words


@pytest.mark.parametrize(
    "changes",
    [
        {"until": dt.date(2025, 12, 31)},
        {"package": "sound"},
        {"id": "CVE-2"},
        {"reason": ""},
    ],
)
def test_an_exception_without_reason_out_of_date_or_of_another_is_none(changes: dict) -> None:
    assert judged(SOUND, BAD, CANARY, accepted=accept(**changes))[0] == 1


def test_an_exception_that_is_no_longer_needed_must_go() -> None:
    status, words = judged(SOUND, CANARY, accepted=accept())
    assert status == 1
    assert "take it out" in words


def test_a_version_that_only_an_image_has_is_asked_about_too_and_none_twice() -> None:
    files = (
        "shared==1 # why\nold==2\n\n# words==0\n",
        "shared==1 \\\n    --hash=sha256:ab==\nold==3 \\\n    --hash=sha256:cd\n",
        "shared==1\nnew==4\n",
    )
    assert SCRIPT["rounds"](files) == [["shared==1", "old==2", "new==4"], ["old==3"]]


def test_what_is_installed_in_the_images_is_among_the_pins() -> None:
    first, *_ = SCRIPT["rounds"](path.read_text() for path in SCRIPT["PINNED"])
    names = {pin.partition("==")[0] for pin in first}
    assert {"fastapi", "nvidia-cudnn-cu13", "setuptools"} < names


@pytest.mark.parametrize(("offline", "status"), [("", 2), ("1", 0)])
def test_where_nobody_can_be_asked_it_says_so_and_passes_only_when_told_to(
    tmp_path: Path, offline: str, status: int
) -> None:
    nowhere = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9")
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}  # no answers of other days
    run = subprocess.run(  # noqa: S603 - our own interpreter and script
        [sys.executable, PATH],
        env={**os.environ, **nowhere, **home, "NO_PROXY": "", "AUDIT_OFFLINE": offline},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == status, run.stderr
    assert "NOT AUDITED" in run.stdout
