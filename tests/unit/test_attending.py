"""Attention over spans: trajectories in one row give what each gives alone; transformers' trap; the kernels' arrays."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from learner_cases import Lengths, asked, group, mixed_groups, trajectory
from span_cases import MODELS, logprobs_and_gradient, model_of, prompted_groups, slow_kernel, with_one_beginning
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

import learner.forward.attending
from common.config.algorithm import LUFFY
from learner.batch import MicroBatch, Span, Spans
from learner.forward.attending import (
    NAME,
    Kernel,
    Manner,
    SpanAttention,
    choose_kernel,
    equip,
    flash_kernel,
    is_equipped,
    varlen_kernel,
)
from learner.forward.policy import evaluate
from learner.objective import loss
from learner.packing.layout import Layout
from learner.packing.plan import plan_step
from learner.packing.writing import spans_of

ROWS, PACKED = Layout(40), Layout(64, packed=True)
SHARED = [Layout(64, packed=True, shared_prompts=True), Layout(40, shared_prompts=True)]


def packed_micro() -> MicroBatch:
    """Everything in one row."""
    (micro,) = plan_step(asked(LUFFY()), mixed_groups(), Layout(10**6, packed=True)).micro_batches
    return micro.to("cpu")


def assert_same_step(model: Any, layout: Layout, expected: tuple[Tensor, Tensor]) -> None:
    """That log-probs and gradient of a step in this layout are the expected ones, to 1e-5."""
    logprobs, gradient, _ = logprobs_and_gradient(model, layout)
    torch.testing.assert_close(logprobs, expected[0], atol=1e-5, rtol=1e-5)
    assert (gradient - expected[1]).norm() <= 1e-5 * expected[1].norm()


@pytest.mark.parametrize("kind", MODELS)
def test_transformers_keeps_packed_trajectories_apart_by_itself(kind: str) -> None:
    model = model_of(kind)
    logprobs, gradient, _ = logprobs_and_gradient(model, ROWS)
    assert_same_step(model, PACKED, (logprobs, gradient))


def test_with_a_mask_that_lets_everything_be_seen_transformers_lets_packed_trajectories_see_each_other() -> None:
    """The trap: so no mask is ever given to it for a packed row."""
    model, micro = model_of("qwen2"), packed_micro()
    assert micro.spans is not None

    class Masked:
        config = model.config
        get_output_embeddings = model.get_output_embeddings

        def base_model(self, **given: Any) -> Any:
            return model.base_model(**given, attention_mask=torch.ones_like(micro.input_ids))

    apart, together = evaluate(model, micro, 1.0), evaluate(Masked(), micro, 1.0)
    assert (apart.logprobs_T - together.logprobs_T).abs().max() > 0.1


@pytest.mark.parametrize("kernel", [None, slow_kernel])
@pytest.mark.parametrize("kind", MODELS)
def test_trajectories_in_one_row_give_what_each_gives_alone(kind: str, kernel: Kernel | None) -> None:
    model = model_of(kind)
    logprobs, gradient, _ = logprobs_and_gradient(model, ROWS)
    assert equip(model, kernel, f"{NAME}-tested-{kernel is None}")
    for layout in (PACKED, *SHARED):
        assert_same_step(model, layout, (logprobs, gradient))


@pytest.mark.parametrize("kind", MODELS)
def test_an_equipped_model_computes_padded_rows_to_the_bit_as_before(kind: str) -> None:
    plain, equipped = model_of(kind), model_of(kind)
    assert equip(equipped, None)
    assert all(map(torch.equal, logprobs_and_gradient(plain, ROWS)[:2], logprobs_and_gradient(equipped, ROWS)[:2]))


def test_a_shared_beginning_is_computed_once() -> None:
    cells = {
        layout: sum(m.input_ids.numel() for m in plan_step(asked(LUFFY()), prompted_groups(), layout).micro_batches)
        for layout in (PACKED, SHARED[0])
    }
    # Two beginnings of nine tokens, of five and of four members.
    assert cells[PACKED] - cells[SHARED[0]] == 4 * 9 + 3 * 9


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_threads")
def test_several_threads_add_up_the_gradient_of_a_shared_beginning_to_the_same_bits() -> None:
    """Eight members ask the prompt's last token what comes next; from 32 768 numbers on torch shares such work out."""
    members = [trajectory(Lengths(prompt=30, sampled=40), float(n % 2), seed=n) for n in range(8)]
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes))
    assert equip(model, None)
    algorithm, layout = asked(LUFFY()), Layout(10**6, packed=True, shared_prompts=True)
    plan = plan_step(algorithm, [group(*with_one_beginning(members, 30))], layout)
    (micro,) = (m.to("cpu") for m in plan.micro_batches)
    assert micro.spans is not None
    assert micro.spans.keys is not None

    def gradient() -> Tensor:
        model.zero_grad()
        loss(algorithm, plan, micro, evaluate(model, micro, 1.0))[0].backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(8))


