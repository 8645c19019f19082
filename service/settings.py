"""What an operator can set: environment variables `MFDAN_…`, each bounded."""

import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

import model
from model.clip import ClipLimits
from model.decode import Limits
from model.runtime import Device, Placement
from model.spec import FlowBackend

__all__ = ["MAX_BURST", "MAX_CANDIDATES", "MAX_FACES", "MAX_PAIRS", "Settings", "cores"]

MAX_FACES = 8
"""Faces that one pair or clip may ask for."""
MAX_CANDIDATES = 10
"""Intervals of each face that a clip may ask for."""
MAX_BURST = 512
"""Pictures that may be sent for the frames of one clip."""
MAX_PAIRS = 16
"""Pairs in one batch."""

_PACKAGED_MODELS = Path(model.__path__[0]) / "weights"
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_MAX_PIXELS = 89_000_000
"""Above 89.5 million pixels Pillow warns, above twice that it refuses; its words know nothing of
our limit."""
_FORM_OVERHEAD_BYTES = 64 * 2**10
"""Boundaries, part headers and the short fields of a form."""
_PART_HEADER_BYTES = 512
"""Of one picture of a burst."""
_CLIP = ClipLimits()
_DRAIN_MARGIN_S = 5
"""For what is no upload and has no deadline: reading a form, sending an answer."""


