"""Does the model carry over from warps to expressions that somebody really posed or drew?

    python benchmarks/expressions.py FACES [--model FILE.onnx]

FACES holds one folder a person with `neutral.jpg` and pictures named for full expressions
(the PyPI package `openpeople` is laid out so). Each is answered as an apex whose onset is the
neutral picture. These are large expressions in separately made pictures, not
micro-expressions, so gates are left out: the likeliest class is compared with the name.
Shares are over pairs; intervals are bootstrapped over people.
"""

import argparse
from pathlib import Path

import numpy as np
from report import heading

from model.decode import decode_image
from model.pipeline import Preprocessor, network_inputs
from model.session import Session
from training.metrics import bootstrap_interval

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


def main() -> None:
    """Print the share of right answers by class, and of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faces", type=Path)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    arguments = parser.parse_args()
    session = Session.open(arguments.model)
    preprocessor = Preprocessor(session.spec)
    people: list[str] = []
    expected: list[str] = []
    hits: list[bool] = []
    for neutral in sorted(arguments.faces.glob("*/neutral.jpg")):
        onset = decode_image(neutral.read_bytes())
        for name, label in CLASS_OF.items():
            picture = neutral.with_name(f"{name}.jpg")
            if not picture.is_file():
                continue
            apex = decode_image(picture.read_bytes())
            for pair in preprocessor.align_pair(onset, apex):
                inputs = network_inputs(pair.onset, pair.flow, session.spec)
                (row,) = session.run(*(array[None] for array in inputs))
                people.append(neutral.parent.name)
                expected.append(label)
                hits.append(session.spec.classes[int(row.argmax())] == label)
    if not hits:
        raise SystemExit("no folder holds a neutral.jpg and a named expression with a face")
    count = len(set(people))
    print(heading(f"Full expressions against neutral, {count} people, {session.spec.name}"))
    for label in (*session.spec.classes, "all"):
        chosen = np.array([label in {one, "all"} for one in expected])
        right = np.array(hits)[chosen]
        who = [person for person, taken in zip(people, chosen, strict=True) if taken]
        low, high = bootstrap_interval(lambda rows, right=right: float(right[rows].mean()), who)
        print(
            f"{label:10} {right.mean():6.1%} of {len(right):3}"
            f"   95 % interval {low:.1%} to {high:.1%}"
        )


if __name__ == "__main__":
    main()
