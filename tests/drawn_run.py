"""A run's folder as `mfdan-train loso` leaves it, its answers drawn instead of trained.

What is written goes through the functions that write real runs.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.config import RunConfig
from training.data.pairs import Pair
from training.loso_folder import MethodFolder
from training.predictions import Prediction, write_predictions
from training.scoring import score

ATTENTION_GRID = 16


def pairs_of(people: int, classes: Sequence[str], clips: int = 2) -> list[Pair]:
    """Return clips of two data sets; every third person has fewer of them."""
    return [
        Pair(
            dataset="one" if who % 2 else "two",
            subject=f"{who:02d}",
            clip=f"{label}-{number}",
            label=label,
            onset="o.png",
            apex="a.png",
        )
        for who in range(people)
        for label in classes
        for number in range(1 if who % 3 == 0 else clips)
    ]


def write_method(  # noqa: PLR0913 - what a method's folder may hold
    run: Path,
    config: RunConfig,
    pairs: Sequence[Pair],
    *,
    skill: float,
    attention: bool = False,
    oracle: bool = False,
    tuned: Mapping[str, Sequence[Any]] | None = None,
    losses: bool = True,
) -> Path:
    """Write RUN/METHOD for a config; `skill` is the probability of a right answer."""
    folder = run / config.method
    draw = np.random.default_rng((len(config.method), int(100 * skill)))
    people: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        if config.labels.class_of(pair.label):
            people[pair.person].append(pair)
    total = sum(map(len, people.values()))
    predictions = []
    for seed in config.seeds:
        for number, (person, clips) in enumerate(sorted(people.items())):
            found = [_prediction(pair, config, seed, skill, draw) for pair in clips]
            predictions += found
            note = {
                "fold": person,
                "seed": seed,
                "train_clips": total - len(clips),
                "test_clips": len(clips),
                "seconds": 100.0 + number,
                "losses": _losses(draw) if losses else [],
                "tuned": {name: _pick(values, draw) for name, values in tuned.items()}
                if tuned
                else None,
                "predictions": [{"key": p.key, "probabilities": p.probabilities} for p in found],
                "oracle": None,
            }
            maps = {p.key: _attention(draw) for p in found} if attention else {}
            MethodFolder(folder).write_fold(note, maps)
    write_predictions(folder / "predictions.csv", predictions, config.classes)
    (folder / "scores.json").write_text(score(predictions, config.classes).to_json())
    if oracle:
        better = [_prediction(_pair(p), config, p.seed, skill + 0.2, draw) for p in predictions]
        write_predictions(folder / "oracle.csv", better, config.classes)
    note = {
        "config": json.loads(config.to_json()),
        "protocol": "loso",
        "method": config.method,
        "seeds": config.seeds,
        "classes": config.classes,
        "folds": sorted(people),
        "clips": total,
        "people": len(people),
        "manifest": "pairs.csv",
        "rows_sha256": "5e" * 32,
        "commit": "c0ffee" * 6 + "-dirty",
        "versions": {"mfdan": "0.1.0", "torch": "2.13.0"},
        "dropped": {"one/99/lost": "no face was found"},
    }
    (folder / "run.json").write_text(json.dumps(note))
    return folder


def _prediction(
    pair: Pair, config: RunConfig, seed: int, skill: float, draw: np.random.Generator
) -> Prediction:
    label = config.labels.class_of(pair.label)
    assert label
    said = label if draw.random() < skill else str(draw.choice(config.classes))
    logits = draw.normal(0, 1, len(config.classes))
    logits[config.classes.index(said)] = logits.max() + draw.exponential(2.0)
    odds = np.exp(logits - logits.max())
    return Prediction(
        dataset=pair.dataset,
        subject=pair.subject,
        clip=pair.clip,
        label=label,
        seed=seed,
        fold=pair.person,
        probabilities=tuple(map(float, odds / odds.sum())),
    )


def _pair(prediction: Prediction) -> Pair:
    return Pair(
        dataset=prediction.dataset,
        subject=prediction.subject,
        clip=prediction.clip,
        label=prediction.label,
    )


def _losses(draw: np.random.Generator) -> list[tuple[int, float]]:
    steps = np.arange(10, 1010, 20)
    values = 0.9 * np.exp(-steps / 300) + draw.uniform(0.02, 0.1) + draw.normal(0, 0.02, len(steps))
    return [(int(step), float(value)) for step, value in zip(steps, values, strict=True)]


def _pick(values: Sequence[Any], draw: np.random.Generator) -> object:
    return values[int(draw.integers(len(values)))]


def _attention(draw: np.random.Generator) -> np.ndarray:
    """Two maps (2, g, g): attention that gathers somewhere."""
    y, x = np.mgrid[:ATTENTION_GRID, :ATTENTION_GRID]
    maps = []
    for _source in range(2):
        row, column = draw.uniform(3, 13, 2)
        maps.append(0.4 + 2.5 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 18))
    return np.array(maps, np.float16)
