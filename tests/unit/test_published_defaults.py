"""The kind alone is the method: every algorithm and hint policy has, complete, the settings its authors published.

Against methods.md, number by number. A default that changes has to change here as well, for a reason.
"""

from __future__ import annotations

from typing import Any

import pytest

from common.config.algorithm import ALGORITHMS, AlgorithmConfig
from common.config.base import Material
from common.config.hints import HINT_POLICIES, HintConfig
from common.config.live import dump_live, parse_live

H, D = Material.HINTS, Material.DEMONSTRATIONS
CORRECTIONS = {"decoupled": False, "truncate_at": None, "keep_low": None, "keep_high": None}
REINFORCING: dict[str, Any] = {
    "rollouts": 8,
    "statistics": "joint",
    "norm": "sequence_mean",
    "entropy_bonus": 0.0,
    "kl_coefficient": 0.0,
    "corrections": CORRECTIONS,
}
# GRPO as written: Eq. 7, clipped at 0.2, divided by the standard deviation.
POLICY_GRADIENT: dict[str, Any] = REINFORCING | {
    "surrogate": "clipped",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "gspo_clip_low": 3e-4,
    "gspo_clip_high": 4e-4,
    "dual_clip": None,
    "divide_by_std": True,
}
GRPO: dict[str, Any] = POLICY_GRADIENT | {"drop_flat_groups": False, "overlong_buffer": 0.0}
DR_GRPO: dict[str, Any] = {"divide_by_std": False, "norm": "constant"}
LUFFY: dict[str, Any] = (
    POLICY_GRADIENT
    | DR_GRPO
    | {
        "rollouts": 7,
        "surrogate": "unclipped",
        "entropy_bonus": 0.001,
        "shaping": "gamma",
        "gamma": 0.1,
        "exponent": 0.5,
        "ratio_min": None,
        "ratio_max": None,
        "negatives_in_failed_groups": True,
    }
)
ALGORITHM_DEFAULTS: dict[str, dict[str, Any]] = {
    "sft": {"rollouts": 0, "norm": "token_mean"},  # §1
    "reinforce": REINFORCING | {"baseline": "none", "norm": "constant"},  # §2
    "grpo": GRPO,  # §3
    "dr_grpo": GRPO | DR_GRPO,
    "dapo": GRPO | {"clip_high": 0.28, "norm": "token_mean", "drop_flat_groups": True, "overlong_buffer": 0.2},
    "naive_mix": POLICY_GRADIENT | {"rollouts": 7, "norm": "token_mean"},  # §4
    "mix": POLICY_GRADIENT | {"rollouts": 7, "norm": "token_mean"},
    "luffy": LUFFY,  # §5
    "luffy_paper": LUFFY | {"surrogate": "clipped", "norm": "token_mean", "entropy_bonus": 0.01},
    "relift": POLICY_GRADIENT  # §6
    | DR_GRPO
    | {
        "surrogate": "unclipped",
        "buffer_size": 128,
        "buffer_limit": 1024,
        "sft_learning_rate": 1e-6,
        "sft_entropy_bonus": 1e-4,
    },
    "uft": POLICY_GRADIENT  # §7
    | {"norm": "token_mean", "kl_coefficient": 0.001, "entropy_bonus": 0.001, "beta": 0.001, "hint_norm": "mean"},
    "bread": POLICY_GRADIENT,  # §8
    "prefix_rft": POLICY_GRADIENT  # §9
    | DR_GRPO
    | {"dual_clip": 3.0, "keep_share": 0.2, "selection": "trajectory"},
    "srft": REINFORCING  # §10
    | {
        "norm": "token_mean",
        "divide_by_std": True,
        "sft_weight": 0.5,
        "sft_entropy_sign": -1,
        "off_policy_weight": 1.0,
        "shaping": "gamma",
        "gamma": 0.1,
        "rl_weight": 0.1,
        "entropy_scope": "sequence",
        "self_reward": "pm1",
        "negatives_in_failed_groups": True,
    },
    "hpt": POLICY_GRADIENT | DR_GRPO | {"gate": 0, "sft_coefficient": 1.0},  # §11
}
HINT_DEFAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    "demonstration": {"count": 1},
    "if_unsolved": {"gate": 0, "count": 1},
    "fixed": {"ratio": 0.5, "tokens": None, "branches": None, "cut": "token", "demonstrations": 0},
    "cosine_binomial": {  # §7
        "p_high": 0.95,
        "p_low": 0.05,
        "steps": 300,
        "restart": 0,
        "unit": "buckets",
        "buckets": 5,
        "draw": "binomial",
        "cut": "sentence",
    },
    "uniform_decay": {  # §9
        "low_start": 0.95,
        "low_end": 0.05,
        "high": 0.95,
        "steps": 500,
        "restart": 0,
        "branches": 1,
        "cut": "token",
    },
    "branch_on_failure": {  # §8
        "episodes": 10,
        "probes": 4,
        "band_low": 0.0,
        "band_high": 1.0,
        "always_branch": False,
        "cut": "sentence",
    },
}
# kind -> (what it needs, what it can use, the hint policy that its authors fed it with)
MATERIAL: dict[str, tuple[set[Material], set[Material], str]] = {
    "sft": ({D}, {D}, "demonstration"),
    "reinforce": (set(), {H}, "none"),
    "grpo": (set(), {H}, "none"),
    "dr_grpo": (set(), {H}, "none"),
    "dapo": (set(), {H}, "none"),
    "naive_mix": ({D}, {D, H}, "demonstration"),
    "mix": ({D}, {D, H}, "demonstration"),
    "luffy": ({D}, {D, H}, "demonstration"),
    "luffy_paper": ({D}, {D, H}, "demonstration"),
    "relift": ({D}, {D, H}, "if_unsolved"),
    "uft": ({H}, {H}, "cosine_binomial"),
    "bread": ({H}, {H}, "branch_on_failure"),
    "prefix_rft": ({H}, {H}, "uniform_decay"),
    "srft": ({D}, {D, H}, "demonstration"),
    "hpt": ({D}, {D, H}, "if_unsolved"),
}
ALGORITHM_KINDS = {a.model_fields["kind"].default: a for a in ALGORITHMS}
HINT_KINDS = {h.model_fields["kind"].default: h for h in HINT_POLICIES}


