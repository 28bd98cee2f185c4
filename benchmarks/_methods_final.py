"""The last weights of a trial, sampled by a program of its own: pass@k, entropy, and a check of the engine's accuracy.

    python -m benchmarks._methods_final --base DIR --weights DIR --data FILE --seed 0

The system evaluates the greedy response only while a trial runs, which is cheap; the many samples of pass@k are drawn
here once, by plain ancestral sampling at temperature 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from examples.addition.task import DEMONSTRATION_LENGTH, is_correct

SAMPLES = 8
LONGEST = DEMONSTRATION_LENGTH + 1


@torch.inference_mode()
def respond(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: list[str], generator: torch.Generator | None
) -> tuple[list[str], float]:
    """A response to each prompt, all equally long, and the mean entropy (nats) of what it was drawn from.

    generator: of the samples; None takes the likeliest token.
    """
    end = model.config.eos_token_id
    assert isinstance(end, int)
    next_BT = torch.tensor([tokenizer.encode(prompt) for prompt in prompts])
    ended_B = torch.zeros(len(prompts), dtype=torch.bool)
    sampled: list[torch.Tensor] = []
    cache: Any = None
    entropy, positions = 0.0, 0
    for _ in range(LONGEST):
        outputs = model(input_ids=next_BT, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        logprobs_BV = torch.log_softmax(outputs.logits[:, -1].float(), dim=-1)
        entropy_B = -(logprobs_BV.exp() * logprobs_BV).sum(dim=-1)
        entropy += float(entropy_B[~ended_B].sum())
        positions += int((~ended_B).sum())
        if generator is None:
            next_B = logprobs_BV.argmax(dim=-1)
        else:
            next_B = torch.multinomial(logprobs_BV.exp(), 1, generator=generator)[:, 0]
        next_B = next_B.masked_fill(ended_B, end)
        ended_B |= next_B == end
        sampled.append(next_B)
        next_BT = next_B[:, None]
        if bool(ended_B.all()):
            break
    ids_BT = torch.stack(sampled, dim=1).tolist()
    whole = [list(itertools.takewhile(lambda i: i != end, ids)) for ids in ids_BT]
    return [str(tokenizer.decode(ids)) for ids in whole], entropy / max(positions, 1)


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: list[Any], seed: int) -> dict[str, Any]:
    """pass@SAMPLES and entropy over the rows' prompts, and their greedy accuracy."""
    prompts, answers = [row["prompt"] for row in rows], [row["answer"] for row in rows]
    greedy, _ = respond(model, tokenizer, prompts, None)
    many = [prompt for prompt in prompts for _ in range(SAMPLES)]
    responses, entropy = respond(model, tokenizer, many, torch.Generator().manual_seed(seed))
    right = [is_correct(response, answers[i // SAMPLES]) for i, response in enumerate(responses)]
    solved = [any(right[i * SAMPLES : (i + 1) * SAMPLES]) for i in range(len(rows))]
    return {
        "pass_at_k": sum(solved) / len(solved),
        "k": SAMPLES,
        "pass_at_1": sum(right) / len(right),
        "entropy": entropy,
        "greedy": sum(map(is_correct, greedy, answers)) / len(rows),
    }


def main() -> None:
    """Measure the weights and print a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="the model's configuration and tokenizer")
    parser.add_argument("--weights", type=Path, required=True, help="a weight version of a run")
    parser.add_argument("--data", type=Path, required=True, help="held-out problems (JSONL)")
    parser.add_argument("--limit", type=int, default=128, help="use only the first problems")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(asked.base).float().eval()
    model.load_state_dict(load_file(asked.weights / "model.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(asked.base)
    rows = [json.loads(line) for line in asked.data.read_text(encoding="utf-8").splitlines()[: asked.limit]]
    print(json.dumps(measure(model, tokenizer, rows, asked.seed)))


if __name__ == "__main__":
    main()
