"""docker-compose.yml without Docker: its services' programs as processes of this machine.

What they run, with which environment and which folders, is read from the file; only paths of the
containers and addresses of their network are put in other words.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from types import ModuleType
from typing import Any

import pytest
import yaml
from click.testing import Result
from dotenv import dotenv_values
from podman_compose import rec_merge
from processes import Process
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docker" / "deploy"
OURS = {"/opt/mfdan/deploy/": f"{DEPLOY}/", "/opt/mfdan/bin/": f"{Path(sys.executable).parent}/"}
ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",  # the image has drawn_face.py beside its programs
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
}
FILES = ("docker-compose.yml", "compose.gpu.yaml")
NOWHERE = "http://127.0.0.1:9"
"""Where nobody listens."""

sys.path.append(str(DEPLOY))  # where its programs find each other


def compose(*files: str, **variables: str) -> dict[str, Any]:
    """Return what Compose makes of these files with .env and the shell's variables."""
    known = {**dotenv_values(ROOT / ".env", interpolate=False), **variables}
    merged: dict[str, Any] = {}
    for name in files or ("docker-compose.yml",):
        merged = rec_merge(merged, _filled(yaml.safe_load((ROOT / name).read_text()), known))
    return merged


@dataclass(frozen=True)
class Run:
    """One container as a process."""

    command: list[str]
    environment: dict[str, str]
    folders: dict[str, Path]
    """What is mounted where."""


class Composed:
    """The services of docker-compose.yml, with their volumes as folders of one folder."""

    def __init__(self, folder: Path) -> None:
        self.services: dict[str, Any] = compose()["services"]
        self._folder = folder

    def run(self, name: str, said: Mapping[str, str] | None = None, **changed: str) -> Run:
        """Return how to run a service; `said`: other words for parts of its command or settings."""
        service = self.services[name]
        folders = self._folders(service.get("volumes", ()))
        words = {**OURS, **{inside: str(here) for inside, here in folders.items()}}
        words |= said or {}
        start = service.get("entrypoint") or _of_image("ENTRYPOINT")
        rest = service.get("command") or _of_image("CMD")
        given = service.get("environment", {})
        settings = {name: _said(value, words) for name, value in given.items()}
        return Run(
            [_said(part, words) for part in (*start, *rest)],
            {**ENVIRONMENT, **settings, **changed},
            folders,
        )

    def _folders(self, volumes: list[str]) -> dict[str, Path]:
        found = {}
        for volume in volumes:
            source, target, *_ = volume.split(":")
            found[target] = ROOT / source if source.startswith(".") else self._folder / source
            found[target].mkdir(exist_ok=True)
        return found


def program(name: str) -> ModuleType:
    """Return a program of docker/deploy, as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"deploy_{name}", DEPLOY / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def done(run: Run, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a container's program to its end."""
    return subprocess.run(  # noqa: S603 - what the file says
        [*run.command, *more],
        env=run.environment,
        cwd=next(iter(run.folders.values())),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def invoked(name: str, run: Run, monkeypatch: pytest.MonkeyPatch, **changed: str) -> Result:
    """Run a program in this process: a second less than one of its own."""
    for variable in [one for one in os.environ if one.startswith("MFDAN_")]:
        monkeypatch.delenv(variable)
    for variable, value in {**run.environment, **changed}.items():
        if variable not in ENVIRONMENT:
            monkeypatch.setenv(variable, value)
    return CliRunner().invoke(program(name).app, run.command[2:])


class Up:
    """prepare, then mfdan, as the file has them."""

    def __init__(self, composed: Composed, process: Process) -> None:
        self.composed = composed
        self.process = process
        self.secrets = composed.run("prepare").folders["/run/mfdan"]
        self.key = (self.secrets / "caller.key").read_text().strip()

    def run(self, name: str, **at: str) -> Run:
        """Return how to run a service; `at`: where others are, by host and port of theirs."""
        said = {f"http://{other}": url for other, url in at.items()}
        return self.composed.run(name, {"http://mfdan:8000": self.process.url, **said})


def _filled(value: Any, known: Mapping[str, str | None]) -> Any:  # noqa: ANN401 - YAML
    if isinstance(value, dict):
        return {key: _filled(one, known) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, known) for one in value]
    return Template(value).substitute(known) if isinstance(value, str) else value


def _said(text: str, words: Mapping[str, str]) -> str:
    for theirs, ours in words.items():
        text = text.replace(theirs, ours)
    return text


def _of_image(instruction: str) -> list[str]:
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    found = re.findall(rf"^{instruction} (\[.*\])", dockerfile, re.MULTILINE)
    parts: list[str] = json.loads(found[-1])
    return parts
