"""A tiny real model for tests of the trainer, and the groups that each algorithm's published hint policy makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from learner_cases import Lengths, demonstration, group, rollout, trajectory
from transformers import LlamaConfig, LlamaForCausalLM

from common.config.algorithm import AlgorithmConfig
from common.config.live import LiveConfig, parse_live
from common.trajectory import Group
from learner.forward.model import named_weights
from learner.trainer import Trainer


def tiny_model(*, seed: int = 3, dtype: torch.dtype = torch.float32, tied: bool = False) -> Any:
    """A Llama of a few hundred parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
    )
    model: Any = LlamaForCausalLM(config)
    return model.to(dtype).eval()


def heed() -> None:
    """Nothing is in the way."""


def live(config: AlgorithmConfig, **changes: Any) -> LiveConfig:
    """The configuration of an operator who asks for an algorithm, fed as its authors fed it."""
    document = {
        "algorithm": config.model_dump(mode="json"),
        "hints": config.published_hints,
        "optimizer": {"learning_rate": 1e-2},
        "sampling": {"max_response_tokens": 16},
    }
    return parse_live(document | changes)


def fed_groups(config: AlgorithmConfig) -> list[Group]:
    """Three groups as the algorithm's published hint policy makes them; two have a right rollout."""
    made = {
        "none": lambda seed: (rollout(4, 1.0, seed=seed), rollout(3, 0.0, seed=seed + 1)),
        "demonstration": lambda seed: (rollout(4, 1.0, seed=seed), rollout(3, seed=seed + 1), demonstration(6)),
        "if_unsolved": lambda seed: (rollout(4, 1.0, seed=seed), rollout(3, 0.0, seed=seed + 1)),
        "cosine_binomial": lambda seed: (
            trajectory(Lengths(hint=3, sampled=4), 1.0, seed=seed),
            trajectory(Lengths(hint=3, sampled=2), 0.0, seed=seed + 1),
        ),
        "uniform_decay": lambda seed: (
            rollout(4, 0.0, seed=seed),
            rollout(5, 0.0, seed=seed + 1),
            trajectory(Lengths(hint=5, sampled=2), 1.0, seed=seed + 2),
        ),
        "branch_on_failure": lambda seed: (
            trajectory(Lengths(hint=2, sampled=3), 0.0, seed=seed),
            trajectory(Lengths(hint=2, sampled=4), 1.0, seed=seed + 1),
        ),
    }
    members = made[str(config.published_hints["kind"])]
    failed = (rollout(2, 0.0, seed=90), rollout(5, 0.0, seed=91), demonstration(4, seed=92))
    unsolved = failed if config.published_hints["kind"] in ("if_unsolved", "demonstration") else failed[:2]
    chosen = (members(10), members(20), unsolved)
    return [replace(group(*m), group_id=f"g{n}", prompt_id=f"p{n}") for n, m in enumerate(chosen)]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of the policy's weights."""
    return {name: tensor.clone() for name, tensor in named_weights(trainer.model).items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are the same to the bit."""
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)
