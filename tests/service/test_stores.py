"""pyarrow's own S3 client against a server that speaks as much of S3 as reading needs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket import Bucket, bucket_of
from drawn_clips import encode_pictures, grey_steps
from serving import MakeSettings, encode
from typer.testing import CliRunner, Result

from model.errors import ClipTooLarge
from service.answers import ClipUpload, Upload
from service.cli import app
from service.sources import BadArgument, find_sources, read_upload
from service.stores import holds_key

CLIP = encode_pictures(grey_steps(3), 25, "gif")
PICTURE = encode(grey_steps(1)[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a person might have put into a bucket."""
    for name, data in {
        "day/1.gif": CLIP,
        "day/clip with spaces": CLIP,
        "day/notes.txt": b"nothing to see",
        "day/pair/onset.png": PICTURE,
        "day/pair/apex.png": PICTURE,
        "day/.hidden/2.gif": CLIP,
        "day/empty.mp4": b"",
        "other/3.gif": CLIP,
    }.items():
        path = tmp_path / "bucket" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "bucket"


@pytest.fixture
def bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with bucket_of(folder) as bucket:
        yield bucket


def run(*arguments: Path | str) -> Result:
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def test_a_bucket_holds_the_same_as_the_folder_it_was_made_of(folder: Path, bucket: Bucket) -> None:
    here = find_sources([str(folder / "day")])
    there = find_sources([bucket.address("day")])
    assert [one.names for one in there.sources] == [one.names for one in here.sources]
    assert there.skipped == here.skipped == 1
    assert [len(one.paths) for one in there.sources] == [1, 1, 1, 2]


def test_several_addresses_have_names_relative_to_what_holds_all(bucket: Bucket) -> None:
    found = find_sources([bucket.address("day/pair"), bucket.address("other/3.gif")])
    assert [one.names[0] for one in found.sources] == ["day/pair/onset.png", "other/3.gif"]


def test_what_is_read_is_what_is_stored(bucket: Bucket, make_settings: MakeSettings) -> None:
    pair, clip = find_sources([bucket.address("day/pair"), bucket.address("other/3.gif")]).sources
    assert read_upload(pair.paths, make_settings()) == Upload(PICTURE, PICTURE)
    assert read_upload(clip.paths, make_settings()) == ClipUpload(CLIP)


def test_what_is_larger_than_the_cap_is_not_asked_for(
    folder: Path, bucket: Bucket, make_settings: MakeSettings
) -> None:
    (folder / "other/3.gif").write_bytes(CLIP + bytes(2048))
    (clip,) = find_sources([bucket.address("other")]).sources
    bucket.asked.clear()
    with pytest.raises(ClipTooLarge):
        read_upload(clip.paths, make_settings(max_clip_bytes=1024))
    assert bucket.asked == []


def test_what_is_called_a_clip_is_not_looked_into_before_it_is_its_turn(bucket: Bucket) -> None:
    find_sources([bucket.address("day")])
    looked_into = {line.removeprefix("GET ") for line in bucket.asked if line.startswith("GET ")}
    assert looked_into == {"day/clip with spaces", "day/notes.txt"}


def test_only_what_changed_in_the_bucket_is_scored_again(
    folder: Path,
    bucket: Bucket,
    tmp_path: Path,
    models_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MFDAN_MODELS_DIR", str(models_dir))
    (folder / "day/empty.mp4").unlink()
    out, plain = tmp_path / "results.csv", tmp_path / "plain.csv"
    assert run(bucket.address("day"), "--out", out).exit_code == 0
    assert run(folder / "day", "--out", plain).exit_code == 0
    assert out.read_bytes() == plain.read_bytes()
    os.utime(folder / "day/1.gif", (1, 1))
    again = run(bucket.address("day"), "--out", out)
    assert "2 of 3 were done before" in again.stderr
    assert out.read_bytes() == plain.read_bytes()


def test_an_object_that_went_away_is_a_row_that_is_tried_again(
    folder: Path, bucket: Bucket, make_settings: MakeSettings
) -> None:
    (clip,) = find_sources([bucket.address("other")]).sources
    (folder / "other/3.gif").unlink()
    with pytest.raises(FileNotFoundError):
        read_upload(clip.paths, make_settings())


def test_what_is_not_there_is_named_without_the_options_of_its_address(bucket: Bucket) -> None:
    with pytest.raises(BadArgument, match=r"^there is no s3://bucket/nowhere$"):
        find_sources([bucket.address("nowhere")])


def test_a_bucket_that_may_not_be_read_is_one_sentence_without_the_key(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.closed = True
    address = bucket.address("day").replace("s3://", "s3://mine:secret@")
    out = tmp_path / "results.csv"
    result = run(address, "--out", out)
    assert result.exit_code == 2
    assert "mfdan: s3://bucket/day cannot be read: " in result.stderr
    assert "ACCESS_DENIED" in result.stderr
    assert "secret" not in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("address", "holds"),
    [
        ("s3://mine:hidden@bucket/day", True),
        ("abfss://container@account.dfs.core.windows.net/day?client_secret=hidden", True),
        ("abfss://container@account.dfs.core.windows.net/day", False),
        ("s3://bucket/day?region=eu-west-1", False),
        ("secret/a:b@c", False),
    ],
)
def test_an_address_with_a_key_is_known(address: str, *, holds: bool) -> None:
    assert holds_key(address) is holds


@pytest.mark.parametrize("address", ["foo://bucket/day", "s3://bucket/day?nonsense=1"])
def test_an_address_that_nobody_understands_is_one_sentence(tmp_path: Path, address: str) -> None:
    result = run(address, "--out", tmp_path / "results.csv")
    assert result.exit_code == 2
    assert "cannot be read: Un" in result.stderr


def test_a_store_and_this_machine_are_scored_apart(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("clip\ns3://bucket/1.gif\n")
    with pytest.raises(BadArgument, match="are scored apart"):
        find_sources(["s3://bucket", str(folder)])
    with pytest.raises(BadArgument, match="are scored apart"):
        find_sources(["s3://bucket"], manifest)
    (listed,) = find_sources([], manifest).sources
    assert listed.fault == "a manifest lists files of this machine, not of a store"


def test_an_address_of_this_machine_is_a_path(folder: Path) -> None:
    found = find_sources([(folder / "day").as_uri()])
    assert found == find_sources([str(folder / "day")])
