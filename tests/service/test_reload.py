import asyncio
import errno
import os
import shutil
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from serving import HeldSession, Listener, MakeSettings, Pictures, Serve, until, wait_for
from tiny_model import tiny_spec, write_tiny_model

from model.errors import ModelError, ModelNotFound
from model.session import SPEC_METADATA_KEY, Session
from model.spec import ModelSpec, file_sha256, spec_path
from service import registry, shelf
from service.answers import Options
from service.engine import Engine, Upload, open_sessions
from service.registry import Registry
from service.server import loaded

without_gpu = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is a GPU"
)


class Opened:
    """An engine and its models folder, which is looked at when the test says so."""

    def __init__(self, engine: Engine, registry: Registry, heard: Listener, folder: Path) -> None:
        self.engine, self.registry, self.heard, self.folder = engine, registry, heard, folder

    @property
    def versions(self) -> dict[str, str]:
        return {name: one.spec.version for name, one in self.engine.models.items()}

    async def settle(self) -> list[tuple[str, str, str]]:
        """Look until whatever is there has been judged; return what was told meanwhile."""
        before = len(self.heard.changes)
        for _ in range(3):
            await self.registry.look()
        return self.heard.changes[before:]


@asynccontextmanager
async def opened(
    make_settings: MakeSettings,
    folder: Path,
    sessions: dict[str, HeldSession] | None = None,
    **changes: object,
) -> AsyncIterator[Opened]:
    heard = Listener()
    settings = make_settings(**{"models_dir": folder, "reload_s": 0, **changes})
    async with Engine.open(settings, heard, sessions) as engine:
        await engine.warmed_up()
        registry = Registry(settings, engine._shelf, heard)  # noqa: SLF001 - instead of its clock
        yield Opened(engine, registry, heard, folder)


@asynccontextmanager
async def predictions(engine: Engine, upload: Upload) -> AsyncIterator[list[str]]:
    """Ask all the time, two at once; yield the versions that answered. Nothing may fail."""
    versions: list[str] = []

    async def ask() -> None:
        latest = ""
        while True:
            version = (await engine.predict(upload)).spec.version
            assert version >= latest  # of its own: another's may have been admitted before
            versions.append(latest := version)

    tasks = [asyncio.create_task(ask()) for _ in range(2)]
    await until(lambda: bool(versions))
    try:
        yield versions
        seen = len(versions)
        await until(lambda: len(versions) > seen + 2)
        assert not any(task.done() for task in tasks), tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path)
    return tmp_path


@pytest.fixture
def upload(pictures: Pictures) -> Upload:
    return Upload(pictures.onset, pictures.smile)


def network_threads(others: list[threading.Thread]) -> list[str]:
    """Return what runs networks, but for the threads of the other services of the tests."""
    names = (one.name for one in threading.enumerate() if one not in others)
    return [name for name in names if name.startswith("mfdan-network")]


def sign(path: Path) -> None:
    """Make the spec beside a file speak of the file as it is now."""
    spec = replace(tiny_spec(path.stem, version="2"), onnx_sha256=file_sha256(path))
    spec_path(path).write_text(spec.to_json())


def test_a_new_model_is_loaded_and_answers_by_its_name(
    make_settings: MakeSettings, folder: Path, upload: Upload
) -> None:
    async def run() -> None:
        async with opened(make_settings, folder) as here:
            with pytest.raises(ModelNotFound):
                await here.engine.predict(upload, Options(model="another"))
            write_tiny_model(folder, tiny_spec("another"))
            assert await here.settle() == [("another", "loaded", "")]
            assert [*here.engine.models] == ["tiny", "another"]
            answer = await here.engine.predict(upload, Options(model="another"))
            assert answer.spec.name == "another"
            assert await here.settle() == []

    asyncio.run(run())


def test_a_replaced_model_is_swapped_under_load_without_one_failure(
    make_settings: MakeSettings, folder: Path, upload: Upload
) -> None:
    others = threading.enumerate()

    async def run() -> None:
        async with opened(make_settings, folder) as here:
            async with predictions(here.engine, upload) as versions:
                for version in ("2", "3"):
                    write_tiny_model(folder, tiny_spec(version=version))
                    assert await here.settle() == [("tiny", "replaced", "")]
            assert versions[0] == "1"
            assert "3" in versions[-3:]
            await until(lambda: len(network_threads(others)) == 1)  # the old ones' have ended

    asyncio.run(run())


