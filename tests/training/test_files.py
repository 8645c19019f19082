from pathlib import Path

import numpy as np
import pytest

from training.files import write_atomically, write_text_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_atomically(path, "one")
    write_text_atomically(path, "two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, size: int) -> None:
    """Whoever writes says nothing of the file, and numpy nothing of the disk."""
    path = tmp_path / "a.npy"

    def write(_temporary: Path) -> None:
        with Path("/dev/full").open("wb") as file:
            np.save(file, np.zeros(size))

    with pytest.raises(OSError, match=r"a\.npy"):
        write_atomically(path, write)


def test_a_fault_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source"):
        write_atomically(
            tmp_path / "copy", lambda to: to.write_bytes((tmp_path / "source").read_bytes())
        )


def test_a_folder_that_is_not_there_is_told_with_the_file_s_own_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as fault:
        write_text_atomically(tmp_path / "no" / "a.txt", "text")
    assert fault.value.filename == str(tmp_path / "no" / "a.txt")
