"""The policy's forward on a tiny transformers model: padding, prompts, temperature, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from learner_cases import VOCABULARY, asked, group, mixed_groups, rollout
from torch import Tensor, nn
from transformers import CohereConfig, CohereForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from common.config.algorithm import LUFFY
from common.errors import SettingsError
from learner.forward.policy import check_head, evaluate
from learner.objective import loss
from learner.packing.layout import Layout
from learner.packing.plan import plan_step

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(params=["llama", "qwen2, tied"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    if request.param == "llama":
        fresh = LlamaForCausalLM(LlamaConfig(**SIZES))
    else:
        fresh = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True))
    for parameter in fresh.parameters():  # far from uniform, so that a mistake shows
        parameter.data.mul_(5)
    return fresh.eval()


@torch.no_grad()
def plainly(model: Any, ids_S: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of every token of one sequence but the first, from whole logits."""
    logprobs_SV = (model(input_ids=ids_S[None]).logits[0, :-1] / temperature).log_softmax(dim=-1)
    return logprobs_SV.gather(1, ids_S[1:, None])[:, 0], -(logprobs_SV.exp() * logprobs_SV).sum(dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_padded_batch_gives_what_each_sequence_gives_alone(model: Any, temperature: float) -> None:
    (micro,) = plan_step(asked(LUFFY()), mixed_groups(), Layout(10**6)).micro_batches
    outputs = evaluate(model, micro.to("cpu"), temperature)
    for row, length in enumerate(micro.lengths_B.tolist()):
        here_T = micro.tokens.segment_T == row
        at = micro.predictor_T[here_T] % micro.input_ids.shape[1]
        logprobs_S, entropy_S = plainly(model, micro.input_ids[row, :length], temperature)
        torch.testing.assert_close(outputs.logprobs_T[here_T], logprobs_S[at], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(outputs.entropy_T[here_T], entropy_S[at], atol=1e-5, rtol=1e-5)


def test_the_gradient_of_a_padded_step_is_that_of_one_sequence_at_a_time(model: Any) -> None:
    algorithm = asked(LUFFY())

    def gradient(micro_batch_tokens: int) -> Tensor:
        model.zero_grad()
        plan = plan_step(algorithm, mixed_groups(), Layout(micro_batch_tokens))
        for micro in plan.micro_batches:
            here = micro.to("cpu")
            loss(algorithm, plan, here, evaluate(model, here, 1.0))[0].backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    alone, padded = gradient(1), gradient(10**6)
    assert (alone - padded).norm() <= 1e-5 * alone.norm()


def test_only_positions_that_predict_a_response_token_get_gradient() -> None:
    """Prompts, the last token of each row and padding are never taught."""
    algorithm = asked(LUFFY())
    plan = plan_step(algorithm, mixed_groups(), Layout(10**6))
    (micro,) = (m.to("cpu") for m in plan.micro_batches)
    hidden_BSH = torch.randn(*micro.input_ids.shape, 4, requires_grad=True)

    class Given(nn.Module):
        def base_model(self, **_: Any) -> Any:
            return SimpleNamespace(last_hidden_state=hidden_BSH)

        def get_output_embeddings(self) -> Any:
            return nn.Linear(4, VOCABULARY, bias=False)

    loss(algorithm, plan, micro, evaluate(Given(), micro, 1.0))[0].backward()
    assert hidden_BSH.grad is not None
    taught = set(hidden_BSH.grad.abs().sum(dim=-1).flatten().nonzero()[:, 0].tolist())
    assert taught == set(micro.predictor_T.tolist())


def test_under_autocast_the_masters_still_get_float32_gradients(model: Any) -> None:
    algorithm = asked(LUFFY())
    plan = plan_step(algorithm, mixed_groups(), Layout(10**6))
    (micro,) = (m.to("cpu") for m in plan.micro_batches)
    exact = evaluate(model, micro, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = evaluate(model, micro, 1.0)
    assert outputs.logprobs_T.dtype == outputs.entropy_T.dtype == torch.float32
    torch.testing.assert_close(outputs.entropy_T, exact.entropy_T, atol=0.2, rtol=0.1)
    loss(algorithm, plan, micro, outputs)[0].backward()
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_model_that_only_applies_its_head_passes_the_check(model: Any) -> None:
    check_head(model)
    check_head(model.bfloat16())


def test_a_model_that_scales_its_logits_is_refused() -> None:
    with pytest.raises(SettingsError, match="more to its logits"):
        check_head(CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.0625, pad_token_id=0)))


def test_a_micro_batch_without_response_tokens_is_no_trouble(model: Any) -> None:
    algorithm = asked(LUFFY())
    plan = plan_step(algorithm, [group(rollout(0))], Layout(99))
    value, sums = loss(algorithm, plan, plan.micro_batches[0].to("cpu"), evaluate(model, plan.micro_batches[0], 1.0))
    value.backward()
    assert value.item() == 0
    assert sums.record()["entropy"] is None
