"""From the network's rows to what is answered for a face."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from model.quality import warnings as quality_warnings
from model.spec import ModelSpec
from model.verdict import Verdict, judge
from service.answers import CandidateAnswer, FaceAnswer, FaceWarning
from service.preparation import Item, PreparedFace

__all__ = ["face_answer"]

PARTLY_SEEN = 0.9
"""Share of a clip's keyframes that show the face, under which the answer warns (ours)."""

FloatArray = NDArray[np.float32]


def face_answer(spec: ModelSpec, face: PreparedFace, rows: Sequence[FloatArray]) -> FaceAnswer:
    """Judge the network's (K,) rows, one for each pair of a face."""
    verdicts = [_verdict(spec, item, row) for item, row in zip(face.items, rows, strict=True)]
    warnings = [_face_warnings(spec, face, item) for item in face.items]
    return FaceAnswer(
        face_id=face.face_id,
        pair=face.items[0].pair,
        verdict=verdicts[0],
        warnings=warnings[0],
        regions=face.regions,
        candidates=tuple(
            CandidateAnswer(item.interval, item.pair, verdict, about)
            for item, verdict, about in zip(face.items, verdicts, warnings, strict=True)
            if item.interval is not None
        ),
        curve=face.curve,
        seen=face.seen,
    )


def _verdict(spec: ModelSpec, item: Item, row: FloatArray) -> Verdict:
    verdict = judge(spec, row, item.pair.motion, item.pair.quality)
    middle = item.interval is not None and item.interval.source == "middle_frame"
    if middle and "no_movement" not in verdict.reasons:
        # Two arbitrary frames that differ: whatever the network sees in them is no expression.
        return replace(verdict, reasons=("no_expression_spotted", *verdict.reasons))
    return verdict


def _face_warnings(spec: ModelSpec, face: PreparedFace, item: Item) -> tuple[FaceWarning, ...]:
    found = quality_warnings(item.pair.quality, item.pair.motion, spec.quality)
    seldom = face.seen is not None and face.seen < PARTLY_SEEN
    return (*found, "partly_seen") if seldom else found
