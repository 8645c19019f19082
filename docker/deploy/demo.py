"""Ask a service about drawn faces, one question every few seconds, so that dashboards show some.

Nobody is in these pictures. The faces raise or lower their brows or the corners of their mouth,
some keep still, one is missing, and one question in twenty is a clip.
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

import httpx2
import numpy as np
import numpy.typing as npt
import typer
from drawn_face import background, draw_face
from PIL import Image

from mfdan.client import Client, ProblemError
from service.command_line import failed

MOVES: tuple[tuple[str, float], ...] = (
    *[("brow_lift", 0.8), ("smile", 0.8), ("brow_lift", 1.4), ("smile", 1.4)] * 3,
    ("still", 0.0),
    *[("brow_lift", 0.6), ("smile", 1.8), ("brow_lift", -1.5)],
    ("empty", 0.0),
    *[("still", 0.0), ("brow_lift", 1.7)],
    ("clip", 2.0),
)
"""What is asked in turn: what moves, and how far at its peak, pixels."""
CLIP_FRAMES, CLIP_FPS = 18, 60.0
OVERLOADED = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}

Question = Callable[[Client], object]

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
        key = key_file.read_text().strip()
    except OSError as error:
        raise failed(
            f"no demo: {key_file} cannot be read ({error.strerror}). Put a key there, or leave the "
            "demo out: COMPOSE_PROFILES= docker compose up"
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

    def picture(self, **moves: float) -> bytes:
        """Draw the face as PNG; `moves` as draw_face has them."""
        return encoded(
            draw_face(
                self._scene,
                centre=self._centre,
                eye_distance=self._eye_distance,
                tone=self._tone,
                **moves,
            )
        )

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


def encoded(frame: npt.NDArray[np.uint8]) -> bytes:
    """Return a frame as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    app()
