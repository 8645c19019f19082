from dataclasses import replace
from pathlib import Path

import pytest
from drawn_loso import evaluate
from drawn_pairs import TINY
from drawn_run import pairs_of, write_method
from typer.testing import CliRunner, Result

from training.cli import app
from training.data.prepare import Prepared
from training.scoring import ScoreTable


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, words)])


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.strip().splitlines()[-1:]
    for part in parts:
        assert part in line
    assert "Traceback" not in result.output


def test_a_real_run_gets_its_page_with_pictures(
    pairs_folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    assert prepared.rows
    out = tmp_path / "plain"
    evaluate(pairs_folder, out, methods=("mfdan", "majority"))
    result = run(out)
    assert result.exit_code == 0, result.output
    page = out / "report" / "index.html"
    assert result.stdout.strip() == str(page)
    text = page.read_text()
    scores = ScoreTable.from_json((out / "mfdan" / "scores.json").read_text())
    assert f"{scores.row('uf1').value:.3f} ± {scores.row('uf1').sd:.3f}" in text
    assert "clip-1-1-attention-1.png" in text
    assert (page.parent / "losses-1.png").is_file()
    assert "No pictures" not in text


def test_out_pairs_and_worst_are_taken(tmp_path: Path) -> None:
    write_method(tmp_path / "run", replace(TINY, seeds=(1,)), pairs_of(3, TINY.classes), skill=0.2)
    (tmp_path / "pairs.csv").write_text("dataset,subject,clip,label,onset,apex\n")
    options = ("--out", tmp_path / "page", "--pairs", tmp_path / "pairs.csv", "--worst", 1)
    result = run(tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "page" / "index.html").read_text().count('class="clip"') == 1
    assert not (tmp_path / "run" / "report").exists()


@pytest.mark.parametrize("name", ["run.json", "scores.json"])
def test_a_broken_run_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    write_method(tmp_path, replace(TINY, seeds=(1,)), pairs_of(3, TINY.classes), skill=0.2)
    (tmp_path / "mfdan" / name).write_text("{")
    assert_one_line(run(tmp_path), f"mfdan/{name}")


def test_a_folder_that_is_no_run_is_told_in_one_line(tmp_path: Path) -> None:
    assert_one_line(run(tmp_path), "no run of `mfdan-train loso`")


def test_runs_of_other_classes_are_told_in_one_line(tmp_path: Path) -> None:
    pairs = pairs_of(3, TINY.classes)
    config = replace(TINY, seeds=(1,))
    write_method(tmp_path / "a", config, pairs, skill=0.2)
    swapped = replace(config, classes=tuple(reversed(config.classes)))
    write_method(tmp_path / "b", swapped, pairs, skill=0.2)
    assert_one_line(run(tmp_path / "a", tmp_path / "b"), "different classes")