def test_a_model_that_is_not_equipped_does_not_guess_what_shared_beginnings_are() -> None:
    plan = plan_step(asked(LUFFY()), prompted_groups(), SHARED[0])
    with pytest.raises(ValueError, match="not equipped"):
        evaluate(model_of("llama"), plan.micro_batches[0], 1.0)


def test_a_model_with_attention_of_its_own_is_not_equipped() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=11, hidden_size=16, n_layer=1, n_head=2))
    assert not equip(model, None)
    assert not is_equipped(model)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_what_spans_do_not_know_is_refused(name: str) -> None:
    row = torch.zeros(1, 2, 3, 4)
    spans = spans_of((Span(0, 3),), torch.arange(3).numpy())
    with pytest.raises(ValueError, match=name):
        SpanAttention(None)(None, row, row, row, None, spans=spans, **{name: 1.0})


def handed_to(monkeypatch: pytest.MonkeyPatch, kernel: str, window: int | None) -> dict[str, Any]:
    """What a kernel's function is called with for two spans, the second of which continues the first."""
    given: dict[str, Any] = {}

    def function(*tensors: Any, **rest: Any) -> Tensor:
        given.update(rest, tensors=tensors)
        return torch.zeros(5, 4, 8)

    spans = spans_of((Span(0, 3), Span(3, 2, 0, 3)), torch.arange(5).numpy())
    arguments = torch.zeros(5, 4, 8), torch.zeros(8, 2, 8), torch.zeros(8, 2, 8), spans, Manner(0.5, window)
    if kernel == "varlen":
        monkeypatch.setattr(learner.forward.attending, "varlen_attn", function)
        found = varlen_kernel(*arguments)
    else:
        found = flash_kernel(*arguments, function=function)
    assert found.shape == (5, 4, 8)
    return given


def test_torchs_kernel_is_told_lengths_causality_and_window(monkeypatch: pytest.MonkeyPatch) -> None:
    given = handed_to(monkeypatch, "varlen", None)
    assert [given["tensors"][i].tolist() for i in (3, 4)] == [[0, 3, 5], [0, 3, 8]]
    assert given["tensors"][5:] == (3, 5)
    assert (given["scale"], given["window_size"], given["enable_gqa"]) == (0.5, (-1, 0), True)
    assert handed_to(monkeypatch, "varlen", 3)["window_size"] == (2, 0)


def test_flash_attn_is_told_lengths_causality_and_window(monkeypatch: pytest.MonkeyPatch) -> None:
    given = handed_to(monkeypatch, "flash", None)
    assert [given[f"cu_seqlens_{side}"].tolist() for side in "qk"] == [[0, 3, 5], [0, 3, 8]]
    assert (given["max_seqlen_q"], given["max_seqlen_k"], given["softmax_scale"]) == (3, 5, 0.5)
    assert (given["causal"], given["window_size"]) == (True, (-1, -1))
    assert handed_to(monkeypatch, "flash", 3)["window_size"] == (2, 0)


def test_without_a_gpu_there_is_no_kernel() -> None:
    assert choose_kernel(torch.device("cpu")) is None


def test_under_autocast_a_kernel_is_given_what_autocast_computes_in() -> None:
    seen: list[torch.dtype] = []

    def kernel(query_SHD: Tensor, key_THD: Tensor, value_THD: Tensor, spans: Spans, manner: Manner) -> Tensor:
        seen.extend((query_SHD.dtype, key_THD.dtype, value_THD.dtype))
        return slow_kernel(query_SHD, key_THD, value_THD, spans, manner)

    module: Any = SimpleNamespace()
    row = torch.zeros(1, 2, 5, 4)
    spans = spans_of((Span(0, 3), Span(3, 2, 0, 3)), torch.arange(5).numpy())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        SpanAttention(kernel)(module, row, row, row.bfloat16(), None, spans=spans)
    assert seen == [torch.bfloat16] * 3
