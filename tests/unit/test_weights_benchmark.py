"""The benchmark of the codec proves what it times, on whatever device the weights lie."""

from __future__ import annotations

import pytest
import torch

from benchmarks import _weights_codec
from benchmarks._weights_codec import SHAPES, SHARES, measure

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("by_torch", [False, True])
def test_every_share_is_coded_and_proved(device: str, by_torch: bool) -> None:
    first, snapshot, head, *lines = measure(device, SHAPES["tiny"], by_torch=by_torch)
    assert first.startswith("0.00 GB of bfloat16 weights in 3 tensors")
    assert snapshot.startswith("snapshot ")
    assert [len(line.split()) for line in lines] == [len(head.split())] * len(SHARES)
    assert [line.split()[0] for line in lines] == ["0.1%", "1.3%", "5.0%", "8.5%", "42.0%", "100.0%"]


def test_a_codec_that_loses_something_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_weights_codec, "apply", lambda patch, tensor: None)
    with pytest.raises(RuntimeError, match="where the learner applies it"):
        list(measure("cpu", SHAPES["tiny"]))


def test_the_shapes_are_those_of_a_model_of_one_and_a_half_billion_parameters() -> None:
    count = sum(int(torch.Size(shape).numel()) for shape in SHAPES["1.5b"])
    assert count == pytest.approx(1.54e9, rel=0.01)
