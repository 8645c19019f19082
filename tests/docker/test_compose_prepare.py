"""`prepare`, and the service behind it, run on this machine as docker-compose.yml has them."""

import errno
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from composed import DEPLOY, FILES, Composed, Run, Up, compose, invoked, program
from key_files import ALICE, stanza

from service.keys import new_token


def test_the_service_as_composed_answers_who_has_the_generated_key(up: Up) -> None:
    with httpx2.Client(base_url=up.process.url) as client:
        assert client.get("/models").status_code == 401
        answer = client.get("/models", headers={"X-API-Key": up.key})
    assert [card["name"] for card in answer.json()] == ["mfdan-synthetic"]
    assert "mfdan_ready 1.0" in httpx2.get(f"{up.process.metrics_url}").text


def test_the_image_s_health_check_finds_the_service_as_composed(up: Up) -> None:
    check = up.composed.services["mfdan"]["healthcheck"]["test"]
    assert check[0] == "CMD"
    asked = subprocess.run(  # noqa: S603 - what the file says
        [sys.executable, DEPLOY / Path(check[2]).name],
        env={"MFDAN_HOST": "0.0.0.0", "MFDAN_PORT": str(up.process.port)},  # noqa: S104 - as composed
        capture_output=True,
        text=True,
        check=False,
    )
    assert (asked.returncode, asked.stderr) == (0, "")


def test_preparing_again_changes_nothing_and_shows_no_secret(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = up.composed.run("prepare")
    before = contents(*run.folders.values())
    again = invoked("prepare", run, monkeypatch)
    assert again.exit_code == 0
    assert contents(*run.folders.values()) == before
    assert "docker compose exec mfdan cat" in again.stdout
    for name in ("caller.key", "demo.key", "grafana-password"):
        secret = (up.secrets / name).read_text().strip()
        assert len(secret) > 20
        assert secret not in again.stdout + again.stderr
        assert secret not in (up.secrets / "keys.toml").read_text()


def contents(*folders: Path) -> dict[Path, tuple[bytes, int]]:
    paths = [path for folder in folders for path in folder.iterdir()]
    return {path: (path.read_bytes(), path.stat().st_mode) for path in paths}


def test_only_grafana_s_password_may_be_read_by_a_group(up: Up) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in up.secrets.iterdir()}
    assert modes.pop("grafana-password") == 0o640
    assert set(modes.values()) == {0o600}


def prepare_in(folder: Path) -> Run:
    return Composed(folder).run("prepare")


