"""The command `mfdan`: serve, predict, score, keys, models, doctor."""

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model.errors import MfdanError
from model.face import FaceFinder
from model.session import Session
from model.solver import open_solver
from model.spec import ModelSpec, load_spec
from service.command_line import (
    ModelOption,
    failed,
    read_settings,
    told_when_stopped,
)
from service.engine import open_sessions
from service.gpu_findings import Finding, gpu_findings
from service.keys_command import keys_app
from service.predict_command import predict
from service.score_command import score_command
from service.server import run_server
from service.settings import Settings, cores

__all__ = ["app"]

app = typer.Typer(
    name="mfdan",
    help="Recognise facial micro-expressions in clips, or from an onset and an apex frame.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_PACKAGES = (
    "mfdan",
    "av",
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


@app.command()
@told_when_stopped()
def serve(
    host: Annotated[str | None, typer.Option(help="Default: MFDAN_HOST or 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: MFDAN_PORT or 8000.")] = None,
    model: ModelOption = None,
) -> None:
    """Serve the HTTP API until interrupted."""
    run_server(read_settings(host=host, port=port, model=model))


app.command("predict")(told_when_stopped()(predict))
app.command("score")(told_when_stopped()(score_command))
app.add_typer(keys_app, name="keys")


@app.command()
def models() -> None:
    """List the models of the models folder."""
    settings = read_settings()
    paths = settings.model_files()
    if not paths:
        raise failed(f"no *.onnx file in {settings.models_dir}")
    say = Console()
    try:
        for path in paths:
            say.print(_model_table(load_spec(path)))
    except MfdanError as error:
        raise failed(str(error)) from None


@app.command()
def doctor() -> None:
    """Check versions, devices and models; exit with 1 when something is wrong."""
    settings = read_settings()
    table = Table("", "what", "found")
    healthy = True
    for fine, what, found in _findings(settings):
        healthy = healthy and fine
        state = "[green]ok[/]" if fine else "[bold red]wrong[/]"
        table.add_row(state, escape(what), escape(found))
    Console().print(table)
    if not healthy:
        raise typer.Exit(1)


def _model_table(spec: ModelSpec) -> Table:
    table = Table("model", f"{spec.name} {spec.version}")
    table.add_row("classes", escape(", ".join(spec.classes)))
    table.add_row("trained on", escape(spec.provenance.data))
    table.add_row("licence", escape(spec.provenance.licence))
    table.add_row("SHA-256", spec.onnx_sha256)
    for score in spec.scores:
        table.add_row(
            escape(score.metric), f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
        )
    if spec.reference is not None:
        shares = (f"{answer} {share:.1%}" for answer, share in spec.reference.shares.items())
        table.add_row("answers, as measured", escape(", ".join(shares)))
    return table


def _findings(settings: Settings) -> Iterator[Finding]:
    yield True, "Python", f"{platform.python_version()} on {platform.platform()}"
    yield True, "versions", ", ".join(_versions())
    threads = (
        f"{settings.workers} workers, {settings.opencv} in OpenCV, {settings.onnx} in ONNX Runtime"
    )
    yield True, "threads", f"{cores()} of {os.cpu_count()} cores: {threads}"
    yield from gpu_findings(settings)
    yield _works("face models", _load_face_models)
    paths = settings.model_files()
    if not paths:
        yield False, "models", f"no *.onnx file in {settings.models_dir}"
    for path in paths:
        yield _works(path.name, partial(_open_model, path, settings))
    yield _works("default model", lambda: next(iter(open_sessions(settings))))


def _works(what: str, check: Callable[[], str]) -> Finding:
    try:
        return True, what, check()
    except (MfdanError, OSError, cv2.error) as error:
        return False, what, str(error)


def _load_face_models() -> str:
    FaceFinder().find(np.zeros((64, 64, 3), np.uint8))
    return "detector and mesh run"


def _open_model(path: Path, settings: Settings) -> str:
    placement = replace(settings.placement, strict=True)
    session = Session.open(path, placement)
    spec = session.spec
    flow = open_solver(spec, settings.flow, placement=placement).backend
    hashed = f"SHA-256 {spec.onnx_sha256[:12]}… as in its spec"
    return f"{spec.name} {spec.version}, {hashed}, {session.provider}, flow by {flow}"


def _versions() -> Iterator[str]:
    for package in _PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
