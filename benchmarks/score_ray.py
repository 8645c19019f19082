"""What does Ray cost `mfdan score`, and what does a second worker bring?

    python benchmarks/score_ray.py [--files 40] [--rounds 3]

Three commands over the same files, one after the other in each round: `mfdan score` with one worker
thread, and `--ray` with one and with two workers of one thread each, on a Ray of this machine. One
thread for OpenCV and ONNX Runtime in all of them. The clock of the answers starts when a quarter of
them is there: by then every worker is in the middle of its work, and no file that was begun before
counts as free. The whole is timed with the start. Medians over rounds of the ratios within a round,
so that what else the machine does weighs on both sides. Some four minutes on two idle cores.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from report import heading

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from drawn_clips import encode_clip
from drawn_expression_clips import drawn_clip

WAYS = {
    "mfdan score": (),
    "--ray, 1 worker": ("--ray", "local", "--ray-workers", "1"),
    "--ray, 2 workers": ("--ray", "local", "--ray-workers", "2"),
}
THREADS = {f"MFDAN_{name}_THREADS": "1" for name in ("WORKER", "OPENCV", "ONNX")}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(heading("What does Ray cost, and what does a second worker bring?"))
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder, "clips")
        write_clips(clips, arguments.files)
        rounds = []
        for _round in range(arguments.rounds):
            out = Path(folder, "out.csv")
            rounds.append({way: timed(clips, out, options) for way, options in WAYS.items()})
            told = (f"{way} {speed:.2f}" for way, (speed, _whole) in rounds[-1].items())
            print("files/s:", "; ".join(told), flush=True)
    print(f"\n{arguments.files} clips of 50 frames, {arguments.rounds} rounds, medians\n")
    print(f"{'':18s}{'files/s':>9s}{'against':>9s}{'whole s':>9s}")
    for way in WAYS:
        speed = statistics.median(one[way][0] for one in rounds)
        ratio = statistics.median(one[way][0] / one["mfdan score"][0] for one in rounds)
        whole = statistics.median(one[way][1] for one in rounds)
        print(f"{way:18s}{speed:9.2f}{ratio:8.2f}x{whole:9.1f}")
    gain = statistics.median(
        one["--ray, 2 workers"][0] / one["--ray, 1 worker"][0] for one in rounds
    )
    print(f"\ntwo workers against one: {gain:.2f}x")


def write_clips(folder: Path, files: int) -> None:
    """Write the same clip under many names."""
    folder.mkdir()
    frames, _truth = drawn_clip(fps=50, seconds=1.0, onset_s=0.3, apex_s=0.45, offset_s=0.7)
    clip = encode_clip(frames, 50)
    for number in range(files):
        (folder / f"{number:04d}.mp4").write_bytes(clip)


def timed(clips: Path, out: Path, options: tuple[str, ...]) -> tuple[float, float]:
    """Return the files answered a second once a quarter of them is, and all seconds."""
    journal = out.with_name(f"{out.name}.journal.jsonl")
    journal.unlink(missing_ok=True)
    command = [sys.executable, "-c", "from service.cli import app; app()", "score", str(clips)]
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--out", str(out), "--overwrite", *options],
        env=os.environ | THREADS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seen: list[tuple[float, int]] = []
    watching = threading.Thread(target=watch, args=(journal, process, seen))
    watching.start()
    if process.wait():
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    whole = time.perf_counter() - begun
    watching.join()
    last, after = seen[-1]
    first, before = next(one for one in seen if one[1] >= after / 4)
    return (after - before) / (last - first), whole


def watch(journal: Path, process: subprocess.Popen[bytes], seen: list[tuple[float, int]]) -> None:
    """Note when the journal grew, and to how many answers."""
    while process.poll() is None:
        noted = journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0
        if noted > (seen[-1][1] if seen else 0):
            seen.append((time.perf_counter(), noted))
        time.sleep(0.01)


if __name__ == "__main__":
    main()
