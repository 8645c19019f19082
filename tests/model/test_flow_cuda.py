"""OpenCV on a GPU: how it is asked, on a stand-in; what it answers, where there is a GPU."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from cuda_stand_in import Device
from drawn_warp import bump, texture, warp

from model.errors import ShapeError
from model.flow import compute_flow, magnitude
from model.flow_cuda import CudaFlow
from model.solver import cuda_devices, fault_of
from model.spec import FlowMethod

SIDE = 96
SHAPE = (SIDE, SIDE)
SMALL = {
    "scalesNumber": 2,
    "scaleStep": 0.5,
    "warpingsNumber": 2,
    "outerIterations": 2,
    "innerIterations": 4,
    "medianFiltering": 1,
}
METHODS = {
    "tvl1": FlowMethod(algorithm="tvl1", parameters=SMALL),
    "farneback": FlowMethod(algorithm="farneback"),
    "brox": FlowMethod(algorithm="brox"),
}
ON_CPU = {
    "tvl1": FlowMethod(
        algorithm="tvl1",
        parameters=SMALL | {"epsilon": 0.0},
    ),
    "farneback": METHODS["farneback"],
    "brox": FlowMethod(algorithm="dis"),
}
"""What the stand-in computes with, and what a GPU's answer is near to."""

needs_gpu = pytest.mark.skipif(
    cuda_devices() < 1, reason="needs an NVIDIA GPU and OpenCV built with CUDA"
)


