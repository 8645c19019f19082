"""The weights of an exported model as the start of a run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from model.spec import ModelSpec, load_spec
from training.config import RunConfig
from training.data.pairs import Pair
from training.onnx_file import HALF_SUFFIX
from training.scored_people import check_start

__all__ = ["Initial", "initial_notes", "read_initial", "start_from"]

_HEAD = "head."
"""Begins the names of the parameters whose rows are classes."""
_PREPROCESSING = ("alignment", "flow", "strain", "normalisation")


@dataclass(frozen=True, slots=True)
class Initial:
    """An exported model to start from."""

    path: Path
    spec: ModelSpec
    weights: Mapping[str, NDArray[np.float32]]
    """By the names that the torch network gives them."""

    @property
    def sha256(self) -> str:
        """Of the ONNX file: `load_spec` has found it to be the spec's."""
        return self.spec.onnx_sha256

    @property
    def description(self) -> str:
        """What the weights were made from, for the spec of the model that comes of them."""
        made = self.spec.provenance
        return f"{self.spec.name} {self.spec.version} ({made.data}; licence {made.licence})"


def read_initial(config: RunConfig) -> Initial | None:
    """Read the model that `config.init` names; None where it names none.

    Raises: ModelNotFound, SpecInvalid, SpecMismatch (the file is not its spec's), ValueError.
    """
    if not config.init:
        return None
    path = Path(config.init)
    spec = load_spec(path)
    if spec.input_size != config.network.image_size:
        raise ValueError(
            f"{path.name} takes pictures of {spec.input_size} pixels, this run's network "
            f"{config.network.image_size}: its weights do not fit"
        )
    return Initial(path, spec, _weights(path))


def _weights(path: Path) -> dict[str, NDArray[np.float32]]:
    # The spec vouches for the bytes, so they parse.
    initializers = onnx.load(path).graph.initializer
    return {
        tensor.name.removesuffix(HALF_SUFFIX): numpy_helper.to_array(tensor).astype(np.float32)
        for tensor in initializers
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    }


@torch.no_grad()
def start_from(initial: Initial, network: nn.Module, config: RunConfig) -> None:
    """Give a network the model's weights, in place.

    The head is kept as it was drawn where the model's classes are not those of the config, in
    order. Raises: ValueError naming a weight that the file lacks or holds in another shape.
    """
    keep_head = initial.spec.classes != config.classes
    for name, value in _floats(network):
        if keep_head and name.startswith(_HEAD):
            continue
        if name not in initial.weights:
            raise ValueError(
                f"{initial.path.name} holds no weight named {name}: it is another network, or was "
                "exported before the file kept the names (then export its run again)"
            )
        given = torch.from_numpy(initial.weights[name])
        if given.shape != value.shape:
            raise ValueError(
                f"{initial.path.name} holds {name} as {tuple(given.shape)}, this run's network "
                f"has {tuple(value.shape)}: [network] of the config differs from the model's"
            )
        value.copy_(given)


def _floats(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and buffers that belong to the state (a batch norm's statistics)."""
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            yield name, value


def initial_notes(config: RunConfig, scored: Sequence[Pair]) -> list[str]:
    """Say in what the model to start from differs from the run, a line for each; [] if in nothing.

    `scored` are the clips that the run's scores will stand on. Raises: as `read_initial`;
    ValueError if the model was trained on people among them.
    """
    initial = read_initial(config)
    if initial is None:
        return []
    spec, own = initial.spec, config.spec()
    name = initial.path.name
    notes = [
        f"{name} was trained with {field} {getattr(spec, field)}, this run has "
        f"{getattr(own, field)}: its weights have seen other inputs"
        for field in _PREPROCESSING
        if getattr(spec, field) != getattr(own, field)
    ]
    if spec.classes != own.classes:
        notes.append(
            f"{name} answers {', '.join(spec.classes)}, this run {', '.join(own.classes)}: "
            "the last layer starts anew"
        )
    seen = check_start(spec, scored)
    return [*notes, seen] if seen else notes
