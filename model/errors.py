"""Domain faults, one class each. They know no HTTP.

MfdanError
├── InputError              what the caller sent cannot be answered
│   ├── EmptyImage          no bytes
│   ├── NotAnImage          bytes of no known picture format
│   ├── BrokenImage         a known format, but truncated or corrupt
│   ├── ImageTooLarge       more bytes or pixels than allowed
│   ├── ImageTooSmall       fewer pixels than a face needs
│   ├── FrameSizeMismatch   onset and apex do not share one geometry
│   ├── NotAClip            bytes of no known video format, or without a picture in them
│   ├── BrokenClip          a known video format, but truncated or corrupt
│   ├── ClipTooLarge        more pixels, frames or seconds than allowed
│   ├── TooFewFrames        a clip without an onset and an apex
│   ├── FrameOutOfRange     a named frame that the clip does not have
│   └── BadFlow             ready-made flow that is not u and v
├── ModelError              the model cannot be used
│   ├── ModelNotFound       no such file or name
│   ├── SpecInvalid         the spec is not one
│   └── SpecMismatch        spec and weights do not belong together
└── FlowFailed              the device failed while it computed a flow
"""

from typing import Literal

__all__ = [
    "BadFlow",
    "BrokenClip",
    "BrokenImage",
    "ClipTooLarge",
    "EmptyImage",
    "FlowFailed",
    "FlowFault",
    "FrameOutOfRange",
    "FrameSizeMismatch",
    "ImageTooLarge",
    "ImageTooSmall",
    "InputError",
    "MfdanError",
    "ModelError",
    "ModelNotFound",
    "NotAClip",
    "NotAnImage",
    "ShapeError",
    "SpecInvalid",
    "SpecMismatch",
    "TooFewFrames",
]


class MfdanError(Exception):
    """Base of every fault a user of mfdan can cause or meet."""

    code: str = "mfdan_error"
    """Stable, machine-readable name of the fault."""


class InputError(MfdanError):
    """What the caller sent cannot be answered."""

    code = "invalid_input"


class EmptyImage(InputError):
    """The upload holds no bytes."""

    code = "empty_image"


class NotAnImage(InputError):
    """The bytes are of no picture format that mfdan reads."""

    code = "not_an_image"


class BrokenImage(InputError):
    """A known picture format, but truncated or corrupt."""

    code = "broken_image"


class ImageTooLarge(InputError):
    """More bytes or pixels than the limits allow."""

    code = "image_too_large"


class ImageTooSmall(InputError):
    """Fewer pixels than a face needs."""

    code = "image_too_small"


class FrameSizeMismatch(InputError):
    """Onset and apex do not share one geometry."""

    code = "frame_size_mismatch"


class NotAClip(InputError):
    """The bytes are of no video format that mfdan reads, or hold no picture stream."""

    code = "not_a_clip"


class BrokenClip(InputError):
    """A known video format, but truncated or corrupt."""

    code = "broken_clip"


class ClipTooLarge(InputError):
    """More pixels, frames or seconds than the limits allow."""

    code = "clip_too_large"


class TooFewFrames(InputError):
    """A clip of fewer frames than an onset and an apex."""

    code = "too_few_frames"


class FrameOutOfRange(InputError):
    """A frame, named by its number, that the clip does not have or that cannot be meant."""

    code = "frame_out_of_range"


class BadFlow(InputError):
    """A ready-made flow field that is not u and v of one picture."""

    code = "bad_flow"


class ModelError(MfdanError):
    """The model cannot be used."""

    code = "model_error"


class ModelNotFound(ModelError):
    """No model of that name, or no file at that path."""

    code = "model_not_found"


class SpecInvalid(ModelError):
    """The spec file is not a ModelSpec."""

    code = "spec_invalid"


class SpecMismatch(ModelError):
    """Spec and weights do not belong together; the message says which field."""

    code = "spec_mismatch"


FlowFault = Literal["memory", "device", "driver"]
"""What failed: the GPU had no memory left; it was lost or broke off; or it, its driver and the
libraries do not fit together."""


class FlowFailed(MfdanError):
    """The device failed while it computed a flow, and nobody else may compute it."""

    code = "flow_failed"

    def __init__(self, message: str, fault: FlowFault) -> None:
        super().__init__(message)
        self.fault: FlowFault = fault

    def __reduce__(self) -> tuple[type["FlowFailed"], tuple[str, FlowFault]]:
        return type(self), (str(self), self.fault)  # from one process to another


class ShapeError(ValueError):
    """An array has another shape than the function documents: a programming error."""
