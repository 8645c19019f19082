"""How well are expressions found in time, and what does it cost?

    python benchmarks/spotting.py CLIPS [--model FILE.onnx] [--vary OPTION VALUE ...]

CLIPS is a folder that `mfdan-train synth-clips` made, so the truth is known. A micro-expression
is found where an interval overlaps the true one by half of what both cover together (the usual
criterion of spotting challenges); its errors are those of the best overlapping candidate.
Errors are given in milliseconds and in frames, and whether the first candidate was the one.
Classes are answered at the spotted frames and at the true ones, with the gates and without.

`--vary rate_hz 50 100 200` compares values of one field of TrackingOptions or SpotOptions instead.
"""

import argparse
import csv
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from report import heading

from model.clip import Clip, open_clip
from model.clip_pipeline import ClipOptions, align_clip
from model.pipeline import AlignedPair, Preprocessor, network_inputs
from model.runtime import Placement
from model.session import Session
from model.spotting import Interval
from model.verdict import Verdict, judge
from training.metrics import bootstrap_interval
from training.synth_clips_command import CLIPS_FILE

BUNDLED = Path(__file__).parents[1] / "model" / "weights" / "mfdan-synthetic.onnx"
OVERLAP = 0.5
NEAR_FRAMES = 3
LID_UNITS = {"5", "7", "43"}


@dataclass(frozen=True, slots=True)
class Truth:
    """One row of clips.csv."""

    path: Path
    subject: str
    label: str
    kind: str
    fps: float
    frames: int
    marks: tuple[int, int, int] | None
    """Onset, apex, offset; None in still clips. A clip's end stands for an offset beyond it."""
    lids_only: bool
    """Whether the expression moves nothing but lids, which spotting leaves out for the blinks."""
    peak_px: float
    blinks: tuple[tuple[float, float], ...]
    drift_px: float
    turn_px: float
    noise: float
    codec: str
    crf: int

    @property
    def blinks_meanwhile(self) -> bool:
        """Whether a blink and the expression share a moment."""
        if self.marks is None:
            return False
        start, _, end = (mark / self.fps for mark in self.marks)
        return any(first < end and start < last for first, last in self.blinks)


@dataclass(frozen=True, slots=True)
class Result:
    """What was answered for one clip."""

    truth: Truth
    face: bool
    spotted: tuple[Interval, ...]
    """Ranked; empty where the middle frame was taken."""
    hit: int | None
    """Place of the candidate that overlaps the truth most and enough."""
    verdict: Verdict | None
    """On the first candidate's frames, spotted or not."""
    verdict_at_truth: Verdict | None
    cpu_s: float
    timings_ms: dict[str, float]

    @property
    def stands(self) -> bool:
        """Whether a class was answered: the middle frame is none, as in the service."""
        return bool(self.spotted) and self.verdict is not None and not self.verdict.abstained

    @property
    def seconds(self) -> float:
        """Return the length of the clip."""
        return self.truth.frames / self.truth.fps


def read_truths(folder: Path) -> list[Truth]:
    """Read clips.csv. Raises: OSError, KeyError, ValueError."""
    with (folder / CLIPS_FILE).open(newline="", encoding="utf-8") as file:
        return [_truth(folder, row) for row in csv.DictReader(file)]


def _truth(folder: Path, row: dict[str, str]) -> Truth:
    marks = [row[f"true_{name}"] for name in ("onset", "apex", "offset")]
    frames = int(row["frames"])
    blinks = [part.split("-") for part in row["blinks_s"].split("+") if part]
    return Truth(
        path=folder / row["clip"],
        subject=row["subject"],
        label=row["label"],
        kind=row["kind"],
        fps=float(row["fps"]),
        frames=frames,
        marks=(int(marks[0]), int(marks[1]), int(marks[2] or frames - 1)) if marks[0] else None,
        lids_only=_moves_lids_only(row["action_units"]),
        peak_px=float(row["peak_px"]),
        blinks=tuple((float(start), float(end)) for start, end in blinks),
        drift_px=float(row["drift_px"]),
        turn_px=float(row["turn_px"]),
        noise=float(row["noise"]),
        codec=row["codec"],
        crf=int(row["crf"]),
    )


