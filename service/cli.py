"""The command `mfdan`: serve, predict, models, doctor."""

import asyncio
import contextlib
import ipaddress
import os
import platform
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import onnxruntime as ort
import typer
import uvicorn
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.table import Table

from model.errors import MfdanError, ModelError
from model.face import FaceFinder
from model.session import Session
from model.spec import ModelSpec, load_spec
from service.app import create_app
from service.engine import DeadlineExceeded, Engine, Options, Upload, open_sessions
from service.schemas import Face, Prediction, Region
from service.settings import MAX_FACES, Settings, cores

__all__ = ["app"]

app = typer.Typer(
    name="mfdan",
    help="Recognise facial micro-expressions from an onset and an apex frame.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_PACKAGES = (
    "mfdan",
    "fastapi",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "opencv-contrib-python-headless",
    "pillow",
    "pydantic",
    "starlette",
    "uvicorn",
)
_REGIONS_SHOWN = 3
_HERE = {"localhost", "127.0.0.1", "::1"}

ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Name of the model (default: MFDAN_MODEL, or the first), or an ONNX file.",
    ),
]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Default: MFDAN_HOST or 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: MFDAN_PORT or 8000.")] = None,
    model: ModelOption = None,
) -> None:
    """Serve the HTTP API until interrupted."""
    settings = _settings(host=host, port=port, model=model)
    sessions = _sessions(settings)
    config = uvicorn.Config(
        create_app(settings, partial(Engine.open, sessions=sessions)),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )
    listener = config.bind_socket()  # first, because port 0 has no number before
    say = Console(stderr=True)
    for warning in _serve_warnings(settings, sessions):
        say.print(f"[bold yellow]warning:[/] {warning}", highlight=False)
    names = ", ".join(sessions)
    place = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{place}:{listener.getsockname()[1]}"
    say.print(
        f"mfdan {version('mfdan')} serves {names} on {address} (documentation: /docs)",
        highlight=False,
        soft_wrap=True,
    )
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if not server.started:
        raise typer.Exit(1)


