"""What both sides train on: models shaped like Qwen2.5 with random weights, and groups of random rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from common.trajectory import Finish, Group, Source, Trajectory, VersionSpan

VOCABULARY = 151_936

# Layers, width, width of the feed-forward part, attention heads, heads of keys and values.
SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    "tiny": (2, 256, 1024, 4, 2),
    "0.5B": (24, 896, 4864, 14, 2),
    "1.5B": (28, 1536, 8960, 12, 2),
}

# FLOP/s of dense bfloat16 products as the makers give them, by a part of the device's name.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


@dataclass(frozen=True, slots=True)
class Work:
    """The size of a step: groups, rollouts of each, and tokens of the longest prompt and response."""

    groups: int
    rollouts: int
    prompt: int
    response: int

    @property
    def longest(self) -> int:
        """Tokens of the longest trajectory."""
        return self.prompt + self.response


def model_of(size: str, longest: int) -> Any:
    """A model of this size with random weights, float32, on the CPU; the same at every call."""
    layers, width, inner, heads, kv_heads = SHAPES[size]
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=longest,
        tie_word_embeddings=True,
    )
    model: Any = Qwen2ForCausalLM(config)
    return model.eval()


def groups_of(work: Work) -> list[Group]:
    """The groups of a step: a prompt of half to full length each, responses of a quarter to full length."""
    random = np.random.default_rng(0)
    groups: list[Group] = []
    for number in range(work.groups):
        prompt = random.integers(10, VOCABULARY, random.integers(work.prompt // 2, work.prompt + 1))
        members = tuple(_rollout(random, prompt, work.response) for _ in range(work.rollouts))
        groups.append(Group(f"g{number}", f"p{number}", 1, "benchmark", members))
    return groups


def _rollout(random: np.random.Generator, prompt: Any, longest: int) -> Trajectory:
    length = int(random.integers(longest // 4, longest + 1))
    response = random.integers(10, VOCABULARY, length)
    # Random weights give every token about the same probability; some noise makes ratios that are not all one.
    logprobs = -np.log(VOCABULARY) + 0.05 * random.standard_normal(length)
    return Trajectory(
        tokens=np.concatenate([prompt, response]).astype(np.int32),
        sources=np.array([Source.PROMPT] * len(prompt) + [Source.POLICY] * length, dtype=np.uint8),
        behaviour_logprobs=np.concatenate([np.zeros(len(prompt)), logprobs]).astype(np.float32),
        reward=float(random.random()),
        finish=Finish.STOP,
        versions=(VersionSpan(1, len(prompt), len(prompt) + length),),
    )


def trained_tokens(groups: Sequence[Group]) -> int:
    """Response tokens of a step."""
    return sum(int((member.sources != Source.PROMPT).sum()) for group in groups for member in group.trajectories)


def step_flops(size: str, groups: Sequence[Group]) -> float:
    """What a step of forwards and backwards has to multiply, recomputation not counted.

    6 · N · tokens for the N weights of the layers, 6 · V · H for each response token, and 6 · L · H · length² for the
    causal attention of each trajectory. Every trajectory counts whole: a prompt that is computed once for its group
    is counted for each member, so sharing shows as a higher figure.
    """
    layers, width, inner, heads, kv_heads = SHAPES[size]
    weights = layers * (2 * width * width * (1 + kv_heads / heads) + 3 * width * inner)
    lengths = [len(member.tokens) for group in groups for member in group.trajectories]
    attention = 6 * layers * width * sum(length**2 for length in lengths)
    return 6 * weights * sum(lengths) + 6 * VOCABULARY * width * trained_tokens(groups) + attention


def peak_flops(device: torch.device) -> float | None:
    """The device's own peak, if it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
