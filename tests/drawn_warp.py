"""Textures, and warps of them whose flow is known."""

import cv2
import numpy as np


def grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel, each of the shape (H, W)."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return x, y


def texture(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, shape)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def bump(
    shape: tuple[int, int], peak: float, at: tuple[float, float], spread: float = 14
) -> np.ndarray:
    x, y = grid(shape)
    return peak * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * spread**2))


def warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return the apex for which apex(x + flow(x)) = image(x)."""
    x, y = grid(image.shape)
    back = flow
    for _ in range(20):
        at = (x - back[0], y - back[1])
        back = np.stack([cv2.remap(c, *at, 1, borderMode=cv2.BORDER_REPLICATE) for c in flow])
    return cv2.remap(image, x - back[0], y - back[1], 2, borderMode=cv2.BORDER_REPLICATE)
