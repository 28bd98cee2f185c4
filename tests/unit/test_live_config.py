"""The live configuration: published defaults, refusals that name the remedy, and merge patches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.algorithm import GRPO, LUFFY, Corrections, DrGRPO
from common.config.base import Norm, Surrogate
from common.config.hints import FixedHint
from common.config.live import LiveConfig, dump_live, merge_patch, parse_live
from common.config.store import Change, difference
from common.errors import ConfigRejected

DEMONSTRATION = {"kind": "demonstration"}


def test_luffy_alone_is_luffy_as_its_authors_ran_it() -> None:
    algorithm = parse_live({"algorithm": {"kind": "luffy"}, "hints": DEMONSTRATION}).algorithm
    assert isinstance(algorithm, LUFFY)
    assert (algorithm.rollouts, algorithm.gamma, algorithm.entropy_bonus) == (7, 0.1, 0.001)
    assert (algorithm.surrogate, algorithm.norm, algorithm.divide_by_std) == (Surrogate.UNCLIPPED, Norm.CONSTANT, False)


def test_grpo_alone_is_equation_7_and_dr_grpo_drops_both_biases() -> None:
    assert (GRPO().norm, GRPO().divide_by_std, GRPO().clip_low, GRPO().clip_high) == (
        Norm.SEQUENCE_MEAN,
        True,
        0.2,
        0.2,
    )
    assert (DrGRPO().norm, DrGRPO().divide_by_std) == (Norm.CONSTANT, False)


@pytest.mark.parametrize(
    ("document", "path", "said"),
    [
        ({"algorithm": {"kind": "luffy"}}, "", 'set {"hints": {"kind": "demonstration"}} in the same change'),
        ({"algorithm": {"kind": "grpo"}, "hints": DEMONSTRATION}, "", 'set {"hints": {"kind": "none"}}'),
        ({"algorithm": {"kind": "grpo", "gamma": 1}}, "algorithm.gamma", "not known here"),
        ({"algorithm": {"kind": "lufy"}}, "algorithm", "choose one of"),
        ({"algorithm": {}}, "algorithm", 'no "kind"'),
        ({"algorithm": {"kind": "luffy", "gamma": "0.1"}, "hints": DEMONSTRATION}, "algorithm.gamma", "valid number"),
        ({"hints": {"kind": "fixed"}}, "hints", 'either "ratio" or "tokens"'),
        ({"sampling": {"temperature": 0}}, "sampling.temperature", "greater than 0"),
        ({"sampling": {"temperature": float("inf")}}, "sampling.temperature", "finite"),
        ({"groups_per_step": True}, "groups_per_step", "integer"),
        ({"algorithm": {"kind": "sft"}, "hints": DEMONSTRATION, "top_p": 0.9}, "top_p", "not known"),
        ({"hints": {"kind": "fixed", "ratio": 0.5, "tokens": 3}}, "hints", 'either "ratio" or "tokens"'),
        ({"hints": {"kind": "fixed", "ratio": 1.0}}, "hints.ratio", "less than 1"),
        ({"hints": {"kind": "cosine_binomial", "p_low": 0.9, "p_high": 0.5}}, "hints", "p_low (0.9) must not be above"),
        ({"hints": {"kind": "cosine_binomial", "steps": 0}}, "hints.steps", "greater than or equal to 1"),
        ({"hints": {"kind": "cosine_binomial", "unit": "words"}}, "hints.unit", "'buckets' or 'tokens'"),
        ({"hints": {"kind": "uniform_decay", "low_end": 0.99}}, "hints", "low_end (0.99), low_start (0.95) and high"),
        ({"hints": {"kind": "uniform_decay", "high": 0.9}}, "hints", "low_start (0.95) and high (0.9) must not fall"),
        (
            {"hints": {"kind": "branch_on_failure", "band_low": 0.5, "band_high": 0.5}},
            "hints",
            "must be below band_high",
        ),
        ({"hints": {"kind": "branch_on_failure", "episodes": 1}}, "hints.episodes", "greater than or equal to 2"),
        ({"hints": {"kind": "branch_on_failure", "gate": 1}}, "hints.gate", "not known here"),
        ({"algorithm": {"kind": "uft"}}, "", 'set {"hints": {"kind": "cosine_binomial"}} in the same change'),
        ({"algorithm": {"kind": "bread"}, "hints": DEMONSTRATION}, "", '{"hints": {"kind": "branch_on_failure"}}'),
        ({"algorithm": {"kind": "relift"}}, "", 'set {"hints": {"kind": "if_unsolved"}} in the same change'),
        (
            {"algorithm": {"kind": "bread", "rollouts": 1}, "hints": {"kind": "branch_on_failure"}},
            "",
            "between 0.0 and 1.0 is right, which is no number of 1 rollouts: raise algorithm.rollouts",
        ),
        ({"algorithm": {"kind": "hpt", "gate": 2}, "hints": {"kind": "if_unsolved"}}, "", '{"hints": {"gate": 2}}'),
        ({"algorithm": {"kind": "grpo", "dual_clip": 1.0}}, "algorithm.dual_clip", "greater than 1"),
        ({"algorithm": {"kind": "grpo", "surrogate": "ppo"}}, "algorithm.surrogate", "'gspo'"),
        (
            {"algorithm": {"kind": "grpo", "corrections": {"keep_low": 5.0, "keep_high": 0.5}}},
            "algorithm.corrections",
            "keep_low (5.0) must be below keep_high (0.5)",
        ),
        (
            {"algorithm": {"kind": "luffy", "ratio_min": 2.0, "ratio_max": 1.0}, "hints": DEMONSTRATION},
            "algorithm",
            "ratio_min (2.0) must be below ratio_max (1.0)",
        ),
        ({"algorithm": {"kind": "srft", "shaping": "log"}, "hints": DEMONSTRATION}, "algorithm.shaping", "'gamma'"),
        (
            {"algorithm": {"kind": "srft", "sft_entropy_sign": 0}, "hints": DEMONSTRATION},
            "algorithm.sft_entropy_sign",
            "-1 or 1",
        ),
    ],
)
def test_a_refusal_names_the_place_and_the_remedy(document: dict[str, object], path: str, said: str) -> None:
    with pytest.raises(ConfigRejected) as refused:
        parse_live(document)
    found = [(p, s) for p, s in refused.value.problems if p == path and said in s]
    assert found, refused.value.problems


def test_a_configuration_survives_its_own_document() -> None:
    live = LiveConfig(algorithm=LUFFY(gamma=0.3), hints=FixedHint(ratio=0.25, demonstrations=1))
    assert parse_live(dump_live(live)) == live


def test_hpt_takes_demonstrations_that_come_where_it_wants_them() -> None:
    for hints in ({"kind": "if_unsolved", "gate": 3}, DEMONSTRATION):
        assert parse_live({"algorithm": {"kind": "hpt", "gate": 2}, "hints": hints}).algorithm.kind == "hpt"


def test_corrections_are_on_if_any_of_them_is() -> None:
    assert not Corrections().any
    for on in ({"decoupled": True}, {"truncate_at": 2.0}, {"keep_low": 0.5}, {"keep_high": 5.0}):
        assert Corrections.model_validate(on).any


def test_a_patch_of_a_schedule_keeps_what_it_does_not_name() -> None:
    before = dump_live(
        parse_live({"algorithm": {"kind": "uft"}, "hints": {"kind": "cosine_binomial", "buckets": 3, "restart": 2}})
    )
    after = merge_patch(before, {"hints": {"steps": 600}})["hints"]
    assert (after["steps"], after["buckets"], after["restart"]) == (600, 3, 2)


def test_a_patch_of_one_parameter_keeps_the_others() -> None:
    before = dump_live(parse_live({"algorithm": {"kind": "luffy", "rollouts": 3}, "hints": DEMONSTRATION}))
    after = merge_patch(before, {"algorithm": {"gamma": 0.3}})
    assert (after["algorithm"]["gamma"], after["algorithm"]["rollouts"]) == (0.3, 3)


def test_a_patch_to_another_kind_starts_from_that_kinds_defaults() -> None:
    before = dump_live(parse_live({"algorithm": {"kind": "grpo", "rollouts": 3}}))
    after = parse_live(merge_patch(before, {"algorithm": {"kind": "luffy"}, "hints": DEMONSTRATION}))
    assert after.algorithm == LUFFY()


def test_null_puts_a_value_back_to_its_default() -> None:
    before = dump_live(parse_live({"groups_per_step": 3}))
    assert parse_live(merge_patch(before, {"groups_per_step": None})).groups_per_step == LiveConfig().groups_per_step


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["algorithm", "hints", "sampling", "optimizer", "groups_per_step", "kind", "x"])


@given(st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON, max_size=3), max_size=4))
def test_any_document_is_a_configuration_or_a_refusal(document: dict[str, object]) -> None:
    try:
        parse_live(merge_patch(dump_live(LiveConfig()), document))
    except ConfigRejected:
        return


def test_a_difference_lists_every_changed_leaf() -> None:
    before = {"a": {"kind": "x", "p": 1}, "n": 2}
    after = {"a": {"kind": "y", "q": 1}, "n": 2}
    assert difference(before, after) == [
        Change("a.kind", "x", "y"),
        Change("a.p", 1, None),
        Change("a.q", None, 1),
    ]
