"""The chunked head against the plain one: values, gradients, and what it never allocates."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.errors import SettingsError
from learner.forward.head import choose_head, logprobs_and_entropy

T, V, H = 24, 13, 5


def inputs(dtype: torch.dtype = torch.float64, *, rows: int = T, vocabulary: int = V, width: int = H) -> list[Tensor]:
    """Hidden states, head, bias and labels."""
    generator = torch.Generator().manual_seed(rows)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    labels_T = torch.randint(vocabulary, (rows,), generator=generator)
    return [normal(rows, width), normal(vocabulary, width), normal(vocabulary), labels_T]


def plain(hidden: Tensor, head: Tensor, labels: Tensor, temperature: float, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The same by the textbook."""
    logprobs_TV = ((hidden @ head.T + bias) / temperature).log_softmax(dim=-1)
    return logprobs_TV.gather(1, labels[:, None])[:, 0], -(logprobs_TV.exp() * logprobs_TV).sum(dim=-1)


class Sizes(TorchDispatchMode):
    """Notes how many entries the largest tensor has that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


@given(chunk=st.integers(1, T * V + 3), temperature=st.sampled_from([0.5, 1.0, 1.7]), rows=st.integers(0, T))
def test_any_chunk_gives_the_values_and_gradients_of_the_plain_head(chunk: int, temperature: float, rows: int) -> None:
    hidden, head, bias, labels = inputs(rows=rows)
    weights = torch.linspace(-1, 1, rows, dtype=torch.float64)
    ours = logprobs_and_entropy(hidden, head, labels, temperature, chunk, bias)
    theirs = plain(hidden, head, labels, temperature, bias)
    for mine, textbook in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, textbook, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad((theirs[0] * weights + theirs[1] * weights.cos()).sum(), [hidden, head, bias])
    found = torch.autograd.grad((ours[0] * weights + ours[1] * weights.cos()).sum(), [hidden, head, bias])
    for mine, textbook in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, textbook, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("which", [0, 1, slice(None)])
def test_the_gradient_is_the_one_of_finite_differences(which: int | slice) -> None:
    hidden, head, bias, labels = inputs(rows=7)

    def function(hidden_TH: Tensor, head_VH: Tensor, bias_V: Tensor) -> Any:
        return logprobs_and_entropy(hidden_TH, head_VH, labels, 1.3, 3, bias_V)[which]

    assert torch.autograd.gradcheck(function, (hidden, head, bias))


def test_a_frozen_head_gets_no_gradient_and_hidden_still_does() -> None:
    hidden, head, _, labels = inputs()
    frozen = head.detach()
    logprobs_and_entropy(hidden, frozen, labels, 1.0, 4)[0].sum().backward()
    assert frozen.grad is None
    plain_T, _ = plain(again := hidden.detach().requires_grad_(), frozen, labels, 1.0, torch.zeros(V).double())
    plain_T.sum().backward()
    torch.testing.assert_close(hidden.grad, again.grad)


def test_vocabulary_wide_logits_never_exist() -> None:
    rows, vocabulary, width, chunk = 256, 64, 4, 512
    hidden, head, bias, labels = inputs(rows=rows, vocabulary=vocabulary, width=width)
    with Sizes() as sizes:
        logprobs_T, entropy_T = logprobs_and_entropy(hidden, head, labels, 1.0, chunk, bias)
        (logprobs_T + entropy_T).sum().backward()
    assert sizes.largest == max(rows * width, chunk) < rows * vocabulary


def test_the_head_is_never_copied_to_another_dtype_as_a_whole() -> None:
    rows, vocabulary, width, chunk = 8, 512, 32, 64
    hidden, head, _, labels = inputs(torch.float32, rows=rows, vocabulary=vocabulary, width=width)
    narrow = head.detach().bfloat16()
    with Sizes() as sizes:
        logprobs_T, _ = logprobs_and_entropy(hidden, narrow, labels, 1.0, chunk)
        logprobs_T.sum().backward()
    assert sizes.largest < vocabulary * width


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_no_tile_of_the_logits_is_larger_than_asked(chunk: int) -> None:
    hidden, head, bias, labels = inputs(rows=20, vocabulary=50, width=1)
    with Sizes() as sizes:
        logprobs_T, entropy_T = logprobs_and_entropy(hidden, head, labels, 1.0, chunk, bias)
        (logprobs_T + entropy_T).sum().backward()
    statistics = 300  # four figures of each tile of some rows
    assert sizes.largest <= max(chunk, statistics)


def test_no_rows_at_all_give_gradients_of_zero() -> None:
    hidden, head, bias, labels = inputs(rows=0)
    logprobs_T, entropy_T = logprobs_and_entropy(hidden, head, labels, 1.0, 64, bias)
    assert logprobs_T.shape == entropy_T.shape == (0,)
    (logprobs_T.sum() + entropy_T.sum()).backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, H)
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in (head, bias))


def test_where_the_policy_is_sure_the_entropy_is_right_to_the_last_digits() -> None:
    logits_TV = torch.tensor([[100.0, 0.0, 0.0, 50.0], [30.0, 12.0, 13.0, 14.0], [-90.0, -60.0, -61.0, -99.0]])
    head = torch.eye(4)
    logprobs_T, entropy_T = logprobs_and_entropy(logits_TV, head, torch.tensor([0, 0, 1]), 1.0, 2)
    exact_TV = logits_TV.double().log_softmax(dim=-1)
    exact_T = -(exact_TV.exp() * exact_TV).sum(dim=-1)
    assert (logprobs_T <= 0).all()
    assert (entropy_T >= 0).all()
    torch.testing.assert_close(entropy_T.double(), exact_T, rtol=1e-5, atol=1e-7)


def test_the_chunked_head_is_chosen_anywhere() -> None:
    assert choose_head("chunked", torch.device("cpu")) is logprobs_and_entropy


def test_the_fused_head_is_refused_without_a_gpu() -> None:
    with pytest.raises(SettingsError, match=r'learner.head is "fused", which needs a GPU.*set it to "chunked"'):
        choose_head("fused", torch.device("cpu"))


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="triton is installed")
def test_the_fused_head_is_refused_without_triton() -> None:
    with pytest.raises(SettingsError, match="needs the package triton"):
        choose_head("fused", torch.device("cuda"))


def test_bfloat16_inputs_are_summed_in_float32() -> None:
    hidden, head, bias, labels = inputs(torch.bfloat16, rows=64, vocabulary=50, width=256)
    logprobs_T, entropy_T = logprobs_and_entropy(hidden, head, labels, 1.0, 16, bias)
    exact = [t.detach().double().requires_grad_() for t in (hidden, head, bias)]
    exact_logprobs_T, exact_entropy_T = plain(exact[0], exact[1], labels, 1.0, exact[2])
    assert logprobs_T.dtype == entropy_T.dtype == torch.float32
    torch.testing.assert_close(logprobs_T.double(), exact_logprobs_T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy_T.double(), exact_entropy_T, rtol=1e-4, atol=2e-5)
    (logprobs_T.sum() + entropy_T.sum()).backward()
    (exact_logprobs_T.sum() + exact_entropy_T.sum()).backward()
    for given_, wanted in zip((hidden, head, bias), exact, strict=True):
        assert given_.grad is not None
        assert given_.grad.dtype == torch.bfloat16
        torch.testing.assert_close(given_.grad.double(), wanted.grad, rtol=0.01, atol=1e-3)


def test_float32_hidden_states_may_meet_a_bfloat16_head() -> None:
    hidden, head, bias, labels = inputs(torch.float32)
    narrow = head.detach().bfloat16()
    found, _ = logprobs_and_entropy(hidden, narrow, labels, 1.0, 4, bias)
    wanted, _ = plain(hidden, narrow.float(), labels, 1.0, bias)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_extreme_logits_give_finite_values_and_gradients(scale: float) -> None:
    hidden, head, _, labels = inputs(torch.float32)
    outputs = logprobs_and_entropy(hidden * scale, head, labels, 1.0, 4)
    (outputs[0].sum() + outputs[1].sum()).backward()
    assert torch.isfinite(outputs[1]).all()
    assert (outputs[1] > -1e-3).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    hidden, head, _, labels = inputs()
    with pytest.raises(ValueError, match="temperature"):
        logprobs_and_entropy(hidden, head, labels, temperature, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_multiplies_bfloat16_and_sums_float32() -> None:
    hidden, head, bias, labels = (t.detach() for t in inputs(torch.bfloat16, rows=64, vocabulary=512, width=256))
    leaves = [t.cuda().requires_grad_() for t in (hidden, head)]
    logprobs_T, entropy_T = logprobs_and_entropy(leaves[0], leaves[1], labels.cuda(), 1.0, 16, bias.cuda())
    wanted_T, _ = plain(hidden.double(), head.double(), labels, 1.0, bias.double())
    torch.testing.assert_close(logprobs_T.cpu().double(), wanted_T, rtol=1e-4, atol=1e-4)
    (logprobs_T.sum() + entropy_T.sum()).backward()
    assert all(leaf.grad is not None and torch.isfinite(leaf.grad).all() for leaf in leaves)
