"""The FastAPI application: `create_app` puts the parts together, the lifespan holds the engine."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Any

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from opentelemetry.trace import TracerProvider

from service.admission import Admission
from service.callers import KeyMiddleware, describe_keys, followed
from service.engine import Engine
from service.errors import add_error_handlers
from service.keys import KeyRing
from service.observer import Observer
from service.open_inference import OpenInferenceErrors
from service.open_inference import router as open_inference
from service.routes import metrics_router, router
from service.security import PREDICTION_ROUTES, GuardMiddleware, HeadersMiddleware
from service.settings import Settings
from service.telemetry import Telemetry, TelemetryMiddleware

__all__ = ["OpenEngine", "create_app"]

OpenEngine = Callable[[Settings, Observer], AbstractAsyncContextManager[Engine]]

_DESCRIPTION = """\
Recognises facial micro-expressions: two frames of one face or a short clip in, the probabilities
of a few classes of expression out. An answer speaks of what a face's movement looks like, **not
of what a person feels**. No picture, face or landmark is stored or logged, and nobody is
identified.

**Meant for** research on micro-expressions, for teaching, and for the analysis of recordings
whose people know of it and agreed.

**Not to be used** to infer emotions of people at work or in education: the European Union
prohibits it (Regulation (EU) 2024/1689, Article 5(1)(f)). Not for deciding anything about a
person, not for lie detection, hiring, policing, border control, credit, insurance or health.
Whoever exposes people to emotion recognition must tell them (Article 50(3)).

Errors are `application/problem+json` (RFC 9457) with a stable `code`.
"""


def create_app(
    settings: Settings | None = None,
    open_engine: OpenEngine = Engine.open,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """Build the application; its lifespan opens the engine and closes it.

    `open_engine` takes the settings and who hears of the engine's work. `tracer_provider` makes the
    spans; None: OTEL_EXPORTER_OTLP_ENDPOINT says where they are sent, if anywhere. The metrics and
    the log are `app.state.telemetry`. Raises: KeysInvalid, TracingRefused.
    """
    settings = settings or Settings()
    telemetry = Telemetry(settings.log_level, tracer_provider=tracer_provider)
    admission = Admission(settings.max_requests)
    ring = KeyRing(settings.api_keys_file) if settings.api_keys_file else None
    # A setting of a library, which holds for the whole process:
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # quotes malformed uploads

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with (
            telemetry.tracing.sending(),
            open_engine(settings, telemetry) as engine,
            followed(ring, settings.reload_s, telemetry.log),
        ):
            telemetry.started(settings, engine, admission)
            yield {
                "engine": engine,
                "telemetry": telemetry,
                "admission": admission,
                # JSON is parsed one at a time: whoever parses it holds up everything else.
                "parsing": CapacityLimiter(1),
            }

    app = FastAPIOffline(
        title="mfdan",
        version=version("mfdan"),
        description=_DESCRIPTION,
        license_info={"name": "MIT", "identifier": "MIT"},
        lifespan=lifespan,
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,  # to an address made of what the caller calls this host
        telemetry=telemetry.tracing.config,
    )
    app.state.telemetry = telemetry
    telemetry.requests.begin_at_zero(PREDICTION_ROUTES)
    app.include_router(router)
    if settings.metrics_port is None:
        app.include_router(metrics_router)
    app.include_router(open_inference)
    describe_keys(app)
    add_error_handlers(app, settings)
    app.add_middleware(GuardMiddleware, settings=settings, admission=admission)
    if ring is not None:
        app.add_middleware(KeyMiddleware, ring=ring, settings=settings)
    app.add_middleware(TelemetryMiddleware, telemetry=telemetry, settings=settings)
    app.add_middleware(OpenInferenceErrors)
    app.add_middleware(HeadersMiddleware)  # the last added is the outermost
    return app