class Settings(BaseSettings):
    """Settings of the service; every field is the variable MFDAN_ + its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="MFDAN_", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address to listen on. Anything but a loopback address needs API keys."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """TCP port to listen on; 0 takes a free one."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lines below this level are not written; a request is one `info` line."""

    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """TCP port of its own for /metrics; None: with the rest. 0 takes a free one."""
    metrics_host: str = "127.0.0.1"
    """Address for that port."""
    api_keys_file: Path | None = None
    """TOML file with the hashed API keys; None: nobody needs one, and the service answers this
    machine only."""

    models_dir: Path = _PACKAGED_MODELS
    """Folder of *.onnx files, each with its spec beside it; all of them are loaded. Or one such
    file."""
    model: str | None = None
    """Name of the model that answers when a request names none; None: the first by file name."""
    reload_s: Annotated[float, Field(ge=0, le=86_400)] = 5
    """How often the models folder is looked at for new, changed and removed files, seconds; 0:
    never."""
    device: Device = "cpu"
    """Where ONNX Runtime shall run the network."""
    strict_gpu: bool = False
    """Whether a GPU that was asked for and not got refuses the model. Otherwise it runs on the CPU,
    and log, metrics and answers say so."""
    gpu_arena_mb: Annotated[int, Field(ge=64, le=2**20)] = 4096
    """What ONNX Runtime may take of the GPU's memory for one graph, MiB; more, and the run fails.
    CUDA and cuDNN, and the inputs and outputs, come on top."""
    tf32: bool = False
    """Whether a GPU may round the factors of float32 products to TF32: faster, and less exact."""
    cuda_graphs: bool = False
    """Whether runs of one size are captured once and replayed as a CUDA graph."""

    flow: Literal[FlowBackend, "auto"] = "auto"
    """Who computes the flow; the model's spec must allow it. `auto`: OpenCV on a CUDA GPU where
    there is one and the spec allows it, else the graph in ONNX Runtime where that is on a GPU and
    spox is installed, else OpenCV on the CPU, else the graph. One for all models."""

    worker_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads that decode, align and compute flow; 0: as many as there are cores."""
    opencv_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads inside one OpenCV call; 0: cores divided among the workers."""
    onnx_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads inside one run of the network; 0: as many as there are cores."""
    clip_workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Workers that may be busy with clips, which take seconds each; 0: all but one, which is left
    to pairs. One, where there is only one."""
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=8)
    ] = (1, 2, 4, 8)
    """Numbers of faces that one run of the network may hold; 1 must be among them."""

    queue_items: Annotated[int, Field(ge=MAX_PAIRS * MAX_FACES, le=65536)] = 128
    """Faces of pairs, as asked for, that may be at work or waiting, together with the movements
    found in clips; more pairs are answered 429."""
    queue_clips: Annotated[int, Field(ge=0, le=65536)] = 16
    """Clips that may wait, beside those at work; more is answered 429."""
    max_requests: Annotated[int, Field(ge=1, le=65536)] = 64
    """Predictions that may be uploading or waiting at once; more is answered 429, unless an upload
    is so slow that it makes room."""
    retry_after_s: Annotated[int, Field(ge=1, le=3600)] = 1
    """What a 429 or 503 answer tells the caller to wait at the least, seconds; a measured rate may
    say more."""
    deadline_ms: Annotated[int, Field(ge=1, le=600_000)] = 30_000
    """From the complete upload of a pair to its answer, milliseconds; past it is answered 504."""
    clip_deadline_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 120_000
    """The same for a clip; decoding stops there."""
    upload_timeout_ms: Annotated[int, Field(ge=1, le=600_000)] = 30_000
    """For the request body to arrive, milliseconds; past it is answered 408."""
    drain_timeout_s: Annotated[int, Field(ge=0, le=4205)] | None = None
    """What running requests are given to finish at shutdown, seconds; None: as long as the longest
    of them may take, by its upload and its deadline."""
    drain_grace_s: Annotated[float, Field(ge=0, le=600)] = 0
    """For how long the port stays open at shutdown at the least, seconds: what balances the load
    needs as long to see that the service is not ready."""
    header_timeout_ms: Annotated[int, Field(ge=1, le=600_000)] = 10_000
    """For the headers of a request to arrive, and for a caller to read on, milliseconds; past it
    the connection is closed. So is an idle one."""
    max_connections: Annotated[int, Field(ge=1, le=65536)] = 1000
    """Connections open at once; one more takes the place of the longest idle one, or is closed."""

    max_image_bytes: Annotated[int, Field(ge=1024, le=2**30)] = 10 * 2**20
    """Largest picture as uploaded, bytes."""
    max_image_pixels: Annotated[int, Field(ge=1024, le=_MAX_PIXELS)] = 25_000_000
    """Largest picture as decoded, pixels."""
    max_clip_bytes: Annotated[int, Field(ge=1024, le=2**30)] = _CLIP.max_bytes
    """Largest clip as uploaded, bytes; the pictures of a burst together."""
    max_clip_pixels: Annotated[int, Field(ge=1024, le=_MAX_PIXELS)] = _CLIP.max_pixels
    """Largest frame of a clip, pixels."""
    max_clip_frames: Annotated[int, Field(ge=2, le=10**6)] = _CLIP.max_frames
    """Frames of the longest clip."""
    max_clip_seconds: Annotated[float, Field(gt=0, le=3600)] = _CLIP.max_seconds
    """Duration of the longest clip."""
    max_clip_decoded_pixels: Annotated[int, Field(ge=1024, le=10**12)] = _CLIP.max_decoded_pixels
    """Pixels of all frames of one clip together."""
    max_clip_decode_s: Annotated[float, Field(gt=0, le=3600)] = _CLIP.max_decode_seconds
    """What decoding one clip once may take, seconds by the clock; past it is answered 413."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=2**32)] = 66 * 2**20
    """Largest request body, bytes. A pair and a clip have lower caps of their own."""

    @field_validator("batch_sizes")
    @classmethod
    def _one_is_a_batch(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if 1 not in sizes:
            raise ValueError("1 must be among them, or a lone face is never answered")
        return sizes

    @cached_property
    def placement(self) -> Placement:
        """Where and how ONNX Runtime runs the models."""
        return Placement(
            device=self.device,
            threads=self.onnx,
            strict=self.strict_gpu,
            memory_limit_mb=self.gpu_arena_mb,
            tf32=self.tf32,
            cuda_graphs=self.cuda_graphs,
        )

    @cached_property
    def limits(self) -> Limits:
        """What one picture may cost."""
        return Limits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels)

    @cached_property
    def clip_limits(self) -> ClipLimits:
        """What one clip may cost."""
        return ClipLimits(
            max_bytes=self.max_clip_bytes,
            max_pixels=self.max_clip_pixels,
            max_frames=self.max_clip_frames,
            max_seconds=self.max_clip_seconds,
            max_decoded_pixels=self.max_clip_decoded_pixels,
            max_decode_seconds=self.max_clip_decode_s,
        )

    @property
    def max_single_bytes(self) -> int:
        """Largest request body of a single pair or clip, bytes.

        Roomier than two pictures or a clip, so that one a little too large is named as such, and
        that the part headers of a burst have room.
        """
        pair = 3 * self.max_image_bytes
        clip = self.max_clip_bytes + self.max_clip_bytes // 64 + MAX_BURST * _PART_HEADER_BYTES
        return min(self.max_body_bytes, max(pair, clip) + _FORM_OVERHEAD_BYTES)

    def model_files(self) -> list[Path]:
        """Return the ONNX files that `models_dir` means."""
        if self.models_dir.suffix == ".onnx":
            return [self.models_dir]
        return sorted(self.models_dir.glob("*.onnx"))

    @cached_property
    def workers(self) -> int:
        """`worker_threads`, resolved."""
        return self.worker_threads or cores()

    @property
    def clips_at_once(self) -> int:
        """`clip_workers`, resolved."""
        return min(self.workers, self.clip_workers or max(1, self.workers - 1))

    @property
    def most_clips(self) -> int:
        """Clips that may be at work or waiting."""
        return self.clips_at_once + self.queue_clips

    @property
    def drain_s(self) -> float:
        """`drain_timeout_s`, resolved."""
        if self.drain_timeout_s is not None:
            return self.drain_timeout_s
        longest_ms = self.upload_timeout_ms + max(self.deadline_ms, self.clip_deadline_ms)
        return longest_ms / 1e3 + _DRAIN_MARGIN_S

    @cached_property
    def opencv(self) -> int:
        """`opencv_threads`, resolved."""
        return self.opencv_threads or max(1, cores() // self.workers)

    @cached_property
    def onnx(self) -> int:
        """`onnx_threads`, resolved."""
        return self.onnx_threads or cores()


def cores(cpu_max: Path = _CPU_MAX) -> int:
    """Return how many cores this process may use: by affinity, and by its container's quota."""
    affine = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, min(affine, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or a quota of "max"
        return affine
