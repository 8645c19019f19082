"""What is asked of the engine and what it answers. Numbers and arrays; nothing of HTTP."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.clip import ClipInfo
from model.pair import AlignedPair
from model.quality import QualityReason
from model.regions import RegionMotion
from model.spec import FlowBackend, ModelSpec
from model.spotting import Interval, MotionCurve
from model.verdict import Verdict

__all__ = [
    "Answer",
    "AnswerWarning",
    "Burst",
    "CandidateAnswer",
    "ClipFacts",
    "ClipUpload",
    "FaceAnswer",
    "FaceWarning",
    "Frames",
    "Moments",
    "Options",
    "Upload",
]

FaceWarning = Literal[QualityReason, "partly_seen"]
AnswerWarning = Literal[
    "several_faces",
    "not_seen_in_named_frames",
    "identical_frames",
    "low_frame_rate",
    "scene_cuts",
    "middle_frame",
]


@dataclass(frozen=True, slots=True)
class Upload:
    """One pair as it was sent."""

    onset: bytes
    apex: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """One pair that is decoded already: each (H, W, 3) uint8 RGB, both of one size."""

    onset: NDArray[np.uint8]
    apex: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ClipUpload:
    """One clip as it was sent: a video, or an animated picture."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Burst:
    """The frames of one clip, each sent as a picture."""

    pictures: tuple[bytes, ...]
    fps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a caller may choose."""

    model: str | None = None
    """Name of the model; None: the default."""
    faces: int = 1
    """Faces to answer for, the largest first."""
    explain: bool = False
    """Whether to tell how each region of the face moved."""
    onset_frame: int | None = None
    """Of a clip: frame to be taken for the onset, counted from 0; None leaves it to the spotter."""
    apex_frame: int | None = None
    """Likewise for the apex."""
    candidates: int = 5
    """Of a clip: intervals to answer for, of each face, the strongest first."""

    @property
    def names_a_frame(self) -> bool:
        """Whether the onset or the apex is the caller's own choice."""
        return self.onset_frame is not None or self.apex_frame is not None


@dataclass(frozen=True, slots=True, eq=False)
class CandidateAnswer:
    """What is answered for one interval of one face of a clip."""

    interval: Interval
    pair: AlignedPair
    verdict: Verdict
    warnings: tuple[FaceWarning, ...]


@dataclass(frozen=True, slots=True, eq=False)
class FaceAnswer:
    """What is answered for one face."""

    face_id: int
    """1, 2, …: a number within this answer. It identifies nobody."""
    pair: AlignedPair
    verdict: Verdict
    warnings: tuple[FaceWarning, ...]
    regions: tuple[RegionMotion, ...] | None
    """Only when an explanation was asked for."""
    candidates: tuple[CandidateAnswer, ...] = ()
    """Of a clip: the strongest first; pair, verdict and warnings above are the first one's."""
    curve: MotionCurve | None = None
    """Of a clip: how far the face was from rest at each moment."""
    seen: float | None = None
    """Of a clip: share of the looked-at frames that show this face, 0 to 1."""

    @property
    def interval(self) -> Interval | None:
        """Onset, apex and offset that the answer speaks of; None for a pair."""
        return self.candidates[0].interval if self.candidates else None


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What the answer says of the clip itself."""

    info: ClipInfo
    scene_cuts: tuple[int, ...]
    """First frame of each scene but the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """When what happened to one pair or clip, nanoseconds since 1970.

    The wall clock is read once: no two of them are torn apart when it jumps.
    """

    asked_ns: int
    begun_ns: int
    """A worker took it."""
    prepared_ns: int
    """The worker was done: what follows waits for the network."""
    inferred_ns: int
    """The network had answered."""
    resumed_ns: int
    """A worker took it again, after a fused run; elsewhere as `inferred_ns`."""
    answered_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What is answered for one pair or one clip."""

    spec: ModelSpec
    provider: str
    flow_backend: FlowBackend
    """Who computed the flow; of several movements, of which one fell back, who it fell back to."""
    faces: tuple[FaceAnswer, ...]
    warnings: tuple[AnswerWarning, ...]
    timings_ms: dict[str, float]
    """Work of decode, detect, align, spot (clips only), flow, quality and tensors; infer with its
    wait for a batch; total also holds the wait for a worker. In the order in which they came: of a
    fused run, which computes flow and tensors too, quality comes after infer."""
    moments: Moments
    clip: ClipFacts | None = None
    """None for a pair."""
    provider_fallback: bool = False
    """Whether a GPU was asked for and not got."""
