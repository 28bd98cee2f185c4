"""Held-out accuracy of weights, without the noise of sampling: how probable a right response is.

The accuracy of sampling is the probability that a sampled response is right. What these bases write differs in which of
two procedures it follows and in how often it checks itself, so that is the probability of the written-out right
solution, summed over the numbers of passes (the first four, which nearly all responses have at most), and averaged over
held-out exercises. Both sides are measured by this one function, after their training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks._end_to_end_base import EOS_ID, PAD_ID
from benchmarks._end_to_end_cell import Cell
from benchmarks._end_to_end_task import Exercise, exercises, response
from examples.addition.task import prompt

HELD_OUT = 128
_PASSES = 4
_ROWS = 32


def split(seed: int, trained: int) -> tuple[list[Exercise], list[Exercise]]:
    """Exercises to train on, and others to be held out."""
    drawn = exercises(f"data/{seed}", HELD_OUT + trained)
    return drawn[HELD_OUT:], drawn[:HELD_OUT]


class Scale:
    """Measures the accuracy of weights of one cell's model."""

    def __init__(self, cell: Cell) -> None:
        tokenizer = AutoTokenizer.from_pretrained(cell.base)
        self._model = AutoModelForCausalLM.from_pretrained(cell.base, dtype=torch.float32).eval()
        _, held_out = split(cell.seed, 0)
        self._pairs = [
            (
                tokenizer.encode(prompt(exercise.problem)),
                [*tokenizer.encode(response(exercise.problem, carries=True, passes=passes)), EOS_ID],
            )
            for passes in range(1, min(_PASSES, cell.task.passes) + 1)
            for exercise in held_out
        ]

    def accuracy(self, weights: Path | None) -> float:
        """The accuracy of these weights; None: of the base model's."""
        if weights is not None:
            self._model.load_state_dict(load_file(weights))
        probabilities = [
            probability
            for start in range(0, len(self._pairs), _ROWS)
            for probability in self._probabilities(self._pairs[start : start + _ROWS])
        ]
        return sum(probabilities) / HELD_OUT

    @torch.inference_mode()
    def _probabilities(self, pairs: list[tuple[list[int], list[int]]]) -> list[float]:
        width = max(len(asked) + len(right) for asked, right in pairs)
        tokens_BT = torch.full((len(pairs), width), PAD_ID)
        counted_BT = torch.zeros(len(pairs), width)
        for row, (asked, right) in enumerate(pairs):
            end = len(asked) + len(right)
            tokens_BT[row, :end] = torch.tensor([*asked, *right])
            counted_BT[row, len(asked) : end] = 1.0
        logprobs_BTV = self._model(input_ids=tokens_BT[:, :-1], use_cache=False).logits.log_softmax(-1)
        logprobs_BT = logprobs_BTV.gather(2, tokens_BT[:, 1:, None])[..., 0]
        return (logprobs_BT * counted_BT[:, 1:]).sum(1).exp().tolist()


def curve(scale: Scale, saved: Mapping[int, Path]) -> dict[int, float]:
    """The accuracy after each step whose weights were saved, and of the base model as step 0."""
    return {0: scale.accuracy(None)} | {step: scale.accuracy(saved[step]) for step in sorted(saved)}
