"""Follow docker/Dockerfile without Docker, and run what comes out: see .ci/image.sh.

Each RUN and COPY is an overlay of its own, as an engine would have it, so that each layer can be
weighed. Needs root, and a private mount namespace, which image.sh makes.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path, PurePosixPath
from string import Template

from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser

REPOSITORY = Path(__file__).parents[1]
DOCKERFILE = REPOSITORY / "docker" / "Dockerfile"
LIMIT_MB = 700
"""What the CPU image may hold, unpacked, in millions of bytes."""
PATIENCE_S = 60
NETWORK = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "HTTPS_PROXY", "NO_PROXY")
"""Variables that a build may see, as Docker's build arguments of these names."""
RECORDED = {"LABEL", "EXPOSE", "USER", "WORKDIR", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Layer:
    """The files that one step left."""

    step: str
    folder: Path

    @property
    def megabytes(self) -> float:
        """Its size, in millions of bytes."""
        files = (Path(root) / name for root, _, names in os.walk(self.folder) for name in names)
        return sum(file.lstat().st_size for file in files) / 1e6


@dataclass(frozen=True)
class Image:
    """What a stage came to."""

    layers: tuple[Layer, ...] = ()
    """The lowest first."""
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": DEFAULT_PATH})
    config: Mapping[str, str] = field(default_factory=dict)
    """The last value of each instruction that only describes."""

    def command(self, instruction: str) -> list[str]:
        """Return a command in the form of a list."""
        value = self.config[instruction].partition("CMD ")[2] or self.config[instruction]
        words: list[str] = json.loads(value)
        return words


class Mounts:
    """Overlays and folders below a scratch folder."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._numbers = count()

    def folder(self, name: str) -> Path:
        """Make an empty folder that nothing else uses."""
        path = self.work / f"{next(self._numbers)}-{name}"
        path.mkdir(parents=True)
        return path

    @contextmanager
    def merged(self, lower: list[Path], upper: Path | None = None) -> Iterator[Path]:
        """Mount folders over each other, the first uppermost; read-only without an `upper`."""
        at = self.folder("root")
        options = "lowerdir=" + ":".join(str(path) for path in lower)
        if upper is not None:
            options += f",upperdir={upper},workdir={self.folder('work')}"
        call("mount", "-t", "overlay", "overlay", "-o", options, str(at))
        try:
            yield at
        finally:
            call("umount", "--recursive", str(at))


class Builder:
    """Builds the stages of a Dockerfile on top of a base tree, each one once."""

    def __init__(
        self, base: Path, mounts: Mounts, cache: Path, contexts: Mapping[str, Path]
    ) -> None:
        self._mounts = mounts
        self._cache = cache
        self._contexts = contexts
        self._base = Image((Layer("the base: Debian and its Python, as a stand-in", base),))
        self._stages = read_stages(DockerfileParser(str(DOCKERFILE)).structure)
        self._built: dict[str, Image] = {}
        self._host = self._write_host_files()
        self._context = self._copy_context()

    def build(self, target: str) -> Image:
        """Return the image of a stage, with all that it needs built before."""
        if target not in self._built:
            parent, steps = self._stages[target]
            image = self.build(parent) if parent in self._stages else self._base
            for instruction, value in steps:
                print(f"[{target}] {instruction} {value}", flush=True)
                image = self._follow(image, instruction, value)
            self._built[target] = image
        return self._built[target]

    def _follow(self, image: Image, instruction: str, value: str) -> Image:
        if instruction in RECORDED:
            return replace(image, config={**image.config, instruction: value})
        if instruction == "ENV":
            return replace(image, env={**image.env, **assignments(value, image.env)})
        if instruction == "ARG":
            return image  # they only reach labels
        if instruction not in {"RUN", "COPY"}:
            sys.exit(f"{DOCKERFILE.name}: .ci/image.py does not know {instruction}")
        layer = self._mounts.folder(instruction.lower())
        flags, rest = split_flags(value)
        if instruction == "RUN":
            self._run(image, flags, rest, layer)
        else:
            self._copy(flags, shlex.split(rest), layer)
        return replace(image, layers=(*image.layers, Layer(f"{instruction} {rest}", layer)))

    def _copy(self, flags: list[tuple[str, str]], words: list[str], layer: Path) -> None:
        *sources, target = words
        stage = dict(flags).get("from")
        into = layer / target.lstrip("/")
        into.mkdir(parents=True)
        with self._tree_of(stage) as tree:
            for source in sources:
                path = tree / source.strip("/")
                call("cp", "-a", f"{path}/." if path.is_dir() else str(path), str(into))
        if mode := dict(flags).get("chmod"):
            call("chmod", "--recursive", mode, str(into))

    @contextmanager
    def _tree_of(self, stage: str | None) -> Iterator[Path]:
        if stage is None or stage in self._contexts:
            yield self._contexts[stage] if stage else self._context
            return
        layers = self.build(stage).layers
        with self._mounts.merged([layer.folder for layer in reversed(layers)]) as tree:
            yield tree

    def _run(self, image: Image, flags: list[tuple[str, str]], command: str, layer: Path) -> None:
        lower = [layer.folder for layer in reversed(image.layers)]
        env = {name: os.environ[name] for name in NETWORK if name in os.environ}
        if (self._host / "certificates.crt").exists():
            env["PIP_CERT"] = "/certificates.crt"
        with self._mounts.merged([*lower, self._host], layer) as root:
            stubs = [self._mount(root, value) for name, value in flags if name == "mount"]
            call("mount", "--bind", "/dev", str(root / "dev"))
            call(*chrooted(root, ["/bin/sh", "-c", command], {**image.env, **env}))
        for stub in stubs:
            remove_empty(layer, stub)

    def _mount(self, root: Path, value: str) -> PurePosixPath:
        """Mount what a RUN --mount asks for; return where, below the root."""
        options = dict(one.partition("=")[::2] for one in value.split(","))
        target = PurePosixPath(options["target"].lstrip("/"))
        sources = {"cache": self._cache, "bind": self._context / options.get("source", "")}
        (root / target).mkdir(parents=True, exist_ok=True)
        call("mount", "--bind", str(sources[options["type"]]), str(root / target))
        return target

    def _write_host_files(self) -> Path:
        """Write what an engine lends to a step: how names are resolved, whom to trust."""
        host = self._mounts.folder("host")
        (host / "etc").mkdir()
        shutil.copy("/etc/resolv.conf", host / "etc")
        if certificates := os.environ.get("PIP_CERT"):
            shutil.copy(certificates, host / "certificates.crt")
        return host

    def _copy_context(self) -> Path:
        """Copy what .dockerignore lets through, as an engine is sent it."""
        context = self._mounts.folder("context")
        ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
        patterns = [line for line in ignored if line and not line.startswith("#")]
        passed = exclude_paths(str(REPOSITORY), patterns)
        for name in (name for name in passed if (REPOSITORY / name).is_file()):
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, context / name)
        return context


def read_stages(
    structure: list[dict[str, str]],
) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Return each stage's parent and its instructions."""
    stages: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    steps: list[tuple[str, str]] = []
    for part in structure:
        instruction, value = part["instruction"].upper(), re.sub(r"\s+", " ", part["value"])
        if instruction == "FROM":
            parent, name = re.split(" AS ", value, flags=re.IGNORECASE)
            steps = []
            stages[name] = (parent, steps)
        elif instruction != "COMMENT":
            steps.append((instruction, value))
    return stages


def split_flags(value: str) -> tuple[list[tuple[str, str]], str]:
    """Part `--from=a --link b c` into its flags and the rest."""
    flags = []
    while value.startswith("--"):
        flag, _, value = value.partition(" ")
        name, _, setting = flag[2:].partition("=")
        flags.append((name, setting))
    return flags, value


def assignments(value: str, env: Mapping[str, str]) -> dict[str, str]:
    """Return what an ENV sets, with the variables that it mentions filled in."""
    pairs = (word.partition("=") for word in shlex.split(value))
    return {name: Template(text).substitute(env) for name, _, text in pairs}


def chrooted(root: Path, command: list[str], env: Mapping[str, str]) -> list[str]:
    """Return a command line that runs a command in a tree, with processes of its own."""
    variables = [f"{name}={value}" for name, value in env.items()]
    enter = 'mount -t proc proc "$0/proc" && exec chroot "$0" /usr/bin/env -i "$@"'
    unshared = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    return [*unshared, "sh", "-c", enter, str(root), *variables, *command]


def remove_empty(layer: Path, stub: PurePosixPath) -> None:
    """Remove the empty folders that a mount left in a layer, as an engine does."""
    for path in (stub, *stub.parents[:-1]):
        if (layer / path).is_dir() and not any((layer / path).iterdir()):
            (layer / path).rmdir()


def call(*words: str) -> None:
    """Run a command; end with its words when it fails."""
    if subprocess.run(words, check=False).returncode:
        sys.exit(f"failed: {shlex.join(words)}")


class Container:
    """An image as docker-compose.yml runs it: read-only but for /tmp, without any privilege."""

    def __init__(self, image: Image, root: Path, env: Mapping[str, str]) -> None:
        self._image = image
        self._root = root
        self._env = {**image.env, **env}

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """Start a command in it, as its user."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self._line(command), stdout=pipe, stderr=pipe, text=True)

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Run a command in it to its end; return status, standard output, standard error."""
        line = self._line(command)
        done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        return done.returncode, done.stdout, done.stderr

    def _line(self, command: list[str]) -> list[str]:
        user, _, group = self._image.config["USER"].partition(":")
        dropped = ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--clear-groups"]
        enter = ["/usr/bin/setpriv", f"--reuid={user}", f"--regid={group}", *dropped]
        return chrooted(self._root, [*enter, *command], self._env)


@contextmanager
def mounted(image: Image, mounts: Mounts, secrets: Path) -> Iterator[Path]:
    """Mount an image's tree as a container has it."""
    with mounts.merged([layer.folder for layer in reversed(image.layers)]) as root:
        call("mount", "--bind", "/dev", str(root / "dev"))
        call("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(root / "tmp"))
        call("mount", "--bind", str(secrets), str(root / "run/mfdan"))
        yield root


def try_out(image: Image, mounts: Mounts) -> None:
    """Serve one request from an image; end with a sentence where it is not as promised."""
    secrets = mounts.folder("secrets")
    with mounted(image, mounts, secrets) as root:
        entry, port = image.command("ENTRYPOINT"), free_port()
        bare = Container(image, root, {"MFDAN_PORT": str(port)})
        serve = [*entry, *image.command("CMD")]
        status, _, said = bare.run(serve)
        demand("API keys" in said, f"without keys it ended with {status} and said: {said}")
        key = make_key(bare, entry, secrets / "keys.toml")
        keys = {"MFDAN_PORT": str(port), "MFDAN_API_KEYS_FILE": "/run/mfdan/keys.toml"}
        container = Container(image, root, keys)
        try_limits(container)
        status, found, _ = container.run([*entry, "doctor"])
        demand(status == 0, f"mfdan doctor ended with {status}: {found}")
        served = container.start(serve)
        try:
            ask(port, key)
            try_health(container, image, well=True)
        finally:
            stop(served)
        try_health(container, image, well=False)


def try_gpu(image: Image, mounts: Mounts) -> None:
    """Look for the libraries that CUDA needs, and try what happens where there is no GPU."""
    secrets = mounts.folder("secrets")
    with mounted(image, mounts, secrets) as root:
        container = Container(image, root, {"MFDAN_STRICT_GPU": "true", "MFDAN_HOST": "127.0.0.1"})
        _, out, err = container.run(["/bin/sh", "-c", f"ldd {PROVIDER}"])
        missing = {line.split()[0] for line in out.splitlines() if "not found" in line}
        demand("=>" in out and missing <= DRIVERS, f"libraries are missing: {missing} {err}")
        status, out, err = container.run(["/opt/mfdan/bin/python", "-c", OPENCV])
        demand((status, out) == (0, "YES\n"), f"its OpenCV has no CUDA: {status} {out} {err}")
        entry, arguments = image.command("ENTRYPOINT"), image.command("CMD")
        status, _, said = container.run([*entry, *arguments])
        demand(status == 1 and "a GPU was asked for" in said, f"without a GPU: {status} {said}")


PROVIDER = "/opt/mfdan/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so"
OPENCV = """
import re, cv2
cv2.cuda.OpticalFlowDual_TVL1_create
print(*re.findall(r"NVIDIA CUDA: +(\\w+)", cv2.getBuildInformation()))
"""
DRIVERS = {"libcuda.so.1"}
"""What comes with the driver and not with the image."""


def make_key(container: Container, entry: list[str], file: Path) -> str:
    """Make an API key as an operator does, and write its hash to a file; return the key."""
    status, stanza, told = container.run([*entry, "keys", "new", "ci"])
    demand(status == 0, f"no key was made: {told}")
    file.write_text(stanza)
    return told.split()[-1]


def try_limits(container: Container) -> None:
    """Try what must not work: torch, writing anywhere but below /tmp, being root."""
    _, out, err = container.run(["/opt/mfdan/bin/python", "-c", PROBE])
    demand(out == EXPECTED, f"the probe said {out!r} {err}")


PROBE = """
import importlib.util, os, tempfile
print("torch", importlib.util.find_spec("torch"))
print("user", os.getuid(), os.getgid(), os.getgroups())
for folder in ("/", "/opt/mfdan", "/models", "/run/mfdan", "/var/tmp", "/tmp"):
    try:
        tempfile.TemporaryFile(dir=folder).close()
        print(folder, "can be written to")
    except OSError:
        pass
"""
EXPECTED = "torch None\nuser 10001 10001 []\n/tmp can be written to\n"


def try_health(container: Container, image: Image, *, well: bool) -> None:
    """Run the image's health check beside a service, or beside none."""
    status, said, err = container.run(image.command("HEALTHCHECK"))
    demand((status == 0) is well and said.count("\n") == 1, f"health check: {status} {said} {err}")
    print(f"health check: {status}, {said}", end="")


def ask(port: int, key: str) -> None:
    """Have .ci/ask.py look at the answers of the service."""
    line = [sys.executable, str(REPOSITORY / ".ci" / "ask.py"), f"http://127.0.0.1:{port}"]
    asked = subprocess.run(line, env={**os.environ, "MFDAN_API_KEY": key}, check=False)
    demand(asked.returncode == 0, "the image does not answer as it should")


def stop(served: subprocess.Popen[str]) -> None:
    """End a container as `docker stop` does: SIGTERM to its first process, which has to go."""
    children = Path(f"/proc/{served.pid}/task/{served.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGTERM)
    _, said = served.communicate(timeout=PATIENCE_S)
    demand(served.returncode == 0, f"it ended with {served.returncode}: {said}")


def free_port() -> int:
    """Return a port that nobody has at this moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def weigh(image: Image) -> float:
    """Print the size of each layer; return their sum, in millions of bytes."""
    sizes = [(layer.step, layer.megabytes) for layer in image.layers]
    total = sum(size for _, size in sizes)
    for step, size in (*sizes, ("all", total)):
        print(f"{size:8.1f} MB  {step}")
    return total


def demand(holds: bool, otherwise: str) -> None:  # noqa: FBT001 - the condition itself
    """End with a sentence when something is not so."""
    if not holds:
        sys.exit(otherwise)


def main() -> None:
    """Build, try out, weigh."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("base", type=Path, help="the base's files, in a folder")
    asked.add_argument("work", type=Path, help="scratch folder, not on an overlay")
    asked.add_argument("cache", type=Path, help="what pip may keep for the next time")
    asked.add_argument("--target", default="cpu", choices=["cpu", "gpu"])
    asked.add_argument("--opencv-cuda", type=Path, help="a folder in place of the stage so called")
    told = asked.parse_args()
    mounts = Mounts(told.work)
    contexts = {"opencv-cuda": told.opencv_cuda} if told.opencv_cuda else {}
    image = Builder(told.base, mounts, told.cache, contexts).build(told.target)
    {"cpu": try_out, "gpu": try_gpu}[told.target](image, mounts)
    total = weigh(image)
    limit = LIMIT_MB if told.target == "cpu" else float("inf")
    demand(total <= limit, f"the image holds {total:.0f} MB, more than {LIMIT_MB}")


if __name__ == "__main__":
    main()
