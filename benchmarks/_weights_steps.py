"""Real optimiser steps on a small model: rollouts that it samples itself, a reward, and demonstrations for SFT."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from common.config.live import LiveConfig, parse_live
from common.trajectory import Finish, Group, Source, Trajectory, VersionSpan
from learner.trainer import Trainer

VOCABULARY = 4096
PROMPT, RESPONSE = 8, 16
GROUPS, ROLLOUTS = 8, 4
SFT = "sft"


def small_model() -> Any:
    """A Llama of 6.8 million parameters, always the same."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(config)
    return model.eval()


def configuration(phase: str | float) -> LiveConfig:
    """GRPO at a learning rate, or SFT."""
    if phase == SFT:
        algorithm, hints, rate = {"kind": "sft"}, {"kind": "demonstration"}, 1e-5
    else:
        algorithm, hints, rate = {"kind": "grpo", "rollouts": ROLLOUTS}, {"kind": "none"}, float(phase)
    return parse_live(
        {
            "algorithm": algorithm,
            "hints": hints,
            "optimizer": {"learning_rate": rate},
            "sampling": {"max_response_tokens": RESPONSE},
        }
    )


def take_step(trainer: Trainer, phase: str | float, number: int) -> bool:
    """One step of a phase on fresh groups; whether it changed the weights."""
    live = configuration(phase)
    groups = _demonstrated(number) if phase == SFT else _sampled(trainer.model, number)
    return trainer.step(live, groups, _unheeded).updated


def _unheeded() -> None:
    """Nothing is in the way."""


def _demonstrated(number: int) -> list[Group]:
    """Demonstrations that count on from the prompt."""
    random = np.random.default_rng(number)
    groups: list[Group] = []
    for index in range(GROUPS):
        prompt = random.integers(0, VOCABULARY, PROMPT)
        answer = (prompt[-1] + 1 + np.arange(RESPONSE)) % VOCABULARY
        member = _trajectory(prompt, answer, np.zeros(RESPONSE), Source.DEMONSTRATION, 1.0)
        groups.append(Group(f"{number}-{index}", f"p{number}-{index}", 1, "benchmark", (member,)))
    return groups


@torch.no_grad()
def _sampled(model: Any, number: int) -> list[Group]:
    """Groups of rollouts; the reward is the share of even tokens, so that every group has something to teach."""
    random = np.random.default_rng(number)
    torch.manual_seed(number)
    prompts = random.integers(0, VOCABULARY, (GROUPS, PROMPT))
    ids_BS = torch.from_numpy(prompts.repeat(ROLLOUTS, axis=0))
    tokens_BR, logprobs_BR = _sample(model, ids_BS)
    groups: list[Group] = []
    for index in range(GROUPS):
        rows = range(index * ROLLOUTS, (index + 1) * ROLLOUTS)
        members = tuple(
            _trajectory(prompts[index], tokens_BR[row], logprobs_BR[row], Source.POLICY, _reward(tokens_BR[row]))
            for row in rows
        )
        groups.append(Group(f"{number}-{index}", f"p{number}-{index}", 1, "benchmark", members))
    return groups


def _sample(model: Any, ids_BS: Tensor) -> tuple[Any, Any]:
    """RESPONSE tokens for each prompt, with their log-probs: [B, R] each."""
    tokens: list[Tensor] = []
    logprobs: list[Tensor] = []
    past: Any = None
    given = ids_BS
    for _ in range(RESPONSE):
        out = model(input_ids=given, past_key_values=past, use_cache=True)
        past, said_BV = out.past_key_values, torch.log_softmax(out.logits[:, -1].float(), -1)
        given = torch.multinomial(said_BV.exp(), 1)
        tokens.append(given)
        logprobs.append(said_BV.gather(1, given))
    return torch.cat(tokens, 1).numpy(), torch.cat(logprobs, 1).numpy()


def _reward(tokens_R: Any) -> float:
    return float((tokens_R % 2 == 0).mean())


def _trajectory(prompt: Any, response: Any, logprobs: Any, source: Source, reward: float) -> Trajectory:
    sampled = source is Source.POLICY
    return Trajectory(
        tokens=np.concatenate([prompt, response]).astype(np.int32),
        sources=np.array([Source.PROMPT] * PROMPT + [source] * RESPONSE, dtype=np.uint8),
        behaviour_logprobs=np.concatenate([np.zeros(PROMPT), logprobs]).astype(np.float32),
        reward=reward,
        finish=Finish.LENGTH if sampled else Finish.DEMONSTRATION,
        versions=(VersionSpan(1, PROMPT, PROMPT + RESPONSE),) if sampled else (),
    )
