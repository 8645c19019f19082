"""Answers as the API description shows them; tests check them against the schemas.

Problems are made from the faults themselves, so an example has the status and the shape that its
code really has.
"""

from typing import Any

from pydantic import TypeAdapter
from starlette.exceptions import HTTPException

from model.errors import (
    BrokenClip,
    BrokenImage,
    ClipTooLarge,
    EmptyImage,
    FrameOutOfRange,
    FrameSizeMismatch,
    ImageTooLarge,
    ImageTooSmall,
    ModelNotFound,
    NotAClip,
    NotAnImage,
    TooFewFrames,
)
from model.spec import ModelSpec, Provenance, Reference
from service.errors import FieldsInvalid, problem_of
from service.faults import (
    Closed,
    DeadlineExceeded,
    NotReady,
    QueueFull,
    TooManyRequests,
    WorkerDied,
)
from service.keys import KeyUnknown, QuotaExceeded, RateLimited
from service.open_inference_body import TensorsInvalid
from service.schemas import FieldFault

__all__ = [
    "BATCH_PREDICTION",
    "CLIP_PREDICTION",
    "INFER_REQUEST",
    "INFER_RESPONSE",
    "LIVE",
    "METRICS",
    "MODEL_CARD",
    "PAIR_PREDICTION",
    "PROBLEMS",
    "READY",
    "V2_ERRORS",
    "V2_INDEX",
    "V2_LIVE",
    "V2_MODEL",
    "V2_MODEL_READY",
    "V2_READY",
    "V2_SERVER",
]

_REQUEST_ID = "5f0c7c3c2f6e4b0e9f4f0a4d3b0f7a11"
_FAULTS: tuple[Exception, ...] = (
    EmptyImage("apex: the picture holds no bytes"),
    BrokenImage("apex: the picture is truncated or corrupt"),
    BrokenClip("the clip is truncated or corrupt"),
    HTTPException(400, "There was an error parsing the body"),
    TensorsInvalid("image and flow are of different shapes"),
    KeyUnknown("the API key is not known"),
    ModelNotFound("there is no model of that name"),
    HTTPException(408, "The request body did not arrive in time."),
    HTTPException(413, "The request body may hold 65536 bytes."),
    ImageTooLarge("onset: the picture has 30000000 pixels, allowed are 25000000"),
    ClipTooLarge("the clip has 7000 frames, allowed are 6000"),
    HTTPException(415, "The body must not be compressed."),
    NotAnImage("onset: not a JPEG, PNG, WebP or BMP picture"),
    NotAClip("not a clip of a known format"),
    FieldsInvalid(FieldFault(field="apex", message="Field required")),
    ImageTooSmall("onset: the picture is 20x20 pixels, needed are 32x32"),
    FrameSizeMismatch("onset is 640x480 pixels, apex 320x240"),
    TooFewFrames("the clip has 1 frame, needed are 2"),
    FrameOutOfRange("the clip has no frame 90"),
    QueueFull("16 clips are at work or waiting already"),
    TooManyRequests("as many predictions are under way as may be"),
    RateLimited("the API key allows at most 60 in a minute", 12),
    QuotaExceeded("the API key allows at most 1000 in a day", 3600),
    RuntimeError("never told"),
    NotReady("the model is being loaded"),
    Closed("the service is shutting down"),
    WorkerDied("the thread that worked on it ended"),
    DeadlineExceeded("no answer within 30000 ms"),
)


def _problem(fault: Exception) -> dict[str, Any]:
    return problem_of(fault, _REQUEST_ID).model_dump(mode="json", exclude_defaults=True)


