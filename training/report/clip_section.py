"""The worst clips of one run, with pictures where the prepared cache is to be found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import MfdanError
from training.data.pairs import manifest_path
from training.data.prepare import Prepared, open_prepared
from training.report.clips import ClipPictures, Miss, attention_top, worst_clips
from training.report.figures import Picture
from training.report.run_folder import MethodRun

__all__ = ["ClipSection", "ShownClip", "clip_section"]


@dataclass(frozen=True, slots=True)
class ShownClip:
    """One clip on the page."""

    miss: Miss
    pictures: Sequence[tuple[str, Picture]]
    """Caption and picture; empty where there are none."""


@dataclass(frozen=True, slots=True)
class ClipSection:
    """The worst clips of one run."""

    run: MethodRun
    clips: Sequence[ShownClip]
    without: str
    """Why there are no pictures; "" where there are."""
    attention: bool
    top: float
    """Attention in full heat."""

    @property
    def pictured(self) -> bool:
        """Whether any clip has pictures."""
        return any(clip.pictures for clip in self.clips)


def clip_section(  # noqa: PLR0913 - what is shown, where to, and from where
    run: MethodRun,
    folder: Path,
    stem: str,
    *,
    manifest: Path | None,
    worst: int,
    report: Callable[[str, int, int], None],
) -> ClipSection:
    """Choose a run's worst clips and write their pictures as `STEM-N-*.png` into a folder."""
    misses = worst_clips(run.predictions, run.note.classes, worst)
    prepared, without = _open(run, manifest)
    rows = {row.pair.key: row for row in prepared.rows} if prepared else {}
    maps = {miss.key: found for miss in misses if (found := run.attention(miss.key)) is not None}
    top = attention_top(list(maps.values()))
    drawer = ClipPictures(folder, run.config.spec(), top)
    shown = []
    for number, miss in enumerate(misses, start=1):
        pictures: Sequence[tuple[str, Picture]] = ()
        if prepared and miss.key in rows:
            arrays = prepared.arrays(rows[miss.key])
            pictures = drawer.draw(f"{stem}-{number}", miss.key, arrays, maps.get(miss.key))
        shown.append(ShownClip(miss, pictures))
        report("clips", number, len(misses))
    return ClipSection(run, shown, without, bool(maps), top)


def _open(run: MethodRun, manifest: Path | None) -> tuple[Prepared | None, str]:
    """Open the prepared cache; or say in words why there is none."""
    place = manifest or (Path(run.config.pairs) if run.config.pairs else None)
    if place is None:
        return None, "the run's config names no manifest; `--pairs MANIFEST` does"
    try:
        return open_prepared(manifest_path(place), run.config.spec()), ""
    except (OSError, ValueError, MfdanError) as fault:
        return None, str(fault)
