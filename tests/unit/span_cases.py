"""Cases for the tests of trajectories that lie in one row: models, groups with one prompt, a kernel without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from learner_cases import VOCABULARY, Lengths, asked, group, trajectory
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from common.config.algorithm import LUFFY
from common.trajectory import Group, Trajectory
from learner.batch import Place, Spans
from learner.forward.attending import Manner
from learner.forward.policy import evaluate
from learner.objective import loss
from learner.packing.layout import Layout
from learner.packing.plan import StepPlan, plan_step

MODELS = ("llama", "qwen2", "qwen3", "mistral, sliding window")


def model_of(kind: str) -> Any:
    """A tiny model with fewer key heads than heads, its weights far from uniform, so that a mistake shows."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    made: dict[str, Any] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**sizes)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**sizes)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8)),
        "mistral, sliding window": lambda: MistralForCausalLM(MistralConfig(**sizes, sliding_window=5)),
    }
    model = made[kind]().eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


def with_one_beginning(members: Sequence[Trajectory], length: int, seed: int = 77) -> list[Trajectory]:
    """The members with the same `length` first tokens, as the members of a real group have them."""
    beginning = trajectory(Lengths(prompt=length), seed=seed).tokens
    for member in members:
        member.tokens[:length] = beginning
    return list(members)


def prompted_groups() -> list[Group]:
    """Groups with one prompt each: a long one, a prompt and a hint in common, and one that is too short to share."""
    long = [trajectory(Lengths(prompt=9, sampled=n), float(n % 2), seed=n) for n in (1, 2, 3, 5)]
    long.append(trajectory(Lengths(prompt=9, demonstration=4), 1.0, seed=20, expert_known=True))
    hinted = [trajectory(Lengths(prompt=4, hint=5, sampled=n), float(n == 2), seed=30 + n) for n in (2, 3, 0, 4)]
    short = [trajectory(Lengths(prompt=2, sampled=n), float(n == 7), seed=50 + n) for n in (7, 1, 4)]
    return [
        group(*with_one_beginning(long, 9, seed=21)),
        group(*with_one_beginning(hinted, 9, seed=40)),
        group(*with_one_beginning(short, 2, seed=61)),
    ]


def logprobs_and_gradient(model: Any, layout: Layout) -> tuple[Tensor, Tensor, StepPlan]:
    """Of a whole step on `prompted_groups`: log-probs trajectory after trajectory, the gradient of all weights."""
    model.zero_grad()
    algorithm = asked(LUFFY())
    plan = plan_step(algorithm, prompted_groups(), layout)
    said: dict[Place, Tensor] = {}
    for micro in plan.micro_batches:
        here = micro.to("cpu")
        outputs = evaluate(model, here, 1.0)
        loss(algorithm, plan, here, outputs)[0].backward()
        for number, place in enumerate(micro.places):
            said[place] = outputs.logprobs_T.detach()[micro.tokens.segment_T == number]
    everyone = sorted(said, key=lambda place: (place.group, place.member))
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return torch.cat([said[place] for place in everyone]), gradient, plan


def slow_kernel(query_SHD: Tensor, key_THD: Tensor, value_THD: Tensor, spans: Spans, manner: Manner) -> Tensor:
    """What the kernels of a GPU compute, from the same arrays: cumulative lengths, last query aligned with last key."""
    assert spans.query_ends_K1.dtype == spans.key_ends_K1.dtype == torch.int32
    found: list[Tensor] = []
    queries, keys = spans.query_ends_K1.tolist(), spans.key_ends_K1.tolist()
    for q0, q1, k0, k1 in zip(queries[:-1], queries[1:], keys[:-1], keys[1:], strict=True):
        assert 0 < q1 - q0 <= spans.longest_query
        assert 0 < k1 - k0 <= spans.longest_key
        offset = (k1 - k0) - (q1 - q0)
        seen = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(offset)
        if manner.window is not None:
            seen = seen.triu(offset - manner.window + 1)
        q, k, v = (t.transpose(0, 1)[None] for t in (query_SHD[q0:q1], key_THD[k0:k1], value_THD[k0:k1]))
        gqa = q.shape[1] != k.shape[1]
        attended = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=manner.scale, enable_gqa=gqa)
        found.append(attended[0].transpose(0, 1))
    assert queries[-1] == len(query_SHD)
    assert keys[-1] == len(key_THD)
    return torch.cat(found)
