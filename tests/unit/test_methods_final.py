"""Sampling from a trial's last weights: the engine's responses are found again, and samples follow the policy."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks._methods_final import SAMPLES, measure, respond
from examples.addition.greedy import greedy_responses
from examples.addition.make_base import fresh_model
from examples.addition.task import EASY, answer, draw_distinct, prompt
from examples.addition.tokenizer import character_tokenizer

TOKENIZER = character_tokenizer(128)
PROBLEMS = draw_distinct(random.Random(0), EASY, 4)
ROWS = [{"prompt": prompt(problem), "answer": answer(problem)} for problem in PROBLEMS]


def test_the_likeliest_responses_are_those_of_greedy_decoding() -> None:
    model = fresh_model(TOKENIZER, 1).eval()
    responses, _ = respond(model, TOKENIZER, [row["prompt"] for row in ROWS], None)
    assert responses == greedy_responses(model, TOKENIZER, PROBLEMS)


def test_the_same_seed_draws_the_same_samples_and_another_draws_others() -> None:
    model = fresh_model(TOKENIZER, 1).eval()
    prompts = [row["prompt"] for row in ROWS]
    drawn = [respond(model, TOKENIZER, prompts, torch.Generator().manual_seed(seed))[0] for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_a_policy_that_knows_nothing_has_the_entropy_of_its_vocabulary_and_solves_nothing() -> None:
    model = fresh_model(TOKENIZER, 1).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    found = measure(model, TOKENIZER, ROWS, seed=0)
    assert found["entropy"] == pytest.approx(torch.log(torch.tensor(float(len(TOKENIZER)))).item(), rel=1e-5)
    assert (found["pass_at_k"], found["pass_at_1"], found["greedy"], found["k"]) == (0.0, 0.0, 0.0, SAMPLES)
