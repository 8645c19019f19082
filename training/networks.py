"""The network of a run, and the device it runs on."""

import os
from typing import Literal

import torch
from torch import nn

from model.network import Mfdan
from training.config import RunConfig

__all__ = ["CPU", "DeviceName", "build_network", "device_of", "make_deterministic"]

DeviceName = Literal["auto", "cpu", "cuda"]
CPU = torch.device("cpu")


def build_network(config: RunConfig) -> nn.Module:
    """Return a network with fresh weights: forward takes image, flow (b 3 s s), gives (b classes).

    Raises: ValueError for a method that is no network.
    """
    if config.method == "mfdan":
        return Mfdan(config.network)
    if config.method == "ststnet":
        from training.baselines import StstNet  # noqa: PLC0415 - needed for this method only

        return StstNet(len(config.classes))
    raise ValueError(f"{config.method} is no network: nothing of it is trained step by step")


def device_of(name: DeviceName) -> torch.device:
    """Return the device that is meant; `auto` is the GPU where there is one.

    Raises: ValueError for a GPU that torch does not see.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device: choose the device cpu, or auto")
    return torch.device(name)


def make_deterministic() -> None:
    """Have torch compute the same bits each time, on the GPU too, or say that it cannot.

    cuBLAS needs CUBLAS_WORKSPACE_CONFIG for that, and reads it once, when CUDA starts; a value
    that the user set stays.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True)
    # A guard against kernels that read what nobody wrote; a twentieth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # torch sets it late
    torch.backends.cudnn.benchmark = False  # it chooses by timing
    torch.backends.cudnn.allow_tf32 = False  # single precision means what it says
