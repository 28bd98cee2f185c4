"""What the comparison of methods runs: every method, and a reason for each setting that is not the published one.

The published settings are for models four orders of magnitude larger and for hundreds of steps. A model of 0.33 M
parameters that trains for fifty steps needs larger steps and shorter schedules; everything else stays as published.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from common.config.algorithm import ALGORITHMS
from common.config.live import dump_live, parse_live

Json = dict[str, Any]
RL_LEARNING_RATE = 3e-4
SFT_LEARNING_RATE = 8e-4
SCHEDULE_SHARE = 0.9

SHARED: Json = {
    "groups_per_step": 16,
    "max_staleness": 3,
    "sampling": {"max_response_tokens": 64},
    "optimizer": {"learning_rate": RL_LEARNING_RATE, "warmup_steps": 10},
}
SHARED_REASONS = {
    "max_staleness": "groups older than 3 of 50 versions teach little here",
    "sampling.max_response_tokens": "a solution has 43 tokens",
    "optimizer.learning_rate": "0.33 M parameters; 1e-3 destroys the base model within ten steps",
    "optimizer.warmup_steps": "without it the first steps of AdamW undo the base model",
}
_IMITATION = {"optimizer.learning_rate": "imitation stands a larger step than reinforcement; 3e-4 is only slower"}
_SPARED = {
    "algorithm.negatives_in_failed_groups": "where all rollouts fail, their negatives outweigh the one demonstration"
}
_CUT = {"hints.cut": "this task's demonstrations end their steps with a semicolon and have no sentences"}
_SCHEDULE = {"hints.steps": "hints fade over nine tenths of the run: gone too early, they leave the policy stalled"}


@dataclass(frozen=True, slots=True)
class Variant:
    """A method as it is run. hints: what differs from the hint policy that its authors fed it with.

    scheduled: whether its hints fade with the steps. reasons: path of a setting → why it is not the published one.
    """

    name: str
    algorithm: Json
    hints: Json = field(default_factory=dict[str, Any])
    learning_rate: float = RL_LEARNING_RATE
    scheduled: bool = False
    reasons: dict[str, str] = field(default_factory=dict[str, str])

    def live(self, steps: int) -> Json:
        """The whole first revision of a run of so many steps, every value written out."""
        kind = self.algorithm["kind"]
        published = next(a.published_hints for a in ALGORITHMS if a.model_fields["kind"].default == kind)
        hints = {**published, **self.hints}
        if self.scheduled:
            hints["steps"] = max(1, round(SCHEDULE_SHARE * steps))
        optimizer = {**SHARED["optimizer"], "learning_rate": self.learning_rate}
        return dump_live(parse_live({**SHARED, "algorithm": self.algorithm, "hints": hints, "optimizer": optimizer}))


def _plain(kind: str) -> Variant:
    return Variant(kind, {"kind": kind})


VARIANTS: tuple[Variant, ...] = (
    Variant("sft", {"kind": "sft"}, learning_rate=SFT_LEARNING_RATE, reasons=_IMITATION),
    _plain("reinforce"),
    _plain("grpo"),
    _plain("dr_grpo"),
    _plain("dapo"),
    _plain("naive_mix"),
    _plain("mix"),
    _plain("luffy"),
    _plain("luffy_paper"),
    Variant(
        "relift",
        {"kind": "relift", "buffer_size": 32, "sft_learning_rate": SFT_LEARNING_RATE},
        reasons={
            "algorithm.buffer_size": "16 prompts a step: an imitation step every other step, not every eighth",
            "algorithm.sft_learning_rate": "as for sft",
        },
    ),
    Variant("uft", {"kind": "uft"}, {"cut": "step"}, scheduled=True, reasons=_CUT | _SCHEDULE),
    Variant("bread", {"kind": "bread"}, {"cut": "step"}, reasons=_CUT),
    Variant("prefix_rft", {"kind": "prefix_rft"}, scheduled=True, reasons=_SCHEDULE),
    _plain("srft"),
    _plain("hpt"),
    Variant("luffy_spared", {"kind": "luffy", "negatives_in_failed_groups": False}, reasons=_SPARED),
    Variant("srft_spared", {"kind": "srft", "negatives_in_failed_groups": False}, reasons=_SPARED),
)
EXTRAS: tuple[Variant, ...] = (
    Variant("rloo", {"kind": "reinforce", "baseline": "leave_one_out"}, reasons={"algorithm.baseline": "what it is"}),
    Variant("gspo", {"kind": "grpo", "surrogate": "gspo"}, reasons={"algorithm.surrogate": "what it is"}),
    Variant("cispo", {"kind": "grpo", "surrogate": "cispo"}, reasons={"algorithm.surrogate": "what it is"}),
    Variant(
        "srft_advantage",
        {"kind": "srft", "self_reward": "advantage"},
        reasons={"algorithm.self_reward": "the authors' code: advantages instead of ±1, which is bounded below"},
    ),
    Variant(
        "bread_always",
        {"kind": "bread"},
        {"cut": "step", "always_branch": True},
        reasons=_CUT | {"hints.always_branch": "what it is"},
    ),
)


def choose(names: list[str]) -> list[Variant]:
    """The variants of these names, in the order of the names; ValueError lists what there is."""
    known = {variant.name: variant for variant in (*VARIANTS, *EXTRAS)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no method {', '.join(unknown)}: choose from {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]
