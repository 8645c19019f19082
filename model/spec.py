"""ModelSpec: everything needed to reproduce a prediction, as JSON beside the ONNX file."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from model.errors import ModelNotFound, SpecInvalid, SpecMismatch

__all__ = [
    "ABSTAINED",
    "DEFAULT_FLOW",
    "PREPROCESSING_VERSION",
    "Alignment",
    "FlowBackend",
    "FlowMethod",
    "Limit",
    "ModelSpec",
    "Normalisation",
    "Provenance",
    "QualityLimits",
    "Reference",
    "Score",
    "check_backends",
    "check_parameters",
    "file_sha256",
    "load_spec",
    "spec_path",
]

PREPROCESSING_VERSION = 1
"""Raised whenever a preprocessing function changes what it returns for the same spec."""

ABSTAINED = "abstained"
"""Beside the classes, the answer that is counted where none stands."""

_FROZEN = ConfigDict(extra="forbid")

FlowBackend = Literal["opencv-cpu", "opencv-cuda", "onnx"]
"""Who computes the flow: OpenCV on the CPU, OpenCV on a CUDA GPU, or a graph of our own in ONNX
Runtime."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_FROZEN)
class Alignment:
    """Where the eyes stand in the aligned crop, as fractions of its side (x right, y down).

    The similarity transform is a least-squares fit of stable landmarks (eye corners, nose
    bridge) to a mean face scaled so that its eye centres stand here.
    """

    eye_y: float = 0.36
    """Height of both eye centres."""
    eye_distance: float = 0.36
    """Distance between the eye centres, which stand symmetrically about the middle."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_FROZEN)
class FlowMethod:
    """Optical flow algorithm and every parameter that differs from the backend's default."""

    algorithm: Literal["tvl1", "farneback", "dis", "brox"]
    """Brox exists on CUDA GPUs only."""
    parameters: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """By OpenCV's names. What a library reads as 32 bits must be finite there; TV-L1's must be of a
    size that computes something, in seconds."""

    def __post_init__(self) -> None:
        check_parameters(self.algorithm, self.parameters)


_TVL1_RANGES: Mapping[str, tuple[float, float]] = {
    "tau": (1e-4, 1.0),
    "lambda": (1e-4, 1e3),
    "theta": (1e-4, 1e3),
    "scalesNumber": (1, 100),
    "warpingsNumber": (1, 100),
    "outerIterations": (1, 1000),
    "innerIterations": (1, 1000),
    "scaleStep": (0.1, 0.99),
}
"""Parameter → least and largest value; ours, far beyond what anybody uses."""
_TVL1_COUNTS = {
    "scalesNumber": 5,
    "warpingsNumber": 5,
    "outerIterations": 10,
    "innerIterations": 30,
}
"""OpenCV's defaults, whose product is how many iterations a pair takes."""
_TVL1_MOST = 25_000