@app.command()
def predict(
    onset: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The onset frame.")],
    apex: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The apex frame.")],
    model: ModelOption = None,
    faces: Annotated[int, typer.Option(min=1, max=MAX_FACES, help="Faces to answer for.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print what the API would answer.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Recognise the expression that a face shows between two frames."""
    settings = _settings(model=model, batch_sizes=(1,))
    sessions = _sessions(settings)
    upload = Upload(onset.read_bytes(), apex.read_bytes())
    try:
        prediction = asyncio.run(_predict(settings, sessions, upload, faces))
    except (MfdanError, DeadlineExceeded) as error:
        raise _failed(str(error)) from None
    if json:
        typer.echo(prediction.model_dump_json(indent=2))
    else:
        _print_prediction(prediction)


@app.command()
def models() -> None:
    """List the models of the models folder."""
    settings = _settings()
    paths = settings.model_files()
    if not paths:
        raise _failed(f"no *.onnx file in {settings.models_dir}")
    say = Console()
    try:
        for path in paths:
            say.print(_model_table(load_spec(path)))
    except MfdanError as error:
        raise _failed(str(error)) from None


@app.command()
def doctor() -> None:
    """Check versions, devices and models; exit with 1 when something is wrong."""
    settings = _settings()
    table = Table("", "what", "found")
    healthy = True
    for fine, what, found in _findings(settings):
        healthy = healthy and fine
        table.add_row("[green]ok[/]" if fine else "[bold red]wrong[/]", what, found)
    Console().print(table)
    if not healthy:
        raise typer.Exit(1)


def _settings(**given: Any) -> Settings:  # noqa: ANN401 - pydantic checks
    """Read the settings; what the command line gives goes before the environment."""
    if (given.get("model") or "").endswith(".onnx"):
        given["models_dir"] = given.pop("model")
        given["model"] = ""  # not the one that the environment names in another folder
    try:
        return Settings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise _failed(f"settings: {faults}", status=2) from None
    except SettingsError as error:  # a list in the environment that is not JSON
        raise _failed(f"settings: {error}; write lists as [1, 2]", status=2) from None


def _sessions(settings: Settings) -> dict[str, Session]:
    try:
        return open_sessions(settings)
    except MfdanError as error:
        raise _failed(str(error)) from None


def _failed(message: str, status: int = 1) -> typer.Exit:
    typer.echo(f"mfdan: {message}", err=True)
    return typer.Exit(status)


def _serve_warnings(settings: Settings, sessions: dict[str, Session]) -> Iterator[str]:
    if not _is_loopback(settings.host):
        yield (
            f"{settings.host} can be reached from other machines, and mfdan asks nobody for a "
            "password: put a proxy that does in front of it"
        )
    for name, session in sessions.items():
        if settings.device == "cuda" and session.provider != "CUDAExecutionProvider":
            yield f"a GPU was asked for, but {name} runs on {session.provider}"


def _is_loopback(host: str) -> bool:
    try:
        return host in _HERE or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _predict(
    settings: Settings, sessions: dict[str, Session], upload: Upload, faces: int
) -> Prediction:
    async with Engine.open(settings, sessions=sessions) as engine:
        await engine.warmed_up()
        answer = await engine.predict(upload, Options(faces=faces, explain=True))
    return Prediction.of(answer, uuid.uuid4().hex)


def _print_prediction(prediction: Prediction) -> None:
    say = Console(highlight=False)
    for warning in prediction.warnings:
        say.print(f"[yellow]{warning.replace('_', ' ')}[/]")
    if not prediction.faces:
        say.print("No face was found in the onset frame.")
        return
    for face in prediction.faces:
        say.print(_face_table(face))
    name = prediction.model
    total = prediction.timings_ms["total"]
    say.print(f"{name.name} {name.version} · {prediction.provider} · {total:.0f} ms")


def _model_table(spec: ModelSpec) -> Table:
    table = Table("model", f"{spec.name} {spec.version}")
    table.add_row("classes", ", ".join(spec.classes))
    table.add_row("trained on", spec.provenance.data)
    table.add_row("licence", spec.provenance.licence)
    table.add_row("SHA-256", spec.onnx_sha256)
    for score in spec.scores:
        table.add_row(score.metric, f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})")
    return table


def _face_table(face: Face) -> Table:
    box, motion = face.box, face.motion
    table = Table("face", f"{box.width:.0f}x{box.height:.0f} at ({box.x:.0f}, {box.y:.0f})")
    table.add_row("answer", _verdict(face))
    likeliest = sorted(face.probabilities.items(), key=lambda item: -item[1])
    table.add_row("probabilities", "\n".join(f"{p:6.1%} {name}" for name, p in likeliest))
    table.add_row("motion", f"face {motion.p95_px:.2f} px, head {motion.head_px:.2f} px")
    table.add_row("moved most", "\n".join(map(_moved, (face.regions or ())[:_REGIONS_SHOWN])))
    if face.warnings:
        table.add_row("warnings", ", ".join(face.warnings).replace("_", " "))
    return table


def _moved(region: Region) -> str:
    aside = ("left", "right")[region.right_px > 0]
    along = ("up", "down")[region.down_px > 0]
    name = region.region.replace("_", " ")
    return f"{name}: {abs(region.right_px):.2f} px {aside}, {abs(region.down_px):.2f} px {along}"


def _verdict(face: Face) -> str:
    if face.reason is None:
        return f"[bold]{face.label}[/]"
    return f"[dim]abstains: {face.reason.replace('_', ' ')}[/]"


def _findings(settings: Settings) -> Iterator[tuple[bool, str, str]]:
    """Yield (is it fine, what, what was found)."""
    yield True, "Python", f"{platform.python_version()} on {platform.platform()}"
    yield True, "versions", ", ".join(_versions())
    threads = (
        f"{settings.workers} workers, {settings.opencv} in OpenCV, {settings.onnx} in ONNX Runtime"
    )
    yield True, "threads", f"{cores()} of {os.cpu_count()} cores: {threads}"
    providers = ort.get_available_providers()
    wanted = "CUDAExecutionProvider" if settings.device == "cuda" else "CPUExecutionProvider"
    yield wanted in providers, "ONNX Runtime", ", ".join(providers)
    yield True, "OpenCV devices", f"CPU, {_cuda_devices()} CUDA"
    yield _works("face models", _load_face_models)
    paths = settings.model_files()
    if not paths:
        yield False, "models", f"no *.onnx file in {settings.models_dir}"
    for path in paths:
        yield _works(path.name, partial(_open_model, path, settings))
    yield _works("default model", lambda: next(iter(open_sessions(settings))))


def _works(what: str, check: Callable[[], str]) -> tuple[bool, str, str]:
    try:
        return True, what, check()
    except (MfdanError, cv2.error) as error:
        return False, what, str(error)


def _load_face_models() -> str:
    FaceFinder().find(np.zeros((64, 64, 3), np.uint8))
    return "detector and mesh run"


def _open_model(path: Path, settings: Settings) -> str:
    session = Session.open(path, device=settings.device, threads=settings.onnx)
    if settings.device == "cuda" and session.provider != "CUDAExecutionProvider":
        raise ModelError(f"a GPU was asked for, but the model runs on {session.provider}")
    spec = session.spec
    sha256 = spec.onnx_sha256[:12]
    return f"{spec.name} {spec.version}, SHA-256 {sha256}… as in its spec, {session.provider}"


def _versions() -> Iterator[str]:
    for package in _PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            continue


def _cuda_devices() -> int:
    return int(cv2.cuda.getCudaEnabledDeviceCount())
