"""The two sides of the comparison, each making optimiser steps on the same groups: the learner's Trainer, and TRL's."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._learner_work import VOCABULARY, Work, model_of
from common.config.live import parse_live
from common.settings import LearnerSettings
from common.trajectory import Group, Source

RATE = 1e-6
PADDING = 0

Seconds = tuple[float, float]
"""Of a step: on the clock, of the processor."""
Step = Callable[[], Seconds]


def ours(asked: argparse.Namespace, work: Work, groups: Sequence[Group]) -> list[Seconds]:
    """Steps of the learner's Trainer."""
    from learner.forward.attending import choose_kernel, equip
    from learner.forward.head import choose_head
    from learner.forward.layers import checkpoint_activations
    from learner.forward.policy import use_head
    from learner.packing.layout import Layout
    from learner.trainer import Trainer

    device = torch.device(asked.device)
    model = model_of(asked.size, work.longest).to(device)
    use_head(model, choose_head(asked.head, device))
    equip(model, choose_kernel(device))
    if asked.activation_checkpointing:
        checkpoint_activations(model)
    settings = LearnerSettings(
        micro_batch_tokens=asked.micro_batch_tokens, layout=asked.layout, shared_prompts=not asked.no_shared_prompts
    )
    trainer = Trainer(model, Layout.of(settings, device))
    live = parse_live(
        {
            "algorithm": {"kind": "grpo", "rollouts": work.rollouts},
            "optimizer": {"learning_rate": RATE},
            "sampling": {"max_response_tokens": work.response},
        }
    )

    def step() -> Seconds:
        start_s, busy_s = time.perf_counter(), time.process_time()
        if not trainer.step(live, groups, lambda: None).updated:
            raise RuntimeError("the step changed nothing")
        _settle(device)
        return time.perf_counter() - start_s, time.process_time() - busy_s

    return [step() for _ in range(asked.warm_up + asked.steps)]


def trl(asked: argparse.Namespace, work: Work, groups: Sequence[Group]) -> list[Seconds]:
    """Steps of TRL's GRPOTrainer, its own training loop included; only generation and rewards are taken from it."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer  # type: ignore

    rows = work.groups * work.rollouts
    given = _tensors(groups, torch.device(asked.device))
    width = given["prompt_ids"].shape[1] + given["completion_ids"].shape[1]
    together = max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * width <= asked.micro_batch_tokens))

    class Prepared(GRPOTrainer):
        """A GRPOTrainer whose rollouts are there already."""

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            return dict(given)

    steps = asked.warm_up + asked.steps
    with tempfile.TemporaryDirectory() as directory:
        config = GRPOConfig(
            output_dir=directory,
            num_generations=work.rollouts,
            per_device_train_batch_size=together,
            gradient_accumulation_steps=rows // together,
            max_completion_length=work.response,
            learning_rate=RATE,
            max_steps=steps,
            loss_type="grpo",
            gradient_checkpointing=asked.activation_checkpointing,
            bf16=asked.device.startswith("cuda"),
            use_cpu=asked.device == "cpu",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Prepared(
            model=model_of(asked.size, work.longest),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["a"] * (rows * steps)}),
            processing_class=_tokenizer(),
        )
        clock = _step_clock(torch.device(asked.device))
        trainer.add_callback(clock)
        trainer.train()
    return clock.taken


def _tensors(groups: Sequence[Group], device: torch.device) -> dict[str, Tensor]:
    """What `_generate_and_score_completions` returns: prompts padded on the left, responses on the right."""
    members = [member for group in groups for member in group.trajectories]
    prompts = [member.tokens[member.sources == Source.PROMPT] for member in members]
    responses = [member.tokens[member.sources != Source.PROMPT] for member in members]
    logprobs = [member.behaviour_logprobs[member.sources != Source.PROMPT] for member in members]
    advantages: list[float] = []
    for group in groups:
        rewards = np.array([member.reward for member in group.trajectories])
        advantages += list((rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4))
    found = {
        "prompt_ids": _padded(prompts, np.int64, left=True),
        "prompt_mask": _padded([np.ones(len(p)) for p in prompts], np.int64, left=True),
        "completion_ids": _padded(responses, np.int64),
        "completion_mask": _padded([np.ones(len(r)) for r in responses], np.int64),
        "old_per_token_logps": _padded(logprobs, np.float32),
        "advantages": torch.tensor(advantages, dtype=torch.float32),
        "num_items_in_batch": torch.tensor(sum(len(r) for r in responses)),
    }
    return {name: tensor.to(device) for name, tensor in found.items()}


def _padded(rows: Sequence[Any], dtype: Any, *, left: bool = False) -> Tensor:
    width = max(len(row) for row in rows)
    out = np.full((len(rows), width), PADDING, dtype=dtype)
    for number, row in enumerate(rows):
        out[number, width - len(row) if left else 0 :][: len(row)] = row
    return torch.from_numpy(out)


def _tokenizer() -> Any:
    """A tokenizer, since a GRPOTrainer has to have one; nothing is tokenized."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": PADDING, "a": 1, "[EOS]": 2}
    known: Any = Tokenizer(models.WordLevel(words, unk_token="a"))
    return PreTrainedTokenizerFast(
        tokenizer_object=known, pad_token="[PAD]", eos_token="[EOS]", model_max_length=VOCABULARY
    )


def _step_clock(device: torch.device) -> Any:
    """A callback that notes the seconds of every optimiser step, its micro-batches and all."""
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):
        """taken: the seconds of each step."""

        def __init__(self) -> None:
            self.taken: list[Seconds] = []
            self._began = (0.0, 0.0)

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            _settle(device)
            self._began = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            _settle(device)
            now = time.perf_counter(), time.process_time()
            self.taken.append((now[0] - self._began[0], now[1] - self._began[1]))

    return StepClock()


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