def test_a_model_of_the_start_is_freed_when_it_is_replaced(
    make_settings: MakeSettings, folder: Path
) -> None:
    async def run() -> None:
        settings, heard = make_settings(models_dir=folder, reload_s=0), Listener()
        names, open_engine = loaded(settings)
        assert names == ["tiny"]
        async with open_engine(settings, heard) as engine:
            await engine.warmed_up()
            first = weakref.ref(engine.session()._runtime)  # noqa: SLF001 - what holds the memory
            write_tiny_model(folder, tiny_spec(version="2"))
            here = Opened(engine, Registry(settings, engine._shelf, heard), heard, folder)  # noqa: SLF001 - instead of its clock
            assert await here.settle() == [("tiny", "replaced", "")]
            await until(lambda: first() is None)

    asyncio.run(run())


def test_who_was_admitted_before_the_swap_is_answered_by_the_old_model(
    make_settings: MakeSettings, folder: Path, upload: Upload
) -> None:
    held = HeldSession(Session.open(folder / "tiny.onnx"))
    others = threading.enumerate()

    async def run() -> None:
        async with opened(make_settings, folder, {"tiny": held}) as here:
            first = asyncio.create_task(here.engine.predict(upload))
            await asyncio.to_thread(held.started.wait, 20)
            write_tiny_model(folder, tiny_spec(version="2", input_size=112))
            assert await here.settle() == [("tiny", "replaced", "")]
            assert (await here.engine.predict(upload)).spec.version == "2"
            assert not first.done()
            assert len(network_threads(others)) == 2
            held.may_go.set()
            assert (await first).spec.version == "1"
            await until(lambda: len(network_threads(others)) == 1)

    try:
        asyncio.run(run())
    finally:
        held.may_go.set()


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_network(path: Path) -> None:
    path.write_bytes(b"a picture of a network")
    sign(path)


def no_spec(path: Path) -> None:
    spec_path(path).write_text("{")


def lose_spec(path: Path) -> None:
    spec_path(path).unlink()


def other_inside(path: Path) -> None:
    """A network and a spec of two models, the hash made to fit."""
    write_tiny_model(path.parent, tiny_spec(version="3"))
    sign(path)


def other_inputs(path: Path) -> None:
    """Its metadata promise another architecture than its graph has."""
    model = onnx.load(path)
    for node in model.graph.input:
        node.type.tensor_type.shape.dim[2].dim_value = 112
    promise(model, path)


def alone_only(path: Path) -> None:
    """It loads, fits its spec, and fails on every batch of more than one."""
    model = onnx.load(path)
    nodes = model.graph.node
    (flatten,) = [node for node in nodes if node.op_type == "Flatten"]
    at = [*nodes].index(flatten)
    nodes.remove(flatten)
    # The shape [1, 6] is worked out from the image, so that nobody knows it beforehand.
    for name, values in (("zero", np.float32(0)), ("fixed", np.array([1, 6], np.float32))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    for new in (
        helper.make_node("Reshape", ["pooled", "shape"], ["features"]),
        helper.make_node("Cast", ["sum"], ["shape"], to=TensorProto.INT64),
        helper.make_node("Add", ["none", "fixed"], ["sum"]),
        helper.make_node("Mul", ["brightest", "zero"], ["none"]),
        helper.make_node("ReduceMax", ["image"], ["brightest"], keepdims=0),
    ):
        nodes.insert(at, new)
    promise(model, path)


def promise(model: onnx.ModelProto, path: Path) -> None:
    for entry in model.metadata_props:
        if entry.key == SPEC_METADATA_KEY:
            entry.value = tiny_spec(path.stem, version="2").to_json()
    onnx.save(model, path)
    sign(path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "SHA-256"),
        (spoil, "SHA-256"),
        (empty, "SHA-256"),
        (no_network, "ONNX Runtime cannot load tiny.onnx"),
        (no_spec, "not a model spec"),
        (lose_spec, "there is no file tiny.onnx.json"),
        (other_inside, "differs from the one beside it"),
        (other_inputs, "takes inputs"),
        (alone_only, "tiny.onnx cannot be used: "),
    ],
)
def test_a_bad_model_is_refused_while_the_old_one_answers_everybody(
    make_settings: MakeSettings,
    folder: Path,
    upload: Upload,
    damage: Callable[[Path], None],
    words: str,
) -> None:
    async def run() -> None:
        async with opened(make_settings, folder) as here:
            await here.settle()
            async with predictions(here.engine, upload) as versions:
                damage(folder / "tiny.onnx")
                ((name, change, fault),) = await here.settle()
                assert (name, change) == ("tiny", "refused")
                assert words in fault
                assert str(folder) not in fault
                assert await here.settle() == []  # told once
                assert here.versions == {"tiny": "1"}
                assert here.engine.ready
            assert {*versions} == {"1"}
            write_tiny_model(folder, tiny_spec(version="4"))
            assert await here.settle() == [("tiny", "replaced", "")]
            assert (await here.engine.predict(upload)).spec.version == "4"

    asyncio.run(run())


