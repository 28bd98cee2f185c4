"""The union of algorithms and the pages that build them."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from learner_cases import CONFIGS, Lengths, asked, demonstration, group, rollout, trajectory

from common.config.algorithm import ALGORITHMS, AlgorithmConfig, Reinforcing
from common.config.base import Material
from learner import algorithms


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
def test_only_material_that_an_algorithm_accepts_reaches_it(config: AlgorithmConfig) -> None:
    """ReLIFT's demonstrations go to its buffer: what accepts them need not admit them."""
    hinted = trajectory(Lengths(hint=1, sampled=1), 1.0)
    for reward in (0.0, 1.0):
        admitted = asked(config).admits([rollout(1, reward), rollout(1, 0.5), hinted, demonstration(1)])
        assert admitted
        if Material.DEMONSTRATIONS not in config.accepts:
            assert not any(member.is_demonstration for member in admitted)
        if Material.HINTS not in config.accepts:
            assert hinted not in admitted


@pytest.mark.parametrize("config_class", ALGORITHMS, ids=lambda c: c.__name__)
def test_every_algorithm_that_requires_material_makes_use_of_it(config_class: type[AlgorithmConfig]) -> None:
    """In a group whose rollouts all failed."""
    algorithm, needed = asked(config_class()), config_class.requires
    failed = (rollout(1), rollout(2), trajectory(Lengths(hint=1, sampled=1)), demonstration(1))
    admitted = algorithm.admits(failed)
    if Material.HINTS in needed:
        assert any(member.hint_length for member in admitted)
    if Material.DEMONSTRATIONS in needed:
        collected = algorithm.rehearsal and algorithm.rehearsal.collects(group(*failed))
        assert collected or any(member.is_demonstration for member in admitted)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.kind}-{CONFIGS.index(c)}")
def test_a_reference_is_needed_exactly_where_there_is_a_weight_on_its_divergence(config: AlgorithmConfig) -> None:
    algorithm = asked(config)
    weight = config.kl_coefficient if isinstance(config, Reinforcing) else 0.0
    assert algorithm.needs_reference is (weight > 0)
    assert [term.weight for term in algorithm.terms if term.name == "kl"] == ([weight] if weight else [])


def test_every_page_says_its_departures() -> None:
    pages = {module.name for module in pkgutil.iter_modules(algorithms.__path__)} - {"policy_gradient"}
    assert len(pages) >= 11
    for page in pages:
        assert "Departures:" in (importlib.import_module(f"learner.algorithms.{page}").__doc__ or ""), page
