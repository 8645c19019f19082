"""Why `mfdan serve` does not start, in one line each, and what its drain leaves over."""

import json
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from connecting import open_doors, posted, read_answer, read_to_end
from key_files import ALICE, stanza
from serving import HeldSession, MakeSettings, Pictures, wait_for
from typer.testing import CliRunner, Result

from model.errors import ModelError
from model.session import Session
from service import engine
from service.cli import app
from service.engine import Engine
from service.security import PROTECTIVE


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


def told_of(output: str, event: str) -> dict[str, object]:
    """Return the one line of the log that tells of this."""
    lines: list[dict[str, object]] = [json.loads(line) for line in output.splitlines()]
    (line,) = [line for line in lines if line["event"] == event]
    return line


def test_an_engine_that_cannot_be_opened_ends_the_service_and_nobody_reads_its_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise RuntimeError("no /secret/path")

    monkeypatch.setattr(engine, "FaceFinder", fail)
    # uvicorn's own, which a server of another test may have set up, has a stream that is closed.
    monkeypatch.setattr(logging.getLogger("uvicorn"), "handlers", [])
    result = serve()
    assert refused(result) == "mfdan: the service could not start: RuntimeError"
    line = told_of(result.stdout, "the service could not start")
    assert line["fault"] == "RuntimeError"
    assert str(line["where"]).count(fail.__qualname__) == 1
    assert "secret" not in result.output


def test_an_engine_that_cannot_be_closed_is_told_likewise(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    close = Engine.close

    async def fail(opened: Engine) -> None:
        await close(opened)
        raise ModelError("its threads are stuck")

    with open_doors(make_settings()) as doors:
        monkeypatch.setattr(Engine, "close", fail)
    assert doors.server.fault == "the service could not stop: its threads are stuck"
    assert told_of(capsys.readouterr().out, "the service could not stop")["fault"] == "ModelError"


def test_what_the_drain_leaves_over_is_answered_503_and_told_as_such(
    make_settings: MakeSettings,
    held: HeldSession,
    pictures: Pictures,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A pair in the network, a batch that waits, and an upload that has not ended."""
    pair, batch = (posted(path, **pictures.pair) for path in ("/predict", "/predict/batch"))
    with open_doors(make_settings(drain_timeout_s=0), held) as doors, ExitStack() as stack:
        admission = doors.server.lifespan.state["admission"]
        connections = [
            stack.enter_context(doors.connect(said)) for said in (pair, batch, pair[:-9])
        ]
        wait_for(lambda: held.started.is_set() and admission.under_way == len(connections))
        doors.server.handle_exit(signal.SIGTERM, None)
        answers = [(read_answer(one), read_to_end(one)) for one in connections]
        registry = doors.server.lifespan.state["telemetry"].registry
    logged = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = {line["request_id"]: line for line in logged if line["event"] == "request"}
    for answer, rest in answers:
        head, _, body = answer.partition(b"\r\n\r\n")
        problem = json.loads(body)
        assert (problem["status"], problem["code"], rest) == (503, "draining", b"")
        assert head.startswith(b"HTTP/1.1 503 ")
        headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
        assert headers["content-type"] == "application/problem+json"
        assert (headers["retry-after"], headers["connection"]) == ("1", "close")
        assert headers["x-request-id"] == problem["request_id"]
        assert {name.lower() for name in PROTECTIVE} <= headers.keys()
        line = told[problem["request_id"]]
        assert (line["status"], line["code"]) == (503, "draining")
    value = registry.get_sample_value("mfdan_rejections_total", {"code": "draining"})
    assert value == len(connections)


def test_the_drain_waits_as_long_as_the_longest_request_may_take(
    make_settings: MakeSettings,
) -> None:
    assert make_settings().drain_s == 30 + 120 + 5
    assert make_settings(deadline_ms=600_000, upload_timeout_ms=1000).drain_s == 600 + 1 + 5
    assert make_settings(drain_timeout_s=0).drain_s == 0
