"""A finished run → one self-contained ONNX file that equals the torch network."""

import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.errors import MfdanError
from model.runtime import Placement, Runtime
from model.spec import ModelSpec
from training.loop import CHECKPOINT, Run
from training.onnx_file import HALF_FROM, clean, store_halves, write_model

__all__ = ["Exported", "ParityError", "export_run", "round_to_half", "to_onnx"]

_TOLERANCE = 1e-4
"""Largest difference of a logit between ONNX Runtime and torch."""
_BATCHES = (1, 3, 8)


class ParityError(MfdanError):
    """The exported graph does not compute what the torch network computes."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export made, and how close it is."""

    spec: ModelSpec
    steps: int
    """Steps of the run that were taken."""
    megabytes: float
    logit_difference: float
    """Largest, between ONNX Runtime and torch with the same rounded weights."""
    probability_difference: float
    """Largest, between ONNX Runtime and torch before its weights were rounded."""


def export_run(
    run_folder: Path, out: Path, *, name: str | None = None, version: str | None = None
) -> Exported:
    """Export the averaged weights of a run's last checkpoint.

    Raises: FileNotFoundError, ValueError, ParityError (nothing is written then).
    """
    run = Run.load(run_folder / CHECKPOINT)
    spec = _spec(run)
    spec = replace(spec, name=name or spec.name, version=version or spec.version)
    exact, rounded = run.averaged_network(), run.averaged_network()
    round_to_half(rounded)
    side = run.config.network.image_size
    proto = to_onnx(rounded, side)
    logits, probabilities = _differences(proto, exact, rounded, side)
    if not logits <= _TOLERANCE:  # also when it is not a number
        raise ParityError(f"logits differ by {logits:.2e}, more than {_TOLERANCE:.0e}")
    out.parent.mkdir(parents=True, exist_ok=True)
    spec = write_model(proto, spec, out)
    return Exported(spec, run.step, out.stat().st_size / 1e6, logits, probabilities)


def _spec(run: Run) -> ModelSpec:
    """Return the spec of the run's config, with what the run itself has seen."""
    spec = run.config.spec(run.commit, run.basis.datasets)
    if not run.basis.init:
        return spec
    data = f"{spec.provenance.data}; started from {run.basis.init}"
    return replace(spec, provenance=replace(spec.provenance, data=data))


@torch.no_grad()
def round_to_half(network: nn.Module) -> None:
    """Round the large weights, in place, to what half precision can hold."""
    for parameter in network.parameters():
        if parameter.numel() >= HALF_FROM:
            parameter.copy_(parameter.half().float())


def to_onnx(network: nn.Module, side: int) -> onnx.ModelProto:
    """Export a network in evaluation mode: image, flow (batch, 3, side, side) → logits.

    Large weights that half precision can hold are stored so.
    """
    # Two tensors: passed twice, one would be traced as one input.
    example = torch.zeros(2, 3, side, side), torch.zeros(2, 3, side, side)
    batch = {0: torch.export.Dim("batch", min=1, max=4096)}
    # The exporter's own noise: deprecations inside torch, operators of a missing torchvision.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            input_names=["image", "flow"],
            output_names=["logits"],
            dynamic_shapes={"image": batch, "flow": batch},
            verbose=False,
            # Optimised, weights are folded and renamed; the names are what `init` goes by, and
            # ONNX Runtime optimises anyway as it loads.
            optimize=False,
        )
    if program is None:
        raise ParityError("torch exported nothing")
    proto = program.model_proto
    clean(proto)
    store_halves(proto)
    onnx.checker.check_model(proto)
    return proto


def _differences(
    proto: onnx.ModelProto, exact: nn.Module, rounded: nn.Module, side: int
) -> tuple[float, float]:
    """Return the largest difference of a logit to `rounded`, of a probability to `exact`."""
    runtime = Runtime.open(proto.SerializeToString(), "what was exported", Placement())
    draw = torch.Generator().manual_seed(0)
    logits, probabilities = [], []
    for batch in _BATCHES:
        image, flow = (torch.rand(2, batch, 3, side, side, generator=draw) * 2 - 1).unbind()
        served = torch.from_numpy(_run(runtime, image, flow))
        with torch.no_grad():
            logits.append((served - rounded(image, flow)).abs().max().item())
            gap = served.softmax(dim=1) - exact(image, flow).softmax(dim=1)
        probabilities.append(gap.abs().max().item())
    return max(logits), max(probabilities)


def _run(runtime: Runtime, image: Tensor, flow: Tensor) -> NDArray[np.float32]:
    (logits,) = runtime.run(["logits"], {"image": image.numpy(), "flow": flow.numpy()})
    return np.asarray(logits, np.float32)
