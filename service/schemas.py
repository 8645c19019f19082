"""What the API says, as pydantic models."""

from dataclasses import asdict
from typing import Annotated, Literal, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from model.session import Session
from model.spec import ModelSpec
from service.engine import Answer, FaceAnswer, FaceWarning, PairWarning

__all__ = [
    "BatchPrediction",
    "Face",
    "FieldFault",
    "Health",
    "ModelCard",
    "Prediction",
    "Problem",
    "Region",
]

# More digits would only pretend to a precision that no flow and no network has.
Pixels = Annotated[float, AfterValidator(lambda value: round(value, 3))]
Share = Annotated[float, Field(ge=0, le=1), AfterValidator(lambda value: round(value, 6))]
Reason = Literal["no_movement", "low_confidence"]


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ModelName(_Schema):
    """Which model answered."""

    name: str
    version: str
    sha256: str
    """Of the ONNX file."""


class Flow(_Schema):
    """How the motion was measured."""

    backend: Literal["opencv-cpu", "opencv-cuda"]
    algorithm: Literal["tvl1", "farneback", "dis"]


class Box(_Schema):
    """A rectangle in pixels of the frame as turned upright; x right, y down."""

    x: Pixels
    y: Pixels
    width: Pixels
    height: Pixels


class Motion(_Schema):
    """How far the face moved from onset to apex, in pixels of the model's aligned crop."""

    mean_px: Pixels
    """Mean motion of the face, the head's own motion removed."""
    p95_px: Pixels
    """95th percentile of the same; below the model's gate nothing moved."""
    head_px: Pixels
    """Mean motion of the head, which was removed."""


class Quality(_Schema):
    """What to know of the picture before believing the answer."""

    eye_distance_px: Pixels
    """Between the eye centres in the frame as sent."""
    outside: Share
    """Share of the aligned crop that lies outside the frame."""


class Region(_Schema):
    """Mean motion of one part of the face, pixels of the crop, the head's motion removed."""

    region: str
    """Left and right are the person's own."""
    right_px: Pixels
    """Towards the picture's right; negative is left."""
    down_px: Pixels
    """Towards the picture's bottom; negative is up."""
    length_px: Pixels
    """Mean length of the motion, whatever its direction."""


class Face(_Schema):
    """One face and the expression its motion looks like."""

    box: Box
    score: Share
    """How sure the mesh is that this is a face."""
    label: str
    """The likeliest class of expression, also when the answer abstains."""
    probabilities: dict[str, Share]
    """Of each class, given that there is an expression; they sum to 1."""
    abstained: bool
    """Whether the label should not be used."""
    reason: Reason | None
    """Why the answer abstains."""
    motion: Motion
    quality: Quality
    warnings: tuple[FaceWarning, ...]
    regions: tuple[Region, ...] | None = None
    """What moved, the most first; only when `explain` was asked for."""

    @classmethod
    def of(cls, face: FaceAnswer) -> Self:
        """Shape the engine's answer for one face."""
        box, motion, quality = face.pair.face.box, face.pair.motion, face.pair.quality
        return cls(
            box=Box(x=box.x, y=box.y, width=box.width, height=box.height),
            score=face.pair.face.score,
            label=face.verdict.label,
            probabilities=face.verdict.probabilities,
            abstained=face.verdict.abstained,
            reason=cast("Reason | None", face.verdict.reason),  # pydantic checks it
            motion=Motion(mean_px=motion.mean_px, p95_px=motion.p95_px, head_px=motion.head_px),
            quality=Quality(eye_distance_px=quality.eye_distance_px, outside=quality.outside),
            warnings=face.warnings,
            regions=None
            if face.regions is None
            else tuple(Region(**asdict(region)) for region in face.regions),
        )


class Prediction(_Schema):
    """The answer to one pair. No face is a normal answer: `faces` is empty."""

    request_id: str
    model: ModelName
    provider: str
    """The ONNX Runtime execution provider that ran the network."""
    flow: Flow
    faces: tuple[Face, ...]
    """The largest first."""
    warnings: tuple[PairWarning, ...]
    timings_ms: dict[str, float]
    """decode, detect, align, flow, tensors, infer (with its wait for a batch), total."""

    @classmethod
    def of(cls, answer: Answer, request_id: str) -> Self:
        """Shape the engine's answer to one pair."""
        spec = answer.spec
        return cls(
            request_id=request_id,
            model=ModelName(name=spec.name, version=spec.version, sha256=spec.onnx_sha256),
            provider=answer.provider,
            flow=Flow(backend="opencv-cpu", algorithm=spec.flow.algorithm),
            faces=tuple(Face.of(face) for face in answer.faces),
            warnings=answer.warnings,
            timings_ms={stage: round(ms, 3) for stage, ms in answer.timings_ms.items()},
        )


class FieldFault(_Schema):
    """What is wrong with one field of the request."""

    field: str
    message: str


class Problem(_Schema):
    """An error, as RFC 9457 shapes it."""

    type: str
    """A stable URI of the kind of fault: urn:mfdan:problem: and the code."""
    title: str
    """The status in words."""
    status: int
    code: str
    """The stable name of the fault, for programs."""
    detail: str
    """The fault in a sentence, for people."""
    request_id: str
    errors: tuple[FieldFault, ...] = ()
    """With code invalid_fields: each field that is wrong."""


class BatchPrediction(_Schema):
    """The answers to a batch, in request order; a bad pair has a problem in its place."""

    request_id: str
    results: tuple[Prediction | Problem, ...]


class ModelCard(_Schema):
    """One loaded model and everything that fixes its predictions."""

    name: str
    version: str
    sha256: str
    """Of the ONNX file."""
    default: bool
    """Whether it answers requests that name no model."""
    provider: str
    spec: ModelSpec
    """Classes, preprocessing, thresholds, data, licence, and measured scores."""

    @classmethod
    def of(cls, session: Session, *, default: bool) -> Self:
        """Describe a loaded model."""
        spec = session.spec
        return cls(
            name=spec.name,
            version=spec.version,
            sha256=spec.onnx_sha256,
            default=default,
            provider=session.provider,
            spec=spec,
        )


class Health(_Schema):
    """That the process answers, or that it is ready."""

    status: Literal["live", "ready"]
