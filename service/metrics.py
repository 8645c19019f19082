"""The families of metrics, all `mfdan_…` and in base units. Every label's values are bounded.

Each group belongs to one registry and each app has one of its own: nothing is global.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from importlib.metadata import version
from itertools import product
from platform import python_version
from typing import get_args

import cv2
import onnxruntime as ort
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from model.spec import ModelSpec
from service.admission import Admission
from service.engine import Engine, Trouble
from service.errors import REJECTIONS
from service.observer import Change, Place, Wait, Why
from service.schemas import Judged, Prediction, Reason
from service.settings import Settings

__all__ = ["AnswerMetrics", "RequestMetrics", "State", "WorkMetrics", "tell_build"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_WAIT_SECONDS = (0.001, *_SECONDS)
_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
_PIXELS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 1.5, 2, 3, 5, 10)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_REASONS = ("draining", *get_args(Trouble))
_WATCHED = ("200", "429", "500", "503", "504")
"""Statuses of which an alert, or what it is compared with, is made."""
_SCRAPE_WAIT_S = 1.0
"""What a scrape from another thread waits for an event loop that hangs."""


class RequestMetrics:
    """Of every request, whatever became of it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.answered = Counter(
            "mfdan_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self.duration = Histogram(
            "mfdan_request_duration_seconds",
            "From the headers of a request to the last byte of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "mfdan_requests_in_flight", "Requests that wait for their answer.", registry=registry
        )
        self.connections = Gauge("mfdan_connections", "Connections open.", registry=registry)
        self.rejections = Counter(
            "mfdan_rejections", "Requests and pairs refused, by code.", ("code",), registry=registry
        )
        self.of_callers = Counter(
            "mfdan_caller_requests",
            "Requests answered, by the name of the caller's key.",
            ("caller", "status"),
            registry=registry,
        )
        self.log_lines_lost = Counter(
            "mfdan_log_lines_lost", "Lines of the log that could not be written.", registry=registry
        )
        for code in sorted(REJECTIONS):  # an increase from nothing is no increase to Prometheus
            self.rejections.labels(code)

    def begin_at_zero(self, predictions: Iterable[str]) -> None:
        """Show as 0 what alerts count of the routes of predictions, so that a first burst is seen.

        Other statuses begin with their first answer: there are too many of them.
        """
        for route, status in product(predictions, _WATCHED):
            self.answered.labels("POST", route, status)


class WorkMetrics:
    """Of the engine's work: waits, runs of the network, what was dropped, what broke."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.wait = Histogram(
            "mfdan_queue_wait_seconds",
            "What a pair or clip waited for a worker, or a face for a run of the network.",
            ("resource",),
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "mfdan_batch_size",
            "Faces in one run of the network.",
            buckets=_BATCHES,
            registry=registry,
        )
        self.batch_duration = Histogram(
            "mfdan_batch_duration_seconds",
            "One run of the network.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_failures = Counter(
            "mfdan_batch_failures",
            "Runs of the network that raised.",
            ("model",),
            registry=registry,
        )
        self.flow_fallbacks = Counter(
            "mfdan_flow_fallbacks",
            "Flows that were computed otherwise than they should, because the GPU failed.",
            ("model", "reason"),
            registry=registry,
        )
        self.flow_failures = Counter(
            "mfdan_flow_failures",
            "Flows that nobody computed, because the GPU failed.",
            ("model", "reason"),
            registry=registry,
        )
        self.cancellations = Counter(
            "mfdan_cancellations",
            "Pairs and clips dropped, by where they were and why nobody waits any more.",
            ("place", "why"),
            registry=registry,
        )
        self.deaths = Counter(
            "mfdan_worker_deaths",
            "Threads that ended and were replaced.",
            ("resource",),
            registry=registry,
        )
        self.model_changes = Counter(
            "mfdan_model_changes",
            "Models loaded, replaced, unloaded and refused while serving.",
            ("change",),
            registry=registry,
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Show what never happened as 0, for the same reason."""
        for resource in get_args(Wait):
            self.wait.labels(resource)
            self.deaths.labels(resource)
        for place in get_args(Place):
            for why in get_args(Why):
                self.cancellations.labels(place, why)
        for change in get_args(Change):
            self.model_changes.labels(change)


