"""The base models of the end-to-end comparison: warmed up on both procedures of a workload, the wrong one mostly.

    python -m benchmarks._end_to_end_base --size 0.3M --out DIR

A base writes additions in the asked form, and forgets the carries in about two of three responses: what is left for
reinforcement learning is to find out which procedure is right. That of the long tail goes on from that of equal lengths
and learns to check itself, now and then. Both are written below DIR, each under its workload's name.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks._end_to_end_task import CHARACTERS, WORKLOADS, Workload, exercises, response
from examples.addition.task import prompt

SPECIAL = ("<pad>", "<eos>", "<unk>")
PAD_ID, EOS_ID = 0, 1
_SHARE_RIGHT = 0.3
_PROBLEMS = 40_000
_RISE_STEPS = 30
_IGNORED = -100
_REPORT_EVERY = 25


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama-shaped model. Heads of 64; embeddings untied, for CPU engines keep the old head of a tied model.

    tokens: of one warm-up step. stages: warm-up steps and their highest learning rate, by workload, in this order.
    """

    name: str
    hidden: int
    inner: int
    layers: int
    tokens: int
    stages: dict[str, tuple[int, float]]


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("0.3M", 128, 256, 2, tokens=3072, stages={"equal": (700, 3e-3), "tail": (350, 2e-3)}),
        Shape("10M", 384, 1024, 6, tokens=1024, stages={"equal": (400, 1e-3), "tail": (1000, 1e-3)}),
    )
}


def open_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character of the workloads; nothing is added to what is encoded."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS))}
    characters = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=SPECIAL[2]))
    characters.decoder = decoders.Fuse()
    pad, eos, unknown = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token=pad,
        eos_token=eos,
        unk_token=unknown,
        model_max_length=max(workload.context for workload in WORKLOADS.values()),
        clean_up_tokenization_spaces=False,
    )


def fresh_model(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A model with random weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.hidden // 64,
            num_key_value_heads=shape.hidden // 64,
            head_dim=64,
            max_position_embeddings=tokenizer.model_max_length,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=EOS_ID,
            pad_token_id=PAD_ID,
        )
    ).float()


def warm_up(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, workload: Workload, shape: Shape) -> None:
    """Train on fresh exercises; the learning rate rises linearly, then falls as a cosine."""
    (steps, rate), started_s = shape.stages[workload.name], time.monotonic()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / _RISE_STEPS) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))),
    )
    batches = _batches(tokenizer, workload, shape.tokens)
    model.train()
    for step in range(1, steps + 1):
        tokens_BT, targets_BT = next(batches)
        logits_BTV = model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT[:, 1:].flatten(), ignore_index=_IGNORED)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % _REPORT_EVERY == 0 or step == steps:
            seconds = time.monotonic() - started_s
            print(f"{workload.name}: step {step}/{steps}  loss {loss.item():.4f}  {seconds:.0f} s", flush=True)
    model.eval()


def _batches(
    tokenizer: PreTrainedTokenizerBase, workload: Workload, tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of exercises, padded on the right, and what is to be learned of them: responses only.    [B, T], [B, T]"""
    rng = random.Random(f"{workload.name}/warm-up")
    problems = cycle([exercise.problem for exercise in exercises("warm-up", _PROBLEMS)])
    while True:
        pairs: list[tuple[list[int], list[int]]] = []
        longest = 0
        while not pairs or (len(pairs) + 1) * longest <= tokens:
            problem, carries = next(problems), rng.random() < _SHARE_RIGHT
            written = response(problem, carries=carries, passes=workload.draw_passes(rng))
            pairs.append((tokenizer.encode(prompt(problem)), [*tokenizer.encode(written), EOS_ID]))
            longest = max(longest, len(pairs[-1][0]) + len(pairs[-1][1]))
        yield _tensors(pairs, longest)


def _tensors(pairs: list[tuple[list[int], list[int]]], longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets of some prompts with their responses."""
    spare = [longest - len(asked) - len(written) for asked, written in pairs]
    tokens = [[*asked, *written, *[PAD_ID] * more] for (asked, written), more in zip(pairs, spare, strict=True)]
    targets = [
        [*[_IGNORED] * len(asked), *written, *[_IGNORED] * more]
        for (asked, written), more in zip(pairs, spare, strict=True)
    ]
    return torch.tensor(tokens), torch.tensor(targets)


def make_bases(shape: Shape, out: Path, seed: int) -> None:
    """Warm up a model and write it after each workload, with its tokenizer, as transformers and vLLM load it."""
    tokenizer = open_tokenizer()
    model = fresh_model(shape, tokenizer, seed)
    for name in shape.stages:
        warm_up(model, tokenizer, WORKLOADS[name], shape)
        model.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)
        (out / name / "parameters").write_text(f"{sum(p.numel() for p in model.parameters())}\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the base models of one size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    make_bases(SHAPES[asked.size], asked.out, asked.seed)


if __name__ == "__main__":
    main()
