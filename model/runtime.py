"""ONNX Runtime: where a graph runs, what it may take of a GPU, how arrays get there and back."""

import io
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model.errors import ModelError

__all__ = ["CPU_PROVIDER", "Device", "Placement", "RunsGraph", "Runtime", "preload_cuda"]

Device = Literal["cpu", "cuda", "tensorrt"]
_Provider = tuple[str, dict[str, str]]

CPU_PROVIDER = "CPUExecutionProvider"
_CUDA, _TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
_FIRST = {"cpu": CPU_PROVIDER, "cuda": _CUDA, "tensorrt": _TENSORRT}
_MAX_BUFFER_SETS = 16
"""Sets of input shapes whose buffers are kept: twice the batch sizes that the service takes."""
_NOT_CAPTURED = -1
"""The `gpu_graph_id` of a run that is neither captured nor replayed."""
_LOG = logging.getLogger("mfdan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where and how ONNX Runtime runs a graph."""

    device: Device = "cpu"
    threads: int = 0
    """Intra-op threads on the CPU; 0 leaves the choice to ONNX Runtime."""
    strict: bool = False
    """Whether a graph that would run on another device than asked for is refused."""
    memory_limit_mb: int = 4096
    """Of one graph's arena on the GPU, MiB. Its inputs and outputs, and what CUDA and cuDNN take
    themselves, come on top."""
    tf32: bool = False
    """Whether float32 products may be rounded to TF32's 10 bits of mantissa. TensorRT does so by
    itself."""
    cuda_graphs: bool = False
    """Whether each set of input shapes is captured once and replayed as a CUDA graph. A graph with
    loops or branches cannot be, and runs as if this were not set; nor does TensorRT."""

    def providers(self) -> list[_Provider]:
        """Return execution providers with their options, the wanted one first, the CPU last."""
        chain = [(CPU_PROVIDER, dict[str, str]())]
        if self.device != "cpu":
            chain.insert(0, (_CUDA, self._cuda()))
        if self.device == "tensorrt":
            chain.insert(0, (_TENSORRT, self._tensorrt()))
        return chain

    def _cuda(self) -> dict[str, str]:
        return {
            "device_id": "0",
            "gpu_mem_limit": str(self.memory_limit_mb * 2**20),
            # Doubling, the default, reserves up to twice what is needed.
            "arena_extend_strategy": "kSameAsRequested",
            # An exhaustive search would run anew for every batch size.
            "cudnn_conv_algo_search": "HEURISTIC",
            "do_copy_in_default_stream": "1",
            "use_tf32": str(int(self.tf32)),
            "enable_cuda_graph": str(int(self.cuda_graphs and self.device == "cuda")),
        }

    def _tensorrt(self) -> dict[str, str]:
        return {
            "device_id": "0",
            "trt_max_workspace_size": str(self.memory_limit_mb * 2**20),
        }


class Runtime:
    """A graph that ONNX Runtime has loaded. Safe to share among threads."""

    def __init__(self, session: ort.InferenceSession, wanted: Device, *, capture: bool) -> None:
        self._session = session
        self._wanted = _FIRST[wanted]
        self._bound = None
        if self.provider in {_CUDA, _TENSORRT}:
            capture = capture and self.provider == _CUDA
            self._bound = BoundRuns(session, "cuda", capture=capture)

    @classmethod
    def open(cls, model: Path | bytes, name: str, placement: Placement) -> "Runtime":
        """Load an ONNX file, or its bytes; `name` is what it is called where it cannot be.

        Raises: ModelError (not a model that runs here; with `placement.strict`, not on the device).
        """
        if placement.device != "cpu":
            preload_cuda()
        session, got = _load(model, name, placement)
        runtime = cls(session, placement.device, capture=got.cuda_graphs)
        if runtime.fell_back and placement.strict:
            raise ModelError(
                f"a GPU was asked for, but {name} runs on {runtime.provider}: "
                "`mfdan doctor` says what is missing"
            )
        return runtime

    @property
    def provider(self) -> str:
        """The execution provider that ONNX Runtime really uses first."""
        return str(self._session.get_providers()[0])

    @property
    def fell_back(self) -> bool:
        """Whether another device was asked for than the one it runs on."""
        return self.provider != self._wanted

    @property
    def captures(self) -> bool:
        """Whether runs are replayed as CUDA graphs."""
        return self._bound is not None and self._bound.capture

    @property
    def inputs(self) -> list[Any]:
        """ONNX Runtime's NodeArg of each input: name, type and shape."""
        return list(self._session.get_inputs())

    @property
    def outputs(self) -> list[Any]:
        """ONNX Runtime's NodeArg of each output."""
        return list(self._session.get_outputs())

    @property
    def metadata(self) -> dict[str, str]:
        """The entries that the ONNX file carries."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the outputs by name, on the host; the shape of each must follow from the inputs'.

        Raises: what ONNX Runtime raises where inputs do not fit the graph or the device fails.
        """
        if self._bound is not None:
            return self._bound.run(outputs, feeds)
        return [np.asarray(one) for one in self._session.run(list(outputs), dict(feeds))]


def preload_cuda() -> tuple[str, ...]:
    """Load NVIDIA's libraries from their Python packages, once; return what ONNX Runtime says.

    Without it they are found only by the system's search path. Those that are not there are the
    system's to find; nothing is raised.
    """
    with _PRELOADING:  # two threads would print into one another's places
        return _preloaded()


_PRELOADING = threading.Lock()


@cache
def _preloaded() -> tuple[str, ...]:
    if _CUDA not in ort.get_available_providers():  # a build for the CPU needs none
        return ()
    said = io.StringIO()
    with redirect_stdout(said):  # it prints, and the output is not ours to write on
        ort.preload_dlls(directory="")
    lines = tuple(line for line in said.getvalue().splitlines() if line.strip())
    if lines:
        _LOG.warning("not all of NVIDIA's libraries were loaded: %s", "; ".join(lines))
    return lines


class RunsGraph:
    """Has a `Runtime`, and tells where it really runs."""

    __slots__ = ()
    _runtime: Runtime

    @property
    def provider(self) -> str:
        """The execution provider that ONNX Runtime really uses first."""
        return self._runtime.provider

    @property
    def fell_back(self) -> bool:
        """Whether a GPU was asked for and not got."""
        return self._runtime.fell_back

    @property
    def captures(self) -> bool:
        """Whether runs are replayed as CUDA graphs."""
        return self._runtime.captures


class BoundRuns:
    """Runs of one session whose inputs and outputs stay on a device, in buffers that are kept.

    One run at a time: a graph shares the buffers of its shapes, and CUDA graphs allow no other.
    ONNX Runtime keeps captured graphs for each calling thread: a service calls from one. Releasing
    one is asked for, but whether the memory comes back then is ONNX Runtime's to say; what is held
    stays bounded only while the shapes are (`_MAX_BUFFER_SETS`), as a batcher's sizes are.
    """

    def __init__(self, session: ort.InferenceSession, device: str, *, capture: bool) -> None:
        self.capture = capture
        self._session = session
        self._device = device
        self._sets: OrderedDict[tuple[object, ...], _Buffers] = OrderedDict()
        self._made = 0
        self._lock = threading.Lock()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Copy the inputs to the device, run, and return copies of the outputs on the host."""
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        shapes = (*((name, one.shape, one.dtype.str) for name, one in arrays.items()), *outputs)
        with self._lock:
            buffers = self._sets.get(shapes)
            if buffers is None:
                buffers = self._make(shapes, outputs, arrays)
            self._sets.move_to_end(shapes)
            return buffers.run(arrays)

    def _make(
        self,
        shapes: tuple[object, ...],
        outputs: Sequence[str],
        arrays: Mapping[str, NDArray[Any]],
    ) -> "_Buffers":
        while len(self._sets) >= _MAX_BUFFER_SETS:
            _, oldest = self._sets.popitem(last=False)
            oldest.release()
        self._made += 1  # never used twice: a captured graph replays the addresses it saw
        graph = self._made if self.capture else _NOT_CAPTURED
        made = _Buffers(self._session, self._device, outputs, arrays, graph)
        self._sets[shapes] = made  # only once it has run: a fault leaves nothing behind
        return made


class _Buffers:
    """Inputs and outputs of one set of shapes, at addresses that do not change."""

    def __init__(
        self,
        session: ort.InferenceSession,
        device: str,
        outputs: Sequence[str],
        arrays: Mapping[str, NDArray[Any]],
        graph: int,
    ) -> None:
        self._session = session
        self._graph = graph
        self._binding = session.io_binding()
        self._inputs = {
            name: ort.OrtValue.ortvalue_from_shape_and_type(one.shape, one.dtype.type, device)
            for name, one in arrays.items()
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name in outputs:
            self._binding.bind_output(name, device)
        self._fill(arrays)
        self._run(_NOT_CAPTURED)  # it alone tells the outputs' shapes
        self._outputs = [
            ort.OrtValue.ortvalue_from_shape_and_type(one.shape(), one.numpy().dtype.type, device)
            for one in self._binding.get_outputs()
        ]
        for name, value in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self._fill(arrays)
        self._run(self._graph)
        copies = [one.numpy() for one in self._outputs]
        # On the CPU they are the buffers themselves.
        return [one if one.flags.owndata else one.copy() for one in copies]

    def release(self) -> None:
        """Let go of what was captured, before the memory that it replays is."""
        if self._graph != _NOT_CAPTURED:
            self._session.release_captured_graph(self._graph)

    def _fill(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for name, array in arrays.items():
            self._inputs[name].update_inplace(array)

    def _run(self, graph: int) -> None:
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        self._session.run_with_iobinding(self._binding, options)


def _load(
    model: Path | bytes, name: str, placement: Placement
) -> tuple[ort.InferenceSession, Placement]:
    """Load the graph as asked; where it cannot be, without CUDA graphs, then one device down.

    Returns the session with the placement that it got.
    """
    try:
        return _session(model, placement), placement
    except Exception as error:  # ONNX Runtime has no common base class of its faults
        if placement.cuda_graphs:
            _tell(model, name, f"{placement.device} with CUDA graphs", error)
            return _load(model, name, replace(placement, cuda_graphs=False))
        if placement.device != "cpu" and not placement.strict:
            _tell(model, name, placement.device, error)
            next_best: Device = "cuda" if placement.device == "tensorrt" else "cpu"
            return _load(model, name, replace(placement, device=next_best))
        raise ModelError(
            f"ONNX Runtime cannot load {name} for {placement.device}: {type(error).__name__}"
        ) from error


def _tell(model: Path | bytes, name: str, wanted: str, error: Exception) -> None:
    """Log what was wanted in vain and why, the model by its name alone."""
    first, *_ = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(model, Path):
        first = first.replace(str(model), name)
    _LOG.warning("%s could not be had on %s: %s", name, wanted, first)


def _session(model: Path | bytes, placement: Placement) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = placement.threads
    options.inter_op_num_threads = 1
    # Workers that spin between runs would take the cores from the flow of the next pair.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    there = ort.get_available_providers()  # any other is warned of; get_providers() tells the truth
    return ort.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=[one for one in placement.providers() if one[0] in there],
        # Its own fallback prints, and goes on without the GPU for ever after one failed run.
        enable_fallback=0,
    )