class AnswerMetrics:
    """Of what was answered: a sudden change of these is a change of what is sent."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.stages = Histogram(
            "mfdan_stage_duration_seconds",
            "Work of one pair, clip or stack of tensors in one stage.",
            ("kind", "stage"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.predictions = Counter(
            "mfdan_predictions",
            "Pairs and clips answered, by whether a face was found.",
            ("kind", "faces"),
            registry=registry,
        )
        self.faces = Counter("mfdan_faces", "Faces answered.", registry=registry)
        self.clips = Counter(
            "mfdan_clips", "Clips answered, by container.", ("container",), registry=registry
        )
        self.clip_seconds = Counter(
            "mfdan_clip_seconds", "Duration of the clips answered.", registry=registry
        )
        self.candidates = Counter(
            "mfdan_candidates",
            "Intervals of clips answered, by who chose them.",
            ("source",),
            registry=registry,
        )
        self.labels = Counter(
            "mfdan_labels", "Answers that stand, by class.", ("model", "label"), registry=registry
        )
        self.abstentions = Counter(
            "mfdan_abstentions",
            "Answers that abstain, by the first reason.",
            ("model", "reason"),
            registry=registry,
        )
        self.confidence = Histogram(
            "mfdan_confidence_ratio",
            "Probability of the label, of answers that stand.",
            ("model",),
            buckets=_SHARES,
            registry=registry,
        )
        self.moved = Histogram(
            "mfdan_motion_moved_pixels",
            "How far the part of a face that moved most went, pixels of the aligned crop.",
            ("model",),
            buckets=_PIXELS,
            registry=registry,
        )
        self.p95 = Histogram(
            "mfdan_motion_p95_pixels",
            "95th percentile of a face's motion, pixels of the aligned crop.",
            ("model",),
            buckets=_PIXELS,
            registry=registry,
        )
        for kind, faces in product(("pair", "clip"), ("none", "some")):
            self.predictions.labels(kind, faces)

    def begin_at_zero(self, spec: ModelSpec) -> None:
        """Show what a model has never answered as 0: an increase from nothing is none."""
        for label in spec.classes:
            self.labels.labels(spec.name, label)
        for reason in get_args(Reason):
            self.abstentions.labels(spec.name, reason)

    def count(self, prediction: Prediction) -> None:
        """Count the answer to one pair or clip."""
        kind = "pair" if prediction.clip is None else "clip"
        self.predictions.labels(kind, "some" if prediction.faces else "none").inc()
        self.count_stages(kind, prediction.timings_ms)
        if prediction.clip is not None:
            self.clips.labels(prediction.clip.container).inc()
            self.clip_seconds.inc(prediction.clip.duration_s)
        for candidate in (one for face in prediction.faces for one in face.candidates):
            self.candidates.labels(str(candidate.source)).inc()
        self.faces.inc(len(prediction.faces))
        for face in prediction.faces:
            self._count_face(prediction.model.name, face)

    def count_stages(self, kind: str, timings_ms: Mapping[str, float]) -> None:
        """Count how long each stage of an answer to a `pair`, a `clip` or `tensors` took."""
        for stage, ms in timings_ms.items():
            self.stages.labels(kind, stage).observe(ms / 1e3)

    def _count_face(self, model: str, face: Judged) -> None:
        self.moved.labels(model).observe(face.motion.moved_px)
        self.p95.labels(model).observe(face.motion.p95_px)
        if face.reason is None:
            self.labels.labels(model, face.label).inc()
            self.confidence.labels(model).observe(face.probabilities[face.label])
        else:
            self.abstentions.labels(model, face.reason).inc()


def tell_build(registry: CollectorRegistry) -> None:
    """Tell once and for all what runs here."""
    Gauge(
        "mfdan_build_info",
        "Versions; always 1.",
        ("version", "python", "onnxruntime", "opencv"),
        registry=registry,
    ).labels(version("mfdan"), python_version(), ort.__version__, cv2.__version__).set(1)


class State(Collector):
    """What an app's engine and its doors are at now, read anew at every scrape.

    So models come and go with the engine's. A scrape from a thread has the event loop read; where
    that hangs, the state is missing from the scrape, and the rest is there.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._read: Callable[[], list[Metric]] = list
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        registry.register(self)

    def watch(self, settings: Settings, engine: Engine, admission: Admission) -> None:
        """Show these from now on. Called in the event loop that they live in."""
        self._read = lambda: [*_state(settings, engine, admission)]
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()

    def collect(self) -> list[Metric]:
        """Read the state."""
        if self._loop is None:
            return []
        if self._thread == threading.get_ident():
            return self._read()
        found: Future[list[Metric]] = Future()
        try:
            self._loop.call_soon_threadsafe(lambda: found.set_result(self._read()))
            return found.result(_SCRAPE_WAIT_S)
        except (RuntimeError, TimeoutError):  # the loop is closed, or hangs
            return []