def test_keys_and_password_that_were_given_are_kept(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text(stanza("alice", ALICE))
    (tmp_path / "caller.key").write_text(f"{ALICE}\n")
    (tmp_path / "grafana-password").write_text("given")
    before = contents(tmp_path)
    prepare = program("prepare")
    prepare.make_keys(tmp_path, tmp_path / "keys.toml")
    prepare.make_password(tmp_path / "grafana-password")
    assert contents(tmp_path) == before


def test_a_key_that_was_given_gets_into_the_file_of_keys(tmp_path: Path) -> None:
    (tmp_path / "caller.key").write_text(f"{ALICE}\n")
    prepare = program("prepare")
    prepare.make_keys(tmp_path, tmp_path / "keys.toml")
    known = {key.name: key.digest for key in prepare.read_keys(tmp_path / "keys.toml")}
    assert known.keys() == {"caller", "demo"}
    assert known["caller"] == prepare.digest_of(ALICE)


def another_key(folder: Path) -> None:
    (folder / "keys.toml").write_text(stanza("alice", ALICE))
    (folder / "demo.key").write_text(new_token())


def keys_that_are_none(folder: Path) -> None:
    (folder / "keys.toml").write_text("[keys]\n")


def keys_that_are_nowhere(folder: Path) -> None:
    (folder / "keys.toml").symlink_to(folder / "gone")


def a_folder_for_a_password(folder: Path) -> None:
    (folder / "grafana-password").mkdir()


def a_key_in_utf_16(folder: Path) -> None:
    (folder / "keys.toml").write_text(stanza("alice", ALICE))
    (folder / "caller.key").write_text(ALICE, "utf-16")


def an_empty_password(folder: Path) -> None:
    (folder / "grafana-password").touch()


def a_password_for_the_owner_alone(folder: Path) -> None:
    (folder / "grafana-password").write_text("given")
    (folder / "grafana-password").chmod(0o600)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (another_key, "demo.key is not in "),
        (keys_that_are_none, "keys.toml at keys: "),
        (keys_that_are_nowhere, "keys.toml cannot be read: No such file or directory. User "),
        (a_key_in_utf_16, "caller.key cannot be read (it is no ASCII text): may user "),
        (a_folder_for_a_password, "grafana-password cannot be read (Is a directory)"),
        (an_empty_password, "grafana-password is empty: write a password into it"),
        (a_password_for_the_owner_alone, "Grafana may not read "),
    ],
)
def test_a_secret_that_will_not_do_is_refused_in_words(
    tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(tmp_path)
    prepare = program("prepare")

    def make() -> None:
        prepare.make_keys(tmp_path, tmp_path / "keys.toml")
        prepare.make_password(tmp_path / "grafana-password")

    with pytest.raises(prepare.Refused, match=re.escape(words)):
        make()


def test_a_folder_that_cannot_be_written_to_is_refused_in_words() -> None:
    prepare = program("prepare")
    with pytest.raises(prepare.Refused, match=r"cannot be written \(.*\): is there a volume"):
        prepare.write(Path("/proc/caller.key"), ALICE, 0o600)
    with pytest.raises(prepare.Refused, match="no model is in the volume models, and none can be"):
        prepare.fill_models(Path("/proc"), "models")


def test_an_empty_folder_of_ones_own_is_refused_and_stays_empty(tmp_path: Path) -> None:
    prepare = program("prepare")
    with pytest.raises(prepare.Refused, match="no model is in /srv/modles, which is "):
        prepare.fill_models(tmp_path, "/srv/modles")
    assert not list(tmp_path.iterdir())


def test_without_a_caller_s_key_none_is_shown_but_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "secrets"
    given.mkdir()
    (given / "keys.toml").write_text(stanza("alice", ALICE))
    (given / "grafana-password").write_text("given")
    run = prepare_in(tmp_path)
    assert run.folders["/run/mfdan"] == given
    asked = invoked("prepare", run, monkeypatch)
    assert asked.exit_code == 0
    assert "docker compose exec mfdan cat" not in asked.stdout
    assert f"none is in {given / 'caller.key'}; `check` asks with that one" in asked.stdout
    assert {path.name for path in given.iterdir()} == {"keys.toml", "grafana-password"}


def test_an_address_for_traces_that_the_service_would_refuse_is_refused_before(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = up.composed.run("prepare")
    said = refused(run, monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT="otel:4318")
    assert "not prepared: traces: OTEL_EXPORTER_OTLP_ENDPOINT is not an http" in said


def refused(run: Run, monkeypatch: pytest.MonkeyPatch, **changed: str) -> str:
    """Prepare where that must be refused; return the one line."""
    asked = invoked("prepare", run, monkeypatch, **changed)
    assert asked.exit_code == 1
    assert asked.stdout == ""
    assert asked.stderr.count("\n") == 1
    return asked.stderr


def test_without_a_folder_of_models_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare_in(tmp_path)
    run.folders["/models"].rmdir()
    said = refused(run, monkeypatch)
    assert said.startswith("mfdan: not prepared: there is no folder ")
    assert "MFDAN_MODELS must name a volume" in said


def test_a_broken_model_is_refused_before_it_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare_in(tmp_path)
    (run.folders["/models"] / "mine.onnx").write_bytes(b"no network")
    assert "mine.onnx" in refused(run, monkeypatch)


def test_a_model_that_may_not_be_read_is_named(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> str:  # root, as whom tests may run, may read everything
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("model.spec.file_sha256", denied)
    said = refused(up.composed.run("prepare"), monkeypatch)
    assert "mfdan-synthetic.onnx cannot be read (Permission denied): may user " in said


def test_the_gpu_override_without_a_gpu_is_refused_with_what_to_do(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for = compose(*FILES)["services"]["prepare"]["environment"]
    device = {name: asked_for[name] for name in ("MFDAN_DEVICE", "MFDAN_STRICT_GPU")}
    said = refused(up.composed.run("prepare"), monkeypatch, **device)
    assert "a GPU was asked for, but mfdan-synthetic.onnx runs on CPUExecutionProvider" in said
    assert "leave out compose.gpu.yaml (unset COMPOSE_FILE)" in said
