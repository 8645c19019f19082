"""The clips that were answered most confidently and wrongly, and their pictures."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from model.magnify import magnify
from model.spec import ModelSpec
from training.contact_sheet import flow_colours
from training.predictions import Prediction
from training.report.figures import Picture

__all__ = ["ClipPictures", "Miss", "attention_top", "draw_wheel", "worst_clips"]

_FLOW_FLOOR_PX = 0.3
"""A clip that moves less is not stretched to full colour."""
_TOP_FLOOR = 1.5
"""Even attention is 1: hardly uneven maps are not stretched to full heat."""
_HEAT = 0.55
"""Opacity of the heat over the picture."""
_WHEEL = 96
_SOURCES = ("the image's own scores", "the flow's scores")
Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Miss:
    """A clip whose answer, by probabilities averaged over the seeds, is wrong."""

    key: str
    label: str
    """The true class."""
    answer: str
    probabilities: tuple[float, ...]
    """Mean over the seeds, in the order of the classes."""
    wrong_seeds: int
    seeds: int


def worst_clips(
    predictions: Sequence[Prediction], classes: Sequence[str], count: int
) -> list[Miss]:
    """Return the clips with the highest mean probability of a wrong class, the worst first."""
    by_clip: defaultdict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        by_clip[prediction.key].append(prediction)
    misses = [_miss(key, by_clip[key], classes) for key in sorted(by_clip)]
    wrong = [miss for miss in misses if miss.answer != miss.label]
    return sorted(wrong, key=lambda miss: -max(miss.probabilities))[:count]


def _miss(key: str, answers: Sequence[Prediction], classes: Sequence[str]) -> Miss:
    mean = np.mean([each.probabilities for each in answers], axis=0)
    return Miss(
        key=key,
        label=answers[0].label,
        answer=classes[int(mean.argmax())],
        probabilities=tuple(map(float, mean)),
        wrong_seeds=sum(each.predicted(classes) != each.label for each in answers),
        seeds=len(answers),
    )


def attention_top(maps: Sequence[NDArray[np.float32]]) -> float:
    """Return the attention that is drawn in full heat, one for the whole page."""
    if not maps:
        return _TOP_FLOOR
    return max(_TOP_FLOOR, float(np.quantile(np.concatenate([m.ravel() for m in maps]), 0.995)))


def draw_wheel(folder: Path) -> Picture:
    """Write what the colours of a flow picture mean: `wheel.png`."""
    y, x = np.mgrid[-1 : 1 : _WHEEL * 1j, -1 : 1 : _WHEEL * 1j].astype(np.float32)
    colours = flow_colours(np.stack([x, y]) * (np.hypot(x, y) <= 1), 1.0)
    alt = "Colour wheel of the flow: right red, down yellow-green, left cyan, up violet."
    return _save(folder, "wheel.png", colours, alt)


@dataclass(frozen=True, slots=True)
class ClipPictures:
    """Draws one clip after another into a folder."""

    folder: Path
    spec: ModelSpec
    top: float
    """Attention in full heat."""

    def draw(
        self,
        stem: str,
        key: str,
        arrays: tuple[Image, NDArray[np.float32]],
        attention: NDArray[np.float32] | None,
    ) -> list[tuple[str, Picture]]:
        """Write a clip's pictures as `STEM-*.png`; return each with its caption.

        Convention: arrays are the aligned onset (S, S, 3) RGB and the flow (2, S, S) in pixels;
        attention is (1 or 2, g, g).
        """
        onset, flow = arrays
        full = max(_FLOW_FLOOR_PX, float(np.percentile(np.hypot(*flow), 99)))
        alpha = self.spec.magnification
        magnified = magnify(onset, flow, alpha)[..., ::-1]
        drawn = [
            ("onset", "aligned onset", onset[..., ::-1]),
            ("flow", f"flow, full colour {full:.2f} px", flow_colours(flow, full)),
            ("magnified", f"magnified, α = {alpha:g}", magnified),
        ]
        for number, grid in enumerate(() if attention is None else attention):
            heat = self._heat(magnified, grid)
            drawn.append((f"attention-{number}", f"attention by {_SOURCES[number]}", heat))
        return [
            (caption, _save(self.folder, f"{stem}-{part}.png", image, f"{key}: {caption}"))
            for part, caption, image in drawn
        ]

    def _heat(self, picture: Image, grid: NDArray[np.float32]) -> Image:
        side = picture.shape[0]
        spread = cv2.resize(grid, (side, side), interpolation=cv2.INTER_LINEAR)
        level = (255 * np.clip(spread / self.top, 0, 1)).astype(np.uint8)
        grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_BGR2GRAY)[..., None]
        heat = cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)
        return np.asarray((1 - _HEAT) * grey + _HEAT * heat, np.uint8)


def _save(folder: Path, name: str, image: Image, alt: str) -> Picture:
    """Write a BGR picture."""
    good, data = cv2.imencode(".png", np.ascontiguousarray(image))
    if not good:
        raise ValueError(f"cannot encode {name}")
    (folder / name).write_bytes(data.tobytes())
    height, width = image.shape[:2]
    return Picture(file=name, alt=alt, width=width, height=height)