def _state(settings: Settings, engine: Engine, admission: Admission) -> Iterator[Metric]:
    yield _gauge(
        "mfdan_queue_items",
        "Faces of pairs (as asked for) at work or waiting, and movements found in clips.",
        engine.items,
    )
    yield _gauge("mfdan_queue_clips", "Clips at work or waiting.", engine.clips)
    yield _gauge("mfdan_queue_waiting", "Pairs and clips that wait for a worker.", engine.waiting)
    yield _gauge("mfdan_workers_busy", "Workers that have work.", engine.busy_workers)
    yield _gauge(
        "mfdan_predictions_in_flight",
        "Predictions from their headers to the last byte of their answer.",
        admission.under_way,
    )
    yield _limits(settings)
    yield from _readiness("draining" if admission.draining else engine.trouble)
    yield from _models(engine)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value)


def _limits(settings: Settings) -> Metric:
    found = GaugeMetricFamily("mfdan_limit", "What the settings allow at most.", labels=["of"])
    for of, most in (
        ("queue_items", settings.queue_items),
        ("queue_clips", settings.most_clips),
        ("predictions_in_flight", settings.max_requests),
        ("workers", settings.workers),
        ("connections", settings.max_connections),
    ):
        found.add_metric([of], most)
    return found


def _readiness(present: str | None) -> Iterator[Metric]:
    yield _gauge("mfdan_ready", "1 when a request would be worked on.", present is None)
    reasons = GaugeMetricFamily(
        "mfdan_not_ready", "1 for the reason why the service is not ready.", labels=["reason"]
    )
    for reason in _REASONS:
        reasons.add_metric([reason], reason == present)
    yield reasons


def _models(engine: Engine) -> Iterator[Metric]:
    models = InfoMetricFamily("mfdan_model", "The loaded models; always 1.")
    fallback = GaugeMetricFamily(
        "mfdan_provider_fallback",
        "1 for a model for which a GPU was asked and not got.",
        labels=["model"],
    )
    reference = GaugeMetricFamily(
        "mfdan_reference_ratio",
        "Share of each answer where the model was measured, if its spec tells.",
        labels=["model", "answer"],
    )
    flow = InfoMetricFamily(
        "mfdan_flow_backend", "Who computes a model's flow; always 1.", labels=["model"]
    )
    for name, loaded in engine.models.items():
        spec = loaded.spec
        about = {"version": spec.version, "sha256": spec.onnx_sha256, "provider": loaded.provider}
        models.add_metric([], {"name": name, **about})
        flow.add_metric([name], {"backend": loaded.flow_backend, "algorithm": spec.flow.algorithm})
        fallback.add_metric([name], loaded.fell_back)
        shares = spec.reference.shares if spec.reference else {}
        for answer, share in shares.items():
            reference.add_metric([name, answer], share)
    yield from (models, flow, fallback, reference)
