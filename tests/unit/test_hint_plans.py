"""What each hint policy makes of a group, with prompts that have no, one or several demonstrations."""

from __future__ import annotations

import numpy as np
import pytest

from common.config.algorithm import ALGORITHMS
from common.config.hints import Cut, FixedHint
from common.config.live import LiveConfig, parse_live
from common.trajectory import AnchorSearch, Demonstration, GroupPlan
from services.curriculum.hints import (
    Occasion,
    Planned,
    cannot_be_cut,
    cut_of,
    demonstrations_used,
    fixed_hint,
    plan_group,
)

NOW = Occasion()


def demonstration(length: int, boundaries: tuple[int, ...] = ()) -> Demonstration:
    return Demonstration(np.arange(length, dtype=np.int32), boundaries)


def live(algorithm: str, hints: dict[str, object] | None = None, **more: object) -> LiveConfig:
    """An algorithm under its published hint policy, or another."""
    published = next(a for a in ALGORITHMS if a.model_fields["kind"].default == algorithm).published_hints
    return parse_live({"algorithm": {"kind": algorithm, **more}, "hints": hints or published})


def plan(config: LiveConfig, *known: Demonstration, occasion: Occasion = NOW) -> GroupPlan | None:
    planned = plan_group(config, known, occasion)
    return None if planned is None else planned.plan


def test_luffy_adds_a_demonstration_where_the_prompt_has_one() -> None:
    assert plan(live("luffy"), demonstration(5)) == GroupPlan(plain=7, demonstrations=1)
    assert plan(live("luffy")) == GroupPlan(plain=7)


def test_sft_takes_as_many_demonstrations_as_there_are_and_passes_over_prompts_without() -> None:
    sft = live("sft", {"kind": "demonstration", "count": 2})
    assert plan(sft, demonstration(5)) == GroupPlan(plain=0, demonstrations=1)
    assert plan(sft, *[demonstration(5)] * 3) == GroupPlan(plain=0, demonstrations=2)
    assert plan(sft) is None


def test_an_unsolved_prompts_demonstration_waits_behind_a_gate() -> None:
    assert plan(live("relift"), demonstration(5)) == GroupPlan(plain=8, demonstrations=1, gate=0)
    hpt = live("hpt", {"kind": "if_unsolved", "gate": 2, "count": 3}, gate=2)
    assert plan(hpt, *[demonstration(5)] * 2) == GroupPlan(plain=8, demonstrations=2, gate=2)
    assert plan(hpt) == GroupPlan(plain=8)


def test_a_fixed_hint_branches_the_members_it_is_told_to() -> None:
    half = live("grpo", {"kind": "fixed", "ratio": 0.5, "branches": 3})
    assert plan(half, demonstration(9)) == GroupPlan(plain=5, branched=3, hint_length=4)
    assert plan(half) == GroupPlan(plain=8)
    some = live("grpo", {"kind": "fixed", "tokens": 3})
    assert plan(some, demonstration(9)) == GroupPlan(plain=0, branched=8, hint_length=3)
    both = live("luffy", {"kind": "fixed", "tokens": 0, "demonstrations": 1})
    assert plan(both, demonstration(9)) == GroupPlan(plain=7, demonstrations=1)


def test_a_hint_is_never_the_whole_demonstration() -> None:
    assert fixed_hint(FixedHint(tokens=100), demonstration(9)) == 8
    assert fixed_hint(FixedHint(ratio=0.999), demonstration(1)) == 0


def test_a_hint_cut_at_steps_never_grows() -> None:
    steps = demonstration(20, boundaries=(4, 9, 15))
    assert [fixed_hint(FixedHint(tokens=n, cut=Cut.STEP), steps) for n in (3, 4, 14, 19)] == [0, 4, 9, 15]


def test_uft_gives_the_whole_group_one_hint() -> None:
    seen = {plan(live("uft"), demonstration(20, (5, 9)), occasion=Occasion(0.3, (0, n))) for n in range(60)}
    assert seen == {
        GroupPlan(plain=8),
        *(GroupPlan(plain=0, branched=8, hint_length=length) for length in (5, 9, 19)),
    }
    assert plan(live("uft"), demonstration(20, (5, 9)), occasion=Occasion(1.0)) == GroupPlan(plain=8)
    assert plan(live("uft")) == GroupPlan(plain=8)


def test_prefix_rft_branches_one_of_the_rollouts() -> None:
    assert plan(live("prefix_rft"), demonstration(40)) == GroupPlan(plain=7, branched=1, hint_length=38)
    assert plan(live("prefix_rft")) == GroupPlan(plain=8)


