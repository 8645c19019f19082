"""A real, tiny pairs folder of drawn faces, prepared by the code that prepares real ones."""

import csv
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_face import draw_face

from model.network import MfdanConfig
from model.spec import FlowMethod
from training.config import RunConfig
from training.data.pairs import Pair
from training.data.prepare import Prepared, prepare

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
    evaluate_every=3,
    checkpoint_every=2,
    val_fraction=0.2,
    test_fraction=0.2,
)
MOVES = {
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


def draw_pair(folder: Path, subject: int, label: str) -> Pair:
    """Write the two pictures of a person, who is a skin tone, making one expression."""
    tone = 0.6 + 0.08 * subject
    names = []
    for moment, move in (("onset", {}), ("apex", MOVES[label])):
        name = f"{subject}-{label}-{moment}.png"
        cv2.imwrite(str(folder / name), draw_face(tone=tone, **move)[:, :, ::-1])
        names.append(name)
    return Pair(
        dataset="drawn",
        subject=str(subject),
        clip=label,
        label=label,
        onset=names[0],
        apex=names[1],
    )


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
    return TINY


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each of six people makes each expression once, and once none."""
    folder = tmp_path_factory.mktemp("pairs")
    write_rows(folder, [draw_pair(folder, who, label) for who in range(PEOPLE) for label in MOVES])
    return folder


@pytest.fixture(scope="session")
def prepared(pairs_folder: Path, tiny_config: RunConfig) -> Prepared:
    return prepare(pairs_folder, tiny_config.spec(), workers=1)


@pytest.fixture
def noise() -> np.random.Generator:
    return np.random.default_rng(7)
