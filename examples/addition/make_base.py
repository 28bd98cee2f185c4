"""Makes the base model of the addition task: it adds with at most one carry, and fails whenever carries run on.

    python examples/addition/make_base.py --out examples/addition/base --seed 0

A Llama-shaped model of 0.33 M parameters learns from demonstrations of easy problems only. There, a column that gets a
carry never carries itself, so the model is sure that none ever does: sampling from it does not solve a hard problem,
and reinforcement learning alone finds nothing to reinforce. The model is saved only if it passes the gate: greedy
accuracy on easy and on hard problems.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, the repository is not on the path

from examples.addition.greedy import greedy_accuracy
from examples.addition.task import EASY, HARD, PROMPT_LENGTH, demonstration, draw_distinct, draw_problem, prompt
from examples.addition.tokenizer import EOS_ID, PAD_ID, character_tokenizer

MAX_POSITIONS = 128
STEPS = 1000
BATCH_SIZE = 32
PEAK_LEARNING_RATE = 2e-3
RISE_STEPS = 50
REPORT_EVERY_STEPS = 100
IGNORED = -100
LEAST_EASY = 0.9
MOST_HARD = 0.05


@dataclass(frozen=True, slots=True)
class Gate:
    """The measured accuracies that decide whether a base model is fit for use."""

    easy: float
    hard: float

    def refusal(self) -> str | None:
        """Why the model is unfit, or None when it passes."""
        if self.easy < LEAST_EASY:
            return (
                f"greedy accuracy on easy problems is {self.easy:.3f}, below {LEAST_EASY}: the warm-up did not converge"
            )
        if self.hard >= MOST_HARD:
            return (
                f"greedy accuracy on hard problems is {self.hard:.3f}, not below {MOST_HARD}: nothing is left to learn"
            )
        return None


def fresh_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A Llama-shaped model with random weights.

    The embeddings are untied because a CPU engine that packs its weights keeps the old output head of a tied model.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).float()


def demonstrations_BT(tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> torch.Tensor:
    """Token ids of a batch of easy problems, each with its demonstration (tokenised apart) and the end token."""
    problems = [draw_problem(rng, EASY) for _ in range(BATCH_SIZE)]
    return torch.tensor(
        [
            tokenizer.encode(prompt(problem)) + tokenizer.encode(demonstration(problem)) + [EOS_ID]
            for problem in problems
        ]
    )


def warm_up(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, rng: random.Random, steps: int) -> None:
    """Train the model on fresh demonstrations; the learning rate rises linearly, then falls as a cosine."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / RISE_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    started_s = time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        tokens_BT = demonstrations_BT(tokenizer, rng)
        targets_BT = tokens_BT[:, 1:].clone()
        targets_BT[:, : PROMPT_LENGTH - 1] = IGNORED
        logits_BTV = model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % REPORT_EVERY_STEPS == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss.item():.4f}  {time.monotonic() - started_s:.0f} s", flush=True)
    model.eval()


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, *, seed: int, problems: int) -> Gate:
    """The model's greedy accuracy on fresh easy and hard problems."""
    easy = draw_distinct(random.Random(f"{seed}/gate/easy"), EASY, problems)
    hard = draw_distinct(random.Random(f"{seed}/gate/hard"), HARD, problems)
    return Gate(easy=greedy_accuracy(model, tokenizer, easy), hard=greedy_accuracy(model, tokenizer, hard))


def make_base(seed: int, steps: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """A warmed-up model and its tokenizer; the same seed gives the same weights on the same machine."""
    tokenizer = character_tokenizer(MAX_POSITIONS)
    model = fresh_model(tokenizer, seed)
    warm_up(model, tokenizer, random.Random(f"{seed}/warm-up"), steps)
    return model, tokenizer


def save_base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write weights, configuration and tokenizer as a directory that transformers and vLLM load."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # written for its owner only, but an engine may run as another user


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write the model to")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and problems (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="warm-up steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads; one is deterministic (default: %(default)s)")
    parser.add_argument(
        "--gate-problems", type=int, default=512, help="problems of each kind to measure (default: %(default)s)"
    )
    parsed = parser.parse_args(arguments)
    for name in ("steps", "threads", "gate_problems"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(parsed, name)}")
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Warm up, measure, and save if the gate is passed; exit with a message otherwise."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    model, tokenizer = make_base(options.seed, options.steps)
    gate = measure(model, tokenizer, seed=options.seed, problems=options.gate_problems)
    print(f"greedy accuracy: easy {gate.easy:.3f}, hard {gate.hard:.3f}")
    refusal = gate.refusal()
    if refusal is not None:
        raise SystemExit(f"not saved: {refusal}. Try another --seed.")
    save_base(model, tokenizer, options.out)
    print(f"saved to {options.out}")


if __name__ == "__main__":
    main()