def test_a_model_that_is_still_being_copied_is_left_alone_until_it_is_whole(
    make_settings: MakeSettings, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = write_tiny_model(tmp_path_factory.mktemp("source"), tiny_spec("late"))
    data = source.read_bytes()

    async def run() -> None:
        async with opened(make_settings, folder) as here:
            shutil.copy(spec_path(source), folder)
            with (folder / source.name).open("wb") as file:
                for begin in range(0, len(data), 100):
                    file.write(data[begin : begin + 100])
                    file.flush()
                    await here.registry.look()
                    assert here.heard.changes == []
            assert await here.settle() == [("late", "loaded", "")]

    asyncio.run(run())


@pytest.mark.parametrize("last", [".onnx", ".onnx.json"])
def test_a_model_whose_two_files_come_one_long_after_the_other_is_loaded_when_both_are_there(
    make_settings: MakeSettings, folder: Path, tmp_path_factory: pytest.TempPathFactory, last: str
) -> None:
    source = write_tiny_model(tmp_path_factory.mktemp("source"), tiny_spec("late"))
    first = source if last == ".onnx.json" else spec_path(source)

    async def run() -> None:
        async with opened(make_settings, folder) as here:
            shutil.copy(first, folder)
            missing = [("late", "refused", "there is no file late.onnx.json")]
            assert await here.settle() == (missing if first == source else [])
            shutil.copy(source.with_name(f"late{last}"), folder)
            assert await here.settle() == [("late", "loaded", "")]

    asyncio.run(run())


def remove(path: Path) -> None:
    path.unlink()
    spec_path(path).unlink()


def test_a_removed_model_is_unloaded_but_not_the_default(
    make_settings: MakeSettings, folder: Path, upload: Upload
) -> None:
    write_tiny_model(folder, tiny_spec("another"))

    async def run() -> None:
        async with opened(make_settings, folder, model="tiny") as here:
            assert await here.settle() == []
            remove(folder / "another.onnx")
            assert await here.settle() == [("another", "unloaded", "")]
            assert [*here.engine.models] == ["tiny"]
            remove(folder / "tiny.onnx")
            gone = "its file is gone; it serves on, because it is the default"
            assert await here.settle() == [("tiny", "refused", gone)]
            assert await here.settle() == []
            assert (await here.engine.predict(upload)).spec.name == "tiny"
            write_tiny_model(folder, tiny_spec(version="2"))
            assert await here.settle() == [("tiny", "replaced", "")]

    asyncio.run(run())


def test_two_files_of_one_name_are_refused_until_one_of_them_is_gone(
    make_settings: MakeSettings, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = write_tiny_model(tmp_path_factory.mktemp("source"), tiny_spec(version="2"))

    async def run() -> None:
        async with opened(make_settings, folder) as here:
            await here.settle()
            shutil.copy(source, folder / "copy.onnx")
            shutil.copy(spec_path(source), folder / "copy.onnx.json")
            fault = "copy.onnx and tiny.onnx are both called tiny"
            assert await here.settle() == [("copy", "refused", fault)]
            assert here.versions == {"tiny": "1"}
            remove(folder / "tiny.onnx")
            assert await here.settle() == [("tiny", "replaced", "")]
            assert here.versions == {"tiny": "2"}

    asyncio.run(run())


def test_files_that_are_renamed_touched_or_exchanged_change_nothing(
    make_settings: MakeSettings, folder: Path
) -> None:
    write_tiny_model(folder, tiny_spec("another"))

    def move(name: str, to: str) -> None:
        for suffix in (".onnx", ".onnx.json"):
            (folder / f"{name}{suffix}").rename(folder / f"{to}{suffix}")

    async def run() -> None:
        async with opened(make_settings, folder, model="tiny") as here:
            before = here.engine.models
            assert await here.settle() == []
            os.utime(folder / "tiny.onnx", ns=(1, 1))
            assert await here.settle() == []
            move("tiny", "small")
            assert await here.settle() == []
            for name, to in (("small", "x"), ("another", "small"), ("x", "another")):
                move(name, to)
            assert await here.settle() == []
            assert here.engine.models == before
            assert [*here.engine.models] == ["tiny", "another"]

    asyncio.run(run())


def test_a_file_whose_model_gets_another_name_gives_the_old_name_up(
    make_settings: MakeSettings, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = write_tiny_model(folder, tiny_spec("other"))
    source = write_tiny_model(tmp_path_factory.mktemp("source"), tiny_spec("renamed"))

    async def run() -> None:
        async with opened(make_settings, folder, model="tiny") as here:
            await here.settle()
            shutil.copy(source, other)
            shutil.copy(spec_path(source), spec_path(other))
            told = await here.settle()
            assert told == [("renamed", "loaded", ""), ("other", "unloaded", "")]
            assert [*here.engine.models] == ["tiny", "renamed"]

    asyncio.run(run())


def test_a_single_model_file_is_watched_likewise(make_settings: MakeSettings, folder: Path) -> None:
    async def run() -> None:
        async with opened(make_settings, folder, models_dir=folder / "tiny.onnx") as here:
            write_tiny_model(folder, tiny_spec("another"))
            assert await here.settle() == []
            write_tiny_model(folder, tiny_spec(version="2"))
            assert await here.settle() == [("tiny", "replaced", "")]
            remove(folder / "tiny.onnx")
            assert [change for _, change, _ in await here.settle()] == ["refused"]
            assert here.versions == {"tiny": "2"}

    asyncio.run(run())


def test_a_models_folder_that_goes_and_comes_back_costs_nothing_and_is_told_once(
    make_settings: MakeSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, away = tmp_path / "models", tmp_path / "away"
    folder.mkdir()
    write_tiny_model(folder, tiny_spec("another"))
    write_tiny_model(folder)

    async def run() -> None:
        async with opened(make_settings, folder, model="tiny") as here:
            await here.settle()
            folder.rename(away)
            assert await here.settle() == []
            assert [*here.engine.models] == ["tiny", "another"]
            away.rename(folder)
            assert await here.settle() == []
            remove(folder / "another.onnx")
            assert await here.settle() == [("another", "unloaded", "")]

    asyncio.run(run())
    fault = "No such file or directory"
    assert caplog.messages == [
        f"the models folder cannot be looked at: {fault}; what is loaded serves on",
        "the models folder can be looked at again",
    ]


def test_a_model_whose_file_goes_right_after_the_start_is_unloaded(
    make_settings: MakeSettings, folder: Path
) -> None:
    write_tiny_model(folder, tiny_spec("another"))

    async def run() -> None:
        async with opened(make_settings, folder, model="tiny") as here:
            remove(folder / "another.onnx")
            assert await here.settle() == [("another", "unloaded", "")]

    asyncio.run(run())


def test_models_that_are_not_of_the_folder_are_left_alone(
    make_settings: MakeSettings, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = write_tiny_model(tmp_path_factory.mktemp("elsewhere"), tiny_spec("own"))
    sessions = {"tiny": Session.open(folder / "tiny.onnx"), "own": Session.open(elsewhere)}

    async def run() -> None:
        async with opened(make_settings, folder, sessions) as here:
            assert await here.settle() == []
            assert [*here.engine.models] == ["tiny", "own"]

    asyncio.run(run())


def test_a_file_that_is_changed_in_place_under_its_old_time_is_seen(
    make_settings: MakeSettings, folder: Path
) -> None:
    async def run() -> None:
        async with opened(make_settings, folder) as here:
            assert await here.settle() == []
            before = (folder / "tiny.onnx").stat()
            spoil(folder / "tiny.onnx")
            os.utime(folder / "tiny.onnx", ns=(before.st_atime_ns, before.st_mtime_ns))
            ((name, change, fault),) = await here.settle()
            assert (name, change) == ("tiny", "refused")
            assert "SHA-256" in fault

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_fault_of_the_machine_is_told_once_and_tried_again_until_it_has_passed(
    make_settings: MakeSettings,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    words: str,
) -> None:
    def fail(_: Path) -> ModelSpec:
        raise error

    async def run() -> None:
        async with opened(make_settings, folder) as here:
            assert await here.settle() == []
            write_tiny_model(folder, tiny_spec("another"))
            with monkeypatch.context() as patch:
                patch.setattr(registry, "load_spec", fail)
                told = [*await here.settle(), *await here.settle()]
            assert told == [("another", "refused", f"another.onnx cannot be used: {words}")]
            assert await here.settle() == [("another", "loaded", "")]

    asyncio.run(run())


def test_a_model_whose_warm_up_hangs_is_refused_and_the_next_one_is_loaded(
    make_settings: MakeSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    warm_up = Session.warm_up

    def hang(session: Session, sizes: Sequence[int]) -> None:
        assert session.spec.name != "hangs" or may_end.wait(20)
        warm_up(session, sizes)

    async def run() -> None:
        async with opened(make_settings, folder, deadline_ms=300) as here:
            monkeypatch.setattr(shelf, "WARM_UP_S", 0.0)
            monkeypatch.setattr(Session, "warm_up", hang)
            write_tiny_model(folder, tiny_spec("hangs"))
            write_tiny_model(folder, tiny_spec("works"))
            fault = "hangs was not warm after 0.9 s"
            assert await here.settle() == [("hangs", "refused", fault), ("works", "loaded", "")]
            assert await here.settle() == []
            assert [*here.engine.models] == ["tiny", "works"]
            assert here.engine.ready

    try:
        asyncio.run(run())
    finally:
        may_end.set()


def test_a_model_that_changes_while_it_is_loaded_is_judged_anew(
    make_settings: MakeSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Session.open
    loads: list[Path] = []

    def overtaken(path: Path, *placed: object) -> Session:
        session = load(path, *placed)
        if not loads:
            write_tiny_model(folder, tiny_spec(version="3"))
        loads.append(path)
        return session

    async def run() -> None:
        async with opened(make_settings, folder) as here:
            monkeypatch.setattr(Session, "open", overtaken)
            write_tiny_model(folder, tiny_spec(version="2"))
            assert await here.settle() == []
            assert await here.settle() == [("tiny", "replaced", "")]
            assert here.versions == {"tiny": "3"}

    asyncio.run(run())
    assert len(loads) == 2


def test_closing_does_not_wait_for_a_model_that_is_being_warmed(
    make_settings: MakeSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warming, may_end = threading.Event(), threading.Event()

    def hang(_session: Session, _sizes: object) -> None:
        warming.set()
        assert may_end.wait(20)

    async def run() -> None:
        settings = make_settings(models_dir=folder, reload_s=0.01, drain_timeout_s=0)
        async with Engine.open(settings) as engine:
            await engine.warmed_up()
            monkeypatch.setattr(Session, "warm_up", hang)
            write_tiny_model(folder, tiny_spec(version="2"))
            await asyncio.to_thread(warming.wait, 20)
            assert engine.ready
        assert not may_end.is_set()

    try:
        asyncio.run(run())
    finally:
        may_end.set()


def test_the_folder_is_looked_at_while_serving_and_the_api_shows_what_changed(
    serve: Serve, folder: Path, pictures: Pictures
) -> None:
    def cards() -> Iterator[tuple[str, str]]:
        for card in client.get("/models").json():
            yield card["name"], card["version"]

    with serve(models_dir=folder, reload_s=0.02) as client:
        write_tiny_model(folder, tiny_spec("another"))
        wait_for(lambda: dict(cards()) == {"tiny": "1", "another": "1"})
        write_tiny_model(folder, tiny_spec(version="2"))
        wait_for(lambda: [*cards()] == [("tiny", "2"), ("another", "1")])
        answer = client.post("/predict", files=pictures.pair).json()
        assert answer["model"]["version"] == "2"
        (folder / "another.onnx").unlink()
        wait_for(lambda: dict(cards()) == {"tiny": "2"})


@without_gpu
@pytest.mark.parametrize(("device", "fell_back"), [("cuda", True), ("cpu", False)])
def test_a_gpu_that_was_asked_for_and_not_got_is_told_in_the_answer_and_of_the_model(
    serve: Serve, folder: Path, pictures: Pictures, device: str, *, fell_back: bool
) -> None:
    with serve(models_dir=folder, device=device) as client:
        answer = client.post("/predict", files=pictures.pair).json()
        assert answer["provider"] == "CPUExecutionProvider"
        assert answer["provider_fallback"] == fell_back
        assert [card["provider_fallback"] for card in client.get("/models").json()] == [fell_back]


@without_gpu
def test_a_gpu_that_was_asked_for_strictly_and_not_got_refuses_the_model_at_the_start_and_later(
    make_settings: MakeSettings, folder: Path
) -> None:
    strict = {"device": "cuda", "strict_gpu": True}
    fault = (
        "a GPU was asked for, but tiny.onnx runs on CPUExecutionProvider: "
        "`mfdan doctor` says what is missing"
    )
    with pytest.raises(ModelError, match=fault):
        open_sessions(make_settings(models_dir=folder, **strict))
    on_gpu = {"tiny": Session.open(folder / "tiny.onnx")}

    async def run() -> None:
        async with opened(make_settings, folder, on_gpu, **strict) as here:
            write_tiny_model(folder, tiny_spec(version="2"))
            assert await here.settle() == [("tiny", "refused", fault)]
            assert here.versions == {"tiny": "1"}

    asyncio.run(run())