def check_parameters(algorithm: str, parameters: Mapping[str, object]) -> None:
    """Check that numbers are of a size that a flow can be computed with.

    What has another type than it should, the algorithm itself refuses. Raises: ValueError.
    """
    numbers = {
        name: value
        for name, value in parameters.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    for name, value in numbers.items():
        if not abs(value) < _BEYOND_INT32:  # nor is a NaN
            raise ValueError(f"{name} must be a finite number below {_BEYOND_INT32}")
    if algorithm == "tvl1":
        _check_tvl1(numbers)


_BEYOND_INT32 = 2**31


def _check_tvl1(numbers: Mapping[str, float]) -> None:
    for name in numbers.keys() & _TVL1_RANGES.keys():
        least, most = _TVL1_RANGES[name]
        if not least <= numbers[name] <= most:
            raise ValueError(f"TV-L1 needs {name} from {least:g} to {most:g}, not {numbers[name]}")
    total = math.prod(numbers.get(name, default) for name, default in _TVL1_COUNTS.items())
    if total > _TVL1_MOST:
        raise ValueError(
            f"TV-L1 may take {_TVL1_MOST} iterations in all, not {total}: "
            f"{' x '.join(_TVL1_COUNTS)}"
        )


DEFAULT_FLOW = FlowMethod(algorithm="dis", parameters={"preset": "medium"})
"""Nearer to the true flow than every TV-L1 set of `benchmarks/flow.py`, and far cheaper
(docs/decisions.md): ours, the paper uses TV-L1."""


_BACKENDS: Mapping[str, tuple[FlowBackend, ...]] = {
    "tvl1": ("opencv-cpu", "opencv-cuda", "onnx"),
    "farneback": ("opencv-cpu", "opencv-cuda"),
    "dis": ("opencv-cpu",),
    "brox": ("opencv-cuda",),
}
"""Algorithm → who has it."""


def check_backends(method: FlowMethod, backends: Sequence[FlowBackend]) -> None:
    """Check that some backends are named, each once, and that each has the algorithm.

    Raises: ValueError.
    """
    if not backends or len(set(backends)) < len(backends):
        raise ValueError("flow_backends: name at least one, and each once")
    known = _BACKENDS[method.algorithm]
    for backend in backends:
        if backend not in known:
            raise ValueError(
                f"flow_backends: {backend} has no {method.algorithm}; {' and '.join(known)} can"
            )


@dataclass(frozen=True, kw_only=True, slots=True, config=_FROZEN)
class Normalisation:
    """Scales of the flow tensor (ours; the paper only says "normalised").

    u and v are divided by one scale s = max(p-th percentile of |flow|, flow_floor) and
    clipped to [-1, 1]; strain by max(p-th percentile of strain, strain_floor), clipped to
    [0, 1]. The floors keep a near-static pair from being stretched into an expression.
    """

    percentile: float = Field(default=99.0, gt=0, le=100)
    flow_floor: float = Field(default=0.3, gt=0)
    """Pixels of the aligned crop."""
    strain_floor: float = Field(default=0.03, gt=0)
    """Strain is unitless (pixels per pixel)."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_FROZEN)
class Limit:
    """Where a measure makes an answer doubtful, and where it forbids one.

    Too much is bad where `stop` is above `warn`, too little where it is below.
    """

    warn: float
    stop: float

    def __post_init__(self) -> None:
        if self.warn == self.stop:
            raise ValueError("warn and stop must differ: their order tells which side is bad")

    def warns(self, value: float) -> bool:
        """Return whether a value is beyond `warn`, or beyond both. A NaN is beyond neither."""
        return value > self.warn if self.stop > self.warn else value < self.warn

    def stops(self, value: float) -> bool:
        """Return whether a value is beyond `stop`."""
        return value > self.stop if self.stop > self.warn else value < self.stop


@dataclass(frozen=True, kw_only=True, slots=True, config=_FROZEN)
class QualityLimits:
    """How bad pictures of a face may be (ours); `model.quality` measures, `judge` abstains.

    Pixels are those of the 224-pixel aligned crop, unless said otherwise. Of undamaged synthetic
    pairs with an expression `stop` stops at most 0.5 %, each, sunglasses aside
    (`benchmarks/quality.py`).
    """

    eyes_hidden: Limit = Limit(warn=0.4, stop=0.65)
    """Share, 0 to 1: how little the more visible eye looks like one."""
    mouth_hidden: Limit = Limit(warn=0.97, stop=0.998)
    """Share, 0 to 1: how little the mouth looks like one."""
    mismatch: Limit = Limit(warn=0.02, stop=0.05)
    """Share, 0 to 1, of the onset that the apex does not show where the flow says."""
    blur_px: Limit = Limit(warn=2.0, stop=2.6)
    """Standard deviation of the sharpest edges."""
    clipped: Limit = Limit(warn=0.2, stop=0.4)
    """Share, 0 to 1, of the face that is black, or that is white."""
    contrast: Limit = Limit(warn=40.0, stop=25.0)
    """Grey levels between the 5th and the 95th percentile of the face."""
    turned_deg: Limit = Limit(warn=25.0, stop=40.0)
    """Yaw and pitch together, degrees."""
    eye_distance_px: Limit = Limit(warn=40.0, stop=24.0)
    """Between the eye centres, pixels of the frame as sent."""
    outside: Limit = Limit(warn=0.1, stop=0.35)
    """Share, 0 to 1, of the crop that lies outside the frame."""
    head_px: Limit = Limit(warn=3.0, stop=4.0)
    """Mean motion of the head from onset to apex."""
    p95_px: Limit = Limit(warn=2.5, stop=3.0)
    """95th percentile of what moved inside the face; a micro-expression moves less."""
    low_frame_rate: float = Field(default=50.0, gt=0)
    """Frames a second below which a clip is answered with a warning."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_FROZEN)
class Provenance:
    """What the weights were made from."""

    data: str
    licence: str
    training_commit: str
    seed: int | None = None
    split_seed: int | None = None
    """With each identity, hashed into its place among training, calibration and test."""
    val_fraction: float | None = None
    """Share of identities kept for calibration."""
    test_fraction: float | None = None
    """Share of identities kept for scores."""
    datasets: tuple[str, ...] = ()
    """Names of the data sets that the weights were trained on; nobody of another was seen."""
    gates: str = ""
    """On whom `calibrate` chose motion gate and abstention threshold, where it did."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_FROZEN)
class Score:
    """One measured score; a score without its protocol says nothing."""

    metric: str
    value: float
    low: float
    high: float
    protocol: str
    """Data, split, unit of the interval, seeds, and the command that reproduces it."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_FROZEN)
class Reference:
    """How often each answer was given where the model was measured.

    What a service answers is compared with it: what differs much is another sort of picture, or
    another mix of expressions, than the model's scores speak of.
    """

    shares: Mapping[str, Annotated[float, Field(ge=0, le=1)]]
    """Of all answers, 0 to 1: those that stand, by class, and `abstained`. Together 1."""
    answers: int = Field(ge=1)
    """How many were counted."""
    protocol: str
    """Whose answers, chosen how, and the command that counts them."""

    def __post_init__(self) -> None:
        whole = math.fsum(self.shares.values())
        if not math.isclose(whole, 1, abs_tol=_SHARE_TOLERANCE):
            raise ValueError(f"the shares of all answers must add up to 1, these to {whole:g}")


_SHARE_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True, config=_FROZEN)
class ModelSpec:
    """Everything that fixes a prediction, beside the weights themselves."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    version: str
    classes: tuple[str, ...] = Field(min_length=2)
    """In the order of the network's outputs."""
    input_size: int = Field(default=224, ge=28)
    """Side of the square aligned crop, pixels."""
    alignment: Alignment = Field(default_factory=Alignment)
    flow: FlowMethod = DEFAULT_FLOW
    flow_backends: tuple[FlowBackend, ...] = ("opencv-cpu",)
    """Who may compute the flow: the first made the data that the weights learned from, each other
    was measured to give the same answers (`mfdan-train agree`)."""
    strain: Literal["infinitesimal"] = "infinitesimal"
    """|e| = sqrt(u_x² + v_y² + ½(u_y + v_x)²), of the flow in pixels."""
    magnification: float = Field(default=4.0, ge=0)
    """α: the onset is warped along (1 + α) · flow; the paper fixes no value, 4 is ours."""
    normalisation: Normalisation = Field(default_factory=Normalisation)
    motion_gate_px: float = Field(default=0.05, gt=0)
    """Below this motion of the region that moved most (`Motion.moved_px`, pixels of the crop)
    nothing moved. The default only stops what cannot have moved, such as one frame sent twice;
    `calibrate` raises it."""
    temperature: float = Field(default=1.0, ge=1e-3, allow_inf_nan=False)
    """The network's outputs are divided by it before the softmax, so that a probability is the
    share of such answers that are right (Guo et al. 2017); `calibrate` fits it."""
    abstention_threshold: float = Field(default=0.0, ge=0, lt=1)
    """Below this probability of the likeliest class the answer abstains."""
    quality: QualityLimits = Field(default_factory=QualityLimits)
    preprocessing_version: int = PREPROCESSING_VERSION
    provenance: Provenance
    precision: Literal["float32", "float16"] = "float32"
    """Of the network's weights and arithmetic; its inputs and outputs are float32."""
    onnx_sha256: str = ""
    """Of the ONNX file; empty in the copy inside that file's own metadata."""
    scores: tuple[Score, ...] = ()
    agreements: tuple[Score, ...] = ()
    """How nearly each further flow backend, and the network in half precision, gave the answers of
    what was trained."""
    reference: Reference | None = None
    """None: nobody counted, so nobody can tell whether what is answered has drifted."""

    def __post_init__(self) -> None:
        answers = {*self.classes, ABSTAINED}
        if self.reference is not None and self.reference.shares.keys() != answers:
            raise ValueError(f"reference: shares must be of {', '.join(sorted(answers))}")
        check_backends(self.flow, self.flow_backends)

    def to_json(self) -> str:
        """Return the spec as indented JSON, ending in a newline."""
        return _ADAPTER.dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "ModelSpec":
        """Parse what `to_json` wrote.

        Raises: SpecInvalid, naming each bad field; SpecMismatch for a spec of another
        preprocessing version.
        """
        try:
            spec = _ADAPTER.validate_json(text)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'document'}: {fault['msg']}"
                for fault in error.errors()
            )
            raise SpecInvalid(f"not a model spec: {faults}") from None
        if spec.preprocessing_version != PREPROCESSING_VERSION:
            raise SpecMismatch(
                f"the spec asks for preprocessing version {spec.preprocessing_version}, "
                f"this mfdan has version {PREPROCESSING_VERSION}"
            )
        return spec

    def embedded(self) -> "ModelSpec":
        """Return the copy that travels inside the ONNX file.

        It is without the hash, and without what is measured after export: scores, reference,
        agreements, and the flow backends that these allow.
        """
        return replace(
            self,
            flow_backends=self.flow_backends[:1],
            onnx_sha256="",
            scores=(),
            agreements=(),
            reference=None,
        )

    def preprocessing_key(self) -> str:
        """Return a hash of what fixes alignment and flow, to key caches of prepared pairs."""
        parts: tuple[object, ...] = (
            self.input_size,
            self.alignment,
            self.flow,
            self.preprocessing_version,
        )
        if self.flow_backends[0] != "opencv-cpu":
            parts = (*parts, self.flow_backends[0])
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


_ADAPTER = TypeAdapter(ModelSpec)


def spec_path(onnx_path: Path) -> Path:
    """Return where the spec of an ONNX file lies: the same name with `.json` added."""
    return onnx_path.with_name(onnx_path.name + ".json")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_spec(onnx_path: Path) -> ModelSpec:
    """Read the spec beside an ONNX file and check that file's hash against it.

    Raises: ModelNotFound if either file is missing, SpecInvalid, SpecMismatch.
    """
    sidecar = spec_path(onnx_path)
    for path in (onnx_path, sidecar):
        if not path.is_file():
            raise ModelNotFound(f"there is no file {path.name}")
    spec = ModelSpec.from_json(sidecar.read_bytes())
    found = file_sha256(onnx_path)
    if found != spec.onnx_sha256:
        raise SpecMismatch(
            f"{onnx_path.name} has SHA-256 {found[:12]}…, its spec says "
            f"{spec.onnx_sha256[:12] or 'none'}…: the file was changed or belongs to another spec"
        )
    return spec
