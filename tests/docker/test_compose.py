"""docker-compose.yml: what it says, and its own programs run as it says, on this machine."""

import errno
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import httpx2
import pytest
import yaml
from click.testing import Result
from composed import DEPLOY, ENVIRONMENT, ROOT, Composed, Run, compose
from dotenv import dotenv_values
from key_files import ALICE, stanza
from processes import Process
from typer.testing import CliRunner

from service.keys import new_token
from service.settings import Settings

FILES = ("docker-compose.yml", "compose.gpu.yaml")
ONCE = {"prepare", "check"}
"""Services that end by themselves."""
NOWHERE = "http://127.0.0.1:9"


def everything() -> dict:
    return compose(*FILES)["services"]


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"deploy_{name}", DEPLOY / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def done(run: Run, *more: str) -> subprocess.CompletedProcess[str]:
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


def prepare_in(folder: Path) -> Run:
    return Composed(folder).run("prepare")


class Up:
    """prepare, then mfdan, as the file has them."""

    def __init__(self, composed: Composed, process: Process) -> None:
        self.composed = composed
        self.process = process
        self.secrets = composed.run("prepare").folders["/run/mfdan"]
        self.key = (self.secrets / "caller.key").read_text().strip()

    def run(self, name: str, **at: str) -> Run:
        said = {f"http://{other}": url for other, url in at.items()}
        return self.composed.run(name, {"http://mfdan:8000": self.process.url, **said})


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("compose")
    composed = Composed(folder)
    prepared = done(composed.run("prepare"))
    assert prepared.returncode == 0, prepared.stderr
    # The file's own ports may be taken here, and nobody but this machine shall ask.
    loopback = {"MFDAN_HOST": "127.0.0.1", "MFDAN_METRICS_HOST": "127.0.0.1"}
    ports = {"MFDAN_PORT": "0", "MFDAN_METRICS_PORT": "0"}
    run = composed.run("mfdan", MFDAN_BATCH_SIZES="[1]", **ports, **loopback)
    popen = subprocess.Popen(  # noqa: S603 - what the file says
        run.command,
        env=run.environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    process = Process(popen, folder)
    try:
        process.wait_until_ready()
        yield Up(composed, process)
    finally:
        popen.kill()
        process.end()


Answers = dict[str, tuple[int, object]]
PROMETHEUS: Answers = {
    "/api/v1/targets": (
        200,
        {
            "data": {
                "activeTargets": [
                    {
                        "labels": {"instance": "mfdan:9000", "job": "mfdan"},
                        "scrapeUrl": "http://mfdan:9000/metrics",
                        "lastError": "",
                        "health": "up",
                    }
                ]
            }
        },
    ),
    "/api/v1/rules": (
        200,
        {
            "data": {
                "groups": [
                    {
                        "rules": [
                            {"name": "mfdan:drift", "health": "ok", "type": "recording"},
                            {"name": "MfdanSlow", "health": "ok", "state": "firing"},
                        ]
                    }
                ]
            }
        },
    ),
}
GRAFANA: Answers = {
    "/api/health": (200, {"database": "ok"}),
    "/api/datasources/uid/prometheus/health": (200, {"status": "OK", "message": "works"}),
    "/api/search": (200, [{"title": "The service"}]),
}
DOWN = "connection refused"


def with_target(**changed: str) -> Answers:
    answer = json.loads(json.dumps(PROMETHEUS["/api/v1/targets"][1]))
    answer["data"]["activeTargets"][0] |= changed
    return {**PROMETHEUS, "/api/v1/targets": (200, answer)}


@contextmanager
def answering(answers: Mapping[str, tuple[int, object]]) -> Iterator[str]:
    """Stand for a program that is not to be had here; answer as its API documents."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path.partition("?")[0], (404, {}))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# What the files say


def test_every_published_port_is_on_loopback_only() -> None:
    ports = [port for service in everything().values() for port in service.get("ports", ())]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_service_is_bounded_and_can_do_no_more_than_it_must() -> None:
    for name, service in everything().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"memory", "pids"} <= service["deploy"]["resources"]["limits"].keys(), name
        assert service["logging"]["options"]["max-size"], name
        assert service.get("restart") == (None if name in ONCE else "unless-stopped"), name
        assert service.get("read_only") or name == "dcgm-exporter", name


def test_every_variable_is_in_the_file_of_variables_and_every_one_of_that_is_used() -> None:
    text = "".join((ROOT / name).read_text() for name in FILES)
    used = set(re.findall(r"\$\{(\w+)", text))
    assert used == dotenv_values(ROOT / ".env").keys() - {"COMPOSE_PROFILES"}


def test_images_are_named_by_version() -> None:
    theirs = {one["image"] for one in everything().values() if not one["image"].startswith("mfdan")}
    assert len(theirs) == 4
    assert all(re.search(r":v?\d+\.\d+\.\d+", image) for image in theirs)


def test_all_that_is_mounted_from_the_repository_is_there() -> None:
    mounts = [one for service in everything().values() for one in service.get("volumes", ())]
    files = {mount.split(":")[0] for mount in mounts if mount.startswith(".")}
    assert len(files) == 7
    assert [path for path in files if not (ROOT / path).exists()] == []


def test_a_volume_is_declared_or_a_folder() -> None:
    merged = compose(*FILES)
    mounts = [one for service in merged["services"].values() for one in service.get("volumes", ())]
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith((".", "/"))}
    assert named == merged["volumes"].keys()


def test_folders_of_ones_own_take_the_place_of_volumes() -> None:
    services = compose(MFDAN_SECRETS="./mine", MFDAN_MODELS="/srv/models")["services"]
    assert services["mfdan"]["volumes"] == ["./mine:/run/mfdan:ro", "/srv/models:/models:ro"]
    assert services["prepare"]["volumes"] == ["./mine:/run/mfdan", "/srv/models:/models"]


def test_the_service_is_given_as_long_to_stop_as_it_may_take() -> None:
    drain_s = Settings().drain_s
    assert everything()["mfdan"]["stop_grace_period"] == f"{drain_s + 20:g}s"


def test_the_gpu_is_asked_for_by_the_override_alone_and_refused_where_it_is_not_there() -> None:
    plain, gpu = compose()["services"], everything()
    assert "cuda" not in json.dumps(plain)
    for name in ("prepare", "mfdan"):
        assert gpu[name]["environment"]["MFDAN_DEVICE"] == "cuda"
        assert gpu[name]["environment"]["MFDAN_STRICT_GPU"] == "true"
        (device,) = gpu[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        # What was said before still holds.
        assert gpu[name]["environment"].items() >= plain[name]["environment"].items()
        assert gpu[name]["deploy"]["resources"]["limits"]
    ours = [service for service in gpu.values() if service["image"].startswith("mfdan")]
    assert {service["image"] for service in ours} == {"mfdan:gpu"}
    assert {service["build"]["target"] for service in ours} == {"gpu"}


def test_prometheus_knows_every_job_that_dashboards_and_alerts_name() -> None:
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs.keys() == {"mfdan", "prometheus", "dcgm"}
    services = everything()
    port = services["mfdan"]["environment"]["MFDAN_METRICS_PORT"]
    assert jobs["mfdan"]["static_configs"] == [{"targets": [f"mfdan:{port}"]}]
    (found,) = jobs["dcgm"]["file_sd_configs"][0]["files"]
    (targets,) = sorted((ROOT / "docker/prometheus").glob(found))
    assert f"./docker/prometheus/{found.split('/')[0]}:" in str(services["prometheus"]["volumes"])
    (group,) = yaml.safe_load(targets.read_text())
    assert [target.split(":")[0] in services for target in group["targets"]] == [True]


def test_grafana_goes_by_the_interval_of_prometheus_and_looks_where_the_dashboards_are() -> None:
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    folder = ROOT / "docker/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["uid"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((folder / "dashboards/mfdan.yml").read_text())["providers"]
    grafana = everything()["grafana"]
    inside = provider["options"]["path"]
    assert f"./docker/grafana/dashboards:{inside}:ro" in grafana["volumes"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == inside
    assert (ROOT / "docker/grafana/dashboards" / home.name).is_file()


def test_spans_go_to_the_collectors_port() -> None:
    collector = yaml.safe_load((ROOT / "docker/otel/collector.yaml").read_text())
    port = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    assert "otel" in everything()
    assert f"http://otel:{port}" in (ROOT / ".env").read_text()
    assert f"http://otel:{port}" in (ROOT / "docs/deploy.md").read_text()


# What the files start


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


def test_the_demo_is_answered(up: Up) -> None:
    asked = done(up.run("demo"), "--every=0", "--count=4")
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, "4 answered\n", "")
    metrics = httpx2.get(up.process.metrics_url).text
    assert 'mfdan_caller_requests_total{caller="demo",status="200"} 4.0' in metrics


def test_the_demo_asks_about_moving_still_and_missing_faces_and_clips() -> None:
    demo = program("demo")
    assert {what for what, _ in demo.MOVES} == {"brow_lift", "smile", "still", "empty", "clip"}


def test_a_demo_that_is_refused_says_why(up: Up, tmp_path: Path) -> None:
    (tmp_path / "demo.key").write_text(new_token())
    command = [f"--service={up.process.url}", f"--key-file={tmp_path / 'demo.key'}"]
    asked = CliRunner().invoke(program("demo").app, command)
    assert asked.exit_code == 1
    assert asked.stderr.startswith("mfdan: the demo was refused: ")
    assert asked.stderr.endswith("(unauthorized)\n")


@pytest.mark.parametrize(
    ("key", "words"),
    [("there.key", f"no answer from {NOWHERE}"), ("none.key", "none.key cannot be read")],
)
def test_a_demo_that_cannot_ask_says_so_in_one_line(tmp_path: Path, key: str, words: str) -> None:
    (tmp_path / "there.key").write_text(ALICE)
    asked = CliRunner().invoke(
        program("demo").app, [f"--service={NOWHERE}", f"--key-file={tmp_path / key}"]
    )
    assert asked.exit_code == 1
    assert words in asked.stderr
    assert asked.stderr.count("\n") == 1


def test_a_busy_service_is_asked_on() -> None:
    demo = program("demo")
    busy = demo.ProblemError(status=429, code="queue_full", detail="")

    def refused(_: object) -> None:
        raise busy

    assert demo.ask(None, iter([refused, lambda _: None]), 0) == 1


def checked(up: Up, prometheus: str = NOWHERE, grafana: str = NOWHERE, **at: str) -> list[str]:
    """Run the program `check` with what stands for the others; return its lines, status first."""
    said = {"prometheus:9090": prometheus, "grafana:3000": grafana, **at}
    command = up.run("check", **said).command
    asked = CliRunner().invoke(program("check").app, command[2:])
    return [str(asked.exit_code), *asked.stdout.splitlines(), *asked.stderr.splitlines()]


def test_check_finds_all_well_and_tells_what_fires(up: Up) -> None:
    with answering(PROMETHEUS) as prometheus, answering(GRAFANA) as grafana:
        status, *lines = checked(up, prometheus, grafana)
    assert status == "0"
    assert lines == [
        f"ok     mfdan is ready on {up.process.url}",
        "ok     it takes the key in caller.key, and serves mfdan-synthetic",
        "ok     Prometheus reaches mfdan",
        "ok     it evaluates 2 rules; firing: MfdanSlow",
        "ok     Grafana takes its password, and can ask Prometheus",
        "ok     it shows The service",
    ]


def test_check_says_for_each_that_is_down_what_to_do(up: Up) -> None:
    status, *lines = checked(up, **{"mfdan:8000": NOWHERE})
    assert status == "1"
    assert [line.split(" does not answer on ")[0] for line in lines] == [
        "wrong  mfdan",
        "wrong  Prometheus",
        "wrong  Grafana",
    ]
    assert all("docker compose logs" in line for line in lines)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (
            with_target(health="down", lastError=DOWN),
            f"Prometheus cannot reach http://mfdan:9000/metrics: {DOWN}",
        ),
        (with_target(health="unknown"), "has not asked http://mfdan:9000/metrics yet"),
        (with_target(labels={"job": "other"}), "scrapes no job mfdan"),
        ({**PROMETHEUS, "/api/v1/rules": (200, {"data": {"groups": []}})}, "has no rules"),
        ({**PROMETHEUS, "/api/v1/rules": (503, {"error": "starting"})}, "(503): starting"),
        ({}, "refuses targets"),
    ],
)
def test_check_says_what_is_wrong_with_prometheus(up: Up, answers: Answers, words: str) -> None:
    with answering(answers) as prometheus, answering(GRAFANA) as grafana:
        status, *lines = checked(up, prometheus, grafana)
    assert status == "1"
    assert [words in line for line in lines if line.startswith("wrong")] == [True]


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/api/health", (503, {}), "Grafana is not well (503)"),
        ("/api/datasources/uid/prometheus/health", (401, {}), "reset-admin-password"),
        (
            "/api/datasources/uid/prometheus/health",
            (400, {"message": "no such host"}),
            "Grafana cannot ask Prometheus (400): no such host",
        ),
        ("/api/search", (200, []), "shows no dashboard"),
    ],
)
def test_check_says_what_is_wrong_with_grafana(
    up: Up, path: str, answer: tuple[int, object], words: str
) -> None:
    with answering(PROMETHEUS) as prometheus, answering({**GRAFANA, path: answer}) as grafana:
        status, *lines = checked(up, prometheus, grafana)
    assert status == "1"
    assert [words in line for line in lines if line.startswith("wrong")] == [True]


# Bad input


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
    with pytest.raises(prepare.Refused, match="no model is in /proc, and none can be put there"):
        prepare.fill_models(Path("/proc"))


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


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")  # ONNX Runtime's own words
def test_the_gpu_override_without_a_gpu_is_refused_with_what_to_do(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for = everything()["prepare"]["environment"]
    device = {name: asked_for[name] for name in ("MFDAN_DEVICE", "MFDAN_STRICT_GPU")}
    said = refused(up.composed.run("prepare"), monkeypatch, **device)
    assert "a GPU was asked for, but mfdan-synthetic runs on CPUExecutionProvider" in said
    assert "leave out -f compose.gpu.yaml" in said
