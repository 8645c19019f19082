import csv
import os
from pathlib import Path

import pytest
from drawn_clips import encode_clip, encode_pictures, grey_steps
from hypothesis import given
from hypothesis import strategies as st
from serving import MakeSettings, encode

from service.sources import BadArgument, Source, find_sources, is_clip, read_upload

CLIP = encode_pictures(grey_steps(3), 25, "gif")
PICTURE = encode(grey_steps(1)[0])


def write(path: Path, data: bytes = CLIP) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def names(*arguments: Path | str, **options: object) -> list[tuple[str, ...]]:
    return [source.names for source in find_sources([str(a) for a in arguments], **options).sources]


def test_a_folder_is_walked_in_order_of_names_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.gif", "a/2.gif", "a/10.gif", ".c.gif", ".hidden/d.gif"):
        write(tmp_path / name)
    assert names(tmp_path) == [("a/10.gif",), ("a/2.gif",), ("b.gif",)]


def test_first_bytes_make_a_clip_whatever_its_name(tmp_path: Path) -> None:
    write(tmp_path / "clip.txt")
    write(tmp_path / "clip")
    write(tmp_path / "notes.txt", b"nothing to see")
    write(tmp_path / "list.m3u8", b"#EXTM3U\nfile:///etc/passwd\n")
    found = find_sources([str(tmp_path)])
    assert [source.names for source in found.sources] == [("clip",), ("clip.txt",)]
    assert found.skipped == 2


def test_a_recording_that_failed_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "empty.mp4", b"")
    assert names(tmp_path) == [("empty.mp4",)]


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "webm", "avi"])
def test_a_clip_of_each_container_is_known_by_its_first_bytes(container: str) -> None:
    codec = {"webm": "vp9", "avi": "mjpeg"}.get(container, "h264")
    assert is_clip(encode_clip(grey_steps(2), 25, container, codec)[:32])


def test_of_webp_pictures_only_an_animated_one_is_a_clip() -> None:
    assert is_clip(encode_pictures(grey_steps(2), 25, "webp")[:32])
    assert not is_clip(encode(grey_steps(1)[0], "WEBP")[:32])


@given(st.binary(max_size=32))
def test_any_first_bytes_are_a_clip_or_not(head: bytes) -> None:
    assert is_clip(head) in {True, False}
    assert not is_clip(head[:3])


def test_onset_and_apex_of_one_folder_are_a_pair(tmp_path: Path) -> None:
    write(tmp_path / "1/onset.png", PICTURE)
    write(tmp_path / "1/Apex.JPG", PICTURE)
    write(tmp_path / "1/other.png", PICTURE)
    write(tmp_path / "2/onset.png", PICTURE)
    found = find_sources([str(tmp_path)])
    assert [source.names for source in found.sources] == [("1/onset.png", "1/Apex.JPG")]
    assert found.sources[0].is_pair
    assert found.skipped == 2


def test_a_folder_with_two_onsets_is_no_pair_but_a_fault(tmp_path: Path) -> None:
    for name in ("onset.png", "onset.jpg", "apex.png"):
        write(tmp_path / name, PICTURE)
    (source,) = find_sources([str(tmp_path)]).sources
    assert "several pictures" in source.fault


def test_a_circle_of_links_is_walked_once(tmp_path: Path) -> None:
    write(tmp_path / "a/1.gif")
    (tmp_path / "a/again").symlink_to(tmp_path, target_is_directory=True)
    assert len(names(tmp_path)) == 1
    assert len(names(tmp_path / "**" / "*.gif")) == 1


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "clip.mp4")
    found = find_sources([str(tmp_path)])
    assert (found.sources, found.skipped) == ((), 1)


@pytest.fixture(params=["pipe", "/dev/zero"])
def endless(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return what has no end, or whose end would be waited for."""
    path = tmp_path / request.param  # which is /dev/zero itself
    if not path.exists():
        os.mkfifo(path)
    return path


def test_a_pipe_or_device_is_not_read(
    endless: Path, tmp_path: Path, make_settings: MakeSettings
) -> None:
    picture = write(tmp_path / "onset.png", PICTURE)
    for paths in ([endless], [picture, endless], [endless, picture]):
        with pytest.raises(OSError, match="Not a regular file") as raised:
            read_upload(paths, make_settings())
        assert raised.value.filename == str(endless)


@pytest.mark.parametrize("endless", ["pipe", "/dev/null"], indirect=True)
def test_a_manifest_that_is_a_pipe_or_device_is_refused(endless: Path) -> None:
    with pytest.raises(BadArgument, match="Not a regular file"):
        find_sources([], endless)


def test_a_pattern_is_expanded_where_the_shell_did_not(tmp_path: Path) -> None:
    for name in ("a/1.gif", "a/.2.gif", "b/3.gif", "b/4.txt"):
        write(tmp_path / name)
    assert names(tmp_path / "*" / "*.gif") == [("a/1.gif",), ("b/3.gif",)]
    assert names(tmp_path / "[b]") == [("b/3.gif",), ("b/4.txt",)]


def test_names_are_relative_to_the_folder_that_holds_all(tmp_path: Path) -> None:
    for name in ("x/a/1.gif", "x/b/2.gif"):
        write(tmp_path / name)
    assert names(tmp_path / "x") == [("a/1.gif",), ("b/2.gif",)]
    assert names(tmp_path / "x/a", tmp_path / "x/b/2.gif") == [("a/1.gif",), ("b/2.gif",)]


def test_what_is_given_twice_is_scored_once(tmp_path: Path) -> None:
    clip = write(tmp_path / "1.gif")
    assert names(tmp_path, clip, clip) == [("1.gif",)]


def test_a_name_that_is_not_utf8_can_still_be_written_down(tmp_path: Path) -> None:
    write(tmp_path / os.fsdecode(b"\xff.gif"))
    assert names(tmp_path) == [("\\xff.gif",)]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="there is no nowhere"):
        find_sources(["nowhere"])
    with pytest.raises(BadArgument, match="nothing is called"):
        find_sources([str(tmp_path / "*.gif")])


def test_a_manifest_lists_pairs_and_clips_relative_to_its_folder(tmp_path: Path) -> None:
    lines = [
        {"clip": "one", "onset": "1/on.png", "apex": "1/up.png"},
        {"clip": "2.mp4"},
        {"clip": "three", "onset": "3.png"},
        {"clip": "four", "flow": "4.npy"},
        {"clip": "5\0"},
        {},
    ]
    manifest = tmp_path / "pairs.csv"
    with manifest.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["dataset", "clip", "onset", "apex", "flow"])
        writer.writeheader()
        writer.writerows({"dataset": "mine", **line} for line in lines)
    found = {source.names: source.fault for source in find_sources([], manifest).sources}
    assert found == {
        ("1/on.png", "1/up.png"): "",
        ("2.mp4",): "",
        ("3.png",): "onset and apex go together",
        ("four",): "ready-made flow cannot be scored, only pictures and clips",
        (".",): "the line names no file",
    }


@pytest.mark.parametrize("data", [b"a,b\n1,2\n", b"", b"clip\n\xff\n"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, data: bytes) -> None:
    manifest = write(tmp_path / "pairs.csv", data)
    with pytest.raises(BadArgument):
        find_sources([], manifest)


def test_a_changed_file_has_another_stamp(tmp_path: Path) -> None:
    path = write(tmp_path / "1.gif")
    source = Source(("1.gif",), (path,))
    before = source.stamp()
    os.utime(path, ns=(0, 1))
    assert source.stamp() != before
