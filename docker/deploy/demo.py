"""Ask a service about drawn faces, one question every few seconds, so that dashboards show some.

Nobody is in these pictures. The faces smile, raise their lips, raise or lower their brows, some
keep still, one is missing, and one question in twenty is a clip. What they do is mixed so that the
packaged model's answers are spread about as in its reference, and no alert tells of the demo.
"""

import io
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated

import cv2
import httpx2
import numpy as np
import numpy.typing as npt
import typer
from drawn_face import background, draw_face
from PIL import Image
from secret_files import Unreadable, read_secret

from mfdan.client import Client, ProblemError
from service.command_line import failed

MOVES: tuple[tuple[str, float], ...] = (
    *[("brows", 0.8), ("smile", 0.8), ("lips", 0.8), ("brows", 1.4), ("smile", 1.4), ("lips", 1.4)]
    * 2,
    ("still", 0.0),
    *[("brows", 0.6), ("smile", 1.8), ("lips", 1.7)],
    ("empty", 0.0),
    *[("brows", -1.5), ("still", 0.0)],
    ("clip", 2.0),
)
"""What is asked in turn: what moves, and how far at its peak, pixels."""
cv2.setNumThreads(1)  # a container is bounded in threads, and a machine may have many cores
CLIP_FRAMES, CLIP_FPS = 18, 60.0
OVERLOADED = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}

Question = Callable[[Client], object]
Frame = npt.NDArray[np.uint8]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    service: Annotated[str, typer.Option(help="Address of the service.")],
    key_file: Annotated[
        Path, typer.Option(readable=False, help="File of the API key to ask with.")
    ],
    every: Annotated[float, typer.Option(min=0, help="Seconds between two questions.")] = 3.0,
    count: Annotated[int | None, typer.Option(min=1, help="Questions; default: no end.")] = None,
) -> None:
    """Ask until it is stopped. An overloaded service is left alone for a while, and asked on."""
    try:
        key = read_secret(key_file)
    except Unreadable as error:
        raise failed(
            f"no demo: {error}. Put a key there (`mfdan keys new demo` makes one), or leave the "
            "demo out: export COMPOSE_PROFILES="
        ) from None
    try:
        with Client(service, api_key=key) as client:
            answered = ask(client, islice(questions(), count), every)
    except ProblemError as problem:
        raise failed(f"the demo was refused: {problem.detail} ({problem.code})") from None
    except httpx2.TransportError as error:
        raise failed(
            f"no answer from {service} ({type(error).__name__}): does it run? docker compose ps"
        ) from None
    typer.echo(f"{answered} answered")


def ask(client: Client, asked: Iterator[Question], every_s: float) -> int:
    """Put each question, no sooner than `every_s` after the last; return how many were answered.

    Raises: ProblemError, of another kind than too much to do; httpx2.TransportError.
    """
    answered = 0
    for question in asked:
        next_s = time.monotonic() + every_s
        try:
            question(client)
            answered += 1
        except ProblemError as problem:
            if problem.status not in OVERLOADED:
                raise
            typer.echo(f"left out, for the service is busy: {problem.code}", err=True)
        time.sleep(max(0.0, next_s - time.monotonic()))
    return answered


def questions() -> Iterator[Question]:
    """Yield what to ask, without end and the same each time."""
    chance = random.Random(0)  # noqa: S311 - nothing depends on who guesses it
    for what, peak in cycle(MOVES):
        yield partial(
            ASKED.get(what, ask_pair), Sitter(chance), what, peak * chance.uniform(0.8, 1.2)
        )


class Sitter:
    """Somebody drawn, at one place and in one light."""

    def __init__(self, chance: random.Random) -> None:
        self._scene = background(240, 320)
        self._centre = (160 + chance.uniform(-15, 15), 108.0)
        self._eye_distance = chance.uniform(44, 56)
        self._tone = chance.uniform(0.4, 1.1)

    def picture(self, *, brows: float = 0.0, lips: float = 0.0, smile: float = 0.0) -> bytes:
        """Draw the face as PNG; how far each goes up, a smile outwards as well, pixels."""
        face = draw_face(
            self._scene,
            centre=self._centre,
            eye_distance=self._eye_distance,
            tone=self._tone,
            brow_lift=brows,
            smile=lips,
        )
        return encoded(self._smiling(face, smile))

    def _smiling(self, face: Frame, peak: float) -> Frame:
        """Pull the corners of the mouth up and out, and the skin around them along."""
        rows, columns = np.mgrid[: face.shape[0], : face.shape[1]]
        x = (columns - self._centre[0]) / self._eye_distance
        y = (rows - self._centre[1]) / self._eye_distance
        bump = np.exp(-((np.abs(x) - 0.4) ** 2 + (y - 1.08) ** 2) / 0.25**2)
        step = peak * np.sqrt(0.5) * bump  # what is seen here stood further down and further in
        from_x = (columns - np.sign(x) * step).astype(np.float32)
        from_y = (rows + step).astype(np.float32)
        return np.asarray(cv2.remap(face, from_x, from_y, cv2.INTER_CUBIC), np.uint8)

    def gone(self) -> bytes:
        """Return the scene alone."""
        return encoded(self._scene)


def ask_pair(sitter: Sitter, what: str, peak: float, client: Client) -> object:
    """Ask about one movement."""
    return client.predict(onset=sitter.picture(), apex=sitter.picture(**{what: peak}))


def ask_still(sitter: Sitter, _what: str, _peak: float, client: Client) -> object:
    """Ask about a face that does not move."""
    return client.predict(onset=(picture := sitter.picture()), apex=picture)


def ask_empty(sitter: Sitter, _what: str, _peak: float, client: Client) -> object:
    """Ask about a room."""
    return client.predict(onset=(scene := sitter.gone()), apex=scene)


def ask_clip(sitter: Sitter, _what: str, peak: float, client: Client) -> object:
    """Ask about a smile that comes and goes."""
    middle = CLIP_FRAMES // 2
    frames = [
        sitter.picture(smile=peak * max(0.0, 1 - abs(frame - middle) / (middle - 2)))
        for frame in range(CLIP_FRAMES)
    ]
    return client.predict_frames(frames, fps=CLIP_FPS)


ASKED = {"still": ask_still, "empty": ask_empty, "clip": ask_clip}


def encoded(frame: Frame) -> bytes:
    """Return a frame as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    app()
