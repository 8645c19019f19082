"""The network alone: by precision and batch, against torch eager and `torch.compile`.

Every run begins with arrays on the host and ends with probabilities on the host, as serving does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_limits import Work, count_work, per_batch, torch_on
from gpu_rows import Contender, NotHere, Row, report_progress, side_by_side
from gpu_work import Bench
from numpy.typing import NDArray

from model.errors import MfdanError
from model.runtime import Placement
from model.session import Session

__all__ = ["PRECISIONS", "Network", "arithmetic_of", "compiled", "network_rows", "open_network"]

FloatArray = NDArray[np.float32]
Network = Callable[[FloatArray, FloatArray], FloatArray]
PRECISIONS = ("float32", "tf32", "float16", "tensorrt")
_CUDA_GRAPHS = ", CUDA graphs"
_COMPILED = "torch.compile "
_EAGER = "torch "
_NAMES = (
    *PRECISIONS,
    *(name + _CUDA_GRAPHS for name in ("float32", "tf32", "float16")),
    *(way + name for way in (_EAGER, _COMPILED) for name in ("float32", "tf32", "float16")),
)


def network_rows(bench: Bench) -> list[Row]:
    """Return a row for each way to run the network, at each batch size."""
    rows: list[Row] = []
    rates: dict[str, float] = {}
    opened: dict[str, Network] = {}
    for batch in bench.batches:
        report_progress(f"network, batch {batch}")
        rows += side_by_side(
            "network",
            [_contender(bench, name, batch, opened) for name in _NAMES],
            bench.pace,
            rates,
        )
    return rows


def _contender(bench: Bench, name: str, batch: int, opened: dict[str, Network]) -> Contender:
    def start() -> Callable[[], object]:
        if name not in opened:
            opened[name] = _open_any(bench, name)
        image, flow = _inputs(bench, batch)
        return partial(opened[name], image, flow)

    def shares(seconds: float) -> dict[str, float]:
        precision = arithmetic_of(name)
        work = per_batch(partial(_work, bench.model, bench.spec.input_size), batch)
        if precision == "float16":
            work = replace(work, bytes=work.bytes / 2)
        return bench.ceilings.shares(work, precision, seconds)

    return Contender(name=name, pairs=batch, open=start, shares=shares)


def arithmetic_of(name: str) -> str:
    """Return the precision whose ceiling bounds a way to run the network."""
    if name == "tensorrt":
        return "tf32"  # which TensorRT takes for float32 unless it is forbidden
    return next((kind for kind in ("tf32", "float16") if kind in name), "float32")


@cache
def _work(model: Path, side: int, batch: int) -> Work:
    blank = np.zeros((batch, 3, side, side), np.float32)
    return count_work(model, {"image": blank, "flow": blank})


def _inputs(bench: Bench, batch: int) -> tuple[FloatArray, FloatArray]:
    shape = (2, batch, 3, bench.spec.input_size, bench.spec.input_size)
    image, flow = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    return image, flow


def _open_any(bench: Bench, name: str) -> Network:
    if name.startswith((_EAGER, _COMPILED)):
        return _open_torch(bench, name)
    precision = name.removesuffix(_CUDA_GRAPHS)
    if bench.device == "cpu" and precision == "float16":
        raise NotHere("the CPU computes float16 in float32, behind casts: its time says nothing")
    if name.endswith(_CUDA_GRAPHS):
        bench.check_gpu("a CUDA graph")
    return open_network(bench, precision, cuda_graphs=name.endswith(_CUDA_GRAPHS))


def open_network(bench: Bench, precision: str, *, cuda_graphs: bool = False) -> Network:
    """Return the network in a precision, on the device.

    On a CPU, float16 is rehearsed: rounded after each operator (`training.halving`).
    Raises: NotHere, ModelError (it cannot be had).
    """
    placement = bench.placement(tf32=precision == "tf32", cuda_graphs=cuda_graphs)
    if precision == "float16":
        session = _halved(bench, placement)
    elif precision == "tensorrt":
        bench.check_gpu("TensorRT")
        session = Session.open(bench.model, placement=replace(placement, device="tensorrt"))
    else:
        if precision == "tf32":
            bench.check_gpu("tf32")
        session = Session.open(bench.model, placement=placement)
    if cuda_graphs:
        bench.check_captured(session)
    return session.run


def _halved(bench: Bench, placement: Placement) -> Session:
    try:
        import onnx  # noqa: PLC0415 - an extra of its own

        from training.halving import half_session, halve  # noqa: PLC0415 - likewise
    except ImportError as missing:
        raise NotHere(f"{missing.name} is not installed: pip install 'mfdan[train]'") from None
    half = halve(onnx.load(bench.model))
    return bench.kept.enter_context(half_session(half, bench.spec, placement))


def _open_torch(bench: Bench, name: str) -> Network:
    compiles, precision = name.startswith(_COMPILED), name.rpartition(" ")[2]
    if bench.device == "cpu" and precision != "float32":
        raise NotHere(f"{precision} is arithmetic of GPUs")
    if compiles and bench.quick:
        raise NotHere("left out by --quick: compiling takes about a minute for each batch size")
    torch = torch_on(bench.device)
    network = _torch_network(bench).to(bench.device)
    if precision == "float16":
        network = network.half()
    kind = torch.float16 if precision == "float16" else torch.float32
    forward = compiled(network, len(bench.batches)) if compiles else network

    def run(image: FloatArray, flow: FloatArray) -> FloatArray:
        with _tf32(torch, allowed=precision == "tf32"), torch.inference_mode():
            arrays = (torch.from_numpy(array).to(bench.device, kind) for array in (image, flow))
            logits = forward(*arrays).float() / bench.spec.temperature
            shares: FloatArray = logits.softmax(dim=1).cpu().numpy()
        return shares

    return run


def compiled(
    network: Any,  # noqa: ANN401 - torch's module
    sizes: int,
    backend: str | Callable[..., Any] = "inductor",
) -> Any:  # noqa: ANN401 - what torch.compile returns
    """Return the network as it is compiled for so many batch sizes, each by itself.

    Nothing of it runs uncompiled: torch counts what it compiles of one class together and, past a
    limit, goes on eagerly. Here each call counts alone, and what is not compiled raises.
    """
    import torch  # noqa: PLC0415 - an extra of its own

    return torch.compile(
        network,
        dynamic=False,
        fullgraph=True,
        isolate_recompiles=True,
        recompile_limit=sizes,
        backend=backend,
    )


@contextmanager
def _tf32(torch: Any, *, allowed: bool) -> Iterator[None]:  # noqa: ANN401 - the module
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _torch_network(bench: Bench) -> Any:  # noqa: ANN401 - torch's module
    """Return the same network in torch, with the same weights."""
    try:
        from model.network import MfdanConfig  # noqa: PLC0415 - an extra of its own
        from training.config import RunConfig  # noqa: PLC0415 - likewise
        from training.initial import read_initial, start_from  # noqa: PLC0415 - likewise
        from training.networks import build_network  # noqa: PLC0415 - likewise
    except ImportError as missing:
        raise NotHere(f"{missing.name} is not installed: pip install 'mfdan[train]'") from None
    spec = bench.spec
    config = RunConfig(
        data=spec.provenance.data,
        licence=spec.provenance.licence,
        init=str(bench.model),
        steps=1,  # a config has to say; none is taken
        classes=spec.classes,
        network=MfdanConfig(classes=len(spec.classes), image_size=spec.input_size),
    )
    network = build_network(config)
    try:
        initial = read_initial(config)
        if initial is not None:  # the config names one
            start_from(initial, network, config)
    except (MfdanError, ValueError) as fault:
        raise NotHere(f"torch has no such network: {fault}") from None
    return network.eval()
