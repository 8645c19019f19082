"""API keys: their file, who is known, how often, and who may ask for what."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from key_files import ALICE, BOB, stanza
from typer.testing import CliRunner, Result

from service.cli import app as command
from service.keys import (
    MAX_KEYS,
    KeyRing,
    KeysInvalid,
    KeyUnknown,
    QuotaExceeded,
    RateLimited,
    answers_others,
    digest_of,
    new_token,
    read_keys,
)

DAY_S = 24 * 60 * 60


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


MakeFile = Callable[..., Path]


@pytest.fixture
def file_of(tmp_path: Path) -> MakeFile:
    def write(*stanzas: str) -> Path:
        """Write it anew: another file of that name, as editors and Kubernetes do."""
        path, fresh = tmp_path / "keys.toml", tmp_path / "fresh"
        fresh.write_text("\n".join(stanzas))
        return fresh.replace(path)

    return write


def used(ring: KeyRing, token: str, times: int) -> None:
    for _ in range(times):
        ring.count(ring.whose(token))


def test_a_key_is_known_by_its_hash(file_of: MakeFile) -> None:
    ring = KeyRing(file_of(stanza("alice", ALICE), stanza("bob", BOB)))
    assert (ring.whose(ALICE).name, ring.whose(BOB).name) == ("alice", "bob")
    assert ring.names == ("alice", "bob")


@pytest.mark.parametrize(
    "sent",
    [
        "",
        new_token(),
        ALICE[:-1],
        f"{ALICE}a",
        f"{ALICE}\n",
        ALICE.upper(),
        digest_of(ALICE).hex(),
        "é" * 49,
    ],
)
def test_what_is_not_the_whole_key_is_not_known(file_of: MakeFile, sent: str) -> None:
    with pytest.raises(KeyUnknown):
        KeyRing(file_of(stanza("alice", ALICE))).whose(sent)


def test_no_two_keys_are_the_same_and_each_has_256_bits() -> None:
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert {len(token) for token in tokens} == {len("mfdan_") + 43}


def test_a_rate_is_of_one_key_and_begins_anew_with_the_next_minute(file_of: MakeFile) -> None:
    clock = Clock()
    limits = {"rate_per_minute": 3}
    ring = KeyRing(file_of(stanza("alice", ALICE, **limits), stanza("bob", BOB, **limits)), clock)
    used(ring, ALICE, 3)
    clock.now += 20.5
    with pytest.raises(RateLimited, match="3 in a minute") as refused:
        used(ring, ALICE, 1)
    assert refused.value.retry_after_s == 40
    used(ring, BOB, 3)
    clock.now += refused.value.retry_after_s
    used(ring, ALICE, 3)


def test_a_quota_outlasts_the_minute_and_ends_with_the_day(file_of: MakeFile) -> None:
    clock = Clock()
    ring = KeyRing(file_of(stanza("alice", ALICE, rate_per_minute=2, quota_per_day=3)), clock)
    used(ring, ALICE, 2)
    clock.now += 60
    used(ring, ALICE, 1)
    with pytest.raises(QuotaExceeded, match="3 in a day") as refused:
        used(ring, ALICE, 1)
    assert refused.value.retry_after_s == DAY_S - 60
    clock.now += DAY_S - 60
    used(ring, ALICE, 2)


@given(
    limit=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 90, allow_subnormal=False), max_size=80),
)
@example(limit=1, pauses=[1.5024192804374703, 0.0])  # a minute after it is rounded up
def test_who_comes_back_after_the_time_told_is_let_in_and_none_exceeds_a_minute(
    tmp_path_factory: pytest.TempPathFactory, limit: int, pauses: list[float]
) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text(stanza("alice", ALICE, rate_per_minute=limit))
    clock = Clock()
    ring = KeyRing(path, clock)
    let_in: list[float] = []
    told = [1]
    for pause in pauses:
        clock.now += pause
        try:
            used(ring, ALICE, 1)
        except RateLimited as refused:
            told.append(refused.retry_after_s)
            clock.now += told[-1]
            used(ring, ALICE, 1)
        let_in.append(clock.now)
    assert 1 <= min(told) <= max(told) <= 60
    # Two periods may meet in one minute, never three.
    assert all(
        sum(start <= moment < start + 60 for moment in let_in) <= 2 * limit for start in let_in
    )


def test_a_key_without_limits_is_never_refused(file_of: MakeFile) -> None:
    used(KeyRing(file_of(stanza("alice", ALICE))), ALICE, 1000)


HASH = digest_of(ALICE).hex()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "keys: Field required"),
        ("[keys]", "at least 1 item"),
        ("keys = 3", "valid dict"),
        ("[keys.alice", "is not TOML"),
        ("a = " + "[" * 10_000, "is not TOML"),
        (f'[keys.alice]\nsha256 = "{HASH}"\nquota_per_day = {"9" * 5000}', "too many digits"),
        ("[keys.alice]", "keys.alice.sha256: Field required"),
        ('[keys.alice]\nsha256 = "secret"', "keys.alice.sha256"),
        (f'[keys.alice]\nsha256 = "{HASH}"\nrate_per_minute = 0', "keys.alice.rate_per_minute"),
        (f'[keys.alice]\nsha256 = "{HASH}"\nrate_per_minute = "9"', "keys.alice.rate_per_minute"),
        (f'[keys.alice]\nsha256 = "{HASH}"\nquota_per_day = true', "keys.alice.quota_per_day"),
        (f'[keys.alice]\nsha256 = "{HASH}"\nrate = 9', "keys.alice.rate: Extra inputs"),
        (f'[keys."a b"]\nsha256 = "{HASH}"', "keys.a b"),
        (f'[alice]\nsha256 = "{HASH}"', "keys: Field required"),
        (f"{stanza('alice', ALICE)}{stanza('alice', BOB)}", "is not TOML"),
        (f"{stanza('alice', ALICE)}{stanza('bob', ALICE)}", "one key twice, as alice and as bob"),
        ("".join(stanza(f"n{n}", new_token()) for n in range(MAX_KEYS + 1)), "at most 256 items"),
        ("#" * 2**21, "is larger than"),
    ],
)
def test_a_file_that_is_not_right_is_refused_in_one_line(
    file_of: MakeFile, content: str, fault: str
) -> None:
    with pytest.raises(KeysInvalid, match=fault) as refused:
        read_keys(file_of(content))
    assert "\n" not in str(refused.value)
    assert HASH not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysInvalid, match="No such file"):
        read_keys(tmp_path / "nowhere.toml")
    with pytest.raises(KeysInvalid, match="directory"):
        read_keys(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(KeysInvalid, match="is not a file"):
        read_keys(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b"# \xe9")
    with pytest.raises(KeysInvalid, match="is not UTF-8 text"):
        read_keys(tmp_path / "latin")


def test_a_file_that_everybody_may_write_to_is_refused(file_of: MakeFile) -> None:
    path = file_of(stanza("alice", ALICE))
    path.chmod(0o646)
    with pytest.raises(KeysInvalid, match="chmod o-w"):
        read_keys(path)
    path.chmod(0o644)  # a hash of 256 random bits may be read
    assert read_keys(path)


def test_a_changed_file_is_read_once_it_keeps_still(file_of: MakeFile) -> None:
    ring = KeyRing(file_of(stanza("alice", ALICE)))
    assert not ring.look()
    file_of(stanza("bob", BOB))
    assert not ring.look()  # somebody may be writing yet
    assert ring.look()
    assert not ring.look()
    assert ring.names == ("bob",)
    with pytest.raises(KeyUnknown):
        ring.whose(ALICE)


def test_a_bad_change_is_told_once_and_the_keys_stay(file_of: MakeFile) -> None:
    ring = KeyRing(file_of(stanza("alice", ALICE)))
    file_of("[keys.alice")
    assert not ring.look()
    with pytest.raises(KeysInvalid):
        ring.look()
    assert not ring.look()
    assert ring.whose(ALICE).name == "alice"
    file_of(stanza("bob", BOB)).unlink()
    assert not ring.look()
    with pytest.raises(KeysInvalid, match="No such file"):
        ring.look()
    file_of(stanza("bob", BOB))
    assert [ring.look(), ring.look()] == [False, True]


def test_what_was_used_stays_used_when_the_file_changes(file_of: MakeFile) -> None:
    ring = KeyRing(file_of(stanza("alice", ALICE, quota_per_day=2)), Clock())
    used(ring, ALICE, 2)
    file_of(stanza("alice", BOB, quota_per_day=3), "")  # a new key of the same name
    assert [ring.look(), ring.look()] == [False, True]
    used(ring, BOB, 1)
    with pytest.raises(QuotaExceeded):
        used(ring, BOB, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_loopback_answers_nobody_else(host: str) -> None:
    assert not answers_others(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.7", "example.org", "127.1"])  # noqa: S104 - what is refused
def test_every_other_address_may_be_reached(host: str) -> None:
    assert answers_others(host)


def test_without_keys_other_machines_are_not_served(models_dir: Path) -> None:
    result = CliRunner().invoke(
        command,
        ["serve", "--host", "0.0.0.0"],  # noqa: S104 - what is refused
        env={"MFDAN_MODELS_DIR": str(models_dir)},
    )
    assert result.exit_code == 2
    assert "0.0.0.0 can be reached from other machines" in result.stderr
    assert result.stderr.count("\n") == 1


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(command, ["keys", *arguments], env=env)


def test_a_new_key_is_shown_apart_from_what_the_file_needs(tmp_path: Path) -> None:
    """So that `>> keys.toml` does not write the key itself to the disk."""
    path = tmp_path / "keys.toml"
    alice = run("new", "alice", "--rate-per-minute", "60", "--quota-per-day", "5000")
    bob = run("new", "bob")
    path.write_text(alice.stdout + bob.stdout)
    ring = KeyRing(path)
    for name, result in (("alice", alice), ("bob", bob)):
        token = result.stderr.split()[-1]
        assert ring.whose(token).name == name
        assert token not in result.stdout
    assert [key.rate_per_minute for key in read_keys(path)] == [60, None]
    assert [key.quota_per_day for key in read_keys(path)] == [5000, None]


@pytest.mark.parametrize(
    "arguments",
    [
        ["a b"],
        ["a.b"],
        ["ä"],
        [""],
        ["a]\n[keys.b"],
        ["x" * 65],
        ["alice", "--rate-per-minute", "0"],
        ["alice", "--quota-per-day", "-1"],
    ],
)
def test_a_key_that_the_file_could_not_hold_is_not_made(arguments: list[str]) -> None:
    result = run("new", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1


def test_a_file_is_checked_as_the_service_would(file_of: MakeFile) -> None:
    path = file_of(stanza("alice", ALICE, rate_per_minute=7), stanza("bob", BOB))
    by_name = run("check", str(path))
    assert by_name.exit_code == 0
    for words in ("alice", "bob", " 7 ", "any number"):
        assert words in by_name.stdout
    assert HASH not in by_name.stdout
    assert run("check", MFDAN_API_KEYS_FILE=str(path)).stdout == by_name.stdout
    broken = run("check", str(file_of("[keys.alice")))
    assert broken.exit_code == 1
    assert "is not TOML" in broken.stderr
    assert run("check").exit_code == 2


def test_a_service_with_a_bad_file_of_keys_does_not_start(
    file_of: MakeFile, models_dir: Path
) -> None:
    env = {"MFDAN_MODELS_DIR": str(models_dir), "MFDAN_API_KEYS_FILE": str(file_of("[keys]"))}
    result = CliRunner().invoke(command, ["serve"], env=env)
    assert result.exit_code == 1
    assert result.stderr.startswith("mfdan: API keys: ")
    assert result.stderr.count("\n") == 1
