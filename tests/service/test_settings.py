import os
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

import model
from model.clip import ClipLimits
from model.runtime import Placement
from service.settings import Settings, cores


def test_the_service_listens_on_loopback_only() -> None:
    assert Settings().host == "127.0.0.1"


def test_the_environment_sets_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFDAN_PORT", "9000")
    monkeypatch.setenv("MFDAN_BATCH_SIZES", "[1, 16]")
    assert Settings().port == 9000
    assert Settings().batch_sizes == (1, 16)
    assert Settings(port=7000).port == 7000


def test_the_packaged_models_are_the_default() -> None:
    assert Settings().models_dir == Path(next(iter(model.__path__))) / "weights"


@pytest.mark.parametrize(
    "bad",
    [
        {"port": 70_000},
        {"deadline_ms": 0},
        {"queue_items": 127},
        {"batch_sizes": ()},
        {"batch_sizes": (2, 4)},
        {"batch_sizes": (1, 65)},
        {"device": "tpu"},
        {"retry_after": 3},
        {"max_clip_frames": 1},
        {"max_clip_seconds": 0},
        {"max_clip_pixels": 10**9},
        {"clip_deadline_ms": 0},
    ],
)
def test_settings_out_of_bounds_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**bad)


def test_thread_counts_are_set_together() -> None:
    settings = Settings()
    assert settings.workers == settings.onnx == cores() <= (os.cpu_count() or 1)
    assert settings.opencv == 1
    assert Settings(worker_threads=1).opencv == cores()
    assert Settings(worker_threads=4 * cores()).opencv == 1
    assert Settings(worker_threads=3, opencv_threads=2, onnx_threads=5).onnx == 5


def test_clips_leave_a_worker_to_pairs_unless_told_otherwise() -> None:
    assert Settings(worker_threads=4).clips_at_once == 3
    assert Settings(worker_threads=1).clips_at_once == 1
    assert Settings(worker_threads=4, clip_workers=4).clips_at_once == 4
    assert Settings(worker_threads=2, clip_workers=4).clips_at_once == 2


def test_the_caps_of_clips_are_those_of_the_decoder_unless_set() -> None:
    assert Settings().clip_limits == ClipLimits()
    assert Settings(max_clip_seconds=5).clip_limits == ClipLimits(max_seconds=5)


def test_a_clip_a_little_too_large_is_read_so_that_it_can_be_named() -> None:
    settings = Settings()
    assert settings.max_clip_bytes < settings.max_single_bytes <= settings.max_body_bytes


def test_the_quota_of_a_container_bounds_the_cores(tmp_path: Path) -> None:
    cpu_max = tmp_path / "cpu.max"
    for quota, expected in (("100000 100000", 1), ("50000 100000", 1), ("max 100000", cores())):
        cpu_max.write_text(quota)
        assert cores(cpu_max) == expected
    assert cores(tmp_path / "missing") >= 1


def test_every_setting_says_what_it_does() -> None:
    described = {name: field.description for name, field in Settings.model_fields.items()}
    assert [name for name, text in described.items() if not text] == []


def test_no_picture_that_may_be_taken_meets_a_limit_of_pillow() -> None:
    with pytest.raises(ValidationError):
        Settings(max_image_pixels=Image.MAX_IMAGE_PIXELS + 1)


def test_the_settings_of_the_gpu_reach_onnx_runtime() -> None:
    chosen = Settings(
        device="tensorrt",
        onnx_threads=3,
        strict_gpu=True,
        gpu_arena_mb=512,
        tf32=True,
        cuda_graphs=True,
    )
    assert chosen.placement == Placement(
        device="tensorrt",
        threads=3,
        strict=True,
        memory_limit_mb=512,
        tf32=True,
        cuda_graphs=True,
    )
    tensorrt, cuda, cpu = chosen.placement.providers()
    assert tensorrt[1]["trt_max_workspace_size"] == cuda[1]["gpu_mem_limit"] == str(512 * 2**20)
    assert cuda[1]["use_tf32"] == "1"
    assert cpu == ("CPUExecutionProvider", {})
