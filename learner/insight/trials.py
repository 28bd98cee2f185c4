"""Trials: what a candidate configuration would do with the very batch of a step, from the forward that was made anyway.

Every method is a value over the same arrays. So a candidate is evaluated on copies of what the policy said, before the
step's update, without any further forward and without touching policy or optimiser. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from operator import add
from typing import Any, cast

import torch
from torch import Tensor

from common.config.base import Material
from common.config.live import LiveConfig
from common.trajectory import Group, Source
from learner.algorithms import build
from learner.batch import Place, PolicyOutputs, TokenBatch
from learner.insight.evidence import Evidence
from learner.objective import StepSums, empty_sums, partial_loss
from learner.packing.plan import credit
from learner.terms import Algorithm, surveyed, taught_tokens


class NotTried(Exception):
    """Nothing can be found out about a candidate on this step; the message is a sentence for the operator."""


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A step that candidates are tried on: the configuration in force, its groups, what the forward said of them."""

    live: LiveConfig
    groups: Sequence[Group]
    evidence: Evidence


@dataclass(frozen=True, slots=True, eq=False)
class Effect:
    """What a configuration does to a step.

    gradients: ∂L/∂log p of every response token of the forward, a float64 [T] for each micro-batch; 0 where it does not
    teach. pull: Σ|∂L/∂log p| of each source that it teaches. tokens: those that it teaches. trajectories: those of the
    forward that it sees. missing: those that it would see and that were not in the forward; they are in no figure and
    no denominator, but in the statistics of their group.
    """

    live: LiveConfig
    algorithm: Algorithm
    sums: StepSums
    gradients: tuple[Tensor, ...]
    pull: dict[str, float]
    tokens: int
    trajectories: int
    missing: int


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    """What a candidate sees of one micro-batch. kept_T: which of the micro-batch's tokens these are."""

    kept_T: Tensor
    batch: TokenBatch
    outputs: PolicyOutputs


def effect(live: LiveConfig, stage: Stage) -> Effect:
    """What `live` would do with the step. NotTried if it needs what the forward does not tell."""
    algorithm = build(live.algorithm, longest_response=live.sampling.max_response_tokens)
    if algorithm.needs_reference and any(o.reference_logprobs_T is None for o in stage.evidence.outputs):
        raise NotTried(
            "it needs the frozen reference, which the learner does not hold under the algorithm in force: "
            "set algorithm.kl_coefficient to 0 to try the rest of it"
        )
    credited = list(chain.from_iterable(credit(algorithm, stage.groups)))
    shares = list(_shares({c.place: c.advantage for c in credited}, stage.evidence))
    seen = [share for share in shares if share.batch.sequences]
    counts = {term.name: sum((term.norm.count(share.batch) for share in seen), 0.0) for term in algorithm.terms}
    algorithm = surveyed(algorithm, ((share.batch, share.outputs) for share in seen))
    parts = [_differentiated(algorithm, counts, share) for share in shares]
    sums = [part for _, part in parts if part is not None]
    gradients = tuple(gradient_T for gradient_T, _ in parts)
    trajectories = sum(share.batch.sequences for share in seen)
    return Effect(
        live=live,
        algorithm=algorithm,
        sums=reduce(add, sums) if sums else empty_sums(algorithm),
        gradients=gradients,
        pull=_pulls(algorithm, shares, gradients),
        tokens=sum(int(taught_tokens(algorithm, share.batch).sum()) for share in seen),
        trajectories=trajectories,
        missing=len(credited) - trajectories,
    )


def finding(tried: Effect, active: Effect, stage: Stage) -> dict[str, Any]:
    """What operators are told of an effect, beside that of the configuration in force."""
    return {
        "algorithm": tried.live.algorithm.kind,
        **tried.sums.record(),
        "pull": tried.pull,
        "cosine": cosine(tried, active),
        "tokens": tried.tokens,
        "trajectories": tried.trajectories,
        "missing_trajectories": tried.missing,
        "notes": list(_notes(tried, stage)),
    }


def cosine(one: Effect, other: Effect) -> float | None:
    """The cosine of two gradients ∂L/∂log p over a step's response tokens; None where one is zero or not finite."""
    pairs = list(zip(one.gradients, other.gradients, strict=True))
    product = sum(float(a_T @ b_T) for a_T, b_T in pairs)
    norms = [math.sqrt(sum(float(g_T @ g_T) for g_T in e.gradients)) for e in (one, other)]
    if not all(norms) or not math.isfinite(product + sum(norms)):
        return None
    # Divided one by one: the product of two small norms underflows to zero. Rounding may leave it beyond one.
    return max(-1.0, min(1.0, product / norms[0] / norms[1]))


