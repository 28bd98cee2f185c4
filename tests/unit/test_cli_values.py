"""Values on the command line become merge patches, and parts of a configuration are found by their paths."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import SettingsError
from services.cli.assignments import parse_assignments, parse_switch
from services.cli.commands.steering import leaves, pick
from services.cli.feeding import with_hints
from services.cli.progress import describe_changes


def test_assignments_become_one_patch_with_typed_values() -> None:
    words = [
        "algorithm.gamma=0.2",
        "algorithm.divide_by_std=true",
        "hints.kind=fixed",
        "hints.tokens=null",
        "max_staleness=3",
    ]
    assert parse_assignments(words) == {
        "algorithm": {"gamma": 0.2, "divide_by_std": True},
        "hints": {"kind": "fixed", "tokens": None},
        "max_staleness": 3,
    }


@pytest.mark.parametrize("word", ["algorithm.gamma", "=3", "algorithm..gamma=1", ""])
def test_what_assigns_nothing_is_refused_with_an_example(word: str) -> None:
    with pytest.raises(SettingsError, match="write it like"):
        parse_assignments([word])


def test_a_value_and_a_table_of_one_name_contradict_each_other() -> None:
    with pytest.raises(SettingsError, match="contradicts"):
        parse_assignments(["algorithm=1", "algorithm.gamma=2"])


def test_options_before_hints_are_the_algorithms_and_those_after_it_the_policys() -> None:
    words = [
        "--gamma",
        "0.2",
        "--clip-high=0.28",
        "--divide-by-std",
        "--hints",
        "fixed",
        "--ratio",
        "0.5",
        "--cut",
        "step",
    ]
    assert parse_switch("luffy", words) == {
        "algorithm": {"kind": "luffy", "gamma": 0.2, "clip_high": 0.28, "divide_by_std": True},
        "hints": {"kind": "fixed", "ratio": 0.5, "cut": "step"},
    }


def test_a_negative_number_is_a_value_not_an_option() -> None:
    assert parse_switch("grpo", ["--entropy-bonus", "-1"])["algorithm"]["entropy_bonus"] == -1


@pytest.mark.parametrize(
    ("kind", "words", "complaint"),
    [
        ("--gamma", ["0.2", "luffy"], "name the algorithm first"),
        ("luffy", ["gamma", "0.2"], "out of place"),
        ("luffy", ["--hints"], "needs a kind"),
        ("luffy", ["--hints", "--ratio", "0.5"], "needs a kind"),
        ("luffy", ["--kind", "grpo"], "there is no --kind"),
    ],
)
def test_a_switch_that_cannot_be_understood_is_refused_with_a_sentence(
    kind: str, words: list[str], complaint: str
) -> None:
    with pytest.raises(SettingsError, match=complaint):
        parse_switch(kind, words)


def test_a_part_of_a_configuration_is_found_by_its_path() -> None:
    config = {"algorithm": {"kind": "grpo", "clip_low": 0.2}, "groups_per_step": 16}
    assert pick(config, "") == config
    assert pick(config, "algorithm.clip_low") == 0.2
    assert leaves(config["algorithm"], "algorithm") == [("algorithm.kind", "grpo"), ("algorithm.clip_low", 0.2)]
    with pytest.raises(SettingsError, match="at 'gamma' there is kind, clip_low"):
        pick(config, "algorithm.gamma")
    with pytest.raises(SettingsError, match="nothing below it"):
        pick(config, "groups_per_step.x")


def test_a_switch_of_kind_is_told_as_such_and_other_changes_key_by_key() -> None:
    changes = [
        {"path": "algorithm.clip_low", "before": 0.2, "after": None},
        {"path": "algorithm.kind", "before": "grpo", "after": "sft"},
        {"path": "optimizer.learning_rate", "before": 1e-6, "after": 2e-4},
    ]
    assert describe_changes(changes) == "algorithm grpo → sft, optimizer.learning_rate 1e-06 → 0.0002"
    assert describe_changes([]) == "nothing"


@pytest.mark.parametrize(
    ("patch", "hints", "added"),
    [
        ({"algorithm": {"kind": "bread"}}, {"kind": "none"}, {"kind": "branch_on_failure"}),
        ({"algorithm": {"kind": "bread"}}, {"kind": "fixed", "ratio": 0.5}, None),
        ({"algorithm": {"kind": "bread"}}, {"kind": "fixed", "ratio": 0.5, "demonstrations": 1}, "branch_on_failure"),
        ({"algorithm": {"kind": "luffy"}}, {"kind": "fixed", "ratio": 0.5, "demonstrations": 1}, None),
        ({"algorithm": {"kind": "grpo"}}, {"kind": "if_unsolved"}, {"kind": "none"}),
        ({"algorithm": {"kind": "luffy"}, "hints": {"kind": "none"}}, {"kind": "none"}, {"kind": "none"}),
        ({"algorithm": {"kind": "lufy"}}, {"kind": "none"}, None),
        ({"algorithm": {"kind": "luffy"}}, {"kind": "of another version"}, None),
    ],
)
def test_a_switch_gets_the_published_hints_only_if_none_are_named_and_the_current_ones_will_not_do(
    patch: dict[str, Any], hints: dict[str, Any], added: Any
) -> None:
    whole, told = with_hints(patch, {"hints": hints})
    assert whole.get("hints") == ({"kind": added} if isinstance(added, str) else added)
    assert bool(told) == (whole != patch)
