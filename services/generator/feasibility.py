"""Feasibility: whether a request can be carried out at all, said before anything is sampled for it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from common.errors import TributaryError
from common.trajectory import AnchorSearch, GroupPlan, Purpose, Request, Sampling


class RequestRefused(TributaryError):
    """A request that asks for something impossible."""


def fitted(request: Request, context: int) -> Request:
    """The request with max_tokens reduced to what the model's context leaves. RequestRefused if it cannot be done."""
    room = context - len(request.prompt_tokens)
    if len(request.prompt_tokens) == 0:
        raise RequestRefused("the prompt is empty: there is nothing to continue")
    if room < 1:
        raise RequestRefused(
            f"the prompt has {len(request.prompt_tokens)} tokens and the model's context {context}: nothing is left "
            "for a response; drop the prompt, or raise [model] max_model_len as far as the model goes"
        )
    max_tokens = min(request.sampling.max_tokens, room)
    _require_possible_plan(request, max_tokens)
    if request.search is not None:
        _require_possible_search(request, request.search, max_tokens)
    return replace(request, sampling=Sampling(request.sampling.temperature, max_tokens))


def _require_possible_plan(request: Request, max_tokens: int) -> None:
    plan, known = request.plan, len(request.demonstrations)
    if min(plan.plain, plan.branched, plan.hint_length, plan.demonstrations, plan.gate or 0) < 0:
        raise RequestRefused(f"a plan counts from zero: {plan}")
    if request.purpose is Purpose.GRADE and plan != GroupPlan(plain=0, demonstrations=1):
        raise RequestRefused(f"a request to grade has one demonstration and no rollouts, not {plan}")
    only_scores = request.purpose is Purpose.EVALUATE and request.score_demonstration
    if plan.plain + plan.branched + plan.demonstrations == 0 and not (only_scores or request.search):
        raise RequestRefused("the plan has no members: a group would be empty")
    if max_tokens < 1 and (plan.plain + plan.branched or request.search):
        raise RequestRefused(f"max_tokens is {max_tokens}: nothing could be sampled")
    wanted = max(plan.demonstrations, int(plan.branched > 0 and plan.hint_length > 0), int(request.score_demonstration))
    if wanted > known:
        raise RequestRefused(f"the plan needs {wanted} demonstrations and the request brings {known}")
    if plan.branched == 0 or plan.hint_length == 0:
        return
    shown = len(request.demonstrations[0].tokens)
    if plan.hint_length >= min(shown, max_tokens):
        raise RequestRefused(
            f"a hint of {plan.hint_length} tokens leaves nothing to sample: the demonstration has {shown} tokens, and "
            f"hint plus continuation may have {max_tokens}"
        )


def _require_possible_search(request: Request, search: AnchorSearch, max_tokens: int) -> None:
    plan, cuts = request.plan, search.cuts
    if request.purpose is not Purpose.TRAIN:
        raise RequestRefused(f"the purpose is to {request.purpose}, not to train: it cannot search for a hint")
    if not request.demonstrations:
        raise RequestRefused("a search needs a demonstration to cut, and the request brings none")
    if plan.branched:
        raise RequestRefused(f"the search decides what is branched, but the plan asks for {plan.branched} of its own")
    if search.members < 1 or search.probes < 1:
        raise RequestRefused(
            f"a search has at least one probe of at least one rollout, not {search.probes} of {search.members}"
        )
    if plan.plain < 1 and not search.always:
        raise RequestRefused("a search follows plain rollouts that failed, but the plan has none")
    if not 0.0 <= search.above < search.below <= 1.0:
        raise RequestRefused(
            f"no share of right rollouts lies between {search.above} and {search.below}: they rise from 0 to 1"
        )
    if any(cut < 1 for cut in cuts) or any(longer <= cut for cut, longer in pairwise(cuts)):
        raise RequestRefused(f"the cuts of a search rise from 1 token, and these do not: {_few(cuts)}")
    shown = len(request.demonstrations[0].tokens)
    if cuts and cuts[-1] >= shown:
        raise RequestRefused(f"a cut after {cuts[-1]} tokens leaves nothing of a demonstration of {shown} to find")
    if search.anchor is not None and search.anchor < 0:
        raise RequestRefused(f"an anchor is a number of tokens, not {search.anchor}")
    if plan.plain < 1 and not any(cut < max_tokens for cut in cuts):
        raise RequestRefused(
            f"no cut leaves anything to sample within {max_tokens} tokens, and the plan has no plain rollouts"
        )


def _few(cuts: tuple[int, ...]) -> str:
    return ", ".join(str(cut) for cut in cuts[:8]) + (", ..." if len(cuts) > 8 else "")
