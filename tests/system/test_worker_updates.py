"""What a GPU's worker does with an update, as far as it can be seen without one."""

from __future__ import annotations

import base64
import io
import itertools
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from common.deltas import Patch, write_delta
from common.errors import WeightsError
from common.tensor_file import TensorFile
from learner.publication.changes import changes
from tests.system.engine_rig import ENGINE_MARKS

pytestmark = ENGINE_MARKS


class Served(nn.Module):
    """A model with a fused layer, loaded as vLLM's are: by checkpoint names, with copies of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Parameter(torch.zeros(12, 8, dtype=torch.bfloat16), requires_grad=False)
        self.norm = nn.Parameter(torch.zeros(8, dtype=torch.bfloat16), requires_grad=False)

    def load_weights(self, weights: Any) -> set[str]:
        """q and k lie below each other in `fused`."""
        places = {"q.weight": self.fused.data[:8], "k.weight": self.fused.data[8:], "norm.weight": self.norm.data}
        for name, tensor in weights:
            places[name].copy_(tensor)
        return set(places)

    def state(self) -> dict[str, torch.Tensor]:
        """By checkpoint names."""
        return {
            "q.weight": self.fused[:8].clone(),
            "k.weight": self.fused[8:].clone(),
            "norm.weight": self.norm.clone(),
        }


def states(*shares: float) -> list[dict[str, torch.Tensor]]:
    """States of which each changes a share of the elements of the one before."""
    random = torch.Generator().manual_seed(3)
    made = [{name: torch.randn(tensor.shape, generator=random).bfloat16() for name, tensor in Served().state().items()}]
    for share in shares:
        made.append(
            {
                name: torch.where(torch.rand(t.shape, generator=random) < share, torch.randn(t.shape).bfloat16(), t)
                for name, t in made[-1].items()
            }
        )
    return made


def deltas(directory: Path, made: list[dict[str, torch.Tensor]]) -> list[str]:
    """The files that lead from each state to the next, as the learner writes them."""
    paths: list[str] = []
    for number, (old, new) in enumerate(itertools.pairwise(made), start=1):
        file = io.BytesIO()
        patches: list[Patch] = [patch for name in new for patch in changes(name, old[name], new[name])]
        write_delta(file, patches, base=number, version=number + 1)
        path = directory / f"{number + 1}.delta"
        path.write_bytes(file.getvalue())
        paths.append(str(path))
    return paths


def prepared(directory: Path, made: list[dict[str, torch.Tensor]]) -> Any:
    from services.generator.preparation import Preparation

    save_file(made[-1], path := directory / "current.safetensors")
    preparation = Preparation(str(path), list(made[-1]), deltas(directory, made))
    model = Served()
    model.load_weights(made[0].items())
    return model, preparation._prepare_patches(model, torch.device("cpu"))  # pyright: ignore[reportPrivateUsage]


def test_patches_of_a_chain_are_written_in_place(tmp_path: Path) -> None:
    made = states(0.05, 0.05)
    model, put = prepared(tmp_path, made)
    before = model.fused.data_ptr()
    put()
    assert model.fused.data_ptr() == before
    for name, tensor in made[-1].items():
        assert torch.equal(model.state()[name].view(torch.int16), tensor.view(torch.int16))


def test_much_that_has_changed_is_loaded_anew(tmp_path: Path) -> None:
    assert prepared(tmp_path, states(0.5))[1] is None


def test_a_weight_that_is_no_number_is_loaded_anew(tmp_path: Path) -> None:
    made = states(0.01)
    made[-1]["norm.weight"][2] = float("nan")
    assert prepared(tmp_path, made)[1] is None


def test_only_weights_of_the_engines_own_dtype_are_patched(tmp_path: Path) -> None:
    from services.generator.preparation import is_patchable

    made = states()[0]
    for dtype, expected in ((torch.bfloat16, True), (torch.float32, False)):
        save_file({name: tensor.to(dtype) for name, tensor in made.items()}, path := tmp_path / f"{dtype}.safetensors")
        assert TensorFile(path).layouts
        assert is_patchable(Served(), path) is expected


class Transfer:
    """An NCCL transfer that does what the test says."""

    def __init__(self, log: list[str], hangs: str = "") -> None:
        self.model_update_group: Any = self
        self._log = log
        self._hangs = hangs
        self._aborted = Event()

    def _do(self, what: str) -> None:
        self._log.append(what)
        if what == self._hangs:
            assert self._aborted.wait(20.0)

    def init_transfer_engine(self, init_info: Any) -> None:
        self._do(f"join {init_info.rank_offset} of {init_info.world_size}")

    def start_weight_update(self) -> None:
        self._do("start")

    def receive_weights(self, update_info: Any) -> None:
        self._do(f"receive {update_info.names} {update_info.shapes}")

    def finish_weight_update(self) -> None:
        self._do("finish")

    def destroy(self) -> None:
        self._log.append("abort")
        self._aborted.set()

    def shutdown(self) -> None:
        self._do("shutdown")
        self._aborted.set()


def told(group: bytes, limit_s: float = 20.0) -> dict[str, Any]:
    unique_id = base64.b64encode(group * 128).decode()
    tensors = [["a", "bfloat16", [2, 3]], ["b", "bfloat16", [4]]]
    return {"unique_id": unique_id, "rank": 1, "world_size": 3, "tensors": tensors, "limit_s": limit_s}


RECEIVED = ["start", "receive ['a', 'b'] [[2, 3], [4]]", "finish"]


def test_a_group_is_joined_once_and_left_for_another() -> None:
    from services.generator.broadcast import BroadcastReceiver

    log: list[str] = []
    receiver = BroadcastReceiver(lambda: Transfer(log))
    receiver.receive(told(b"1"))
    receiver.receive(told(b"1"))
    assert log == ["join 1 of 3", *RECEIVED, *RECEIVED]
    log.clear()
    receiver.receive(told(b"2"))
    assert log == ["shutdown", "join 1 of 3", *RECEIVED]


def test_a_group_that_does_not_come_together_is_given_up_in_time() -> None:
    from services.generator.broadcast import BroadcastReceiver

    log: list[str] = []
    waiting = [Transfer(log, hangs="join 1 of 3"), Transfer(log)]
    made = iter(waiting)
    receiver = BroadcastReceiver(lambda: next(made))
    with pytest.raises(WeightsError, match=r"joining the group took longer than 0.05 s"):
        receiver.receive(told(b"1", limit_s=0.05))
    waiting[0].destroy()
    log.clear()
    receiver.receive(told(b"2"))
    assert log == ["join 1 of 3", *RECEIVED]


def test_a_broadcast_that_stands_still_is_aborted_and_its_group_left() -> None:
    from services.generator.broadcast import BroadcastReceiver

    log: list[str] = []
    receiver = BroadcastReceiver(lambda: Transfer(log, hangs=RECEIVED[1]))
    with pytest.raises(WeightsError, match=r"the broadcast took longer than 0.05 s"):
        receiver.receive(told(b"1", limit_s=0.05))
    assert log == ["join 1 of 3", *RECEIVED[:2], "abort", "finish", "shutdown"]
