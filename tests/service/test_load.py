"""What a caller meets when the service is full, late, shutting down, or the caller leaves."""

import asyncio
import pkgutil
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx2
import pytest
from connecting import open_doors, posted, read_answer
from serving import (
    HeldSession,
    MakeSettings,
    Pictures,
    Serve,
    async_client,
    served,
    until,
    wait_for,
)

from service.app import create_app
from service.engine import Engine


def test_a_full_queue_is_429_with_retry_after(
    serve: Serve, held: HeldSession, pictures: Pictures
) -> None:
    with serve(held, queue_items=128, retry_after_s=7) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/predict", files=pictures.pair)
        assert held.started.wait(20)
        files = [("onset", pictures.onset)] * 16 + [("apex", pictures.smile)] * 16
        response = client.post("/predict/batch", files=files, data={"faces": "8"})
        assert (response.status_code, response.json()["code"]) == (429, "queue_full")
        assert response.headers["retry-after"] == "7"
        held.may_go.set()
        assert first.result().status_code == 200


def test_too_many_requests_at_once_are_429_before_they_are_read(
    serve: Serve, held: HeldSession, pictures: Pictures
) -> None:
    with serve(held, max_requests=1) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/predict", files=pictures.pair)
        assert held.started.wait(20)
        response = client.post("/predict", files=pictures.pair)
        assert (response.status_code, response.json()["code"]) == (429, "too_many_requests")
        assert response.headers["retry-after"] == "1"
        assert client.get("/health/live").status_code == 200
        held.may_go.set()
        assert first.result().status_code == 200
        assert client.post("/predict", files=pictures.pair).status_code == 200


def test_a_late_answer_is_504(serve: Serve, held: HeldSession, pictures: Pictures) -> None:
    with serve(held, deadline_ms=300) as client:
        response = client.post("/predict", files=pictures.pair)
        assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
        held.may_go.set()


