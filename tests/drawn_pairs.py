"""Pairs of drawn faces, written as a pairs folder holds them, and a run of the smallest size."""

import csv
import json
import subprocess
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import cv2
from drawn_face import Image, background, draw_face

from model.network import MfdanConfig
from model.spec import FlowMethod
from training.config import RunConfig
from training.data.pairs import Pair

TINY = RunConfig(
    data="drawn faces",
    licence="MIT",
    flow=FlowMethod(algorithm="farneback"),
    network=MfdanConfig(
        image_size=64, channels=12, window=2, encoder_channels=(6, 8), flow_vector=8
    ),
    steps=6,
    batch_size=4,
    learning_rate=1e-3,
    loader_workers=0,
    threads=1,
    evaluate_every=3,
    checkpoint_every=2,
    val_fraction=0.2,
    test_fraction=0.2,
)


def as_toml(config: RunConfig) -> str:
    """Write a config as `--config` reads it; JSON's values are TOML's but for null and tables."""
    entries = json.loads(config.to_json()).items()
    return "".join(f"{key} = {_value(entry)}\n" for key, entry in entries if entry is not None)


def _value(entry: object) -> str:
    if isinstance(entry, dict):
        return (
            "{"
            + ", ".join(f"{json.dumps(key)} = {_value(value)}" for key, value in entry.items())
            + "}"
        )
    return json.dumps(entry)


MOVES: dict[str, dict[str, float]] = {
    "negative": {"brow_lift": -4.0},
    "positive": {"smile": 6.0},
    "surprise": {"brow_lift": 6.0},
    "none": {},
}
PEOPLE = 6


def write_rows(folder: Path, rows: list[Pair]) -> None:
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def draw(tone: float, move: dict[str, float]) -> Image:
    """Draw a face into a small picture: time goes by the pixel."""
    scene = background(240, 320)
    return draw_face(scene, centre=(160.0, 105.0), eye_distance=48.0, tone=tone, **move)


@cache  # drawing a face takes a tenth of a second, and tests ask for few different ones
def _png(tone: float, label: str) -> bytes:
    return cv2.imencode(".png", draw(tone, MOVES[label])[:, :, ::-1])[1].tobytes()


def draw_pair(folder: Path, subject: int, label: str) -> Pair:
    """Write the two pictures of a person, who is a skin tone, making one expression."""
    tone = 0.6 + 0.08 * subject
    names = []
    for moment, shown in (("onset", "none"), ("apex", label)):
        name = f"{subject}-{label}-{moment}.png"
        (folder / name).write_bytes(_png(tone, shown))
        names.append(name)
    return Pair(
        dataset="drawn",
        subject=str(subject),
        clip=label,
        label=label,
        onset=names[0],
        apex=names[1],
    )


@dataclass(frozen=True)
class Fitted:
    """What `mfdan-train fit` did, stopped once by Ctrl-C and started again."""

    folder: Path
    config: RunConfig
    stopped: subprocess.CompletedProcess[str]
    resumed: subprocess.CompletedProcess[str]
