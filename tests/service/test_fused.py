"""Pairs whose flow is computed together with the network, by ONNX Runtime; and flow on GPUs."""

import asyncio
import io
import itertools
import json
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from drawn_face import background, draw_face
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import Listener, MakeSettings, Pictures, until
from tiny_model import tiny_spec, write_tiny_model

import model
from model.errors import FlowFailed, ModelError, SpecMismatch
from model.flow_onnx import OnnxFlow
from model.fused import Fused, FusedRow
from model.session import SPEC_METADATA_KEY, Session
from model.solver import CpuFlow, Solver
from model.spec import FlowMethod, ModelSpec, file_sha256, load_spec, spec_path
from service import engine as engine_module
from service import loaded
from service.app import create_app
from service.engine import Answer, Burst, Engine, Frames, Options, Upload
from service.preparation import CroppedPair
from service.registry import Registry
from service.settings import Settings

QUICK = FlowMethod(
    algorithm="tvl1",
    parameters={
        "scalesNumber": 2,
        "warpingsNumber": 1,
        "outerIterations": 1,
        "innerIterations": 8,
        "medianFiltering": 3,
        "epsilon": 0.0,
    },
)
BUNDLED = Path(model.__path__[0]) / "weights" / "mfdan-synthetic.onnx"
without_gpu = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is a GPU"
)
Image = np.ndarray