PROBLEMS: dict[str, dict[str, Any]] = {
    problem["code"]: problem for problem in map(_problem, _FAULTS)
}
"""One of each code."""
V2_ERRORS: dict[str, dict[str, Any]] = {
    code: {"error": problem["detail"]} for code, problem in PROBLEMS.items()
}
"""The same faults as the Open Inference Protocol shapes them."""
_MODEL = {"name": "mfdan-synthetic", "version": "1", "sha256": "0d06" * 16}
_JUDGED: dict[str, Any] = {
    "label": "positive",
    "probabilities": {"negative": 0.12, "positive": 0.81, "surprise": 0.07},
    "abstained": False,
    "reason": None,
    "reasons": [],
    "motion": {"mean_px": 0.15, "p95_px": 1.0, "head_px": 0.21, "moved_px": 0.84},
    "quality": {
        "eye_distance_px": 77.7,
        "outside": 0.0,
        "blur_px": 0.9,
        "dark": 0.0,
        "bright": 0.002,
        "contrast": 96.0,
        "yaw_deg": 4.1,
        "pitch_deg": -2.3,
        "eyes_hidden": 0.02,
        "mouth_hidden": 0.05,
        "mismatch": 0.004,
    },
    "warnings": [],
}
_NO_INTERVAL: dict[str, Any] = {
    "onset_frame": None,
    "apex_frame": None,
    "offset_frame": None,
    "onset_s": None,
    "apex_s": None,
    "offset_s": None,
    "source": None,
    "strength_px": None,
}
_INTERVAL: dict[str, Any] = {
    "onset_frame": 12,
    "apex_frame": 18,
    "offset_frame": 25,
    "onset_s": 0.4,
    "apex_s": 0.6,
    "offset_s": 0.8333,
    "source": "spotted",
    "strength_px": 0.742,
}
_WHERE: dict[str, Any] = {
    "face_id": 1,
    "box": {"x": 236.9, "y": 152.5, "width": 173.3, "height": 213.3},
    "score": 0.999,
    "regions": None,
}
PAIR_PREDICTION: dict[str, Any] = {
    "request_id": "9b2f0a3c5d7e4f60a1b2c3d4e5f60718",
    "model": _MODEL,
    "provider": "CPUExecutionProvider",
    "provider_fallback": False,
    "flow": {"backend": "opencv-cpu", "algorithm": "dis"},
    "faces": [
        _JUDGED | _NO_INTERVAL | _WHERE | {"seen": None, "motion_curve": None, "candidates": []},
    ],
    "clip": None,
    "warnings": [],
    "timings_ms": {
        "decode": 5.9,
        "detect": 11.8,
        "align": 1.6,
        "flow": 8.2,
        "quality": 2.1,
        "tensors": 3.6,
        "infer": 92.4,
        "total": 123.9,
    },
}
CLIP_PREDICTION: dict[str, Any] = PAIR_PREDICTION | {
    "faces": [
        _JUDGED
        | _INTERVAL
        | _WHERE
        | {
            "seen": 1.0,
            "motion_curve": {
                "frames": [0, 1, 2],
                "times_s": [0.0, 0.0333, 0.0667],
                "motion_px": [0.0, 0.021, 0.034],
                "threshold_px": 0.31,
            },
            "candidates": [_JUDGED | _INTERVAL],
        },
    ],
    "clip": {
        "frames": 45,
        "duration_s": 1.5,
        "fps": 30.0,
        "width": 1280,
        "height": 720,
        "variable_frame_rate": False,
        "container": "mp4",
        "codec": "h264",
        "scene_cuts": [],
    },
    "warnings": ["low_frame_rate"],
    "timings_ms": {
        "decode": 310.2,
        "detect": 52.0,
        "spot": 98.4,
        "align": 1.7,
        "flow": 8.4,
        "quality": 2.2,
        "tensors": 3.7,
        "infer": 90.8,
        "total": 567.1,
    },
}
BATCH_PREDICTION: dict[str, Any] = {
    "request_id": PAIR_PREDICTION["request_id"],
    "results": [
        PAIR_PREDICTION,
        _problem(BrokenImage("apex: the picture is truncated or corrupt")),
    ],
}
_SPEC = ModelSpec(
    name=_MODEL["name"],
    version=_MODEL["version"],
    classes=("negative", "positive", "surprise"),
    onnx_sha256=_MODEL["sha256"],
    provenance=Provenance(data="synthetic pairs", licence="MIT", training_commit="0d06" * 10),
    reference=Reference(
        shares={"negative": 0.3, "positive": 0.32, "surprise": 0.29, "abstained": 0.09},
        answers=200,
        protocol="synthetic pairs of people of the test split; pairs with an expression only",
    ),
)
MODEL_CARD: dict[str, Any] = {
    **_MODEL,
    "default": True,
    "provider": "CPUExecutionProvider",
    "provider_fallback": False,
    "flow": {"backend": "opencv-cpu", "algorithm": "dis"},
    "spec": TypeAdapter(ModelSpec).dump_python(_SPEC, mode="json"),
}
LIVE = {"status": "live"}
READY = {"status": "ready"}
METRICS = """\
# HELP mfdan_ready 1 when a request would be worked on.
# TYPE mfdan_ready gauge
mfdan_ready 1.0
"""

_SIDE = 2  # a real model's is 224
_TENSOR = {"shape": [1, 3, _SIDE, _SIDE], "datatype": "FP32", "data": [0.0] * 3 * _SIDE**2}
INFER_REQUEST: dict[str, Any] = {
    "id": "pair-1",
    "inputs": [{"name": "image", **_TENSOR}, {"name": "flow", **_TENSOR}],
    "outputs": [{"name": "probabilities"}],
}
_V2_NAME = {"model_name": _MODEL["name"], "model_version": _MODEL["version"]}
INFER_RESPONSE: dict[str, Any] = {
    **_V2_NAME,
    "id": "pair-1",
    "outputs": [
        {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": [1, 3],
            "data": [0.12, 0.81, 0.07],
        }
    ],
}
V2_LIVE = {"live": True}
V2_READY = {"ready": True}
V2_SERVER = {"name": "mfdan", "version": "0.1.0", "extensions": ["binary_tensor_data"]}
V2_MODEL_READY = {"name": _MODEL["name"], "ready": True}
V2_MODEL: dict[str, Any] = {
    "name": _MODEL["name"],
    "versions": [_MODEL["version"]],
    "platform": "onnxruntime_onnx",
    "inputs": [
        {"name": name, "datatype": "FP32", "shape": [-1, 3, 224, 224]} for name in ("image", "flow")
    ],
    "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}],
}
V2_INDEX = [
    {"name": _MODEL["name"], "version": _MODEL["version"], "state": "READY", "reason": ""},
]
