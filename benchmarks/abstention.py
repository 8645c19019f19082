"""How many still pairs does the motion gate stop, at what cost, and what is a probability worth?

    python benchmarks/abstention.py MANIFEST [--model FILE] [--split test] [--png FILE]

The manifest holds pairs labelled `none` beside those with an expression (`mfdan-train synth
--none-fraction`). The gate is moved, all other reasons to abstain stay as the model's spec has
them. Reliability is told before (temperature 1) and after the spec's temperature. The picture
needs matplotlib (the extra `offline`).
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from report import heading
from rich.console import Console

from model.spec import ModelSpec
from training.evaluate import Answer, Answered, answer_manifest, described
from training.reliability import Reliability, reliability

BUNDLED = Path(__file__).parents[1] / "model" / "weights" / "mfdan-synthetic.onnx"
GATES_PX = (0.05, 0.1, 0.15, 0.18, 0.2, 0.22, 0.24, 0.26, 0.3, 0.35, 0.4, 0.5)


def stopped(answers: Sequence[Answer], spec: ModelSpec) -> tuple[float, float]:
    """Return the shares that abstain: of still pairs, and of genuine ones."""
    silent = [(each.genuine, each.verdict(spec).abstained) for each in answers]
    still, genuine = ([hit for kind, hit in silent if kind is which] for which in (False, True))
    return float(np.mean(still)), float(np.mean(genuine))


def curve(answers: Sequence[Answer], spec: ModelSpec) -> list[tuple[float, float, float]]:
    """Return (gate, share of still pairs stopped, share of genuine ones) over GATES_PX."""
    gates = sorted({*GATES_PX, spec.motion_gate_px})
    return [(gate, *stopped(answers, replace(spec, motion_gate_px=gate))) for gate in gates]


def told(answers: Sequence[Answer], spec: ModelSpec, temperature: float) -> Reliability:
    """Measure the reliability that the answers would have at a temperature."""
    genuine = [each.at(spec, temperature) for each in answers if each.genuine]
    return reliability(
        [float(each.probabilities.max()) for each in genuine],
        [spec.classes[int(each.probabilities.argmax())] == each.label for each in genuine],
        [each.row.pair.person for each in genuine],
    )


def print_reasons(answered: Answered) -> None:
    """Print why the pairs of each label abstain."""
    print("\nwhy answers abstain (the first reason), share of the pairs of a label")
    for label in (*answered.spec.classes, "none"):
        verdicts = [a.verdict(answered.spec) for a in answered.answers if a.label == label]
        counts = Counter(verdict.reason or "answered" for verdict in verdicts)
        shares = (f"{why} {n / len(verdicts):.1%}" for why, n in counts.most_common())
        print(f"{label:<10}{len(verdicts):>6} pairs: {', '.join(shares)}")


def draw(
    points: Sequence[tuple[float, float, float]],
    gate: float,
    before: Reliability,
    after: Reliability,
    path: Path,
) -> None:
    """Draw the curve of the gate beside the reliability before and after the temperature."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - of an extra

    figure = Figure(figsize=(8, 3.6), dpi=90, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([p[2] for p in points], [p[1] for p in points], color="black", linewidth=1)
    for x, still, genuine in points:
        default = x == gate
        left.plot(
            genuine, still, "o", color="tab:red" if default else "black", ms=7 - 3 * (not default)
        )
        if default or x in {0.1, 0.15, 0.5}:
            left.annotate(f"{x:g} px", (genuine, still), (6, -10), textcoords="offset points")
    left.axhline(0.95, color="grey", linewidth=0.5)
    left.axvline(0.10, color="grey", linewidth=0.5)
    left.set(xlabel="genuine pairs stopped", ylabel="still pairs stopped", title="motion gate")
    right.plot([0, 1], [0, 1], color="grey", linewidth=0.5)
    for name, one, style in (("before", before, "o--"), ("after", after, "o-")):
        xs, ys = [b.confidence for b in one.bins], [b.accuracy for b in one.bins]
        right.plot(xs, ys, style, label=f"{name}: error {one.ece:.3f}", markersize=4)
    low = min(b.confidence for b in (*before.bins, *after.bins))
    right.set(xlabel="probability", ylabel="share right", title="reliability", xlim=(low - 0.05, 1))
    right.legend(loc="lower right")
    figure.savefig(path)


def main() -> None:
    """Print the tables of a manifest, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--split", default="test", choices=("test", "val", "all"))
    parser.add_argument("--png", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    answered = answer_manifest(
        options.model,
        options.manifest,
        options.split,
        Console(stderr=True),
        workers=options.workers,
    )
    spec, answers = answered.spec, answered.answers
    print(heading("Still and genuine pairs that abstain, and reliability"))
    print(f"pairs:   {described(answered)}\n")
    points = curve(answers, spec)
    print("gate px   still stopped   genuine stopped")
    for gate, still, genuine in points:
        mark = "  <- the spec's" if gate == spec.motion_gate_px else ""
        print(f"{gate:7.3f}{still:16.3f}{genuine:18.3f}{mark}")
    print_reasons(answered)
    before, after = (told(answers, spec, heat) for heat in (1.0, spec.temperature))
    print("\nreliability, bins of equal mass: probability -> share right (pairs)")
    for heat, one in ((1.0, before), (spec.temperature, after)):
        print(f"temperature {heat:.3f}: error {one.ece:.3f} ({one.low:.3f} to {one.high:.3f})")
        print(
            "  "
            + ", ".join(f"{b.confidence:.3f} -> {b.accuracy:.3f} ({b.clips})" for b in one.bins)
        )
    if options.png:
        draw(points, spec.motion_gate_px, before, after, options.png)


if __name__ == "__main__":
    main()
