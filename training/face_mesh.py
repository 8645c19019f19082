"""The 468-point face mesh: which landmark is what, and a face's own coordinates."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.errors import ShapeError

__all__ = [
    "FACE_OVAL",
    "LOWER_LID",
    "LOWER_LIP",
    "MESH_OF_LM68",
    "MIRROR",
    "UPPER_LID",
    "UPPER_LIP",
    "FaceAxes",
]

FloatArray = NDArray[np.float64]

FACE_OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288),
    *(397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136),
    *(172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
"""Mesh indices around the face, in order."""

MESH_OF_LM68 = (
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301),
    *(168, 197, 5, 4, 75, 97, 2, 326, 305),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),
    *(78, 82, 13, 312, 308, 317, 14, 87),
)
"""Mesh index of each of the 68 points of the iBUG annotation."""

MIRROR = dict(
    (
        *((33, 263), (133, 362), (157, 384), (158, 385), (159, 386), (160, 387), (161, 388)),
        *((144, 373), (145, 374), (153, 380), (154, 381), (163, 390), (246, 466), (173, 398)),
        *((155, 382), (7, 249), (46, 276), (53, 283), (52, 282), (65, 295), (55, 285)),
        *((70, 300), (63, 293), (105, 334), (66, 296), (107, 336), (69, 299), (104, 333)),
        *((108, 337), (68, 298), (50, 280), (101, 330), (117, 346), (118, 347), (119, 348)),
        *((205, 425), (207, 427), (206, 426), (203, 423), (48, 278), (129, 358), (98, 327)),
        *((36, 266), (61, 291), (78, 308), (40, 270), (39, 269), (37, 267), (185, 409)),
        *((91, 321), (146, 375), (84, 314), (181, 405), (82, 312), (87, 317), (149, 378)),
        *((148, 377), (176, 400), (150, 379), (199, 199), (200, 200), (175, 175), (18, 18)),
        *((57, 287), (43, 273), (226, 446), (31, 261), (83, 313), (0, 0), (13, 13), (14, 14)),
        *((17, 17), (9, 9), (8, 8), (152, 152), (81, 311), (80, 310), (178, 402), (88, 318)),
        *((191, 415), (95, 324), (11, 11), (12, 12), (15, 15), (16, 16), (38, 268), (72, 302)),
        *((41, 271), (42, 272), (86, 316), (85, 315), (73, 303), (74, 304), (183, 407)),
        *((179, 403), (180, 404), (89, 319), (90, 320), (96, 325), (77, 307), (184, 408)),
        *((76, 306), (62, 292), (106, 335), (182, 406), (212, 432), (216, 436), (204, 424)),
    )
)
"""The left landmark of each right or midline one that the table of units names."""

LOWER_LID = (7, 163, 144, 145, 153, 154, 155)
UPPER_LID = (246, 161, 160, 159, 158, 157, 173)
UPPER_LIP = (0, 11, 12, 13, 37, 72, 38, 82, 39, 73, 41, 81, 40, 74, 42, 80, 185, 184, 183, 191)
LOWER_LIP = (17, 16, 15, 14, 84, 85, 86, 87, 181, 180, 179, 178, 91, 90, 89, 88, 146, 77, 96, 95)


@dataclass(frozen=True, slots=True)
class FaceAxes:
    """A face's own coordinates: origin between the eyes, unit the distance of their centres."""

    origin: FloatArray
    """(2,) pixels."""
    right: FloatArray
    """(2,) unit vector towards the person's left eye: rightwards in the image."""
    eye_distance: float
    """Pixels."""

    @classmethod
    def of(cls, landmarks: NDArray[np.floating]) -> "FaceAxes":
        """Measure (468, 2) mesh landmarks, in pixels. Raises: ShapeError."""
        if landmarks.shape != (468, 2):
            raise ShapeError(f"landmarks are (468, 2), got {landmarks.shape}")
        points = landmarks.astype(np.float64)
        right_eye = points[[33, 133]].mean(axis=0)
        left_eye = points[[362, 263]].mean(axis=0)
        along = left_eye - right_eye
        distance = float(np.hypot(*along))
        return cls((right_eye + left_eye) / 2, along / distance, distance)

    @property
    def up(self) -> FloatArray:
        """Return the (2,) unit vector towards the forehead."""
        return np.array([self.right[1], -self.right[0]])

    def from_pixels(self, points: NDArray[np.floating]) -> FloatArray:
        """Map (..., 2) pixels to (right, up) in eye distances."""
        centred = points - self.origin
        mapped = np.stack([centred @ self.right, centred @ self.up], axis=-1)
        return np.asarray(mapped / self.eye_distance)

    def vector(self, right: float, up: float) -> FloatArray:
        """Return a vector given in eye distances as (2,) pixels."""
        return (right * self.right + up * self.up) * self.eye_distance
