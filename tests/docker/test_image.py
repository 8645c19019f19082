"""The image, as far as it can be tried in seconds; .ci/image.sh builds and serves it."""

import os
import re
import runpy
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest
from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser
from processes import serving_process
from serving import wait_for
from tiny_model import write_tiny_model

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "docker" / "image"
HEALTHCHECK = ROOT / "docker" / "deploy" / "healthcheck.py"
DEPENDENCIES = runpy.run_path(str(ROOT / ".ci" / "dependencies.py"))
FOLLOWER = runpy.run_path(str(ROOT / ".ci" / "image.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STEPS = [
    (part["instruction"], re.sub(r"\s+", " ", part["value"]))
    for part in DockerfileParser(str(ROOT / "docker" / "Dockerfile")).structure
]


def read_requirements(name: str) -> dict[str, str]:
    """Return name and version of each package that a file of requirements installs."""
    text = (IMAGE / f"requirements-{name}.txt").read_text()
    packages = re.findall(
        r"^([\w.-]+)==(\S+) \\\n((?: +--hash=sha256:[0-9a-f]{64}.*\n)+)", text, re.MULTILINE
    )
    assert len(packages) == len(re.findall(r"^[^#\s]", text, re.MULTILINE)), (
        "a package without a hash"
    )
    return {name: version for name, version, _ in packages}


@pytest.mark.parametrize("name", ["cpu", "gpu", "build"])
def test_every_package_has_hashes_and_the_version_of_constraints(name: str) -> None:
    pins = DEPENDENCIES["read_pins"]((ROOT / "constraints.txt").read_text())
    installed = read_requirements(name)
    only_here = {name for name in installed if name not in pins}
    assert {name: installed[name] for name in installed.keys() - only_here}.items() <= pins.items()
    assert all(name.startswith("nvidia-") for name in only_here)
    assert name == "gpu" or not only_here


def test_the_cpu_image_installs_what_serving_needs_and_nothing_else() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["cpu"], *extras["client"], *extras["traces"]]
    assert read_requirements("cpu").keys() == DEPENDENCIES["closure"](wanted).keys()


def test_the_gpu_image_differs_in_onnx_runtime_nvidias_libraries_and_the_flow_on_the_gpu() -> None:
    cpu, gpu = read_requirements("cpu"), read_requirements("gpu")
    assert cpu.items() - gpu.items() == {("onnxruntime", cpu["onnxruntime"])}
    more = gpu.keys() - cpu.keys()
    assert "onnxruntime-gpu" in more
    assert {"nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-ml-py", "nvidia-npp"} <= more
    flow = DEPENDENCIES["closure"](PROJECT["optional-dependencies"]["onnx-flow"]).keys()
    assert all(name.startswith("nvidia-") for name in more - flow - {"onnxruntime-gpu"})


def test_the_label_has_the_version_of_the_project() -> None:
    (labels,) = [value for instruction, value in STEPS if instruction == "LABEL"]
    assert f'image.version="{PROJECT["version"]}"' in labels


def test_every_stage_that_serves_is_without_privileges_and_has_a_health_check() -> None:
    stages = FOLLOWER["read_stages"](
        DockerfileParser(str(ROOT / "docker" / "Dockerfile")).structure
    )
    for target in ("cpu", "gpu"):
        parent, own = stages[target]
        assert parent == "runtime"
        assert {instruction for instruction, _ in own} <= {"COPY", "ENV"}
    runtime = dict(stages["runtime"][1])
    assert runtime["USER"] == "10001:10001"
    assert "healthcheck.py" in runtime["HEALTHCHECK"]
    assert runtime["ENTRYPOINT"] == '["/opt/mfdan/bin/mfdan"]'
    assert runtime["CMD"] == '["serve"]'


def test_the_context_holds_what_the_dockerfile_copies_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    names = {name for name in exclude_paths(str(ROOT), patterns) if (ROOT / name).is_file()}
    sources = set(copied_sources())
    for source in sources:
        assert any(name == source or name.startswith(f"{source}/") for name in names), source
    folders = tuple(f"{source}/" for source in sources)
    others = {name for name in names - sources if not name.startswith(folders)}
    assert others == {".dockerignore"}


