import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from drawn_pairs import MOVES, TINY, as_toml, draw, draw_pair, write_rows
from licensed_trees import Casme2
from typer.testing import CliRunner, Result

from model.solver import cuda_devices
from model.spec import FlowMethod
from training.data.pairs import read_pairs
from training.data.prepare import open_prepared, prepared_folder
from training.faults import told_in_one_line
from training.prepare_command import prepare, validate

APP = typer.Typer()
for command in (prepare, validate):
    APP.command()(told_in_one_line()(command))


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(APP, [str(word) for word in words], env={"COLUMNS": "120"})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(as_toml(TINY))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """CASME II with faces: two people, and a clip each without an apex and without a face."""
    casme2 = Casme2(tmp_path / "casme2")
    for subject, clip, move, emotion, apex in (
        (1, "EP01_01", "positive", "happiness", 5),
        (1, "EP01_02", "negative", "disgust", 5),
        (2, "EP02_01", "positive", "happiness", 5),
        (2, "EP02_02", "surprise", "surprise", "/"),
        (2, "EP02_03", "wall", "disgust", 5),
    ):
        casme2.add(subject=subject, clip=clip, onset=1, apex=apex, offset=9, emotion=emotion)
        folder = casme2.root / f"sub{subject:02}" / clip
        folder.mkdir(parents=True)
        wall = np.full((240, 320, 3), 128, np.uint8)
        for number, moved in ((1, {}), (5, MOVES.get(move)), (9, {})):
            frame = wall if move == "wall" else draw(0.6 + 0.1 * subject, moved or {})
            cv2.imwrite(str(folder / f"img{number}.jpg"), frame[..., ::-1])
    return casme2.write()


def test_one_command_leads_from_a_data_set_to_prepared_clips(
    tree: Path, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "casme2"
    words = ("prepare", "--dataset", "casme2", "--root", tree, "--out", out, "--config", config)
    result = run(*words, "--workers", "1")
    assert result.exit_code == 0, result.output
    pairs = read_pairs(out)
    assert len(pairs) == 4
    prepared = open_prepared(out, TINY.spec())
    assert [row.pair for row in prepared.rows] == pairs[:3]
    assert [row.motion.p95_px > 0.2 for row in prepared.rows] == [True] * 3
    with (out / "dropped.csv").open(newline="", encoding="utf-8") as file:
        dropped = list(csv.DictReader(file))
    assert [row["by"] for row in dropped] == ["loading", "preparation"]
    assert "EP02_02" in dropped[0]["where"]
    assert "apex" in dropped[0]["why"]
    assert (dropped[1]["where"], dropped[1]["why"]) == (pairs[3].key, "no face was found")
    assert "clips/s" in result.stderr
    assert f"{pairs[3].key}: no face was found" in result.stderr
    assert "EP02_02" in result.stderr
    (counted,) = (line for line in result.stdout.splitlines() if "happiness 2, disgust 1" in line)
    assert [cell.strip() for cell in counted.split("│")[1:-1]] == [
        *(pairs[0].dataset, "2", "3", "happiness 2, disgust 1"),
        *("1", "1"),
    ]
    sheet = cv2.imread(str(out / "contact_sheet.png"))
    assert sheet.shape == (2 * 194, 2 * 480, 3)
    shards = prepared_folder(out, TINY.spec())
    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert run(*words).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == before
    assert run(*words, "--missing-apex", "middle").exit_code == 0
    assert len(read_pairs(out)) == 5


def test_a_data_set_without_a_usable_clip_leaves_the_reasons(tmp_path: Path, config: Path) -> None:
    casme2 = Casme2(tmp_path / "casme2")
    casme2.add(apex="/")
    casme2.draw()
    out = tmp_path / "out"
    result = run(
        *("prepare", "--dataset", "casme2", "--root", casme2.write(), "--out", out),
        *("--config", config),
    )
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"none of 1 clips can be used; {out / 'dropped.csv'} says why"
    )
    assert "apex" in (out / "dropped.csv").read_text()
    assert not (out / "pairs.csv").exists()


