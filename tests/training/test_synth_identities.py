from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_face import background, draw_face
from numpy.typing import NDArray

from training.identities import (
    PERSON_FOLDER,
    SAME_PERSON,
    Seen,
    Skipped,
    find_faces,
    look_at,
    name_subjects,
)


def save(path: Path, frame: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), frame[..., ::-1])


def seen(name: str, *direction: float) -> Seen:
    signature = np.array(direction, np.float32)
    return Seen(name, np.zeros((468, 2), np.float32), signature / np.linalg.norm(signature))


def test_small_folder_is_one_person() -> None:
    people = name_subjects(
        [seen("set/P1/a.jpg", 1, 0), seen("set/P1/b.jpg", 0, 1), seen("set/P2/a.jpg", 1, 0)],
        {"set/P1": PERSON_FOLDER, "set/P2": 1},
    )
    assert people == {
        "set/P1/a.jpg": "set-P1",
        "set/P1/b.jpg": "set-P1",
        "set/P2/a.jpg": "set-P2",
    }


def test_large_folder_joins_those_who_look_alike_directly_or_through_others() -> None:
    close = np.arccos(SAME_PERSON) * 0.99
    chain = [(np.cos(k * close), np.sin(k * close)) for k in range(3)]
    pictures = [seen(f"crowd/{k}.jpg", *chain[k]) for k in range(3)]
    pictures.append(seen("crowd/3.jpg", -1, 0))
    assert chain[0] @ np.array(chain[2]) < SAME_PERSON
    people = name_subjects(pictures, {"crowd": PERSON_FOLDER + 1})
    assert people == {
        "crowd/0.jpg": "crowd-0",
        "crowd/1.jpg": "crowd-0",
        "crowd/2.jpg": "crowd-0",
        "crowd/3.jpg": "crowd-3",
    }


def test_unusable_pictures_count_towards_the_size_of_a_folder(tmp_path: Path) -> None:
    for k in range(2):
        save(tmp_path / "crowd" / f"{k:02d}.png", draw_face(eye_distance=70 + 20 * k))
    blank = background(60, 60)
    for k in range(2, PERSON_FOLDER + 1):
        save(tmp_path / "crowd" / f"{k:02d}.png", blank)
    with ThreadPoolExecutor(1) as executor:
        faces, skipped = find_faces(tmp_path, executor)
    # joined because the drawn face is one person, not because the folder is small
    assert [face.subject for face in faces] == ["crowd-00"] * 2
    assert len(skipped) == PERSON_FOLDER - 1


def test_two_pictures_of_one_face_look_alike(tmp_path: Path) -> None:
    save(tmp_path / "a.png", draw_face(eye_distance=70, tone=1.0))
    save(tmp_path / "b.png", draw_face(eye_distance=90, tone=0.8, roll_degrees=5))
    first, second = look_at(tmp_path, "a.png"), look_at(tmp_path, "b.png")
    assert isinstance(first, Seen)
    assert isinstance(second, Seen)
    assert first.signature @ second.signature > SAME_PERSON


@pytest.mark.parametrize(
    ("name", "frame", "reason"),
    [
        ("wall.png", background(), "no face"),
        ("far.png", draw_face(eye_distance=34), "40 pixels"),
    ],
)
def test_unusable_picture_is_skipped_with_its_reason(
    tmp_path: Path, name: str, frame: NDArray[np.uint8], reason: str
) -> None:
    save(tmp_path / name, frame)
    found = look_at(tmp_path, name)
    assert isinstance(found, Skipped)
    assert reason in found.reason


def test_broken_picture_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    assert isinstance(look_at(tmp_path, "broken.jpg"), Skipped)


def test_table_of_subjects_overrules(tmp_path: Path) -> None:
    save(tmp_path / "set" / "a.png", draw_face())
    save(tmp_path / "set" / "b.png", draw_face(eye_distance=70))
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "subjects.csv").write_text("picture,subject\nset/b.png,somebody\n")
    with ThreadPoolExecutor(1) as executor:
        faces, skipped = find_faces(tmp_path, executor)
    assert {face.name: face.subject for face in faces} == {
        "set/a.png": "set",
        "set/b.png": "somebody",
    }
    assert skipped == []


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as executor, pytest.raises(FileNotFoundError, match="nowhere"):
        find_faces(tmp_path / "nowhere", executor)