def test_a_request_is_planned_the_same_way_again_and_others_otherwise() -> None:
    config, shown = live("uft"), demonstration(200, tuple(range(10, 200, 10)))
    plans = [plan(config, shown, occasion=Occasion(0.5, (7, number))) for number in range(20)]
    assert plans == [plan(config, shown, occasion=Occasion(0.5, (7, number))) for number in range(20)]
    assert plans != [plan(config, shown, occasion=Occasion(0.5, (8, number))) for number in range(20)]
    assert len(set(plans)) > 3


def test_bread_sends_the_cuts_of_the_demonstration_along() -> None:
    # 4 sentences are 4 episodes; the last one stays hidden.
    bread = live("bread")
    assert plan_group(bread, [demonstration(20, (4, 9, 15))], NOW) == Planned(
        GroupPlan(plain=8), AnchorSearch((4, 9, 15), members=8, probes=4, above=0.0, below=1.0)
    )
    assert plan_group(bread, [demonstration(20)], NOW) == Planned(GroupPlan(plain=8))
    assert plan_group(bread, [], NOW) == Planned(GroupPlan(plain=8))


def test_bread_makes_at_most_so_many_episodes() -> None:
    hints = {"kind": "branch_on_failure", "episodes": 4, "cut": "token", "always_branch": True, "band_high": 0.75}
    planned = plan_group(live("bread", hints), [demonstration(20)], NOW)
    assert planned is not None
    assert planned.search == AnchorSearch((5, 10, 15), 8, probes=4, above=0.0, below=0.75, always=True)


@pytest.mark.parametrize(
    ("remembered", "anchor"),
    [(None, None), (9, 9), (10, 9), (12, 9), (13, 15), (1, 4), (19, 15), (20, None), (0, None)],
)
def test_a_remembered_anchor_becomes_the_nearest_cut_if_it_still_fits(
    remembered: int | None, anchor: int | None
) -> None:
    planned = plan_group(live("bread"), [demonstration(20, (4, 9, 15))], Occasion(anchor=remembered))
    assert planned is not None
    assert planned.search is not None
    assert planned.search.anchor == anchor


def test_a_request_brings_only_the_demonstrations_it_needs() -> None:
    three = [demonstration(9, (4,))] * 3
    for algorithm, needed in {"luffy": 1, "relift": 1, "prefix_rft": 1, "bread": 1}.items():
        planned = plan_group(live(algorithm), three, NOW)
        assert planned is not None
        assert planned.demonstrations == needed, algorithm
    assert Planned(GroupPlan(plain=8)).demonstrations == 0


def test_every_hint_leaves_something_to_sample_whatever_its_policy() -> None:
    for hints in (
        {"kind": "fixed", "ratio": 0.99},
        {"kind": "cosine_binomial", "p_high": 1.0, "p_low": 1.0},
        {"kind": "cosine_binomial", "p_high": 1.0, "p_low": 1.0, "unit": "tokens", "cut": "token"},
        {"kind": "uniform_decay", "low_start": 1.0, "high": 1.0},
        {"kind": "branch_on_failure", "cut": "token", "episodes": 1000},
    ):
        for length in (1, 2, 3, 50):
            planned = plan_group(live("grpo", hints), [demonstration(length)], NOW)
            assert planned is not None
            assert planned.plan.hint_length < length
            assert planned.plan.plain + planned.plan.branched == 8
            assert planned.search is None or 0 < planned.search.cuts[-1] < length


def test_a_demonstration_that_offers_no_place_to_cut_is_known() -> None:
    uft, prefix, luffy = (live(a).hints for a in ("uft", "prefix_rft", "luffy"))
    assert [cannot_be_cut(uft, demonstration(9)), cannot_be_cut(uft, demonstration(9, (4,)))] == [True, False]
    assert [cannot_be_cut(prefix, demonstration(9)), cannot_be_cut(prefix, demonstration(1))] == [False, True]
    assert not cannot_be_cut(luffy, demonstration(9))


def test_the_policy_in_force_says_where_to_cut_and_how_many_demonstrations_it_uses() -> None:
    assert [cut_of(live(a).hints) for a in ("uft", "bread", "prefix_rft", "luffy")] == [
        Cut.SENTENCE,
        Cut.SENTENCE,
        Cut.TOKEN,
        Cut.STEP,
    ]
    assert [demonstrations_used(live(a).hints) for a in ("grpo", "luffy", "uft", "hpt")] == [0, 1, 1, 1]
    assert demonstrations_used(live("luffy", {"kind": "demonstration", "count": 3}).hints) == 3
    assert demonstrations_used(live("luffy", {"kind": "fixed", "tokens": 1, "demonstrations": 2}).hints) == 2
