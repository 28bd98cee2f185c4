"""What a rank is told by the variables that torchrun sets, and by the machine that it is on."""

from __future__ import annotations

import pytest
import torch

from common.errors import SettingsError
from learner.ranks.alone import is_among_several, own_rank
from learner.ranks.collective import own_device

GPU = torch.device("cuda")
VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def torchrun(monkeypatch: pytest.MonkeyPatch, *, rank: int, size: int, gpus: int = 8) -> None:
    said = (size, rank, rank, size, "localhost", 29500)
    for name, value in zip(VARIABLES, said, strict=True):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


@pytest.mark.parametrize("size", [None, "1", "", "many"])
def test_a_learner_without_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch, size: str | None) -> None:
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    assert (is_among_several(), own_rank()) == (False, 0)


def test_torchrun_says_who_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, rank=1, size=2)
    assert (is_among_several(), own_rank(), own_device(GPU)) == (True, 1, torch.device("cuda:1"))
    assert own_device(torch.device("cpu")) == torch.device("cpu")


def test_half_of_what_torchrun_says_is_refused_before_anyone_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, rank=0, size=2)
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(SettingsError, match="WORLD_SIZE is 2, but nothing is said of MASTER_ADDR: start several"):
        is_among_several()


@pytest.mark.parametrize("rank", [0, 2])
def test_more_processes_than_gpus_are_refused_by_all_of_them(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    torchrun(monkeypatch, rank=rank, size=3, gpus=2)
    with pytest.raises(SettingsError, match="started as 3 processes on a machine where torch sees 2 GPUs"):
        own_device(GPU)