def test_any_manifest_is_prepared_and_shown(tmp_path: Path, config: Path) -> None:
    write_rows(tmp_path, [draw_pair(tmp_path, 1, "positive")])
    (tmp_path / "pairs.csv").rename(tmp_path / "mine.csv")
    result = run("prepare", tmp_path / "mine.csv", "--config", config, "--workers", "1")
    assert result.exit_code == 0, result.output
    folder = prepared_folder(tmp_path / "mine.csv", TINY.spec())
    assert cv2.imread(str(folder / "contact_sheet.png")).shape == (194, 480, 3)
    assert f"to look at: {folder / 'contact_sheet.png'}" in result.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--root", "."], "--root goes with --dataset"),
        (["--apexes", "tiny.toml"], "--apexes goes with --dataset"),
        (["--dataset", "casme2"], "--dataset needs --root"),
        ([".", "--dataset", "casme2", "--root", "."], "not both"),
    ],
)
def test_options_that_do_not_go_together_are_told(
    tmp_path: Path,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("prepare", *words, "--config", config)
    assert result.exit_code == 2
    assert told in result.stderr


def test_somebody_s_own_manifest_is_not_overwritten(
    tree: Path, config: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "pairs.csv").write_text("mine")
    words = ("prepare", "--dataset", "casme2", "--root", tree, "--out", own, "--config", config)
    result = run(*words)
    assert result.exit_code == 1
    assert "give another --out" in result.stderr
    assert (own / "pairs.csv").read_text() == "mine"


def test_neither_manifest_nor_data_set_is_told_in_one_line(config: Path) -> None:
    result = run("prepare", "--config", config)
    assert result.exit_code == 1
    assert "name a manifest" in result.stderr


def test_an_unknown_data_set_is_told_with_the_known_ones(tmp_path: Path, config: Path) -> None:
    result = run("prepare", "--dataset", "casme9", "--root", tmp_path, "--config", config)
    assert result.exit_code == 1
    assert "'casme9'; there are casme2, samm" in result.stderr


def test_validate_counts_a_good_manifest(tmp_path: Path, config: Path) -> None:
    write_rows(tmp_path, [draw_pair(tmp_path, who, label) for who in (1, 2) for label in MOVES])
    result = run("validate", tmp_path, "--config", config, "--workers", "1")
    assert result.exit_code == 0, result.output
    assert "drawn" in result.stdout
    assert "negative 2, positive 2, surprise 2, none 2" in result.stdout


def test_validate_names_bad_rows_and_fails(tmp_path: Path, config: Path) -> None:
    good = draw_pair(tmp_path, 1, "positive")
    text = f"{good.onset},{good.apex}\n"
    (tmp_path / "mine.csv").write_text(
        f"dataset,subject,clip,label,onset,apex\nd,1,a,fear,{text}d,1,b,none,x.png,y.png\n"
        f"d,1,c,none,{text}"
    )
    result = run("validate", tmp_path / "mine.csv", "--config", config, "--workers", "1")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "line 2, d/1/a: label 'fear' is neither a class nor in label_map",
        "line 3, d/1/b: x.png is missing",
        "2 bad rows, 1 good ones",
    ]


@pytest.mark.skipif(cuda_devices() > 0, reason="this machine has a GPU")
def test_a_flow_that_this_machine_cannot_compute_is_refused_before_anything_is_begun(
    tmp_path: Path,
) -> None:
    write_rows(tmp_path, [draw_pair(tmp_path, 1, "positive")])
    brox = replace(TINY, flow=FlowMethod(algorithm="brox"), flow_backend="opencv-cuda")
    (tmp_path / "brox.toml").write_text(as_toml(brox))
    result = run("prepare", tmp_path, "--config", tmp_path / "brox.toml")
    assert result.exit_code == 1
    assert "needs an NVIDIA GPU and OpenCV's CUDA build for its brox flow" in result.output
    assert not list(tmp_path.glob("prepared-*"))
