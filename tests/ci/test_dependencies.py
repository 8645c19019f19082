import runpy
from email.message import Message
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "dependencies.py"))


class Declared:
    """A distribution of which only its metadata matters."""

    version = "1.0+cpu"

    def __init__(self, **fields: str) -> None:
        self.metadata = Message()
        for name, value in fields.items():
            self.metadata[name.replace("_", "-")] = value


def test_what_is_installed_here_is_pinned_and_its_licences_fit() -> None:
    SCRIPT["main"]()


def test_what_is_needed_is_found_through_extras() -> None:
    assert "httptools" in SCRIPT["closure"](["uvicorn[standard]"])
    assert "httptools" not in SCRIPT["closure"](["uvicorn"])
    assert {"click", "h11"} <= SCRIPT["closure"](["uvicorn"]).keys()
    assert SCRIPT["closure"](["no-such-thing>=1"]) == {"no-such-thing": None}


def test_a_pin_is_missing_left_over_or_not_what_is_installed() -> None:
    pins = SCRIPT["read_pins"]("# all\nold==3\nsame==1.0  # why\nMoved.Name==2\n\n")
    needed = {"same": Declared(), "moved-name": Declared(), "new": None}
    assert list(SCRIPT["pin_faults"](needed, pins)) == [
        "new is needed and not pinned in constraints.txt",
        "old is pinned in constraints.txt and nothing needs it",
        "moved-name is 1.0, and 2 in constraints.txt",
    ]


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({"License_Expression": "MIT"}, True),
        ({"License_Expression": "BSD-3-Clause AND (MIT OR GPL-2.0-only)"}, True),
        ({"License_Expression": "MIT AND GPL-2.0-only"}, False),
        ({"License_Expression": "AGPL-3.0-only", "License": "MIT"}, False),
        ({"Classifier": "License :: OSI Approved :: Apache Software License"}, True),
        ({"Classifier": "License :: OSI Approved :: GNU General Public License v2 (GPLv2)"}, False),
        ({"License": "MIT License\n\nCopyright"}, True),
        ({"License": "see the file"}, False),
        ({}, False),
    ],
)
def test_a_licence_is_permissive_by_what_it_demands(fields: dict[str, str], *, fits: bool) -> None:
    assert (list(SCRIPT["licence_faults"]({"some": Declared(**fields)})) == []) == fits


def test_an_exception_is_of_one_distribution_and_one_licence() -> None:
    mozilla = Declared(License_Expression="MPL-2.0")
    assert list(SCRIPT["licence_faults"]({"certifi": mozilla})) == []
    assert list(SCRIPT["licence_faults"]({"other": mozilla})) != []
    changed = Declared(License_Expression="GPL-3.0-only")
    assert list(SCRIPT["licence_faults"]({"certifi": changed})) != []
    assert list(SCRIPT["licence_faults"]({"absent": None})) != []