def _moves_lids_only(action_units: str) -> bool:
    """Whether `7L:0.93+5R:0.60` names units of the lids alone, and one at least."""
    units = [name.partition(":")[0].rstrip("LR") for name in action_units.split("+") if name]
    return bool(units) and {*units} <= LID_UNITS


def overlap(interval: Interval, marks: tuple[int, int, int]) -> float:
    """Return the intersection over the union of two intervals, in frames."""
    end = interval.apex if interval.offset is None else interval.offset
    common = min(end, marks[2]) - max(interval.onset, marks[0]) + 1
    union = max(end, marks[2]) - min(interval.onset, marks[0]) + 1
    return max(common, 0) / union


def measure(
    truth: Truth, preprocessor: Preprocessor, options: ClipOptions, session: Session | None
) -> Result:
    """Answer for one clip; without a session, no classes."""
    start = time.process_time()
    clip = open_clip(truth.path.read_bytes())
    aligned = align_clip(preprocessor, clip, options)
    cpu = time.process_time() - start
    candidates = aligned.faces[0].candidates if aligned.faces else ()
    spotted = tuple(one.interval for one in candidates if one.interval.source == "spotted")
    return Result(
        truth=truth,
        face=bool(candidates),
        spotted=spotted,
        hit=_hit(spotted, truth.marks) if truth.kind == "micro" else None,
        verdict=_verdict(session, candidates[0].pair) if session and candidates else None,
        verdict_at_truth=_verdict_at_truth(truth, clip, preprocessor, session),
        cpu_s=cpu,
        timings_ms=aligned.timings_ms,
    )


def _hit(spotted: Sequence[Interval], marks: tuple[int, int, int] | None) -> int | None:
    if not spotted or marks is None:
        return None
    overlaps = [overlap(interval, marks) for interval in spotted]
    best = int(np.argmax(overlaps))
    return best if overlaps[best] >= OVERLAP else None


def _verdict(session: Session, pair: AlignedPair) -> Verdict:
    inputs = network_inputs(pair.onset, pair.flow, session.spec)
    (row,) = session.run(*(array[None] for array in inputs))
    return judge(session.spec, row, pair.motion, pair.quality)


def _verdict_at_truth(
    truth: Truth, clip: Clip, preprocessor: Preprocessor, session: Session | None
) -> Verdict | None:
    if session is None or truth.marks is None or truth.kind != "micro":
        return None
    onset, apex, _ = truth.marks
    aligned = align_clip(preprocessor, clip, ClipOptions(onset_frame=onset, apex_frame=apex))
    return _verdict(session, aligned.faces[0].candidates[0].pair) if aligned.faces else None


def share(hits: Iterable[bool]) -> str:
    """Return a share in words: `62 % of 21`."""
    values = list(hits)
    return f"{np.mean(values):4.0%} of {len(values):<3}" if values else "   - of 0  "


def _errors(results: Sequence[Result], mark: int) -> tuple[list[float], list[float]]:
    """Return the errors of one mark (0 onset, 1 apex, 2 offset): milliseconds, frames."""
    found = [
        (result.truth, result.spotted[result.hit]) for result in results if result.hit is not None
    ]
    frames = [
        float(((one.onset, one.apex, one.offset)[mark] or 0) - (truth.marks or (0, 0, 0))[mark])
        for truth, one in found
        if mark != 2 or one.offset is not None  # noqa: PLR2004 - the offset may be unknown
    ]
    rates = [
        truth.fps
        for truth, one in found
        if mark != 2 or one.offset is not None  # noqa: PLR2004 - likewise
    ]
    return [1e3 * frame / fps for frame, fps in zip(frames, rates, strict=True)], frames


def error_line(name: str, results: Sequence[Result], mark: int) -> str:
    """Return one line: bias, median and 90th percentile of the size, share within 3 frames."""
    milliseconds, frames = _errors(results, mark)
    if not frames:
        return f"  {name:8} nothing found"
    return (
        f"  {name:8} bias {np.median(milliseconds):+6.0f} ms"
        f"   error {np.median(np.abs(milliseconds)):4.0f} ms, 90 % below"
        f" {np.percentile(np.abs(milliseconds), 90):4.0f} ms"
        f"   {np.median(np.abs(frames)):4.1f} frames, 90 % below"
        f" {np.percentile(np.abs(frames), 90):4.1f}"
        f"   within {NEAR_FRAMES}: {share(abs(frame) <= NEAR_FRAMES for frame in frames)}"
    )


