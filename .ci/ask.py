"""Ask a running service for one answer, on a face drawn for the purpose, and check it.

With the API key in MFDAN_API_KEY, where it wants one.
"""

import io
import os
import sys
import time
from pathlib import Path

import httpx2
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from drawn_face import draw_face

PATIENCE_S = 60


def main(url: str) -> None:
    """Wait until the service is ready, then ask about a smile and about one frame twice."""
    wait_until_ready(url)
    onset, apex = picture(draw_face()), picture(draw_face(smile=3.0))
    moved, still = answer(url, onset, apex), answer(url, onset, onset)
    check(abs(sum(moved["probabilities"].values()) - 1) < 1e-3, moved)  # noqa: PLR2004 - rounding
    check(moved["reason"] != "no_movement", moved)
    check(still["reason"] == "no_movement", still)


def wait_until_ready(url: str) -> None:
    """Poll the readiness route."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            if httpx2.get(f"{url}/health/ready").is_success:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    sys.exit(f"not ready within {PATIENCE_S} s")


def picture(frame: object) -> bytes:
    """Encode a frame."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def answer(url: str, onset: bytes, apex: bytes) -> dict:
    """Return the answer for the one face of a pair."""
    key = {"X-API-Key": os.environ["MFDAN_API_KEY"]} if "MFDAN_API_KEY" in os.environ else {}
    response = httpx2.post(
        f"{url}/predict", files={"onset": onset, "apex": apex}, headers=key, timeout=60
    )
    check(response.is_success, response.text)
    (face,) = response.json()["faces"]
    return face


def check(holds: bool, what: object) -> None:  # noqa: FBT001 - the condition itself
    """End with what was found when a condition does not hold."""
    if not holds:
        sys.exit(f"unexpected answer: {what}")


main(sys.argv[1])
