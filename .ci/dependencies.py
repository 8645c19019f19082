"""Check that everything mfdan needs is pinned, and that what serving needs may be given away.

Both by what the installed distributions say of themselves: of the libraries that a wheel brings
along inside, nothing is known here.
"""

import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SERVING = {"client", "cpu", "offline", "onnx-flow", "traces"}
"""Extras that end up on somebody's server; the others are for developers. `gpu` cannot be installed
beside `cpu`: its two packages are looked at by hand."""
PERMISSIVE = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-CMU",
    "PSF-2.0",
    "Zlib",
}
SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
EXCEPTIONS = {
    "certifi": ("MPL-2.0", "a list of certificates, passed on as it is"),
}
"""Distribution: its licence, and why it will do."""


def main() -> None:
    """Print every fault and end with 1, or say that there is none."""
    pins = read_pins((ROOT / "constraints.txt").read_text())
    # Not what the installed mfdan says of itself: that is as old as its installation.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    needed = closure([*project["dependencies"], *chain(*extras.values())])
    served = closure([*project["dependencies"], *chain(*(extras[name] for name in SERVING))])
    faults = [*pin_faults(needed, pins), *licence_faults(served)]
    if faults:
        sys.exit("\n".join(faults))
    print(f"{len(needed)} distributions are pinned; the licences of {len(served)} for serving fit")


def read_pins(text: str) -> dict[str, str]:
    """Return name and version of each line of a constraints file."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): version for name, version in pairs}


def closure(lines: Iterable[str]) -> dict[str, Distribution | None]:
    """Return what requirements bring along; None: it is not installed."""
    installed = {canonicalize_name(one.name): one for one in distributions()}
    needed: dict[str, Distribution | None] = {}
    asked: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        found = needed[name] = installed.get(name)
        for extra in {"", *requirement.extras}:
            if found is not None and (name, extra) not in asked:
                asked.add((name, extra))
                waiting += _requirements(found, extra)
    return needed


def pin_faults(needed: dict[str, Distribution | None], pins: dict[str, str]) -> Iterator[str]:
    """Yield what is needed and not pinned, pinned and not needed, installed in another version."""
    for name in sorted(needed.keys() - pins.keys() - {"pip"}):  # it comes with the environment
        yield f"{name} is needed and not pinned in constraints.txt"
    for name in sorted(pins.keys() - needed.keys()):
        yield f"{name} is pinned in constraints.txt and nothing needs it"
    for name, found in needed.items():
        version = found and found.version.partition("+")[0]  # 2.13.0+cpu is built from 2.13.0
        if version and name in pins and version != pins[name]:
            yield f"{name} is {version}, and {pins[name]} in constraints.txt"


def licence_faults(served: dict[str, Distribution | None]) -> Iterator[str]:
    """Yield what is needed for serving under another than a permissive licence."""
    for name, found in sorted(served.items()):
        if found is None:
            yield f"{name} is needed for serving and not installed"
            continue
        told = licence_of(found)
        fits = is_permissive(told) or EXCEPTIONS.get(name, (None,))[0] == told
        if not fits:
            yield f"{name}: is its licence permissive? {told or 'it names none'}"


def licence_of(found: Distribution) -> str:
    """Return an SPDX expression where the metadata has one, or can be spelt as one."""
    for expression in _told(found, "License-Expression"):
        return expression
    told = [
        line.rpartition(" :: ")[2]
        for line in _told(found, "Classifier")
        if line.startswith("License :: OSI Approved ::")
    ]
    told = told or [line for text in _told(found, "License") for line in text.splitlines()[:1]]
    return " AND ".join(SPELLINGS.get(one, one) for one in told)


def is_permissive(expression: str) -> bool:
    """Whether all that an expression demands is permissive, or one of what it offers."""
    return all(
        any(choice.strip(" ()") in PERMISSIVE for choice in part.split(" OR "))
        for part in expression.split(" AND ")
    )


def _told(found: Distribution, field: str) -> list[str]:
    return [str(line) for line in found.metadata.get_all(field) or ()]


def _requirements(one: Distribution, extra: str) -> Iterator[Requirement]:
    for line in one.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None:
            if not extra:
                yield requirement
        elif requirement.marker.evaluate({"extra": extra}):
            yield requirement


if __name__ == "__main__":
    main()