def groups(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """Return the micro-expressions by what may make them hard."""
    micro = [result for result in results if result.truth.kind == "micro"]
    rates = sorted({result.truth.fps for result in micro})
    chosen: list[tuple[str, Callable[[Truth], bool]]] = [
        ("all", lambda _: True),
        *((f"{fps:g} fps", lambda one, fps=fps: one.fps == fps) for fps in rates),
        ("lids alone move", lambda one: one.lids_only),
        ("more than lids", lambda one: not one.lids_only),
        ("peak < 1 px", lambda one: one.peak_px < 1),
        ("peak 1 to 2 px", lambda one: 1 <= one.peak_px < 2),  # noqa: PLR2004 - ours
        ("peak from 2 px", lambda one: one.peak_px >= 2),  # noqa: PLR2004 - ours
        ("no blink", lambda one: not one.blinks),
        ("blink elsewhere", lambda one: bool(one.blinks) and not one.blinks_meanwhile),
        ("blink meanwhile", lambda one: one.blinks_meanwhile),
        ("drift < 1.5 px", lambda one: one.drift_px < 1.5),  # noqa: PLR2004 - ours
        ("drift from 1.5 px", lambda one: one.drift_px >= 1.5),  # noqa: PLR2004 - ours
        ("turn from 0.5 px", lambda one: one.turn_px >= 0.5),  # noqa: PLR2004 - ours
        ("noise from 1.5", lambda one: one.noise >= 1.5),  # noqa: PLR2004 - ours
        ("mjpeg", lambda one: one.codec == "mjpeg"),
        ("h264, crf < 22", lambda one: one.codec == "h264" and one.crf < 22),  # noqa: PLR2004 - ours
        ("h264, crf from 22", lambda one: one.codec == "h264" and one.crf >= 22),  # noqa: PLR2004 - ours
        *(
            (label, lambda one, label=label: one.label == label)
            for label in sorted({result.truth.label for result in micro})
        ),
    ]
    return [(name, [one for one in micro if wanted(one.truth)]) for name, wanted in chosen]


def print_report(results: Sequence[Result]) -> None:
    """Print every table."""
    print(f"{sum(not result.face for result in results)} of {len(results)} clips without a face\n")
    print("micro-expressions    found            first candidate  apex error of the found")
    for name, members in groups(results):
        milliseconds, frames = _errors(members, 1)
        apex = (
            f"{np.median(np.abs(milliseconds)):4.0f} ms, within {NEAR_FRAMES} frames "
            f"{share(abs(frame) <= NEAR_FRAMES for frame in frames)}"
            if frames
            else "-"
        )
        found = share(result.hit is not None for result in members)
        print(f"  {name:18} {found}     {share(one.hit == 0 for one in members)}      {apex}")
    for fps in sorted({result.truth.fps for result in results}):
        print(f"\nerrors at {fps:g} fps")
        members = [result for result in results if result.truth.fps == fps]
        for mark, name in enumerate(("onset", "apex", "offset")):
            print(error_line(name, members, mark))
    print("\nclips with an interval though there is no micro-expression")
    for name, members in _empty_groups(results):
        print(f"  {name:18} {share(bool(one.spotted) for one in members)}")
    _print_classes(results)
    _print_headline(results)
    _print_cost(results)


def _empty_groups(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    still = [result for result in results if result.truth.kind == "still"]
    return [
        ("still", still),
        ("still, no blink", [one for one in still if not one.truth.blinks]),
        ("still, blinks", [one for one in still if one.truth.blinks]),
        ("large movement", [one for one in results if one.truth.kind == "large"]),
    ]


def _print_headline(results: Sequence[Result]) -> None:
    """Print the few figures that are quoted, with what another draw of people would do to them."""
    of = {
        kind: [one for one in results if one.truth.kind == kind]
        for kind in ("micro", "still", "large")
    }
    stands = [one for one in of["micro"] if one.stands]
    print("\nin short, with 95 % intervals, bootstrapped over people")
    rows = (
        ("micro found", of["micro"], lambda one: one.hit is not None),
        ("micro answered", of["micro"], lambda one: one.stands),
        ("of these right", stands, lambda one: _right(one, one.verdict)),
        ("still answered", of["still"], lambda one: one.stands),
        ("large answered", of["large"], lambda one: one.stands),
    )
    for name, members, claim in rows:
        hits = np.array([claim(one) for one in members], float)
        people = [one.truth.subject for one in members]
        low, high = bootstrap_interval(lambda kept, hits=hits: float(hits[kept].mean()), people)
        told = share(bool(hit) for hit in hits)
        print(f"  {name:18} {told} ({low:.0%} to {high:.0%}), {len({*people})} people")


def _print_classes(results: Sequence[Result]) -> None:
    micro = [one for one in results if one.truth.kind == "micro"]
    found = [one for one in micro if one.hit == 0]
    print("\nlikeliest class is the true one, gates left out")
    for name, members in (("all", micro), ("first one found", found)):
        print(
            f"  {name:18} as answered {share(_right(one, one.verdict) for one in members)}"
            f"   at the true frames {share(_right(one, one.verdict_at_truth) for one in members)}"
        )
    print("\nclips with an answer that stands")
    for kind in ("micro", "still", "large"):
        members = [one for one in results if one.truth.kind == kind]
        right = [_right(one, one.verdict) for one in members if one.stands]
        tail = f"   of which right {share(right)}" if kind == "micro" else ""
        print(f"  {kind:18} {share(one.stands for one in members)}{tail}")
    at_truth = [one.verdict_at_truth for one in micro if one.verdict_at_truth]
    print(f"  at the true frames {share(not verdict.abstained for verdict in at_truth)}")
    for reason, count in Counter(verdict.reason for verdict in at_truth).most_common():
        print(f"    {reason or 'stands':16} {count}")


def _right(result: Result, verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.label == result.truth.label


def _print_cost(results: Sequence[Result]) -> None:
    print("\ncost, a second of video")
    for fps in sorted({result.truth.fps for result in results}):
        members = [result for result in results if result.truth.fps == fps]
        seconds = sum(one.seconds for one in members)
        stages = "  ".join(
            f"{stage} {sum(one.timings_ms[stage] for one in members) / seconds:.0f} ms"
            for stage in members[0].timings_ms
        )
        cpu = sum(one.cpu_s for one in members) / seconds
        print(f"  {fps:3g} fps  {cpu:5.2f} s of CPU;  wall: {stages}")


def varied(options: ClipOptions, name: str, value: float) -> ClipOptions:
    """Return the options with one field of the tracker or the spotter replaced."""
    for part in ("tracking", "spotting"):
        group = getattr(options, part)
        if name in {field.name for field in fields(group)}:
            kept = type(getattr(group, name))  # a whole number stays one
            changed: Any = {part: replace(group, **{name: kept(value)})}
            return replace(options, **changed)
    raise SystemExit(f"neither TrackingOptions nor SpotOptions has a field {name}")


def print_comparison(
    truths: Sequence[Truth], preprocessor: Preprocessor, name: str, values: Sequence[float]
) -> None:
    """Print one line for each value of an option."""
    print(f"{name:>12}  found            first            apex        still: false     CPU s/s")
    for value in values:
        options = varied(ClipOptions(), name, value)
        results = [measure(truth, preprocessor, options, None) for truth in truths]
        micro = [one for one in results if one.truth.kind == "micro"]
        still = [one for one in results if one.truth.kind == "still"]
        milliseconds, _ = _errors(micro, 1)
        error = f"{np.median(np.abs(milliseconds)):4.0f} ms" if milliseconds else "   -   "
        cost = sum(one.cpu_s for one in results) / sum(one.seconds for one in results)
        print(
            f"{value:12g}  {share(one.hit is not None for one in micro)}     "
            f"{share(one.hit == 0 for one in micro)}     {error}     "
            f"{share(bool(one.spotted) for one in still)}     {cost:.2f}"
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--vary", nargs="+", metavar=("OPTION", "VALUE"))
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    truths = read_truths(arguments.clips)
    session = Session.open(arguments.model, Placement(threads=1))
    preprocessor = Preprocessor(session.spec)
    print(heading(f"Spotting in {len(truths)} clips of {arguments.clips.name}"))
    if arguments.vary:
        name, *values = arguments.vary
        print_comparison(truths, preprocessor, name, [float(value) for value in values])
        return
    print_report([measure(truth, preprocessor, ClipOptions(), session) for truth in truths])


if __name__ == "__main__":
    main()