def _shares(advantages: Mapping[Place, float], evidence: Evidence) -> Iterator[_Share]:
    """What a candidate sees of each micro-batch, with its own advantages and with outputs to differentiate by."""
    for exhibit in evidence.exhibits():
        outputs, tokens = exhibit.outputs, exhibit.tokens
        marks = [place in advantages for place in exhibit.places]
        kept_N = torch.tensor(marks, dtype=torch.bool, device=outputs.logprobs_T.device)
        given = [advantages[place] for place in exhibit.places if place in advantages]
        kept_T = kept_N[tokens.segment_T]
        reference_T = outputs.reference_logprobs_T
        yield _Share(
            kept_T=kept_T,
            batch=tokens.chosen(kept_N).credited(torch.tensor(given, dtype=torch.float64)),
            outputs=PolicyOutputs(
                logprobs_T=outputs.logprobs_T[kept_T].requires_grad_(),
                entropy_T=outputs.entropy_T[kept_T].requires_grad_(),
                reference_logprobs_T=None if reference_T is None else reference_T[kept_T],
            ),
        )


def _differentiated(algorithm: Algorithm, counts: Mapping[str, float], share: _Share) -> tuple[Tensor, StepSums | None]:
    """∂L/∂log p of every token of the share's micro-batch, in float64, and the sums of what is seen of it.    [T]"""
    gradient_T = torch.zeros(len(share.kept_T), dtype=torch.float64, device=share.kept_T.device)
    if not share.batch.sequences:
        return gradient_T, None
    value, sums = partial_loss(algorithm, counts, share.batch, share.outputs)
    if value.requires_grad:
        (found_T,) = cast(
            tuple[Tensor | None], torch.autograd.grad(value, [share.outputs.logprobs_T], allow_unused=True)
        )
        if found_T is not None:
            gradient_T[share.kept_T] = found_T.double()
    return gradient_T, sums


def _pulls(algorithm: Algorithm, shares: Sequence[_Share], gradients: Sequence[Tensor]) -> dict[str, float]:
    """Σ|∂L/∂log p| over the tokens of each source that some term is about."""
    pulls: dict[str, float] = {}
    for share, gradient_T in zip(shares, gradients, strict=True):
        taught_T = taught_tokens(algorithm, share.batch)
        for source in (Source.POLICY, Source.HINT, Source.DEMONSTRATION):
            of_source_T = taught_T & (share.batch.sources_T == source)
            if of_source_T.any():
                pull = float(gradient_T[share.kept_T][of_source_T].abs().sum())
                pulls[source.name.lower()] = pulls.get(source.name.lower(), 0.0) + pull
    return pulls


def _notes(tried: Effect, stage: Stage) -> Iterator[str]:
    """What has to be known to read a finding, in sentences."""
    live, active = tried.live, stage.live
    if tried.missing:
        yield (
            f"{tried.missing} of the trajectories that it would learn from were not in this step's forward and are "
            "left out"
        )
    if live.sampling.temperature != active.sampling.temperature:
        yield (
            f"log-probs and entropy are those at the temperature in force, {active.sampling.temperature}, not at "
            f"{live.sampling.temperature}"
        )
    if live.hints != active.hints:
        yield _on_material(live, stage.groups)
    if live.algorithm.rollouts != active.algorithm.rollouts:
        yield (
            f"the groups were asked for with {active.algorithm.rollouts} rollouts a prompt; it would ask for "
            f"{live.algorithm.rollouts}"
        )
    if live.groups_per_step != len(stage.groups):
        yield f"this step had {len(stage.groups)} groups; it would take {live.groups_per_step}"
    if tried.algorithm.rehearsal is not None:
        yield "its rehearsal of collected demonstrations is a step of its own and is not counted here"


def _on_material(live: LiveConfig, groups: Sequence[Group]) -> str:
    """How the batch differs from what the candidate's hint policy would bring."""
    members = list(chain.from_iterable(group.trajectories for group in groups))
    present = {Material.DEMONSTRATIONS: any(m.is_demonstration for m in members)}
    present[Material.HINTS] = any(m.hint_length for m in members)
    absent = sorted(material for material in live.hints.provides if not present[material])
    if absent:
        return f'its hint policy "{live.hints.kind}" would bring {" and ".join(absent)}, which this batch has not'
    return f'hints and demonstrations are those of the hint policy in force, not of its own "{live.hints.kind}"'