def pair(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return onset, apex and the true flow between them."""
    truth = np.stack([bump(SHAPE, 0.8, (35, 40)), bump(SHAPE, -1.2, (60, 55))]).astype(np.float32)
    onset = texture(SHAPE, seed)
    return onset, warp(onset, truth), truth


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    stand_in = Device()
    monkeypatch.setattr(cv2, "cuda", stand_in)
    return stand_in


@pytest.mark.parametrize("name", METHODS)
def test_the_pair_goes_to_the_device_and_its_flow_comes_back(device: Device, name: str) -> None:
    solver = CudaFlow(METHODS[name], SIDE)
    for seed in range(2):
        onset, apex, _ = pair(seed)
        flow = solver.solve(onset, apex)
        assert (flow.shape, flow.dtype) == ((2, SIDE, SIDE), np.float32)
        np.testing.assert_array_equal(flow, compute_flow(onset, apex, ON_CPU[name]))
    assert device.faults == []


def test_a_flow_is_the_callers_own_and_outlives_the_next_pair(device: Device) -> None:
    solver = CudaFlow(METHODS["tvl1"], SIDE)
    onset, apex, _ = pair(0)
    first = solver.solve(onset, apex)
    kept = first.copy()
    solver.solve(apex, onset)
    np.testing.assert_array_equal(first, kept)
    assert device.faults == []


def test_one_thread_keeps_its_stream_its_buffers_and_its_algorithm(device: Device) -> None:
    solver = CudaFlow(METHODS["tvl1"], SIDE)
    for _ in range(3):
        solver.solve(*pair(0)[:2])
    assert (len(device.streams), len(device.solvers), len(device.locked)) == (1, 1, 1)


@pytest.mark.parametrize("name", ["tvl1", "farneback"])
def test_threads_share_no_stream_and_each_gets_its_own_flow(device: Device, name: str) -> None:
    solver = CudaFlow(METHODS[name], SIDE)
    pairs = [pair(seed) for seed in range(4)]
    begin = threading.Barrier(len(pairs))

    def solve(seed: int) -> list[np.ndarray]:
        begin.wait(20)
        return [solver.solve(*pairs[seed][:2]) for _ in range(3)]

    with ThreadPoolExecutor(len(pairs)) as pool:
        answers = list(pool.map(solve, range(len(pairs))))
    for (onset, apex, _), flows in zip(pairs, answers, strict=True):
        for flow in flows:
            np.testing.assert_array_equal(flow, compute_flow(onset, apex, ON_CPU[name]))
    assert len(device.streams) == len(pairs)
    assert device.faults == []


def test_page_locked_memory_is_given_back_with_its_thread(device: Device) -> None:
    solver = CudaFlow(METHODS["tvl1"], SIDE)
    thread = threading.Thread(target=solver.solve, args=pair(0)[:2])
    thread.start()
    thread.join(20)
    gc.collect()
    assert device.locked == []


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("out of memory", "memory"),
        ("CUDA driver version is insufficient for CUDA runtime version", "driver"),
        ("unspecified launch failure", "device"),
    ],
)
def test_after_a_failure_a_thread_begins_anew(device: Device, said: str, fault: str) -> None:
    solver = CudaFlow(METHODS["tvl1"], SIDE)
    onset, apex, _ = pair(0)
    whole = solver.solve(onset, apex)
    device.breaks_with = said
    with pytest.raises(cv2.error) as raised:
        solver.solve(onset, apex)
    assert fault_of(raised.value, None) == fault
    del raised
    gc.collect()
    assert device.locked == []
    device.breaks_with = None
    np.testing.assert_array_equal(solver.solve(onset, apex), whole)
    assert len(device.streams) == 2


def test_iterations_are_the_cpus_outer_times_inner_ones_and_none_is_left_out(
    device: Device,
) -> None:
    small = texture((16, 16))
    CudaFlow(FlowMethod(algorithm="tvl1", parameters={"lambda": 0.2}), 16).solve(small, small)
    (asked,) = device.solvers
    assert (asked["innerIterations"], asked["epsilon"], asked["lambda"]) == (300, 0.0, 0.2)
    on_cpu = cv2.optflow.DualTVL1OpticalFlow_create()
    same = {"tau": "Tau", "theta": "Theta", "scalesNumber": "ScalesNumber"} | {
        "warpingsNumber": "WarpingsNumber",
        "scaleStep": "ScaleStep",
        "gamma": "Gamma",
    }
    assert {name: asked[name] for name in same} == {
        name: getattr(on_cpu, f"get{cpu}")() for name, cpu in same.items()
    }


@pytest.mark.parametrize(("given", "window"), [({"medianFiltering": 3}, 3), ({}, 5)])
def test_the_median_filter_that_the_gpu_lacks_goes_over_the_whole_flow(
    device: Device, given: dict[str, int], window: int
) -> None:
    onset, apex, _ = pair(0)
    rest = {name: value for name, value in SMALL.items() if name != "medianFiltering"}
    flow = CudaFlow(FlowMethod(algorithm="tvl1", parameters=rest | given), SIDE).solve(onset, apex)
    unfiltered = compute_flow(onset, apex, ON_CPU["tvl1"])
    for part, whole in zip(flow, unfiltered, strict=True):
        np.testing.assert_array_equal(part, cv2.medianBlur(whole, window))
    assert device.faults == []


@pytest.mark.parametrize(
    ("algorithm", "parameters", "told"),
    [
        ("tvl1", {"sparkle": 1}, "sparkle"),
        ("tvl1", {"useInitialFlow": True}, "useInitialFlow"),
        ("farneback", {"sparkle": 1}, "sparkle"),
        ("farneback", {"flags": cv2.OPTFLOW_USE_INITIAL_FLOW}, "flag"),
        ("brox", {"winsize": 3}, "winsize"),
    ],
)
def test_a_parameter_that_the_gpu_does_not_have_is_named(
    algorithm: str, parameters: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        CudaFlow(FlowMethod(algorithm=algorithm, parameters=parameters), SIDE)


def test_crops_of_another_size_are_a_shape_error() -> None:
    onset, apex, _ = pair(0)
    with pytest.raises(ShapeError, match="96"):
        CudaFlow(METHODS["tvl1"], SIDE).solve(onset[1:], apex[1:])


@needs_gpu
@pytest.mark.parametrize("name", ["tvl1", "farneback"])
def test_on_a_gpu_the_flow_is_near_the_cpus(name: str) -> None:
    onset, apex, truth = pair(1)
    flow = CudaFlow(METHODS[name], SIDE).solve(onset, apex)
    apart = magnitude(flow - compute_flow(onset, apex, ON_CPU[name]))
    assert apart[8:-8, 8:-8].mean() < 0.05 * magnitude(truth).max()


@needs_gpu
@pytest.mark.parametrize("name", METHODS)
def test_on_a_gpu_a_known_warp_is_found_to_a_quarter_of_its_peak(name: str) -> None:
    onset, apex, truth = pair(1)
    error = magnitude(CudaFlow(METHODS[name], SIDE).solve(onset, apex) - truth)
    length = magnitude(truth)
    peak = length.max()
    assert error[length > 0.3 * peak].mean() < 0.25 * peak


@needs_gpu
@pytest.mark.parametrize("name", METHODS)
def test_on_a_gpu_threads_do_not_disturb_one_another(name: str) -> None:
    solver = CudaFlow(METHODS[name], SIDE)
    pairs = [pair(seed)[:2] for seed in range(4)]
    alone = [solver.solve(*one) for one in pairs]
    with ThreadPoolExecutor(len(pairs)) as pool:
        for _ in range(10):
            for flow, expected in zip(
                pool.map(lambda one: solver.solve(*one), pairs), alone, strict=True
            ):
                np.testing.assert_allclose(flow, expected, atol=1e-4)


@needs_gpu
def test_on_a_gpu_memory_that_cannot_be_had_is_told_as_that() -> None:
    with pytest.raises((cv2.error, SystemError)) as raised:
        CudaFlow(METHODS["tvl1"], 2**17).solve(*np.zeros((2, 2**17, 2**17), np.uint8))
    assert fault_of(raised.value, None) == "memory"
