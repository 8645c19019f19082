"""A served model's answers, made by hand, and a tiny model that a run seems to have made."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from tiny_model import tiny_spec, write_tiny_model

from model.movement import Motion
from training.config import RunConfig
from training.data.pairs import Pair
from training.data.prepare import PreparedRow
from training.evaluate import Answer

SPEC = replace(tiny_spec(), motion_gate_px=0.5, abstention_threshold=0.5)
SURE = 0.9


def answer(  # noqa: PLR0913 - what an answer's verdict and place in a table depend on
    label: str,
    said: int,
    *,
    who: str = "a",
    dataset: str = "d",
    clip: str = "",
    moved: float = 1.0,
    sure: float = SURE,
) -> Answer:
    probabilities = np.full(3, (1 - sure) / 2, np.float32)
    probabilities[said] = sure
    name = clip or f"{label}-{said}-{moved}-{sure}"
    pair = Pair(dataset=dataset, subject=who, clip=name, label=label, onset="o", apex="p")
    motion = Motion(mean_px=moved / 2, p95_px=moved, head_px=0.0, moved_px=moved)
    return Answer(PreparedRow(pair, motion, 0, 0), label, probabilities)


def write_model_of(folder: Path, config: RunConfig, *datasets: str) -> Path:
    """Write the tiny model as if a run had made it; it reads the pairs prepared for TINY."""
    spec = config.spec()
    return write_tiny_model(
        folder,
        tiny_spec(
            input_size=spec.input_size,
            flow=spec.flow,
            alignment=spec.alignment,
            provenance=replace(spec.provenance, datasets=datasets),
        ),
    )
