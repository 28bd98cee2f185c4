"""The curriculum's state: small, kept in Redis, and moved in the same script as the requests that it explains."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace

from services.curriculum.clocks import Clocks, decode_clocks
from services.curriculum.order import Cursor


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A held-out evaluation under way: which version asked for it, and how many answers are due per set.

    asked: how many times its requests were issued.
    """

    version: int
    step: int
    started_s: float
    due: dict[str, int]
    asked: int = 1


@dataclass(frozen=True, slots=True)
class State:
    """Where the curriculum is. issued: training requests so far, which also numbers them. clocks: of hint schedules.

    grading: additions whose grade was asked for → how many times; those that have a verdict may still stand there.
    life: part of every training request's id. A Redis that lost its data begins another life, whose groups the learner
    does not take for those that it has trained.
    """

    life: str = ""
    cursor: Cursor = field(default_factory=Cursor)
    issued: int = 0
    evaluated_version: int = -1
    evaluation: Evaluation | None = None
    clocks: Clocks = field(default_factory=Clocks)
    grading: dict[str, int] = field(default_factory=dict[str, int])

    def encode(self) -> bytes:
        """The state as JSON bytes."""
        return json.dumps(asdict(self)).encode()

    def evaluating(self, evaluation: Evaluation) -> State:
        """The state once an evaluation has been asked for."""
        return replace(self, evaluation=evaluation, evaluated_version=evaluation.version)

    def evaluated(self) -> State:
        """The state once the evaluation under way is reported."""
        return replace(self, evaluation=None)


def decode_state(payload: bytes | None, life: str) -> State:
    """The state in `payload`; the first state of a new `life` if there is none."""
    if payload is None:
        return State(life=life)
    fields = json.loads(payload)
    evaluation = fields["evaluation"]
    return State(
        life=fields["life"],
        cursor=Cursor(**fields["cursor"]),
        issued=fields["issued"],
        evaluated_version=fields["evaluated_version"],
        evaluation=None if evaluation is None else Evaluation(**evaluation),
        clocks=decode_clocks(fields.get("clocks", {})),
        grading=fields.get("grading", {}),
    )