@pytest.mark.parametrize(
    "stage",
    ["service.preparation.decode_image", "model.solver.compute_flow", "model.session._softmax"],
)
def test_the_event_loop_answers_while_pictures_are_worked_on(
    serve: Serve, pictures: Pictures, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """One stage of each thread, and the first one, is held."""
    work = pkgutil.resolve_name(stage)
    working, may_go = threading.Event(), threading.Event()

    def hold(*given: object) -> object:
        working.set()
        assert may_go.wait(5)  # on the loop nobody could let it go
        return work(*given)

    with serve() as client, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(stage, hold)
        first = pool.submit(client.post, "/predict", files=pictures.pair)
        assert working.wait(20)
        assert client.get("/health/live").json() == {"status": "live"}
        assert client.get("/health/ready").json() == {"status": "ready"}
        may_go.set()
        assert first.result().status_code == 200


def test_before_the_model_is_warm_predictions_are_503(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    warm = threading.Event()
    held.warm_up = lambda _sizes: warm.wait(20)
    held.may_go.set()

    async def run() -> None:
        app = create_app(make_settings(), partial(Engine.open, sessions={"tiny": held}))
        async with app.router.lifespan_context(app) as state, async_client(app, state) as client:
            assert (await client.get("/health/live")).status_code == 200
            for response in (
                await client.get("/health/ready"),
                await client.post("/predict", files=pictures.pair),
            ):
                assert (response.status_code, response.json()["code"]) == (503, "not_ready")
                assert response.headers["retry-after"] == "1"
            warm.set()
            await state["engine"].warmed_up()
            assert (await client.get("/health/ready")).status_code == 200

    asyncio.run(run())


def test_while_draining_newcomers_are_503_and_the_admitted_are_answered(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    async def run() -> None:
        app = create_app(make_settings(), partial(Engine.open, sessions={"tiny": held}))
        async with app.router.lifespan_context(app) as state, async_client(app, state) as client:
            await state["engine"].warmed_up()
            first = asyncio.create_task(client.post("/predict", files=pictures.pair))
            await asyncio.to_thread(held.started.wait, 20)
            closing = asyncio.create_task(state["engine"].close())
            await asyncio.sleep(0)
            for response in (
                await client.get("/health/ready"),
                await client.post("/predict", files=pictures.pair),
            ):
                assert (response.status_code, response.json()["code"]) == (503, "draining")
            held.may_go.set()
            assert (await first).status_code == 200
            await closing

    asyncio.run(run())


def test_the_work_of_a_caller_who_hung_up_is_dropped(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    request = httpx2.Request("POST", "http://here/predict", files=pictures.pair)
    body = request.read()
    headers = [(name.lower(), value) for name, value in request.headers.raw]
    sent: list[dict] = []

    async def run() -> None:
        app = create_app(make_settings(), partial(Engine.open, sessions={"tiny": held}))
        async with app.router.lifespan_context(app) as state:
            engine = state["engine"]
            await engine.warmed_up()
            messages = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def receive() -> dict:
                message = next(messages, None)
                if message is None:
                    await asyncio.to_thread(held.started.wait, 20)
                    return {"type": "http.disconnect"}
                return message

            async def send(message: dict) -> None:
                sent.append(message)

            scope = {
                "type": "http",
                "method": "POST",
                "path": "/predict",
                "raw_path": b"/predict",
                "query_string": b"",
                "headers": headers,
                "state": dict(state),
            }
            async with asyncio.timeout(20):
                await app(scope, receive, send)  # returns although the network is held
            await until(lambda: engine.items == 0)
            held.may_go.set()

    asyncio.run(run())
    assert sent[0]["status"] == 499


def test_a_connection_closed_by_its_caller_frees_its_place(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    """The same over real HTTP."""
    app = create_app(make_settings(), partial(Engine.open, sessions={"tiny": held}))
    with served(app) as url:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/predict", files=pictures.pair, timeout=1)
        wait_for(lambda: "mfdan_queue_items 0.0" in httpx2.get(f"{url}/metrics").text)
        gone = 'mfdan_requests_total{method="POST",route="/predict",status="499"} 1.0'
        wait_for(lambda: gone in httpx2.get(f"{url}/metrics").text)
        held.may_go.set()


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_a_fault_nobody_foresaw_is_500_and_tells_nothing(
    serve: Serve,
    held: HeldSession,
    pictures: Pictures,
    path: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_given: object) -> None:
        raise ZeroDivisionError("secret of the picture")

    held.run = fail
    with serve(held) as client:
        response = client.post(path, files=pictures.pair)
        body = response.json() if path == "/predict" else response.json()["results"][0]
        assert (body["status"], body["code"]) == (500, "internal_error")
        assert "secret" not in response.text
        assert "ZeroDivision" not in response.text
    log = capsys.readouterr().out
    assert "ZeroDivisionError" in log
    assert "secret" not in log


def test_uploads_that_trickle_make_room_for_a_newcomer(
    make_settings: MakeSettings, pictures: Pictures
) -> None:
    whole = posted("/predict", **pictures.pair)
    begun, last = whole[:-500], whole[-500:]
    with open_doors(make_settings(max_requests=2)) as doors:
        slow = [doors.connect(whole[:-2000]), doors.connect(begun)]
        wait_for(lambda: httpx2.post(f"{doors.url}/predict", files=pictures.pair).is_success)
        assert b" 408 " in read_answer(slow[0])  # the slowest of them
        slow[1].sendall(last)
        assert b" 200 " in read_answer(slow[1])  # nobody needed its place
        for connection in slow:
            connection.close()


def test_an_upload_that_comes_fast_keeps_its_place(
    make_settings: MakeSettings, pictures: Pictures
) -> None:
    whole = posted("/predict", **pictures.pair)
    with open_doors(make_settings(max_requests=1)) as doors, doors.connect(whole[:-9]) as upload:
        wait_for(
            lambda: httpx2.post(f"{doors.url}/predict", files=pictures.pair).status_code == 429
        )
        upload.sendall(whole[-9:])
        assert b" 200 " in read_answer(upload)


def test_a_caller_who_leaves_in_the_middle_of_an_upload_frees_its_place(
    make_settings: MakeSettings, pictures: Pictures
) -> None:
    whole = posted("/predict", **pictures.pair)
    with open_doors(make_settings(max_requests=1)) as doors:
        doors.connect(whole[:-9]).close()
        wait_for(lambda: httpx2.post(f"{doors.url}/predict", files=pictures.pair).is_success)


@pytest.mark.parametrize(
    "path",
    ["/predict", "/predict/batch", "/v2/models/tiny/infer", "/v2/models/tiny/versions/1/infer"],
)
def test_whatever_is_answered_with_predictions_is_refused_at_its_headers_while_draining(
    make_settings: MakeSettings, held: HeldSession, path: str
) -> None:
    async def run() -> None:
        app = create_app(make_settings(), partial(Engine.open, sessions={"tiny": held}))
        async with app.router.lifespan_context(app) as state, async_client(app, state) as client:
            held.may_go.set()
            await state["engine"].warmed_up()
            state["admission"].drain()
            response = await client.post(path, content=never())
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert "shutting down" in response.text
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()["code"]) == (503, "draining")
            assert (await client.get("/v2/health/ready")).status_code == 503
            assert (await client.get("/health/live")).status_code == 200

    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was asked for")
        yield b""

    asyncio.run(run())


def test_what_was_admitted_before_draining_may_go_on_uploading(
    make_settings: MakeSettings, pictures: Pictures
) -> None:
    whole = posted("/predict", **pictures.pair)
    with open_doors(make_settings()) as doors, doors.connect(whole[:-9]) as upload:
        admission = doors.server.lifespan.state["admission"]
        wait_for(lambda: admission.under_way == 1)
        admission.drain()
        wait_for(lambda: httpx2.get(f"{doors.url}/health/ready").status_code == 503)
        upload.sendall(whole[-9:])
        assert b" 200 " in read_answer(upload)
        assert httpx2.post(f"{doors.url}/predict", files=pictures.pair).status_code == 503


def test_another_method_takes_no_place_of_a_prediction(
    serve: Serve, held: HeldSession, pictures: Pictures
) -> None:
    with serve(held, max_requests=1) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/predict", files=pictures.pair)
        assert held.started.wait(20)
        assert client.get("/predict").status_code == 405
        assert client.get("/v2/models/tiny/infer").status_code == 405
        held.may_go.set()
        assert first.result().status_code == 200


def test_without_places_the_wait_is_the_longer_of_the_measured_ones(
    serve: Serve, held: HeldSession, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(held, max_requests=1) as client, ThreadPoolExecutor(1) as pool:
        waits = {"pair": 2, "clip": 17}
        monkeypatch.setattr(client.app_state["engine"], "retry_after_s", waits.get)
        first = pool.submit(client.post, "/predict", files=pictures.pair)
        assert held.started.wait(20)
        response = client.post("/predict", files=pictures.pair)
        assert (response.status_code, response.headers["retry-after"]) == (429, "17")
        held.may_go.set()
        assert first.result().status_code == 200
