"""The nouns of training: a trajectory, the group of one prompt, and what a generator is asked to make.

Arrays are one-dimensional numpy arrays of equal length T (prompt and response together). An undefined log-prob is 0.0,
never NaN: `sources` says which positions mean anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Logprobs = NDArray[np.float32]
Sources = NDArray[np.uint8]


class Source(IntEnum):
    """Who wrote a token. HINT and DEMONSTRATION are both written by the expert policy."""

    PROMPT = 0
    POLICY = 1
    HINT = 2
    DEMONSTRATION = 3


class Finish(StrEnum):
    """Why a trajectory ended."""

    STOP = "stop"
    LENGTH = "length"
    DEMONSTRATION = "demonstration"


class Purpose(StrEnum):
    """What a request is for. Only training makes groups.

    grade: nothing is sampled; the outcome says what the grader finds of the request's one demonstration.
    """

    TRAIN = "train"
    EVALUATE = "evaluate"
    GRADE = "grade"


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Positions [start, end) of a trajectory that were sampled under one weight version."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One prompt with one response, every token attributed.

    tokens, sources: [T]. behaviour_logprobs [T]: log π_old where the source is POLICY, else 0.0. expert_logprobs [T]:
    log π_φ where the source is HINT or DEMONSTRATION and it is known; None when it is not known (π_φ = 1).
    """

    tokens: Tokens
    sources: Sources
    behaviour_logprobs: Logprobs
    reward: float
    finish: Finish
    versions: tuple[VersionSpan, ...] = ()
    expert_logprobs: Logprobs | None = None
    reward_parts: dict[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        length = len(self.tokens)
        if len(self.sources) != length or len(self.behaviour_logprobs) != length:
            raise ValueError(
                f"a trajectory's arrays differ in length: {length} tokens, {len(self.sources)} sources, "
                f"{len(self.behaviour_logprobs)} behaviour_logprobs"
            )
        if self.expert_logprobs is not None and len(self.expert_logprobs) != length:
            raise ValueError(f"expert_logprobs has {len(self.expert_logprobs)} entries for {length} tokens")

    @property
    def prompt_length(self) -> int:
        """How many leading tokens are the prompt."""
        return int(np.count_nonzero(self.sources == Source.PROMPT))

    @property
    def response_length(self) -> int:
        """How many tokens follow the prompt (hint included)."""
        return len(self.tokens) - self.prompt_length

    @property
    def hint_length(self) -> int:
        """How many tokens the policy was shown of a demonstration."""
        return int(np.count_nonzero(self.sources == Source.HINT))

    @property
    def is_demonstration(self) -> bool:
        """Whether the expert wrote the whole response."""
        return self.finish is Finish.DEMONSTRATION

    @property
    def is_right(self) -> bool:
        """Whether it earned a positive reward."""
        return self.reward > 0

    @property
    def oldest_version(self) -> int | None:
        """The oldest weight version that sampled one of its tokens; None if the policy sampled none."""
        return min((span.version for span in self.versions), default=None)


@dataclass(frozen=True, slots=True, eq=False)
class Demonstration:
    """A complete expert response, in the policy's tokens, with the places where a hint may be cut.

    tokens: [D], EOS included. boundaries: ascending numbers of leading tokens after which a step ends. expert_logprobs:
    [D] or None when π_φ is not known.
    """

    tokens: Tokens
    boundaries: tuple[int, ...] = ()
    expert_logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTask:
    """A demonstration that the expert policy is asked to score after its prompt. key: the hash of what is asked."""

    key: str
    prompt_tokens: Tokens
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Which members a group has.

    plain: rollouts from the bare prompt. branched: rollouts that continue the hint. hint_length: leading tokens of the
    first demonstration that the branched members are shown. demonstrations: whole demonstrations that join the group;
    with a gate, only if at most so many of its rollouts are right.
    """

    plain: int
    branched: int = 0
    hint_length: int = 0
    demonstrations: int = 0
    gate: int | None = None


@dataclass(frozen=True, slots=True)
class AnchorSearch:
    """How to look for a hint from which some rollouts succeed and some fail (BREAD, arXiv 2506.17211).

    cuts: hint lengths that may be shown, in tokens, ascending. members: rollouts of a probe. probes: at most so many.
    A probe is taken if above < share of right rollouts < below. always: search although nothing has failed yet; else
    only if all plain rollouts fail. anchor: the hint length to begin with; None: the middle cut.
    """

    cuts: tuple[int, ...]
    members: int
    probes: int
    above: float
    below: float
    always: bool = False
    anchor: int | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the policy is sampled. No top-p, top-k or min-p: they renormalise and bias the importance ratio.

    temperature > 0 for training (0 is greedy, for evaluation only); max_tokens bounds hint plus continuation.
    """

    temperature: float
    max_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What a generator consumes: one prompt, the plan of its group, and all that is needed to carry it out.

    revision: the live configuration it was made under. search: replace the planned rollouts by a branched group if the
    search finds one. score_demonstration asks for the log-prob of the first demonstration under the policy, summed over
    its tokens (held-out NLL).
    """

    request_id: str
    prompt_id: str
    purpose: Purpose
    revision: int
    prompt_tokens: Tokens
    answer: str
    plan: GroupPlan
    sampling: Sampling
    demonstrations: tuple[Demonstration, ...] = ()
    dataset: str = "train"
    for_version: int = 0
    score_demonstration: bool = False
    search: AnchorSearch | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Every trajectory of one prompt: the unit of transport, of credit and of group statistics."""

    group_id: str
    prompt_id: str
    revision: int
    generator: str
    trajectories: tuple[Trajectory, ...]

    @property
    def oldest_version(self) -> int | None:
        """The oldest weight version of any sampled token in the group; None if the policy sampled none."""
        versions = [t.oldest_version for t in self.trajectories]
        return min((v for v in versions if v is not None), default=None)

    @property
    def token_count(self) -> int:
        """Tokens of all its trajectories, prompts included."""
        return sum(len(t.tokens) for t in self.trajectories)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request, for the curriculum: small, and without tokens.

    rewards: members sampled from the bare prompt, in order (evaluation: the greedy response first; grade: that of the
    demonstration). hinted_rewards: those that continued a hint of hint_length tokens. probes: groups sampled in search
    of an anchor; anchor: the hint length found, None if none was. failure: why no group was made, or "".
    """

    request_id: str
    prompt_id: str
    purpose: Purpose
    revision: int
    dataset: str
    rewards: tuple[float, ...]
    version: int
    for_version: int = 0
    response_tokens: int = 0
    hint_length: int = 0
    demonstration_logprob: float | None = None
    demonstration_tokens: int = 0
    failure: str = ""
    hinted_rewards: tuple[float, ...] = ()
    probes: int = 0
    anchor: int | None = None
