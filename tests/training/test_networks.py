import os
from dataclasses import replace

import pytest
import torch
from drawn_pairs import TINY

from model.network import Mfdan
from training.baselines import StstNet
from training.networks import build_network, device_of, make_deterministic


def test_the_method_of_a_config_names_its_network() -> None:
    assert isinstance(build_network(TINY), Mfdan)
    assert isinstance(build_network(replace(TINY, method="ststnet")), StstNet)


@pytest.mark.parametrize("method", ["majority", "svm"])
def test_a_method_that_takes_no_steps_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=f"{method} is no network"):
        build_network(replace(TINY, method=method))


def test_auto_is_the_gpu_where_there_is_one() -> None:
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_of("cpu").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device")
def test_asking_for_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="no CUDA device"):
        device_of("cuda")


def test_determinism_sets_what_cublas_needs_and_leaves_what_the_user_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
