"""`mfdan predict`: one clip or one pair, as a table, as JSON, as a picture."""

import asyncio
import uuid
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model.clip import open_clip
from model.decode import decode_image
from model.errors import MfdanError
from model.session import Session
from model.spec import ModelSpec
from service.answers import Answer, CandidateAnswer, ClipUpload, FaceAnswer, Options, Upload
from service.command_line import BAD_USAGE, ModelOption, failed, open_models, read_settings
from service.engine import DeadlineExceeded, Engine
from service.plot import PlottedFace, check_plot, crop_of, save_plot
from service.schemas import Prediction
from service.settings import MAX_CANDIDATES, MAX_FACES, Settings
from service.sources import read_upload
from service.tables import MissingExtra
from service.wording import in_words

__all__ = ["predict"]

_REGIONS_SHOWN = 3
_PAIR = 2
_LONGEST_MS = 3_600_000


def predict(  # noqa: PLR0913 - one parameter for each option
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="CLIP | ONSET APEX",
            exists=True,
            dir_okay=False,
            help="A clip (MP4, MOV, MKV, WebM, AVI, GIF, animated WebP), or two pictures.",
        ),
    ],
    *,
    model: ModelOption = None,
    faces: Annotated[int, typer.Option(min=1, max=MAX_FACES, help="Faces to answer for.")] = 1,
    candidates: Annotated[
        int,
        typer.Option(min=1, max=MAX_CANDIDATES, help="Intervals of a clip to answer for."),
    ] = 5,
    onset_frame: Annotated[
        int | None, typer.Option(min=0, help="Frame of the clip to take for the onset, from 0.")
    ] = None,
    apex_frame: Annotated[
        int | None, typer.Option(min=0, help="Frame of the clip to take for the apex, from 0.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Draw curve, crops, flow and answer into this PNG."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what the API would answer.")] = False,
) -> None:
    """Recognise the expression of a face in a clip, or between two frames."""
    if len(paths) > _PAIR:
        raise typer.BadParameter("give one clip, or an onset and an apex")
    if len(paths) == _PAIR and not (onset_frame is None and apex_frame is None):
        raise typer.BadParameter("--onset-frame and --apex-frame go with a clip")
    if plot is not None:
        _check_plot(plot)
    settings = read_settings(model=model, batch_sizes=(1,), clip_deadline_ms=_LONGEST_MS)
    sessions = open_models(settings)
    options = Options(
        faces=faces,
        explain=True,
        candidates=candidates,
        onset_frame=onset_frame,
        apex_frame=apex_frame,
    )
    try:
        upload = read_upload(paths, settings)
        answer = asyncio.run(_answer(settings, sessions, upload, options))
    except (MfdanError, DeadlineExceeded) as error:
        raise failed(str(error)) from None
    except OSError as error:
        raise failed(f"{error.filename}: {error.strerror}") from None
    if json:
        typer.echo(Prediction.of(answer, uuid.uuid4().hex).model_dump_json(indent=2))
    else:
        _print(answer)
    if plot is not None:
        _save(plot, upload, answer, settings)


def _check_plot(out: Path) -> None:
    try:
        check_plot(out)
    except (ValueError, MissingExtra) as error:
        raise failed(str(error), status=BAD_USAGE) from None
    except OSError as error:
        raise failed(f"{out}: {error.strerror}", status=BAD_USAGE) from None


async def _answer(
    settings: Settings,
    sessions: dict[str, Session],
    upload: Upload | ClipUpload,
    options: Options,
) -> Answer:
    # For one answer: nothing to watch, and no batch to warm up for.
    settings = settings.model_copy(update={"reload_s": 0, "batch_sizes": (1,)})
    async with Engine.open(settings, sessions=sessions) as engine:
        await engine.warmed_up()
        if isinstance(upload, ClipUpload):
            return await engine.predict_clip(upload, options)
        return await engine.predict(upload, options)


def _save(out: Path, upload: Upload | ClipUpload, answer: Answer, settings: Settings) -> None:
    try:
        apexes, cuts_s = _look_again(upload, answer, settings)
        faces = [
            PlottedFace(
                face_id=face.face_id,
                pair=face.pair,
                apex=apex,
                verdict=face.verdict,
                warnings=(*answer.warnings, *face.warnings),
                intervals=tuple(one.interval for one in face.candidates),
                curve=face.curve,
            )
            for face, apex in zip(answer.faces, apexes, strict=True)
        ]
        save_plot(out, faces, cuts_s)
    except MfdanError as error:
        raise failed(str(error)) from None
    except OSError as error:  # it names the temporary file
        raise failed(f"{out}: {error.strerror}") from None


def _look_again(
    upload: Upload | ClipUpload, answer: Answer, settings: Settings
) -> tuple[list[NDArray[np.uint8]], list[float]]:
    """Decode again what answers do not hold: each face's apex, and when scenes begin, seconds."""
    if isinstance(upload, Upload):
        apex = decode_image(upload.apex, settings.limits)
        return [crop_of(apex, face.pair, answer.spec) for face in answer.faces], []
    if not answer.faces or answer.clip is None:
        return [], []
    wanted = [face.candidates[0].interval.apex for face in answer.faces]
    last = max([*wanted, *answer.clip.scene_cuts])
    crops: dict[int, NDArray[np.uint8]] = {}
    cuts_s: list[float] = []
    with closing(open_clip(upload.data, settings.clip_limits).frames()) as frames:
        for frame in islice(frames, last + 1):
            if frame.index in answer.clip.scene_cuts:
                cuts_s.append(frame.time_s)
            for number, face in enumerate(answer.faces):
                if wanted[number] == frame.index:
                    crops[number] = crop_of(frame.rgb(), face.pair, answer.spec)
    return [crops[number] for number in range(len(wanted))], cuts_s


def _print(answer: Answer) -> None:
    say = Console(highlight=False)
    for warning in answer.warnings:
        say.print(f"[yellow]{in_words(warning)}[/]")
    if not answer.faces:
        where = "onset frame" if answer.clip is None else "clip"
        say.print(f"No face was found in the {where}.")
        return
    for face in answer.faces:
        say.print(_face_table(face, answer.spec))
    name, total = answer.spec, answer.timings_ms["total"]
    ran = f"{answer.provider}, flow by {answer.flow_backend}"
    say.print(f"{name.name} {name.version} · {ran} · {total:.0f} ms")


def _face_table(face: FaceAnswer, spec: ModelSpec) -> Table:
    box = face.pair.face.box
    where = f"{box.width:.0f}x{box.height:.0f} at ({box.x:.0f}, {box.y:.0f})"
    table = Table(f"face {face.face_id}", where)
    table.add_row("answer", _verdict(face))
    if face.candidates:
        table.add_row("when", _when(face.candidates[0]))
    likeliest = sorted(face.verdict.probabilities.items(), key=lambda item: -item[1])
    table.add_row("probabilities", "\n".join(f"{p:6.1%} {escape(name)}" for name, p in likeliest))
    table.add_row("motion", _motion(face, spec))
    moved = (face.regions or ())[:_REGIONS_SHOWN]
    table.add_row(
        "moved most", "\n".join(_moved(one.region, one.right_px, one.down_px) for one in moved)
    )
    if face.warnings:
        table.add_row("warnings", "\n".join(map(in_words, face.warnings)))
    if face.candidates[1:]:
        others = enumerate(face.candidates[1:], start=2)
        lines = [f"{rank}. {_when(one)}: {_verdict(one)}" for rank, one in others]
        table.add_row("candidates", "\n".join(lines))
    return table


def _motion(face: FaceAnswer, spec: ModelSpec) -> str:
    """Tell what the model's gate reads, and where it stands when that stopped the answer."""
    motion = face.pair.motion
    stopped = "no_movement" in face.verdict.reasons
    gate = f" (the model asks for {spec.motion_gate_px:.3f} px)" if stopped else ""
    return f"face {motion.moved_px:.3f} px{gate}, head {motion.head_px:.3f} px"


def _moved(region: str, right_px: float, down_px: float) -> str:
    aside = ("left", "right")[right_px > 0]
    along = ("up", "down")[down_px > 0]
    name = region.replace("_", " ")
    return f"{name}: {abs(right_px):.2f} px {aside}, {abs(down_px):.2f} px {along}"


def _when(candidate: CandidateAnswer) -> str:
    one = candidate.interval
    until = "the end" if one.offset is None else f"{one.offset}"
    begins = f"{one.onset_s:.2f}"
    seconds = f"onset {begins} s" if one.offset_s is None else f"{begins} to {one.offset_s:.2f} s"
    return f"frames {one.onset} to {until}, apex {one.apex} ({seconds}, apex {one.apex_s:.2f} s)"


def _verdict(answer: FaceAnswer | CandidateAnswer) -> str:
    verdict = answer.verdict
    if not verdict.abstained:
        return f"[bold]{escape(verdict.label)}[/]"
    return f"[dim]abstains: {'; '.join(map(in_words, verdict.reasons))}[/]"