def test_what_is_copied_from_a_checkout_of_its_owner_s_alone_may_be_read_by_all(
    tmp_path: Path,
) -> None:
    stages = FOLLOWER["read_stages"](
        DockerfileParser(str(ROOT / "docker" / "Dockerfile")).structure
    )
    for target in ("cpu", "gpu"):
        copies = [value for instruction, value in stages[target][1] if instruction == "COPY"]
        flags, rest = FOLLOWER["split_flags"](copies[-1])
        *sources, into = rest.split()
        assert into == "/opt/mfdan/deploy/"
        context, layer = tmp_path / target / "context", tmp_path / target / "layer"
        for source in sources:
            (context / source).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if source.endswith("/") else shutil.copy
            copy(ROOT / source, context / source)
        for path in context.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        builder = object.__new__(FOLLOWER["Builder"])  # no stage is built for it
        builder._context = context
        builder._copy(flags, [*sources, into], layer)
        copied = [layer / into.strip("/"), *(layer / into.strip("/")).iterdir()]
        assert len(copied) > 4
        assert {stat.S_IMODE(path.stat().st_mode) for path in copied} == {0o755}


def copied_sources() -> Iterator[str]:
    """Yield what the Dockerfile takes out of its context."""
    for instruction, value in STEPS:
        flags, rest = FOLLOWER["split_flags"](value)
        if instruction == "COPY" and "from" not in dict(flags):
            yield from (source.rstrip("/") for source in rest.split()[:-1])
        for _, mount in flags:
            yield from re.findall(r"type=bind,source=([^,]+)", mount)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["install-packages.sh", "tpu", "/nowhere"], "there is no target tpu: it is cpu or gpu"),
        (["install-packages.sh"], "say for which target"),
        (["install-packages.sh", "gpu", "/nowhere", "/nowhere"], "must hold one wheel of opencv"),
        (["install-mfdan.sh", "/nowhere"], "say where to"),
        (["build-wheel.sh"], "say where the source is"),
        (["trim.sh"], "say which environment"),
    ],
)
def test_a_script_says_what_it_misses(words: list[str], said: str) -> None:
    done = subprocess.run(  # noqa: S603 - our own script
        [str(IMAGE / words[0]), *words[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert said in done.stderr


def check_health(**variables: str) -> tuple[int, str]:
    """Run the health check as the image does; return its status and what it said."""
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, str(HEALTHCHECK)],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_the_health_check_follows_a_service_from_ready_to_draining(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    with serving_process(tmp_path, MFDAN_DRAIN_GRACE_S="600") as process:
        process.wait_until_ready()
        port = str(process.port)
        assert check_health(MFDAN_PORT=port, MFDAN_HOST="0.0.0.0") == (0, "200: ready\n")  # noqa: S104 - none is bound
        process.popen.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx2.get(f"{process.url}/health/ready").status_code == 503)
        status, said = check_health(MFDAN_PORT=port)
        assert status == 1
        assert said.startswith("503: ")
        assert "shutting down" in said
    status, said = check_health(MFDAN_PORT=port)
    assert (status, said) == (
        1,
        f"nobody serves HTTP on 127.0.0.1:{port}: ConnectionRefusedError\n",
    )


@pytest.mark.parametrize("port", ["0", "65536", "http", ""])
def test_the_health_check_refuses_what_is_no_port(port: str) -> None:
    status, said = check_health(MFDAN_PORT=port)
    assert status == 1
    assert said == f"MFDAN_PORT is {port!r}: it must be a number from 1 to 65535 to be asked at\n"


@contextmanager
def other_server(status: int, body: bytes) -> Iterator[str]:
    """Serve one answer to everything; yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield str(server.server_port)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>"), (200, b"[]"), (200, b"{}"), (404, b"\xff"), (200, b"")]
)
def test_the_health_check_does_not_take_another_server_for_mfdan(status: int, body: bytes) -> None:
    ask = runpy.run_path(str(HEALTHCHECK))["ask"]
    with other_server(status, body) as port:
        said = f"{status}, and the answer is not mfdan's: does something else serve there?"
        assert ask("127.0.0.1", port) == (False, said)


def test_the_health_check_does_not_wait_for_a_service_that_hangs() -> None:
    ask = runpy.run_path(str(HEALTHCHECK))["ask"]
    ask.__globals__["PATIENCE_S"] = 0.1
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        said = f"nothing was answered on 127.0.0.1:{port} within 0.1 s"
        assert ask("127.0.0.1", str(port)) == (False, said)
