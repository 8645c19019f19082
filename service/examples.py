"""Answers as the API description shows them; tests check them against the schemas."""

from typing import Any

__all__ = ["CLIP_PREDICTION", "PAIR_PREDICTION", "PROBLEM"]

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
PROBLEM: dict[str, Any] = {
    "type": "urn:mfdan:problem:broken_image",
    "title": "Bad Request",
    "status": 400,
    "code": "broken_image",
    "detail": "Apex: the picture is truncated or corrupt.",
    "request_id": "5f0c7c3c2f6e4b0e9f4f0a4d3b0f7a11",
}
