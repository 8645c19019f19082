"""Does the model carry over from warps to expressions that somebody really posed or drew?

    python benchmarks/expressions.py FACES [--model FILE.onnx]

FACES holds one folder a person with `neutral.jpg` and pictures named for full expressions
(the PyPI package `openpeople` is laid out so). Each is answered as an apex whose onset is the
neutral picture. These are large expressions in separately made pictures, not
micro-expressions, so gates are left out: the likeliest class is compared with the name.
Shares are over pairs; intervals are bootstrapped over people.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from report import heading

from model.decode import decode_image
from model.pipeline import Preprocessor, network_inputs
from model.session import Session

BUNDLED = Path(__file__).parents[1] / "model" / "weights" / "mfdan-synthetic.onnx"
CLASS_OF = {
    "happy": "positive",
    "playful": "positive",
    "surprised": "surprise",
    "shocked": "surprise",
    "angry": "negative",
    "disgusted": "negative",
    "sad": "negative",
}
DRAWS = 2000


def main() -> None:
    """Print the share of right answers by class, and of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faces", type=Path)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    arguments = parser.parse_args()
    session = Session.open(arguments.model)
    preprocessor = Preprocessor(session.spec)
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for neutral in sorted(arguments.faces.glob("*/neutral.jpg")):
        onset = decode_image(neutral.read_bytes())
        for name, expected in CLASS_OF.items():
            picture = neutral.with_name(f"{name}.jpg")
            if not picture.is_file():
                continue
            apex = decode_image(picture.read_bytes())
            for pair in preprocessor.align_pair(onset, apex):
                inputs = network_inputs(pair.onset, pair.flow, session.spec)
                (row,) = session.run(*(array[None] for array in inputs))
                answered = session.spec.classes[int(row.argmax())]
                right[neutral.parent.name][expected].append(answered == expected)
    print(heading(f"Full expressions against neutral, {len(right)} people, {session.spec.name}"))
    for label in (*session.spec.classes, None):
        people = [
            [hit for key, hits in person.items() if label in {key, None} for hit in hits]
            for person in right.values()
        ]
        low, high = _interval([person for person in people if person])
        hits = [hit for person in people for hit in person]
        print(
            f"{label or 'all':10} {np.mean(hits):6.1%} of {len(hits):3}"
            f"   95 % interval {low:.1%} to {high:.1%}"
        )


def _interval(people: list[list[bool]]) -> tuple[float, float]:
    draw = np.random.default_rng(0)
    shares = []
    for _ in range(DRAWS):
        chosen = draw.integers(0, len(people), len(people))
        shares.append(np.mean([hit for person in chosen for hit in people[person]]))
    low, high = np.percentile(shares, [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
