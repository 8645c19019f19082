import csv
import hashlib
import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_face import draw_face
from drawn_head import write_head
from numpy.typing import NDArray
from typer.testing import CliRunner

from model.face import FaceFinder
from training.cli import app
from training.contact_sheet import contact_sheet, flow_colours
from training.identities import FacePicture
from training.synthesis import Settings, make_pairs

SETTINGS = Settings(seed=3, pairs=6)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> list[FacePicture]:
    folder = tmp_path_factory.mktemp("faces")
    finder = FaceFinder()
    pictures = []
    for name, tone in (("dark", 0.6), ("light", 1.0)):
        frame = draw_face(tone=tone)
        cv2.imwrite(str(folder / f"{name}.png"), frame[..., ::-1])
        landmarks = finder.find(frame)[0].landmarks
        pictures.append(FacePicture(folder / f"{name}.png", f"{name}.png", name, landmarks))
    return pictures


def make(
    faces: list[FacePicture],
    out: Path,
    settings: Settings = SETTINGS,
    on_progress: Callable[[int], None] = lambda _: None,
) -> None:
    with ThreadPoolExecutor(1) as executor:
        make_pairs(faces, out, settings, executor, on_progress)


@pytest.fixture(scope="module")
def whole(faces: list[FacePicture], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "pairs"
    make(faces, out)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "pairs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_table_names_every_pair_and_its_files(whole: Path) -> None:
    rows = rows_of(whole)
    assert list(rows[0])[:7] == [
        "dataset",
        "subject",
        "clip",
        "label",
        "onset",
        "apex",
        "true_flow",
    ]
    assert [row["clip"] for row in rows] == [f"{index:06d}" for index in range(6)]
    assert {row["subject"] for row in rows} <= {"dark", "light"}
    for row in rows:
        onset, apex = (cv2.imread(str(whole / row[key])) for key in ("onset", "apex"))
        assert onset.shape == apex.shape
        with np.load(whole / row["true_flow"]) as flow:
            for key in ("flow", "expression"):
                assert flow[key].shape == (2, *onset.shape[:2])
                assert flow[key].dtype == np.float16


def test_pairs_can_bear_another_data_set_s_name(
    faces: list[FacePicture], whole: Path, tmp_path: Path
) -> None:
    """So that a model trained on one synthetic set is not thought to know the people of another."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as executor:
        make_pairs(faces, tmp_path / "pairs", replace(SETTINGS, dataset="mine"), executor)
    assert {row["dataset"] for row in rows_of(whole)} == {"synthetic"}
    assert {row["dataset"] for row in rows_of(tmp_path / "pairs")} == {"mine"}
    with pytest.raises(ValueError, match="without a slash"):
        replace(SETTINGS, dataset="a/b")


def test_same_seed_makes_the_same_bytes_whatever_the_workers(
    faces: list[FacePicture], whole: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as executor:
        make_pairs(faces, tmp_path / "pairs", SETTINGS, executor)
    assert contents(tmp_path / "pairs") == contents(whole)


def test_interrupted_run_goes_on_to_the_same_folder(
    faces: list[FacePicture], whole: Path, tmp_path: Path
) -> None:
    heard = []

    def stop_after_the_first(done: int) -> None:
        heard.append(done)
        if sum(heard) > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(faces, tmp_path, on_progress=stop_after_the_first)
    assert not (tmp_path / "pairs.csv").exists()
    make(faces, tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_more_pairs_extend_the_folder_and_remake_nothing(
    faces: list[FacePicture], whole: Path, tmp_path: Path
) -> None:
    make(faces, tmp_path, Settings(seed=3, pairs=4))
    kept = tmp_path / rows_of(tmp_path)[0]["onset"]
    original = kept.read_bytes()
    kept.write_bytes(b"not to be remade")
    make(faces, tmp_path)
    assert kept.read_bytes() == b"not to be remade"
    kept.write_bytes(original)
    assert contents(tmp_path) == contents(whole)


def test_pair_of_which_a_file_is_missing_is_remade(
    faces: list[FacePicture], whole: Path, tmp_path: Path
) -> None:
    make(faces, tmp_path)
    (tmp_path / rows_of(tmp_path)[2]["apex"]).unlink()
    make(faces, tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_measured_blendshapes_move_the_face_otherwise_than_the_table(
    faces: list[FacePicture], whole: Path, tmp_path: Path
) -> None:
    shapes = tmp_path / "head.npz"
    write_head(shapes)
    settings = Settings(seed=3, pairs=6, blendshapes=shapes)
    make(faces, tmp_path / "out", settings)
    note = json.loads((tmp_path / "out" / "synth.json").read_text())
    assert note["blendshapes_sha256"] == hashlib.sha256(shapes.read_bytes()).hexdigest()
    moving = [row for row in rows_of(whole) if row["label"] != "none"]
    assert moving
    for row in moving:
        table, measured = (
            load_expression(folder / row["true_flow"]) for folder in (whole, tmp_path / "out")
        )
        assert np.abs(table - measured).max() > 0.1
    with pytest.raises(ValueError, match="another blendshapes_sha256"):
        make(faces, whole, settings)


def load_expression(path: Path) -> NDArray[np.float32]:
    with np.load(path) as flow:
        return flow["expression"].astype(np.float32)


def test_folder_of_another_seed_is_refused(faces: list[FacePicture], whole: Path) -> None:
    with pytest.raises(ValueError, match="another seed"):
        make(faces, whole, Settings(seed=4, pairs=6))


def test_no_faces_make_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no usable face"):
        make([], tmp_path)


@pytest.mark.parametrize(
    "fault",
    [{"seed": -1}, {"pairs": 0}, {"none_fraction": 1.5}],
    ids=lambda fault: next(iter(fault)),
)
def test_impossible_settings_are_refused(fault: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"seed|pairs|share"):
        Settings(**{"seed": 1, "pairs": 1, **fault})


def test_contact_sheet_shows_the_pairs(whole: Path, tmp_path: Path) -> None:
    contact_sheet(whole, tmp_path / "sheet.png")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None
    assert sheet.std() > 10
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_flow_colours_say_direction_and_size() -> None:
    flow = np.zeros((2, 2, 3), np.float32)
    flow[0, 0] = (1.0, 0.5, -1.0)
    colours = flow_colours(flow, 1.0)
    np.testing.assert_array_equal(colours[0, 0], (0, 0, 255))  # BGR: right is red
    np.testing.assert_array_equal(colours[0, 1], (0, 0, 127))  # half as far, half as bright
    np.testing.assert_array_equal(colours[0, 2], (255, 255, 0))  # left is cyan
    assert not colours[1].any()


def test_command_makes_a_folder_with_a_contact_sheet(
    faces: list[FacePicture], tmp_path: Path
) -> None:
    options = ["--faces", str(faces[0].path.parent), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(
        app, ["synth", *options, "--seed", "5", "--pairs", "3", "--jobs", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "2 faces of 1 subjects" in result.output
    assert len(rows_of(tmp_path / "out")) == 3
    assert (tmp_path / "out" / "contact_sheet.png").is_file()


def test_command_without_faces_fails_with_one_line(tmp_path: Path) -> None:
    options = ["--faces", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["synth", *options, "--seed", "5", "--jobs", "1"])
    assert result.exit_code == 1
    assert "nowhere" in result.output
    assert "Traceback" not in result.output
