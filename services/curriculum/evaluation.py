"""Held-out evaluation: its requests, and what their outcomes amount to. Nothing of it is ever trained on."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np

from common.config.hints import Cut
from common.config.live import LiveConfig
from common.settings import EvaluationSettings
from common.trajectory import GroupPlan, Outcome, Purpose, Request, Sampling
from services.curriculum.prompts import PromptSet


def evaluation_requests(
    prompts: PromptSet, settings: EvaluationSettings, live: LiveConfig, revision: int, version: int
) -> list[Request]:
    """One request per held-out problem: a greedy response, then k sampled ones."""
    plan = GroupPlan(plain=1 + settings.samples)
    sampling = Sampling(live.sampling.temperature, live.sampling.max_response_tokens)
    requests: list[Request] = []
    for prompt in prompts.prompts:
        known = prompts.fitting(prompt, live.sampling.max_response_tokens)[:1] if settings.nll else ()
        requests.append(
            Request(
                request_id=f"evaluate:{version}:{prompt.prompt_id}",
                prompt_id=prompt.prompt_id,
                purpose=Purpose.EVALUATE,
                revision=revision,
                prompt_tokens=prompt.tokens,
                answer=prompt.answer,
                plan=plan,
                sampling=sampling,
                demonstrations=tuple(prepared.text.cut_at(Cut.STEP) for prepared in known),
                dataset=prompts.name,
                for_version=version,
                score_demonstration=bool(known),
            )
        )
    return requests


def summarise(outcomes: Sequence[Outcome], samples: int, due: int) -> dict[str, Any]:
    """Accuracy of the greedy responses, pass@k of the sampled ones, and the demonstrations' mean NLL per token.

    Of the `due` requests, those that failed or were lost count in `failures` and nowhere else.
    """
    answered = [o for o in outcomes if not o.failure]
    greedy = [o.rewards[0] for o in answered]
    scored = [o for o in answered if o.demonstration_logprob is not None]
    tokens = sum(o.demonstration_tokens for o in scored)
    logprob = sum(o.demonstration_logprob or 0.0 for o in scored)
    return {
        "accuracy": float(np.mean([r >= 1.0 for r in greedy])) if greedy else None,
        "pass_at_k": _mean_pass_at_k(answered, samples),
        "k": samples,
        "nll": -logprob / tokens if tokens else None,
        "prompts": len(answered),
        "failures": due - len(answered),
        "oldest_version": min((o.version for o in answered), default=None),
        "newest_version": max((o.version for o in answered), default=None),
    }


def _mean_pass_at_k(outcomes: Sequence[Outcome], k: int) -> float | None:
    if k == 0 or not outcomes:
        return None
    return float(np.mean([pass_at_k([r >= 1.0 for r in o.rewards[1:]], k) for o in outcomes]))


def pass_at_k(solved: Sequence[bool], k: int) -> float:
    """The unbiased chance that k draws from these samples hold a solution (Chen et al., 2021, Eq. 1)."""
    n, failed = len(solved), len(solved) - sum(solved)
    return 1.0 - comb(failed, k) / comb(n, k) if n >= k else float(any(solved))
