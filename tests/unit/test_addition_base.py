"""The shipped base model of the addition task: it passes the gate, and an engine can serve it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.addition.greedy import greedy_responses
from examples.addition.make_base import Gate, measure
from examples.addition.task import ALPHABET, Problem, demonstration, prompt
from examples.addition.tokenizer import character_tokenizer

SHIPPED = Path(__file__).parents[2] / "examples" / "addition" / "base"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(SHIPPED).eval()


def test_the_shipped_base_passes_the_gate_on_a_sample(model: Any, tokenizer: Any) -> None:
    gate = measure(model, tokenizer, seed=7, problems=64)
    assert gate.easy >= 0.95
    assert gate.hard == 0.0
    assert gate.refusal() is None


def test_the_shipped_base_writes_its_steps_and_then_stops(model: Any, tokenizer: Any) -> None:
    problem = Problem(1203, 2145)
    assert greedy_responses(model, tokenizer, [problem]) == [demonstration(problem)]


def test_the_shipped_base_has_the_shape_that_the_cpu_engine_needs() -> None:
    config = json.loads((SHIPPED / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["head_dim"] == 64
    assert config["hidden_size"] == 128
    assert config["tie_word_embeddings"] is False
    assert config["dtype"] == "float32"
    assert config["vocab_size"] == len(ALPHABET) + 3
    assert config["max_position_embeddings"] == 128


def test_the_engine_finds_the_end_token_in_every_place_it_looks(tokenizer: Any) -> None:
    generation = json.loads((SHIPPED / "generation_config.json").read_text())
    config = json.loads((SHIPPED / "config.json").read_text())
    assert generation["eos_token_id"] == config["eos_token_id"] == tokenizer.eos_token_id == 1
    assert generation["pad_token_id"] == config["pad_token_id"] == tokenizer.pad_token_id == 0


def test_the_output_head_is_a_tensor_of_its_own(model: Any) -> None:
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_token_is_a_character_and_nothing_is_added(tokenizer: Any) -> None:
    text = prompt(Problem(4997, 5167)) + demonstration(Problem(4997, 5167))
    tokens = tokenizer.encode(text)
    assert len(tokens) == len(text)
    assert tokenizer.decode(tokens) == text


def test_prompt_and_demonstration_tokenised_apart_are_the_tokens_of_the_whole(tokenizer: Any) -> None:
    first, second = prompt(Problem(4997, 5167)), demonstration(Problem(4997, 5167))
    assert tokenizer.encode(first) + tokenizer.encode(second) == tokenizer.encode(first + second)


def test_the_shipped_tokenizer_is_the_one_that_the_code_makes(tokenizer: Any) -> None:
    assert tokenizer.get_vocab() == character_tokenizer(128).get_vocab()


@pytest.mark.parametrize(("easy", "hard", "reason"), [(0.89, 0.0, "did not converge"), (0.95, 0.05, "nothing is left")])
def test_the_gate_says_why_a_model_is_unfit(easy: float, hard: float, reason: str) -> None:
    refusal = Gate(easy=easy, hard=hard).refusal()
    assert refusal is not None
    assert reason in refusal


def test_the_gate_passes_a_model_that_adds_easily_and_never_carries_on() -> None:
    assert Gate(easy=0.9, hard=0.049).refusal() is None
