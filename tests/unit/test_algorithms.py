"""The union of algorithms and the pages that build them."""

from __future__ import annotations

import importlib

import pytest
from learner_cases import CONFIGS, asked, demonstration, rollout

from common.config.algorithm import ALGORITHMS, AlgorithmConfig
from common.config.base import Material
from learner.selectors import demonstrations_only


@pytest.mark.parametrize("config_class", ALGORITHMS, ids=lambda c: c.__name__)
def test_every_algorithm_that_can_be_asked_for_can_be_built(config_class: type[AlgorithmConfig]) -> None:
    config = config_class()
    algorithm = asked(config)
    assert algorithm.name == config.model_dump()["kind"]
    assert algorithm.terms
    names = [term.name for term in algorithm.terms]
    assert len(set(names)) == len(names)


def test_the_cases_of_these_tests_cover_every_algorithm() -> None:
    assert {type(config) for config in CONFIGS} == set(ALGORITHMS)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.kind}-{CONFIGS.index(c)}")
def test_only_an_algorithm_that_accepts_demonstrations_admits_them(config: AlgorithmConfig) -> None:
    admitted = asked(config).admits([rollout(1), demonstration(1)])
    accepts = Material.DEMONSTRATIONS in config.accepts
    assert any(member.is_demonstration for member in admitted) is accepts
    assert any(not member.is_demonstration for member in admitted) is (asked(config).admits is not demonstrations_only)


def test_every_page_says_its_departures() -> None:
    for page in ("sft", "grpo", "luffy"):
        assert "Departures:" in (importlib.import_module(f"learner.algorithms.{page}").__doc__ or "")
