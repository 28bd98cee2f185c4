"""Batched greedy decoding of addition problems: what the gate and the tests measure a model with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from examples.addition.task import DEMONSTRATION_LENGTH, Problem, answer, is_correct, prompt


@torch.inference_mode()
def greedy_responses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]
) -> list[str]:
    """The most likely response to each problem, without its end token; all prompts are equally long."""
    end = tokenizer.eos_token_id
    next_BT = torch.tensor([tokenizer.encode(prompt(problem)) for problem in problems])
    ended_B = torch.zeros(len(problems), dtype=torch.bool)
    sampled: list[torch.Tensor] = []
    cache = None
    for _ in range(DEMONSTRATION_LENGTH + 1):
        outputs = model(input_ids=next_BT, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        next_B = outputs.logits[:, -1].argmax(dim=-1).masked_fill(ended_B, end)
        ended_B |= next_B == end
        sampled.append(next_B)
        next_BT = next_B[:, None]
        if bool(ended_B.all()):
            break
    rows = torch.stack(sampled, dim=1).tolist()
    return [str(tokenizer.decode(row[: row.index(end)] if end in row else row)) for row in rows]


def greedy_accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> float:
    """The share of problems whose greedy response states the right sum."""
    responses = greedy_responses(model, tokenizer, problems)
    right = [is_correct(response, answer(problem)) for response, problem in zip(responses, problems, strict=True)]
    return sum(right) / len(right)
