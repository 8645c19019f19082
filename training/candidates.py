"""What may stand in for a model's reference, measured: another flow backend, half precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from rich.console import Console

from model.fused import Fused
from model.pipeline import AlignedPair, Crops, Preprocessor, network_inputs
from model.runtime import Placement
from model.session import Session
from model.solver import open_solver
from model.spec import FlowBackend, ModelSpec, check_backends
from training.agreement import Agreement, Answers, HeldOut, Way, compare
from training.evaluate import people_of
from training.halving import half_session, halve

__all__ = ["Halved", "Measured", "measure_backend", "measure_half"]

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """How nearly the candidates give a model's answers, and its spec if they may."""

    spec: ModelSpec
    results: Mapping[str, Agreement]
    left_out: Mapping[str, str]
    """Key of a pair that could not be compared → why."""
    caution: str
    """What was not measured, and how to; "" on a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Halved(Measured):
    """The same of a network in half precision."""

    proto: onnx.ModelProto


def measure_backend(
    model: Path, manifest: Path, backend: FlowBackend, device: Device, console: Console
) -> Measured:
    """Compare another flow backend with the spec's first, on people whom the weights never saw.

    The graph of the backend `onnx` is measured as pairs meet it, fused with the network, and alone,
    as clips do. `device` is where the candidates' networks and graphs run; a backend or device that
    is not there is refused. Raises: ModelError, ValueError, Disagreement (too few pairs).
    """
    session = Session.open(model)
    spec = session.spec
    _check_other(spec, backend)
    others = tuple(each for each in spec.flow_backends if each != backend)
    wider = replace(spec, flow_backends=(*others, backend))
    placement = Placement(device=device, strict=True)
    first = Preprocessor(spec)
    held_out = HeldOut(spec, manifest, first)
    second = Preprocessor(wider, first.finder, open_solver(wider, backend, placement=placement))
    network = session if device == "cpu" else Session.open(model, placement)
    ways: dict[str, Way] = {backend: _served(second, network)}
    if backend == "onnx":
        ways["onnx, fused"] = _fused(second, Fused.open(model, wider, placement))
    results = compare(spec, held_out, _served(first, session), ways, console)
    command = f"`mfdan-train agree --model FILE --backend {backend} --device {device} MANIFEST`"
    words = f"{_against(spec, held_out, manifest)}, network on {network.provider}"
    caution = _caution(device)
    kept = [each for each in spec.agreements if each.metric not in map(_metric, ways)]
    protocol = _protocol(words, caution, command)
    scores = [result.score(_metric(name), protocol) for name, result in results.items()]
    return Measured(
        spec=replace(wider, agreements=(*kept, *scores)),
        results=results,
        left_out=held_out.dropped,
        caution=caution,
    )


def _check_other(spec: ModelSpec, backend: FlowBackend) -> None:
    check_backends(spec.flow, [backend])
    if backend == spec.flow_backends[0]:
        raise ValueError(
            f"{backend} made the data that {spec.name} learned from: it is what others are "
            "compared with"
        )


def measure_half(model: Path, manifest: Path, device: Device, console: Console) -> Halved:
    """Compare a network in half precision with the model's, on people whom the weights never saw.

    Raises: ModelError, ValueError (also where it is in half precision already), Disagreement (too
    few pairs).
    """
    session = Session.open(model)
    spec = session.spec
    if spec.precision == "float16":
        raise ValueError(f"{spec.name} computes in half precision already")
    first = Preprocessor(spec)
    held_out = HeldOut(spec, manifest, first)
    half = halve(onnx.load(model))
    with half_session(half, spec, Placement(device=device, strict=True)) as other:
        ways = {"float16": _same_pairs(other)}
        results = compare(spec, held_out, _served(first, session), ways, console)
        on = "a CPU that rounds each result" if device == "cpu" else other.provider
    words = f"{_against(spec, held_out, manifest)}, network in float16 on {on}"
    command = f"`mfdan-train halve --model FILE --device {device} MANIFEST --out FILE`"
    caution = _caution(device)
    score = results["float16"].score(_metric("float16"), _protocol(words, caution, command))
    return Halved(
        # Scores, reference and other agreements were measured on another file.
        spec=replace(
            spec,
            flow_backends=spec.flow_backends[:1],
            precision="float16",
            agreements=(score,),
            scores=(),
            reference=None,
        ),
        results=results,
        left_out=held_out.dropped,
        caution=caution,
        proto=half,
    )


def _caution(device: Device) -> str:
    """Return what a run on the CPU leaves open: GPUs sum in another order."""
    if device != "cpu":
        return ""
    return (
        "network and graphs measured on CPUExecutionProvider only: "
        "measure on the GPU (--device cuda) before serving there"
    )


def _protocol(words: str, caution: str, command: str) -> str:
    return "; ".join(part for part in (words, caution, command) if part)


def _metric(name: str) -> str:
    return f"agrees_{name.replace(', ', '_')}"


def _against(spec: ModelSpec, held_out: HeldOut, manifest: Path) -> str:
    return (
        f"{people_of(manifest, held_out.scored)}; against {spec.flow_backends[0]} and the "
        f"{spec.precision} network on the CPU; OpenCV {cv2.__version__}, "
        f"ONNX Runtime {ort.__version__}"
    )


def _served(preprocessor: Preprocessor, session: Session) -> Way:
    """Return the way of a service whose workers compute the flow."""

    def answer(crops: Sequence[Crops], _pairs: Sequence[AlignedPair]) -> Answers:
        pairs = [preprocessor.solved(each) for each in crops]
        return Answers(pairs=pairs, probabilities=_network(session, pairs))

    return answer


def _same_pairs(session: Session) -> Way:
    """Return the way of another network, given the reference's flow."""

    def answer(_crops: Sequence[Crops], pairs: Sequence[AlignedPair]) -> Answers:
        return Answers(pairs=pairs, probabilities=_network(session, pairs))

    return answer


def _fused(preprocessor: Preprocessor, graph: Fused) -> Way:
    """Return the way of a service that computes flow and answer of a pair in one graph."""

    def answer(crops: Sequence[Crops], _pairs: Sequence[AlignedPair]) -> Answers:
        rows = graph.run(
            np.stack([each.onset for each in crops]),
            np.stack([each.onset_grey for each in crops]),
            np.stack([each.apex_grey for each in crops]),
            np.stack([each.outline for each in crops]),
        )
        pairs = [
            preprocessor.measured(
                each, row.flow + row.head.over(row.flow), row.flow, row.head, "onnx"
            )
            for each, row in zip(crops, rows, strict=True)
        ]
        return Answers(pairs=pairs, probabilities=np.stack([row.probabilities for row in rows]))

    return answer


def _network(session: Session, pairs: Sequence[AlignedPair]) -> NDArray[np.float32]:
    inputs = [network_inputs(pair.onset, pair.flow, session.spec) for pair in pairs]
    image, flow = (np.stack(part) for part in zip(*inputs, strict=True))
    return session.run(image, flow)
