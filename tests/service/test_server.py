"""Why `mfdan serve` does not start, in one line each."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from key_files import ALICE, stanza
from typer.testing import CliRunner, Result

from model.errors import ModelError
from model.session import Session
from service.cli import app


@pytest.fixture(autouse=True)
def _tiny_models(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFDAN_MODELS_DIR", str(models_dir))
    monkeypatch.setenv("MFDAN_PORT", "0")


@pytest.fixture
def taken() -> Iterator[str]:
    """Return a port that somebody else has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


def refused(result: Result) -> str:
    """Return the one line that says why it ended with 1."""
    assert result.exit_code == 1, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("mfdan: ")
    assert "Traceback" not in result.output
    return line


def serve(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["serve", *arguments])


def test_a_port_in_use_is_told(taken: str) -> None:
    line = refused(serve("--port", taken))
    assert line == f"mfdan: cannot listen on 127.0.0.1, port {taken}: Address already in use"


def test_a_port_for_metrics_in_use_is_told(taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFDAN_METRICS_PORT", taken)
    assert f"cannot listen on 127.0.0.1, port {taken}" in refused(serve())


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "2001:db8::1"])
def test_a_host_that_is_not_this_machine_is_told(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(stanza("alice", ALICE))
    keys.chmod(0o600)
    monkeypatch.setenv("MFDAN_API_KEYS_FILE", str(keys))
    assert refused(serve("--host", host)).startswith(f"mfdan: cannot listen on {host}, port 0: ")


def test_more_connections_than_the_system_allows_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(_: int) -> tuple[int, int]:
        return 64, 128

    monkeypatch.setattr("resource.getrlimit", limited)
    assert "lower MFDAN_MAX_CONNECTIONS" in refused(serve())


def test_models_that_cannot_be_warmed_up_end_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_given: object) -> None:
        raise ModelError("the network does not run on 8 faces at once")

    monkeypatch.setattr(Session, "warm_up", fail)
    line = refused(serve())
    assert line == (
        "mfdan: the models could not be warmed up: the network does not run on 8 faces at once"
    )