def test_there_are_fifteen_algorithms_and_seven_hint_policies() -> None:
    assert list(ALGORITHM_KINDS) == list(ALGORITHM_DEFAULTS) == list(MATERIAL)
    assert list(HINT_KINDS) == ["none", "demonstration", "if_unsolved", *list(HINT_DEFAULTS)[3:]]


@pytest.mark.parametrize("kind", ALGORITHM_DEFAULTS)
def test_an_algorithms_kind_alone_is_its_published_setting(kind: str) -> None:
    document = dump_live(parse_live({"algorithm": {"kind": kind}, "hints": ALGORITHM_KINDS[kind].published_hints}))
    assert document["algorithm"] == {"kind": kind, **ALGORITHM_DEFAULTS[kind]}


@pytest.mark.parametrize("kind", HINT_DEFAULTS)
def test_a_hint_policys_suggestion_is_its_published_setting(kind: str) -> None:
    algorithm = next(a for a, (needs, uses, _) in MATERIAL.items() if _fits(HINT_KINDS[kind], needs, uses))
    document = {"algorithm": {"kind": algorithm}, "hints": {"kind": kind, **HINT_KINDS[kind].suggestion}}
    assert dump_live(parse_live(document))["hints"] == {"kind": kind, **HINT_DEFAULTS[kind]}


def _fits(hints: type[HintConfig], needs: set[Material], uses: set[Material]) -> bool:
    provided = hints.model_validate(hints.suggestion).provides
    return needs <= provided <= uses


@pytest.mark.parametrize("kind", MATERIAL)
def test_an_algorithm_declares_its_material_and_where_it_came_from(kind: str) -> None:
    algorithm: type[AlgorithmConfig] = ALGORITHM_KINDS[kind]
    needs, uses, hints = MATERIAL[kind]
    assert (algorithm.requires, algorithm.accepts) == (needs, uses)
    assert algorithm.published_hints == {"kind": hints}
    assert algorithm.title
    assert algorithm.paper.startswith(("https://", "survey"))


@pytest.mark.parametrize("algorithm", MATERIAL)
@pytest.mark.parametrize("hints", HINT_DEFAULTS)
def test_every_pair_of_algorithm_and_hint_policy_is_accepted_or_refused_with_the_remedy(
    algorithm: str, hints: str
) -> None:
    needs, uses, published = MATERIAL[algorithm]
    document = {"algorithm": {"kind": algorithm}, "hints": {"kind": hints, **HINT_KINDS[hints].suggestion}}
    if _fits(HINT_KINDS[hints], needs, uses):
        assert parse_live(document).algorithm.kind == algorithm
        return
    with pytest.raises(Exception, match=f'set {{"hints": {{"kind": "{published}"}}}} in the same change'):
        parse_live(document)
