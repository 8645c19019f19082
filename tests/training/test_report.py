import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_pairs import TINY
from drawn_run import pairs_of, write_method

from training.config import RunConfig
from training.data.prepare import Prepared
from training.predictions import Prediction, write_predictions
from training.report.clips import worst_clips
from training.report.figures import Estimate, forest_chart, plain, save_chart
from training.report.numbers import config_rows, loss_curves, people_rows, tuned_rows
from training.report.page import write_report
from training.report.run_folder import read_runs
from training.scoring import ScoreTable, difference, read_predictions, score

CONFIG = replace(TINY, seeds=(1, 2))
PAIRS = pairs_of(8, CONFIG.classes)
MINUS = "\N{MINUS SIGN}"
SKILL = {"mfdan": 0.7, "majority": 0.1, "svm": 0.4}


@dataclass
class Page(HTMLParser):
    """What a browser makes of a page."""

    folder: Path
    text: str = ""
    images: list[dict[str, str]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    tags: Counter[str] = field(default_factory=Counter)
    rows: list[list[str]] = field(default_factory=list)
    _cell: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self.feed((self.folder / "index.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        if tag == "img":
            self.images.append(found)
        self.sources += [found[key] for key in ("src", "srcset") if key in found]
        self.links += [found["href"]] if "href" in found else []
        if tag == "tr":
            self.rows.append([])
        self._cell = tag in {"td", "th"} or (self._cell and tag == "small")
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th"}:
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.rows[-1][-1] += f" {data.strip()}"

    def row(self, *beginning: str) -> list[str]:
        """Return the cells of the first row that begins so, each with single spaces."""
        rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        return next(row for row in rows if row[: len(beginning)] == list(beginning))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three methods; the network's has all that a method's folder may hold."""
    folder = tmp_path_factory.mktemp("runs") / "casme2"
    for method, skill in SKILL.items():
        network = method == "mfdan"
        write_method(
            folder,
            replace(CONFIG, method=method),
            PAIRS,
            skill=skill,
            attention=network,
            oracle=network,
            losses=network,
            tuned={"learning_rate": [1e-4, 3e-4], "network.dropkey": [0.1]} if network else None,
        )
    return folder


@pytest.fixture(scope="module")
def small(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with one method, without what takes time to draw."""
    folder = tmp_path_factory.mktemp("small") / "casme2"
    shutil.copytree(run / "svm", folder / "svm")
    return folder


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report([run], tmp_path_factory.mktemp("out") / "page").parent)


def drawn_on(run: Path, prepared: Prepared, config: RunConfig = CONFIG, **changes: object) -> Path:
    """Write a run over the drawn faces, whose prepared cache is there."""
    pairs = [row.pair for row in prepared.rows if row.pair.label != "none"]
    write_method(run, config, pairs, **({"skill": 0.3, "attention": True} | changes))
    return run


def test_the_numbers_are_those_of_the_scores(page: Page, run: Path) -> None:
    for method in SKILL:
        scores = ScoreTable.from_json((run / method / "scores.json").read_text())
        expected = [method]
        for metric in ("uf1", "uar", "accuracy"):
            row = scores.row(metric)
            expected.append(f"{row.value:.3f} ± {row.sd:.3f} {row.low:.3f} – {row.high:.3f}")
        assert page.row(method) == [*expected, str(row.clips), str(row.people)]


def test_each_data_set_and_class_has_its_numbers(page: Page, run: Path) -> None:
    scores = ScoreTable.from_json((run / "mfdan" / "scores.json").read_text())
    for group, metric in (("dataset:one", "uf1"), ("class:surprise", "f1")):
        row = scores.row(metric, group)
        cells = page.row(group.partition(":")[2], "mfdan")
        assert cells[2].startswith(f"{row.value:.3f} ±")
        assert cells[-2:] == [str(row.clips), str(row.people)]


def test_differences_are_paired_and_signed(page: Page, run: Path) -> None:
    classes, ours = read_predictions(run / "mfdan" / "predictions.csv")
    _classes, theirs = read_predictions(run / "svm" / "predictions.csv")
    value, low, high = difference(theirs, ours, classes, "uf1")
    assert value < 0
    cells = [row for row in page.rows if row and row[0].split() == ["svm"]]
    words = f"{value:+.3f} {low:+.3f} to {high:+.3f}".replace("-", MINUS)
    assert words in [" ".join(row[1].split()) for row in cells]


def test_every_picture_is_there_with_words_and_in_its_size(page: Page) -> None:
    assert page.sources
    assert not [name for name in page.sources if not (page.folder / name).is_file()]
    assert {path.name for path in page.folder.glob("*.png")} == set(page.sources)
    for image in page.images:
        assert len(image["alt"]) > 20
        height, width = cv2.imread(str(page.folder / image["src"])).shape[:2]
        assert (image["width"], image["height"]) == (str(width), str(height))


def test_the_page_asks_for_nothing_from_elsewhere_and_runs_nothing(page: Page) -> None:
    text = (page.folder / "index.html").read_text()
    assert "://" not in text
    assert not page.tags["script"] + page.tags["link"] + page.tags["iframe"]
    anchors = re.findall(r'id="([a-z]+)"', text)
    assert sorted(page.links) == sorted(f"#{name}" for name in anchors)
    assert "@media (prefers-color-scheme: dark)" in text
    assert "Do not publish" in page.text


def test_the_oracle_stands_under_its_leaking_label(page: Page, run: Path) -> None:
    classes, predictions = read_predictions(run / "mfdan" / "oracle.csv")
    oracle = score(predictions, classes).row("uf1")
    assert page.row("UF1")[2].startswith(f"{oracle.value:.3f} ±")
    assert "never the result" in page.text
    assert "oracle epoch: leaks" in page.text


def test_people_are_listed_with_their_clips_the_lowest_first(run: Path, page: Page) -> None:
    rows = people_rows(read_runs([run]))
    assert {row.person: row.clips for row in rows} == Counter(pair.person for pair in PAIRS)
    shares = [row.cells[0].percent for row in rows if row.cells[0]]
    assert shares == sorted(shares)
    first = rows[0]
    assert first.cells[0]
    cells = page.row(first.person)
    assert cells[1] == str(first.clips)
    assert cells[2].split()[0] == f"{first.cells[0].percent:.0f}"


def test_tuned_values_are_counted_over_folds_and_seeds(run: Path, page: Page) -> None:
    rows = tuned_rows(read_runs([run])[0])
    assert {row.field: row.of for row in rows} == {"learning_rate": 16, "network.dropkey": 16}
    assert sum(row.folds for row in rows if row.field == "learning_rate") == 16
    assert page.row("network.dropkey", "0.1") == ["network.dropkey", "0.1", "16", "100 %"]


def test_losses_of_trainings_of_any_length_meet_over_their_share(tmp_path: Path) -> None:
    write_method(tmp_path, CONFIG, PAIRS[:6], skill=0.5)
    (run,) = read_runs([tmp_path])
    first, *others = run.folds
    lengthened = replace(run.folds[first], losses=((1, 4.0), (11, 2.0)))
    for each in others:
        run.folds[each] = replace(run.folds[each], losses=((1, 8.0), (5, 7.0), (9, 6.0)))
    run.folds[first] = lengthened
    curves = loss_curves(run)
    assert curves is not None
    assert curves.shape == (len(run.folds), 101)
    assert curves[0, [0, 50, 100]].tolist() == [4.0, 3.0, 2.0]
    assert curves[1, [0, 50, 100]].tolist() == [8.0, 7.0, 6.0]


def predicted(clip: str, label: str, *probabilities: float, seed: int = 1) -> Prediction:
    return Prediction(
        dataset="d",
        subject="s",
        clip=clip,
        label=label,
        seed=seed,
        fold="f",
        probabilities=probabilities,
    )


def test_the_worst_clip_is_the_most_confidently_wrong_over_the_seeds() -> None:
    predictions = [
        predicted("sure", "a", 0.1, 0.9),
        predicted("sure", "a", 0.3, 0.7, seed=2),
        predicted("surer once", "a", 0.0, 1.0),
        predicted("surer once", "a", 0.9, 0.1, seed=2),
        predicted("right", "b", 0.0, 1.0),
        predicted("right", "b", 0.0, 1.0, seed=2),
        predicted("outvoted", "b", 0.45, 0.55),
        predicted("outvoted", "b", 0.9, 0.1, seed=2),
    ]
    worst = worst_clips(predictions, ("a", "b"), 5)
    assert [miss.key for miss in worst] == ["d/s/sure", "d/s/outvoted", "d/s/surer once"]
    assert worst[0].probabilities == pytest.approx((0.2, 0.8))
    assert (worst[1].wrong_seeds, worst[1].seeds) == (1, 2)
    assert len(worst_clips(predictions, ("a", "b"), 1)) == 1


def test_the_worst_clips_are_shown_with_flow_and_attention(
    pairs_folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    run = drawn_on(tmp_path / "run", prepared)
    heard: list[tuple[str, int, int]] = []
    write_report(
        [run],
        tmp_path / "page",
        manifest=pairs_folder,
        worst=2,
        report=lambda *words: heard.append(words),
    )
    page = Page(tmp_path / "page")
    shown = [image["src"] for image in page.images if image["src"].startswith("clip-")]
    parts = ("onset", "flow", "magnified", "attention-0", "attention-1")
    assert shown == [f"clip-1-{number}-{part}.png" for number in (1, 2) for part in parts]
    assert heard[-1] == ("clips", 2, 2)
    (worst, _second) = worst_clips(read_runs([run])[0].predictions, CONFIG.classes, 2)
    assert f"True class {worst.label}, answered {worst.answer}" in page.text
    onset = cv2.imread(str(tmp_path / "page" / "clip-1-1-onset.png"))[..., ::-1]
    row = next(row for row in prepared.rows if row.pair.key == worst.key)
    np.testing.assert_array_equal(onset, prepared.arrays(row)[0])


def test_a_picture_without_attention_where_the_run_has_none(
    pairs_folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    here = replace(CONFIG, pairs=str(pairs_folder))
    run = drawn_on(tmp_path / "run", prepared, here, attention=False)
    write_report([run], tmp_path / "page", worst=1)
    page = Page(tmp_path / "page")
    assert sum(image["src"].startswith("clip-") for image in page.images) == 3
    assert "even attention" not in page.text


@pytest.mark.parametrize("pairs", ["", "gone.csv"])
def test_without_the_prepared_cache_the_section_says_so_and_the_rest_stands(
    pairs: str, tmp_path: Path
) -> None:
    config = replace(CONFIG, pairs=pairs and str(tmp_path / pairs))
    write_method(tmp_path / "run", config, PAIRS, skill=0.3)
    write_report([tmp_path / "run"], tmp_path / "page")
    page = Page(tmp_path / "page")
    assert "No pictures: " in page.text
    assert (pairs or "the run's config names no manifest") in page.text
    assert "wrong with" in page.text
    assert "confusion-1.png" in page.sources


def test_one_seed_has_no_deviation_and_one_method_no_comparison(tmp_path: Path) -> None:
    write_method(tmp_path, replace(CONFIG, seeds=(3,)), PAIRS, skill=0.6)
    write_report([tmp_path], tmp_path / "report")
    page = Page(tmp_path / "report")
    assert "±" not in page.row("mfdan")[1]
    assert "1 seed each" in page.text
    assert "#comparison" not in page.links
    assert "nan" not in page.text.lower().split()


def test_missing_folds_are_counted_and_their_method_is_not_scored(
    run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    method = tmp_path / "run" / "mfdan"
    for name in ("predictions.csv", "oracle.csv", "scores.json"):
        (method / name).unlink()
    (method / "folds" / "seed-2" / "one%2F03.json").unlink()
    write_report([tmp_path / "run"], tmp_path / "page")
    page = Page(tmp_path / "page")
    text = " ".join(page.text.split())
    assert "mfdan: 1 of 16 folds is missing (one/03, seed 2). Not scored" in text
    assert "svm: " not in text.partition("Incomplete.")[2].partition("goes on")[0]
    assert "losses-1.png" in page.sources
    assert "confusion-1.png" not in page.sources
    assert "confusion-2.png" in page.sources
    assert page.row("mfdan")[6] == "15 of 16"


def test_a_run_of_which_nothing_is_finished_has_a_page(tmp_path: Path) -> None:
    method = write_method(tmp_path, CONFIG, PAIRS, skill=0.5)
    for name in ("predictions.csv", "scores.json"):
        (method / name).unlink()
    shutil.rmtree(method / "folds")
    write_report([tmp_path], tmp_path / "report")
    page = Page(tmp_path / "report")
    assert "16 of 16 folds are missing" in " ".join(page.text.split())
    assert not (page.folder / "scores.png").exists()
    assert {path.name for path in page.folder.glob("*.png")} == set(page.sources)


def test_names_of_any_kind_leave_the_page_whole(tmp_path: Path) -> None:
    odd = '<script>alert("x")</script>'
    pairs = [
        replace(pair, subject=f"{pair.subject}$_^{{<b>张\u0001", clip=odd + pair.clip)
        for pair in PAIRS
    ]
    classes = ("<i>neg</i>", "$x^$", "sur & prise")
    config = replace(CONFIG, classes=classes, label_map=dict(zip(TINY.classes, classes)))  # noqa: B905 - three of each
    run = tmp_path / "r$u_n<b>"
    for method in ("mfdan", "svm"):
        write_method(run, replace(config, method=method), pairs, skill=0.3)
    write_report([run], tmp_path / "page")
    page = Page(tmp_path / "page")
    assert not page.tags["script"] + page.tags["b"] + page.tags["i"]
    assert odd in page.text
    assert "<i>neg</i>" in page.text
    assert {path.name for path in page.folder.glob("*.png")} == set(page.sources)


def test_an_earlier_report_is_replaced_whole_by_the_same_bytes(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "page"
    write_report([small], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "clip-9-9-onset.png").write_bytes(b"of an earlier run")
    write_report([small], out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["notes.txt", "index.html"])
def test_a_folder_with_anything_else_is_not_touched(small: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="something other than an earlier report"):
        write_report([small], tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_failed_report_leaves_the_earlier_one(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "page"
    out.mkdir()
    (out / "index.html").write_text('<meta name="generator" content="mfdan-train report">')
    before = (out / "index.html").read_bytes()

    def stop(_what: str, _done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_report([small], out, report=stop)
    assert (out / "index.html").read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_runs_are_told_apart_and_compared(small: Path, tmp_path: Path) -> None:
    other = tmp_path / "casme2"
    config = replace(CONFIG, loss="cross_entropy", learning_rate=2e-4)
    write_method(other, config, PAIRS, skill=0.5)
    write_report([small, other], tmp_path / "page", worst=1)
    page = Page(tmp_path / "page")
    ours, theirs = (f"{path.parent.name}/casme2" for path in (small, other))
    assert page.row(f"{ours}: svm")[0]
    assert f"Difference to {theirs}: mfdan" in page.text
    assert page.row("loss") == ["loss", "focal", "cross_entropy"]
    assert page.row("learning_rate", "0.001")[-1] == "0.0002"
    assert f"{theirs}: mfdan" in page.text


def test_runs_over_other_clips_are_shown_but_not_subtracted(small: Path, tmp_path: Path) -> None:
    write_method(tmp_path / "other", CONFIG, PAIRS[:-1], skill=0.5)
    write_report([small, tmp_path / "other"], tmp_path / "page", worst=0)
    page = Page(tmp_path / "page")
    assert f"not compared: other: mfdan lacks {PAIRS[-1].key}" in " ".join(page.text.split())


def test_runs_of_other_classes_are_not_compared_at_all(run: Path, tmp_path: Path) -> None:
    classes = ("negative", "positive", "other")
    config = replace(CONFIG, classes=classes, label_map={"surprise": "other"})
    write_method(tmp_path / "other", config, PAIRS, skill=0.5)
    with pytest.raises(ValueError, match=r"different classes cannot be compared: .*other"):
        write_report([run, tmp_path / "other"], tmp_path / "page")
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "scores.json",
        "predictions.csv",
        "oracle.csv",
        "folds/seed-1/one%2F01.json",
        "folds/seed-1/one%2F01.attention.npz",
    ],
)
def test_a_broken_file_is_named(run: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    path = folder / "mfdan" / name
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        write_report([folder], tmp_path / "page", worst=100)
    assert not (tmp_path / "page").exists()


def test_a_field_of_the_wrong_kind_is_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "svm" / "run.json"
    note = json.loads(path.read_text())
    path.write_text(json.dumps(note | {"seeds": "all"}))
    with pytest.raises(ValueError, match=r"svm/run\.json: seeds"):
        read_runs([tmp_path / "run"])


def test_tables_of_other_classes_than_the_run_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "svm" / "predictions.csv"
    write_predictions(path, [predicted("c", "a", 0.2, 0.8)], ("a", "b"))
    with pytest.raises(ValueError, match=r"predictions\.csv is of the classes a, b"):
        read_runs([tmp_path / "run"])


def test_a_folder_that_is_no_run_or_stands_twice_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run of `mfdan-train loso`"):
        read_runs([tmp_path])
    with pytest.raises(ValueError, match="given twice"):
        read_runs([run, run / ".." / run.name])


def test_one_run_shows_what_it_chose_itself() -> None:
    chosen = dict(config_rows([replace(TINY, label_map={"disgust": "negative"})]))
    assert chosen["label_map.disgust"] == ("negative",)
    assert chosen["learning_rate"] == ("0.001",)
    assert chosen["network.image_size"] == ("64",)
    assert chosen["data"] == ("drawn faces",)
    assert "focal_gamma" not in chosen


def test_a_chart_s_names_are_short_and_no_formulas(tmp_path: Path) -> None:
    assert plain("a\n b\tc") == "a b c"
    assert plain("$x_1$") == r"\$x_1\$"
    assert plain("张 \U0001f642 é") == "? ? é"
    assert len(plain("x" * 100)) < 40
    estimates = [Estimate("$x^$", 0.5, 0.4, 0.6)]
    picture = save_chart(
        tmp_path, "c", "alt", lambda ink: forest_chart(estimates, "UF1", None, ink)
    )
    assert (tmp_path / picture.file).read_bytes() != (tmp_path / picture.dark).read_bytes()


def test_a_chart_ignores_the_user_s_matplotlibrc(tmp_path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - only here

    estimates = [Estimate("x", 0.5, 0.4, 0.6)]

    def save(stem: str) -> bytes:
        save_chart(tmp_path, stem, "alt", lambda ink: forest_chart(estimates, "UF1", 0.0, ink))
        return (tmp_path / f"{stem}.png").read_bytes()

    plain_bytes = save("one")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert save("two") == plain_bytes
        assert mpl.rcParams["font.size"] == 30
