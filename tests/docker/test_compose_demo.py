"""`demo`, run on this machine as docker-compose.yml has it."""

import json
import random
from collections import Counter
from pathlib import Path

import httpx2
import pytest
from composed import NOWHERE, Up, done, program
from key_files import ALICE
from typer.testing import CliRunner

from service.keys import new_token


def test_the_demo_is_answered(up: Up) -> None:
    asked = done(up.run("demo"), "--every=0", "--count=4")
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, "4 answered\n", "")
    metrics = httpx2.get(up.process.metrics_url).text
    assert 'mfdan_caller_requests_total{caller="demo",status="200"} 4.0' in metrics


def test_the_demo_s_answers_are_spread_about_as_the_model_s_reference(up: Up) -> None:
    demo = program("demo")
    # An empty room has no answer; the clip is one of twenty, and takes as long as all others.
    moves = [(what, peak) for what, peak in demo.MOVES if what not in {"empty", "clip"}]
    kinds = Counter((what, peak > 0) for what, peak in moves)
    given: Counter[str] = Counter()
    with demo.Client(up.process.url, api_key=up.key) as client:
        sitter = demo.Sitter(random.Random(0))  # noqa: S311 - nothing depends on who guesses it
        for (what, up_), number in kinds.items():
            ask = demo.ASKED.get(what, demo.ask_pair)
            (face,) = ask(sitter, what, 1.2 if up_ else -1.2, client).faces
            given["abstained" if face.abstained else face.label] += number
    (spec,) = up.composed.run("mfdan").folders["/models"].glob("*.json")
    reference = json.loads(spec.read_text())["reference"]["shares"]
    assert given.keys() == reference.keys()
    # MfdanMixDrift speaks above .3.
    off = (abs(given[answer] / given.total() - share) for answer, share in reference.items())
    assert sum(off) / 2 < 0.15


def test_the_demo_asks_about_moving_still_and_missing_faces_and_clips() -> None:
    moves = {what for what, _ in program("demo").MOVES}
    assert moves == {"brows", "lips", "smile", "still", "empty", "clip"}


def test_a_demo_that_is_refused_says_why(up: Up, tmp_path: Path) -> None:
    (tmp_path / "demo.key").write_text(new_token())
    command = [f"--service={up.process.url}", f"--key-file={tmp_path / 'demo.key'}"]
    asked = CliRunner().invoke(program("demo").app, command)
    assert asked.exit_code == 1
    assert asked.stderr.startswith("mfdan: the demo was refused: ")
    assert asked.stderr.endswith("(unauthorized)\n")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("there.key", f"no answer from {NOWHERE}"),
        ("none.key", "none.key cannot be read (No such file or directory). Put a key there"),
        ("bytes.key", "bytes.key cannot be read (it is no ASCII text). Put a key there"),
        ("umlaut.key", "umlaut.key cannot be read (it is no ASCII text). Put a key there"),
    ],
)
def test_a_demo_that_cannot_ask_says_so_in_one_line(tmp_path: Path, key: str, words: str) -> None:
    (tmp_path / "there.key").write_text(ALICE)
    (tmp_path / "bytes.key").write_bytes(b"\xff\xfe")
    (tmp_path / "umlaut.key").write_bytes("schl\u00fcssel".encode())
    asked = CliRunner().invoke(
        program("demo").app, [f"--service={NOWHERE}", f"--key-file={tmp_path / key}"]
    )
    assert asked.exit_code == 1
    assert words in asked.stderr
    assert asked.stderr.count("\n") == 1


def test_a_busy_service_is_asked_on() -> None:
    demo = program("demo")
    busy = demo.ProblemError(status=429, code="queue_full", detail="")

    def refused(_: object) -> None:
        raise busy

    assert demo.ask(None, iter([refused, lambda _: None]), 0) == 1
