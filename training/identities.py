"""Which pictures a folder holds, whose face each shows, and which show the same person."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from model.decode import Limits, decode_image
from model.errors import InputError
from model.face import FaceFinder, align, similarity_transform
from model.spec import Alignment
from training.face_mesh import FaceAxes

__all__ = [
    "PERSON_FOLDER",
    "SAME_PERSON",
    "FacePicture",
    "Skipped",
    "find_faces",
    "look_at",
    "name_subjects",
]

SAME_PERSON = 0.78
"""Pictures of one set whose signatures correlate at least so much are one identity. Chosen by
looking: it joins every repeated person of the sets used, and many who only look alike."""

PERSON_FOLDER = 40
"""A folder of at most so many pictures is taken to show one person."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_MIN_EYE_DISTANCE = 40.0
_MIN_SYMMETRY = 0.25
_SIGNATURE_SIDE = 32


@dataclass(frozen=True, slots=True, eq=False)
class FacePicture:
    """One usable picture of a face."""

    path: Path
    name: str
    """Its path below the folder of faces, with forward slashes."""
    subject: str
    landmarks: NDArray[np.float32]
    """(468, 2), pixels of the picture."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A picture that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What was found in one picture."""

    name: str
    landmarks: NDArray[np.float32]
    signature: NDArray[np.float32]
    """Unit vector; scalar products of two are correlations."""


def find_faces(folder: Path, executor: Executor) -> tuple[list[FacePicture], list[Skipped]]:
    """Find every usable face below a folder, sorted by name, with its subject.

    Raises: FileNotFoundError if the folder is missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES and path.is_file()
    )
    found = list(executor.map(look_at, [folder] * len(names), names, chunksize=16))
    seen = [item for item in found if isinstance(item, Seen)]
    skipped = [item for item in found if isinstance(item, Skipped)]
    sizes = Counter(_folder_of(name) for name in names)
    subjects = name_subjects(seen, sizes) | _overrides(folder)
    pictures = [
        FacePicture(folder / item.name, item.name, subjects[item.name], item.landmarks)
        for item in seen
    ]
    return pictures, skipped


_finder: FaceFinder | None = None


def look_at(folder: Path, name: str) -> Seen | Skipped:
    """Find the face in one picture, or say why it cannot be used."""
    global _finder  # noqa: PLW0603 - one per worker process: the networks cannot be pickled
    if _finder is None:
        _finder = FaceFinder()
    try:
        frame = decode_image((folder / name).read_bytes(), Limits())
    except InputError as fault:
        return Skipped(name, str(fault))
    faces = _finder.find(frame)
    if not faces:
        return Skipped(name, "no face found")
    landmarks = faces[0].landmarks
    if FaceAxes.of(landmarks).eye_distance < _MIN_EYE_DISTANCE:
        return Skipped(name, f"eyes less than {_MIN_EYE_DISTANCE:.0f} pixels apart")
    if _symmetry(landmarks) < _MIN_SYMMETRY:
        return Skipped(name, "not frontal")
    return Seen(name, landmarks, _signature(frame, landmarks))


def _symmetry(landmarks: NDArray[np.float32]) -> float:
    """Return how evenly the nose tip stands between the cheeks: 1 is frontal, 0 a profile."""
    place = FaceAxes.of(landmarks).from_pixels(landmarks)[:, 0]
    right, left = place[4] - place[234], place[454] - place[4]
    return float(max(min(right, left), 0) / max(right, left))


def _signature(frame: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a face's grey pattern, aligned, without its slow shading, as a unit vector."""
    side = 3 * _SIGNATURE_SIDE
    transform = similarity_transform(landmarks, Alignment(eye_y=0.3, eye_distance=0.5), side)
    grey = cv2.cvtColor(align(frame, transform, side), cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(grey, (_SIGNATURE_SIDE, _SIGNATURE_SIDE), interpolation=cv2.INTER_AREA)
    detail = (small - cv2.GaussianBlur(small, (0, 0), 5)).ravel()
    detail = detail - detail.mean()
    return np.asarray(detail / max(float(np.linalg.norm(detail)), 1e-6), np.float32)


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def name_subjects(seen: Sequence[Seen], sizes: Mapping[str, int]) -> dict[str, str]:
    """Return the subject of each picture, by the picture's name.

    A folder of at most PERSON_FOLDER pictures is one person; `sizes` counts all pictures of
    each folder, usable or not. In a larger one, pictures are
    joined whose signatures correlate by SAME_PERSON or more, directly or through others,
    and named after the first of them. Both rules rather join two people than part one.
    """
    folders: dict[str, list[Seen]] = {}
    for item in seen:
        folders.setdefault(_folder_of(item.name), []).append(item)
    subjects: dict[str, str] = {}
    for folder, members in folders.items():
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder) or "face"
        if sizes[folder] <= PERSON_FOLDER:
            subjects |= {member.name: name for member in members}
        else:
            subjects |= _join(name, members)
    return subjects


def _join(set_name: str, members: Sequence[Seen]) -> dict[str, str]:
    signatures = np.stack([member.signature for member in members])
    alike = signatures @ signatures.T >= SAME_PERSON
    _, groups = connected_components(alike, directed=False)
    first: dict[int, str] = {}
    subjects: dict[str, str] = {}
    for member, group in zip(members, groups, strict=True):
        stem = first.setdefault(int(group), Path(member.name).stem)
        subjects[member.name] = f"{set_name}-{stem}"
    return subjects


def _overrides(folder: Path) -> dict[str, str]:
    """Read `subjects.csv` (header `picture,subject`), which overrules every guess."""
    table = folder / "subjects.csv"
    if not table.is_file():
        return {}
    with table.open(newline="") as file:
        rows: Iterable[dict[str, str]] = csv.DictReader(file)
        return {row["picture"]: row["subject"] for row in rows}
