"""Reasons and warnings of an answer, in words for people."""

__all__ = ["in_words"]

_WORDS = {
    "badly_exposed": "the face is too dark or too bright",
    "blurred": "the face is blurred",
    "face_at_border": "a part of the face is outside the picture",
    "face_too_small": "the face is too small",
    "head_motion": "the head moved",
    "identical_frames": "onset and apex are the same picture",
    "low_confidence": "no class is likely enough",
    "low_frame_rate": "fewer than 50 frames a second: onset and apex are known roughly only, and "
    "the shortest expressions may be missed",
    "middle_frame": "no expression was spotted; the middle frame was taken for the apex",
    "misaligned": "onset and apex do not fit one another",
    "no_expression_spotted": "no movement came and went as an expression does",
    "no_movement": "nothing moved",
    "not_seen_in_named_frames": "no face is followed through the frames that were named",
    "occluded": "eyes or mouth are covered",
    "partly_seen": "the face is not seen all the time",
    "scene_cuts": "the clip has several scenes",
    "several_faces": "there are more faces than were asked for",
    "too_large_motion": "the movement is too large for a micro-expression",
    "turned_away": "the face is turned away",
}


def in_words(code: str) -> str:
    """Say what a reason or warning means."""
    return _WORDS.get(code, code.replace("_", " "))
