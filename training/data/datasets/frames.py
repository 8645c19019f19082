"""Which folders hold a data set's people, which files are frames, and what number a frame has."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Frames",
    "Tree",
    "child",
    "choose_tree",
    "find_trees",
    "folders_in",
    "frame_number",
    "people_in",
    "read_frames",
]

PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff"})
_DEPTH = 3
"""How far below the root a data set's people may lie, and below a person their pictures."""
_NUMBER = re.compile(r"[0-9]+")


def frame_number(stem: str) -> int | None:
    """Return the last whole number in a file's stem, None where there is none.

    Padding means nothing: `img46`, `reg_img046` and `s1_00046` are all frame 46.
    """
    numbers = _NUMBER.findall(stem)
    return int(numbers[-1]) if numbers else None


@dataclass(frozen=True, slots=True)
class Frames:
    """The pictures of one folder by their frame number, in its natural order."""

    folder: Path
    names: Mapping[int, Sequence[str]]

    def file(self, number: int) -> Path:
        """Return a frame's picture. Raises: ValueError when there is none, or more than one."""
        names = self.names.get(number, ())
        if len(names) > 1:
            raise ValueError(f"frame {number} is {' and '.join(names)}")
        if not names or not (self.folder / names[0]).is_file():
            raise ValueError(f"frame {number} has no picture{self._extent()}")
        return self.folder / names[0]

    def middle(self, first: int, last: int) -> int:
        """Return the middle one of the frames from `first` to `last`. Raises: ValueError."""
        inside = [number for number in self.names if first <= number <= last]
        if not inside:
            raise ValueError(f"frames {first} to {last} have no picture{self._extent()}")
        return inside[len(inside) // 2]

    def _extent(self) -> str:
        numbers = list(self.names)
        return f" (there are {numbers[0]} to {numbers[-1]})" if numbers else ""


def read_frames(folder: Path) -> Frames:
    """List the numbered pictures of a folder; other files and hidden ones are passed over.

    Hidden ones matter: macOS leaves a `._img46.jpg`, which is no picture, beside `img46.jpg`.
    """
    names: dict[int, list[str]] = {}
    for name in _pictures(folder):
        number = frame_number(Path(name).stem)
        if number is not None:
            names.setdefault(number, []).append(name)
    return Frames(folder, {number: names[number] for number in sorted(names)})


def _pictures(folder: Path) -> list[str]:
    return sorted(
        name
        for name in os.listdir(folder)  # noqa: PTH208 - thousands of names, no path needed
        if Path(name).suffix.lower() in PICTURES and not name.startswith(".")
    )


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, links to folders among them, hidden ones not."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]
    return [folder / name for name in sorted(names)]


def child(folder: Path | None, name: str) -> Path | None:
    """Return the folder of that name in a folder, in small or capital letters; None if absent."""
    if folder is None:
        return None
    exact, others = None, []
    for path in folders_in(folder):
        if path.name == name:
            exact = path
        elif path.name.casefold() == name.casefold():
            others.append(path)
    return exact or (others[0] if others else None)


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder that holds the folders of people, and one picture from below it."""

    folder: Path
    sample: Path


def find_trees(root: Path, person: re.Pattern[str], depth: int = _DEPTH) -> list[Tree]:
    """Return the folders in which people's folders with pictures lie: the root, or below it.

    A tree of videos only, which CASME II has beside its frames, is none.
    """
    folders = folders_in(root)
    people = [folder for folder in folders if person.fullmatch(folder.name)]
    sample = next((path for folder in people for path in _pictures_below(folder)), None)
    trees = [Tree(root, sample)] if sample else []
    if depth:
        for folder in folders:
            if folder not in people:
                trees += find_trees(folder, person, depth - 1)
    return trees


def _pictures_below(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    yield from (folder / name for name in _pictures(folder)[:1])
    if depth:
        for below in folders_in(folder):
            yield from _pictures_below(below, depth - 1)


def choose_tree(
    trees: Sequence[Tree], root: Path, *, layout: str, raw: re.Pattern[str] | None = None
) -> tuple[Path, str]:
    """Return the tree to read and a note on the choice.

    Of several, the only one whose pictures are named as `raw` says is taken. Raises:
    FileNotFoundError naming the layout that was looked for; ValueError naming the trees when
    it is open which is meant.
    """
    if not trees:
        raise FileNotFoundError(f"{root} holds no frames in folders like {layout}")
    meant = list(trees)
    if len(trees) > 1:
        meant = [tree for tree in trees if raw and raw.fullmatch(tree.sample.stem)]
    if len(meant) != 1:
        named = " and ".join(str(tree.folder) for tree in trees)
        raise ValueError(f"the frames may be those of {named}: give one of these as the root")
    (tree,) = meant
    note = f"frames from {tree.folder}, named like {tree.sample.name}"
    others = ", ".join(str(other.folder) for other in trees if other is not tree)
    return tree.folder, f"{note}; left aside: {others}" if others else note


def people_in(tree: Path, person: re.Pattern[str]) -> dict[int, Path]:
    """Return the folders of people by their number, whatever its padding.

    Raises: ValueError naming two folders of one number (`s1` and `s01`).
    """
    people: dict[int, Path] = {}
    for folder in folders_in(tree):
        match = person.fullmatch(folder.name)
        if not match:
            continue
        number = int(match[1])
        if number in people:
            raise ValueError(f"{people[number]} and {folder} are folders of one person")
        people[number] = folder
    return people