def quick_spec(**changes: object) -> ModelSpec:
    """Of crops so small that a fused run takes milliseconds."""
    given = {"input_size": 96, "flow": QUICK, "flow_backends": ("opencv-cpu", "onnx")}
    return tiny_spec(**{**given, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fused")
    write_tiny_model(folder, quick_spec())
    return folder


@pytest.fixture(scope="module")
def make(make_settings: MakeSettings, folder: Path) -> MakeSettings:
    return partial(make_settings, models_dir=folder, flow="onnx", onnx_threads=1)


@pytest.fixture(scope="module", autouse=True)
def _each_graph_is_built_once() -> Iterator[None]:
    """Opening one takes seconds, and every engine of this module would open the same."""
    kept: dict[tuple[object, ...], object] = {}

    def once(kind: type) -> object:
        opened = kind.open

        def open_(*given: object) -> object:
            key = (kind, repr(given))
            if key not in kept:
                kept[key] = opened(*given)
            return kept[key]

        return open_

    with pytest.MonkeyPatch.context() as patch:
        for kind in (Fused, OnnxFlow):
            patch.setattr(kind, "open", once(kind))
        yield


@asynccontextmanager
async def opened(settings: Settings, observer: Listener | None = None) -> AsyncIterator[Engine]:
    async with Engine.open(settings, observer) as engine:
        await engine.warmed_up()
        yield engine


def write_bundled(folder: Path) -> None:
    """Write the bundled network with a TV-L1 flow into a folder."""
    spec = replace(load_spec(BUNDLED), flow=QUICK, flow_backends=("opencv-cpu", "onnx"))
    network = onnx.load(BUNDLED)
    (entry,) = (one for one in network.metadata_props if one.key == SPEC_METADATA_KEY)
    entry.value = spec.embedded().to_json()
    path = folder / BUNDLED.name
    onnx.save(network, path)
    spec_path(path).write_text(replace(spec, onnx_sha256=file_sha256(path)).to_json())


@cache
def drawn(smile: float, brow_lift: float) -> Image:
    place = {"centre": (160.0, 110.0), "eye_distance": 50.0}
    return draw_face(background(240, 320), **place, smile=smile, brow_lift=brow_lift)


def face_frames(smile: float, brow_lift: float = 0.0) -> Frames:
    return Frames(drawn(0.0, 0.0), drawn(smile, brow_lift))


def shares(answer: Answer) -> list[float]:
    return list(answer.faces[0].verdict.probabilities.values())


def test_flow_and_network_in_one_run_give_the_answer_that_they_give_apart(
    make_settings: MakeSettings, pictures: Pictures, tmp_path: Path
) -> None:
    """By the bundled network: 0.02 of probability is the tolerance of docs/gpu.md."""
    write_bundled(tmp_path)
    uploads = [Upload(pictures.onset, apex) for apex in (pictures.smile, pictures.brows)]

    async def run(flow: str) -> list[Answer]:
        settings = make_settings(models_dir=tmp_path, flow=flow, batch_sizes=(1,))
        async with opened(settings) as engine:
            return [await engine.predict(upload, Options(explain=True)) for upload in uploads]

    apart, together = asyncio.run(run("opencv-cpu")), asyncio.run(run("onnx"))
    for one, other in zip(apart, together, strict=True):
        assert (one.flow_backend, other.flow_backend) == ("opencv-cpu", "onnx")
        first, second = one.faces[0], other.faces[0]
        assert first.verdict.label == second.verdict.label
        np.testing.assert_allclose(shares(one), shares(other), atol=0.02)
        assert first.warnings == second.warnings
        assert first.pair.motion.moved_px == pytest.approx(second.pair.motion.moved_px, abs=0.05)
        assert first.pair.motion.head_px == pytest.approx(second.pair.motion.head_px, abs=0.05)
        for region, same in zip(first.regions or (), second.regions or (), strict=True):
            assert region.length_px == pytest.approx(same.length_px, abs=0.05)


def test_a_hundred_pairs_at_once_each_get_their_own_answer(
    make: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faces are found once of each kind: that takes longer than all that is tried here."""
    kinds = [face_frames(smile, lift) for smile in (0.0, 2.0) for lift in (0.0, 2.0)]
    crop, kept = engine_module.crop_pair, {}

    def crop_once(preprocessor: object, sent: Frames, *rest: object) -> CroppedPair:
        if id(sent) not in kept:
            kept[id(sent)] = crop(preprocessor, sent, *rest)
        return kept[id(sent)]

    monkeypatch.setattr(engine_module, "crop_pair", crop_once)
    order = np.random.default_rng(7).permutation(np.arange(100) % len(kinds))

    async def run() -> None:
        heard = Listener()
        async with opened(make(), heard) as engine:
            alone = [shares(await engine.predict(one)) for one in kinds]
            assert len({tuple(np.round(one, 3)) for one in alone}) == len(kinds)
            before = len(heard.ran)
            answers = await asyncio.gather(*(engine.predict(kinds[kind]) for kind in order))
            for kind, answer in zip(order, answers, strict=True):
                np.testing.assert_allclose(shares(answer), alone[kind], atol=1e-5)
            assert sum(heard.sizes[before:]) == 100
            assert engine.items == 0

    asyncio.run(run())


def test_the_stages_of_a_fused_pair_are_told_in_their_order(make: MakeSettings) -> None:
    heard = Listener()

    async def run() -> Answer:
        async with opened(make(), heard) as engine:
            return await engine.predict(face_frames(2.0))

    answer = asyncio.run(run())
    stages = ["decode", "detect", "align", "infer", "flow", "quality", "total"]
    assert list(answer.timings_ms) == stages
    # Two threads tell them, each when it gets to it.
    assert sorted(what for what, _ in heard.waits) == ["network", "worker"]
    work_ms = sum(ms for stage, ms in answer.timings_ms.items() if stage != "total")
    assert work_ms <= answer.timings_ms["total"]
    at = answer.moments
    assert at.asked_ns < at.begun_ns < at.prepared_ns < at.inferred_ns < at.resumed_ns
    assert at.resumed_ns < at.answered_ns


def test_the_spans_of_a_fused_pair_follow_one_another_and_tell_both_waits(
    make: MakeSettings, pictures: Pictures
) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with serving(make(), provider) as client:
        assert client.post("/predict", files=pictures.pair).is_success
    finished = spans.get_finished_spans()
    (predict,) = (span for span in finished if span.name == "predict")
    below = [
        span
        for span in finished
        if span.parent is not None and span.parent.span_id == predict.context.span_id
    ]
    stages = ["wait", "decode", "detect", "align", "infer", "wait", "flow", "quality"]
    assert [span.name for span in below] == stages
    for earlier, later in itertools.pairwise(below):
        assert earlier.end_time <= later.start_time
    assert predict.start_time == below[0].start_time
    assert below[-1].end_time <= predict.end_time


def test_a_pair_without_a_face_is_answered_without_a_run(make: MakeSettings) -> None:
    async def run() -> None:
        heard = Listener()
        async with opened(make(), heard) as engine:
            empty = background(240, 320)
            answer = await engine.predict(Frames(empty, empty))
            assert (answer.faces, answer.warnings) == ((), ("identical_frames",))
            assert answer.flow_backend == "onnx"
            assert heard.ran == []

    asyncio.run(run())


def test_a_clip_has_its_flow_from_the_same_backend(make: MakeSettings, pictures: Pictures) -> None:
    burst = Burst((*[pictures.onset] * 4, *[pictures.smile] * 4), 30)

    async def run() -> Answer:
        async with opened(make()) as engine:
            return await engine.predict_clip(burst, Options(onset_frame=0, apex_frame=6))

    answer = asyncio.run(run())
    assert answer.flow_backend == "onnx"
    assert answer.faces[0].pair.flow_backend == "onnx"


class Held:
    """Fused runs that wait until they may go, and raise while broken."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.started, self.may_go = threading.Event(), threading.Event()
        self.broken = False
        self.fault = "the device is lost"
        self._run = Fused.run
        patch.setattr(Fused, "run", lambda fused, *arrays: self.run(fused, *arrays))  # noqa: PLW0108 - it binds the model
        patch.setattr(Fused, "warm_up", lambda _fused, _sizes: None)

    def run(self, fused: Fused, *arrays: Image) -> list[FusedRow]:
        self.sizes.append(len(arrays[0]))
        self.started.set()
        assert self.may_go.wait(20)
        if self.broken:
            raise RuntimeError(self.fault)
        return self._run(fused, *arrays)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.may_go.set()


def test_a_pair_that_leaves_is_never_run_and_those_beside_it_are_answered(
    make: MakeSettings, held: Held
) -> None:
    smile, brows = face_frames(2.0), face_frames(0.0, 2.0)

    async def run() -> None:
        heard = Listener()
        async with opened(make(batch_sizes=(1, 2, 4)), heard) as engine:
            first = asyncio.create_task(engine.predict(smile))
            await asyncio.to_thread(held.started.wait, 20)
            leaver = asyncio.create_task(engine.predict(smile))
            stays = asyncio.create_task(engine.predict(brows))
            await until(lambda: sum(one.place == "network" for one in engine._courses) == 3)  # noqa: SLF001 - to know that both wait
            leaver.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaver
            held.may_go.set()
            one, other = await asyncio.gather(first, stays)
            assert shares(one) != shares(other)
            assert (held.sizes, heard.drops) == ([1, 1], [("network", "cancelled")])
            assert engine.items == 0

    asyncio.run(run())


def test_a_pair_past_its_deadline_is_dropped_and_a_stuck_run_makes_the_engine_unready(
    make: MakeSettings, held: Held
) -> None:
    async def run() -> None:
        heard = Listener()
        async with opened(make(deadline_ms=400), heard) as engine:
            with pytest.raises(engine_module.DeadlineExceeded):
                await engine.predict(face_frames(2.0))
            await until(lambda: engine.trouble == "network_wedged")
            held.may_go.set()
            await until(lambda: engine.ready)
            assert heard.drops == [("network", "deadline")]

    asyncio.run(run())


def test_a_fused_run_that_raises_reaches_all_its_waiters_and_is_probed_until_one_succeeds(
    make: MakeSettings, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.batcher.PROBE_S", 0.05)
    monkeypatch.setattr(engine_module, "MEND_S", 0.02)
    held.may_go.set()
    held.broken = True

    async def run() -> None:
        heard = Listener()
        async with opened(make(), heard) as engine:
            sent = face_frames(2.0)
            faults = await asyncio.gather(
                *(engine.predict(sent) for _ in range(3)), return_exceptions=True
            )
            assert [str(fault) for fault in faults] == ["the device is lost"] * 3
            assert engine.trouble == "inference_failed"
            held.broken = False
            await until(lambda: engine.ready)  # without a request
            assert len((await engine.predict(sent)).faces) == 1
            assert {name for name, _, _ in heard.failed} == {"tiny"}

    asyncio.run(run())


def test_closing_answers_a_fused_pair_that_is_under_way(make: MakeSettings, held: Held) -> None:
    async def run() -> Answer:
        async with opened(make()) as engine:
            going = asyncio.create_task(engine.predict(face_frames(2.0)))
            await asyncio.to_thread(held.started.wait, 20)
            closing = asyncio.create_task(engine.close())
            await asyncio.sleep(0)
            held.may_go.set()
            await closing
            return await going

    assert len(asyncio.run(run()).faces) == 1


def test_a_backend_that_the_spec_does_not_allow_is_refused_at_the_start(
    make_settings: MakeSettings, models_dir: Path
) -> None:
    async def run() -> None:
        async with Engine.open(make_settings(models_dir=models_dir, flow="onnx")):
            pass

    with pytest.raises(SpecMismatch, match="tiny may have its flow from opencv-cpu, not from onnx"):
        asyncio.run(run())


def test_a_new_model_whose_backend_cannot_be_had_is_refused_with_the_reason(
    make: MakeSettings, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)

    async def run() -> None:
        heard = Listener()
        settings = make(models_dir=tmp_path, reload_s=0)
        async with opened(settings, heard) as engine:
            registry = Registry(settings, engine._shelf, heard)  # noqa: SLF001 - looks when told
            write_tiny_model(tmp_path, quick_spec(version="2", flow_backends=("opencv-cpu",)))
            for _ in range(3):
                await registry.look()
            ((name, change, fault),) = heard.changes
            assert (name, change) == ("tiny", "refused")
            assert "not from onnx" in fault
            assert engine.model().spec.version == "1"
            assert (await engine.predict(face_frames(2.0))).spec.version == "1"

    asyncio.run(run())


@without_gpu
def test_a_gpu_that_was_asked_for_strictly_and_not_got_refuses_the_fused_graph_too(
    make: MakeSettings, folder: Path
) -> None:
    session = Session.open(folder / "tiny.onnx")  # as if the network alone had got the GPU

    async def run() -> None:
        settings = make(device="cuda", strict_gpu=True)
        async with Engine.open(settings, sessions={"tiny": session}):
            pass

    with pytest.raises(ModelError, match="a GPU was asked for"):
        asyncio.run(run())


@without_gpu
def test_a_gpu_that_was_asked_for_and_not_got_is_told_of_a_fused_pair(make: MakeSettings) -> None:
    async def run() -> Answer:
        async with opened(make(device="cuda")) as engine:
            return await engine.predict(face_frames(2.0))

    answer = asyncio.run(run())
    assert (answer.provider, answer.provider_fallback) == ("CPUExecutionProvider", True)


class LostGpu:
    """OpenCV on a GPU that is gone: there is none here to lose."""

    backend = "opencv-cuda"

    def solve(self, _onset: Image, _apex: Image) -> Image:
        cv2.cuda.setDevice(99)  # what it says without a GPU, or of one that is not there
        raise AssertionError("there is a GPU of that number")


@pytest.fixture
def lost_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Have every model's flow computed by it, and by the CPU where `spared` says so."""
    chosen = {"spared": True}

    def open_solver(spec: ModelSpec, _wanted: str, **options: object) -> Solver:
        spare = CpuFlow(spec.flow) if chosen["spared"] else None
        return Solver(LostGpu(), spare, options["on_fallback"])

    monkeypatch.setattr(loaded, "open_solver", open_solver)
    return chosen


class LostGraph:
    """The graph of the flow alone, on a GPU that is gone."""

    backend = "onnx"

    def solve(self, _onset: Image, _apex: Image) -> Image:
        raise RuntimeError("CUDA failure 999: unknown error")


@pytest.fixture
def full_gpu(monkeypatch: pytest.MonkeyPatch, held: Held) -> Held:
    """Fused runs that fail for want of a GPU's memory: there is none here to fill."""
    monkeypatch.setattr(Fused, "provider", "CUDAExecutionProvider")
    held.fault = "CUDA failure 2: out of memory"
    held.broken = True
    held.may_go.set()
    return held


@pytest.mark.parametrize("lost", [False, True])
def test_pairs_go_on_where_the_gpu_fails_with_the_fused_run(
    make: MakeSettings, full_gpu: Held, monkeypatch: pytest.MonkeyPatch, *, lost: bool
) -> None:
    """By the graph of the flow alone, and where that fails too by the CPU; each counted once."""
    if lost:
        monkeypatch.setattr(
            loaded,
            "open_solver",
            lambda spec, _wanted, **given: Solver(
                LostGraph(), CpuFlow(spec.flow), given["on_fallback"]
            ),
        )

    async def run() -> None:
        heard = Listener()
        async with opened(make(), heard) as engine:
            kinds = [face_frames(2.0), face_frames(0.0, 2.0), face_frames(2.0)]
            answers = await asyncio.gather(*map(engine.predict, kinds))
            assert (engine.ready, engine.items, heard.failed) == (True, 0, [])
            assert heard.flows == [("tiny", "device" if lost else "memory", True)] * 3
            assert [what for what, _ in heard.waits].count("worker") == 3
            full_gpu.broken = False
            whole = await asyncio.gather(*map(engine.predict, kinds))
        for answer, fused in zip(answers, whole, strict=True):
            assert answer.flow_backend == ("opencv-cpu" if lost else "onnx")
            assert fused.flow_backend == "onnx"
            np.testing.assert_allclose(shares(answer), shares(fused), atol=0.02)
            stages = ["decode", "detect", "align", "flow", "quality", "tensors", "infer", "total"]
            assert list(answer.timings_ms) == stages
            at = answer.moments
            assert at.begun_ns < at.prepared_ns < at.inferred_ns == at.resumed_ns
        assert shares(answers[0]) != shares(answers[1])

    asyncio.run(run())


def test_where_the_cpu_may_not_take_over_a_fused_run_that_fails_is_a_failure(
    make: MakeSettings, full_gpu: Held
) -> None:
    async def run() -> None:
        heard = Listener()
        async with opened(make(strict_gpu=True), heard) as engine:
            with pytest.raises(RuntimeError, match=full_gpu.fault):
                await engine.predict(face_frames(2.0))
            assert heard.flows == [("tiny", "memory", False)]
            assert ([one[2] for one in heard.failed], engine.trouble) == (
                [full_gpu.fault],
                "inference_failed",
            )

    asyncio.run(run())


def samples(client: TestClient, name: str) -> dict[tuple[str, ...], float]:
    found = {}
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(name):
            labels, value = line.removeprefix(name).rsplit(" ", 1)
            found[tuple(part.split('"')[1] for part in labels.strip("{}").split(","))] = value
    return {labels: float(value) for labels, value in found.items()}


@contextmanager
def serving(settings: Settings, provider: TracerProvider | None = None) -> Iterator[TestClient]:
    with TestClient(create_app(settings, tracer_provider=provider)) as client:
        client.portal.call(client.app_state["engine"].warmed_up)
        yield client


def test_a_flow_that_falls_back_is_told_in_the_answer_counted_and_logged_once(
    lost_gpu: dict[str, bool],
    make: MakeSettings,
    pictures: Pictures,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert lost_gpu["spared"]
    counted = "mfdan_flow_fallbacks_total"
    with serving(make(flow="auto")) as client:
        assert set(samples(client, counted).values()) == {0}
        assert samples(client, "mfdan_flow_backend_info") == {("tvl1", "opencv-cuda", "tiny"): 1}
        (card,) = client.get("/models").json()
        assert card["flow"] == {"backend": "opencv-cuda", "algorithm": "tvl1"}
        for _ in range(2):
            answer = client.post("/predict", files=pictures.pair).json()
            assert answer["flow"] == {"backend": "opencv-cpu", "algorithm": "tvl1"}
        assert sum(samples(client, counted).values()) == 2
    lines = [json.loads(line) for line in io.StringIO(capsys.readouterr().out)]
    (told,) = [line for line in lines if line["event"] == "a GPU failed"]
    assert (told["level"], told["model"], told["fell_back"]) == ("warning", "tiny", True)
    (start,) = [line for line in lines if line["event"] == "started"]
    assert start["models"][0]["flow"] == "opencv-cuda"


def test_a_flow_that_may_not_fall_back_is_500_tells_nothing_and_is_counted(
    lost_gpu: dict[str, bool], make: MakeSettings, pictures: Pictures
) -> None:
    lost_gpu["spared"] = False
    with serving(make(flow="auto")) as client:
        refused = client.post("/predict", files=pictures.pair)
        assert sum(samples(client, "mfdan_flow_failures_total").values()) == 1
        assert sum(samples(client, "mfdan_flow_fallbacks_total").values()) == 0
    assert refused.status_code == 500
    problem = refused.json()
    assert (problem["code"], problem["detail"]) == ("internal_error", "The service failed.")
    assert FlowFailed.__name__ not in refused.text
