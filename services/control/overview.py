"""The state of a run in one look: what is asked and what is in force, who is alive, how fast, how far, how stale."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.config.live import Json
from common.events import Event
from common.orders import Order, Standing, standing_of
from services.control.deps import Control
from services.control.documents import read_record

ALIVE_S = 10.0
# The roles in which a revision takes effect; the control plane only asks for it.
FOLLOWERS = ("curriculum", "generator", "learner")
ENDED = ("stopped", "failed")
_Model = TypeVar("_Model", bound=BaseModel)


class ProcessView(BaseModel):
    """A process as its last heartbeat tells, with what its role adds. alive: it beat within 10 s and did not end."""

    model_config = ConfigDict(extra="allow")

    name: str
    role: str
    state: str
    alive: bool
    age_s: float = Field(description="seconds since the last heartbeat")
    trouble: str = ""
    revision: int = Field(default=0, description="the revision in force there")
    version: int = Field(default=0, description="the weight version held there")


class OrderView(BaseModel):
    """Who gave an order, and when (Unix time in seconds)."""

    by: str
    at_s: float

    @classmethod
    def of(cls, order: Order | None) -> OrderView | None:
        """An order as the API shows it."""
        return None if order is None else cls(by=order.by, at_s=order.at_s)


class RunView(BaseModel):
    """Which run this is."""

    name: str
    model: str
    dashboard: str
    facts: dict[str, str]


class RevisionState(BaseModel):
    """asked: the current revision. in_force: the oldest one that a live process still works under; null: none lives."""

    asked: int
    in_force: int | None
    settled: bool = Field(description="whether every live process works under what is asked")
    processes: dict[str, int] = Field(description="process → revision in force there")


class VersionState(BaseModel):
    """published: the learner's newest weight version. generators: what each live one serves."""

    published: int
    generators: dict[str, int]


class LearnerState(BaseModel):
    """How far the learner is. staleness: mean over the newest step's groups, in versions.

    updates: optimiser updates so far, which learning-rate schedules count. paused: the order to wait at its step
    boundary, while it stands.
    """

    step: int
    max_steps: int | None
    updates: int | None
    waiting: bool | None
    checkpoint_step: int | None
    staleness: float | None
    paused: OrderView | None = None


class Rates(BaseModel):
    """Tokens per second, sampled by all live generators and trained on by the learner."""

    generated_tokens_per_s: float
    trained_tokens_per_s: float


class Backlog(BaseModel):
    """What waits where. outstanding of credit: groups that were requested and are not yet trained."""

    requests: int
    groups: int
    outcomes: int
    quarantined: int
    outstanding: int
    credit: int | None


class HintSchedule(BaseModel):
    """Where the hint schedule is. p: expected share shown (cosine_binomial). low: least share shown (uniform_decay).

    The curriculum tells it of the requests that it makes now; what the learner trains on lags by the backlog.
    """

    kind: str = Field(examples=["cosine_binomial"])
    phase: float = Field(description="share of the schedule that is done, from 0 to 1")
    p: float | None = None
    low: float | None = None
    mean_hint_length: float | None = Field(default=None, description="tokens, over the newest requests")


class RehearsalState(BaseModel):
    """The rehearsal buffer as the newest step left it (ReLIFT)."""

    waiting: int = Field(description="demonstrations that wait to be imitated")
    entries: int = Field(description="demonstrations that the newest step imitated")
    loss: float | None = None
    grad_norm: float | None = None
    updated: bool = Field(description="whether an imitation step followed the newest step")


class Status(BaseModel):
    """The state of a run."""

    at_s: float
    run: RunView
    revision: RevisionState
    algorithm: str | None
    hints: str | None
    hint_schedule: HintSchedule | None = Field(description="null: the hint policy in force has none")
    rehearsal: RehearsalState | None = Field(description="null: the newest step's algorithm has no buffer")
    version: VersionState
    learner: LearnerState
    drained: dict[str, OrderView] = Field(description="generator → the order to take no more requests")
    rates: Rates
    backlog: Backlog
    evaluations: dict[str, Json] = Field(description="data set → its newest evaluation")
    last_step: Json | None = Field(description="the newest optimiser step's record")
    processes: list[ProcessView]


async def read_processes(control: Control) -> list[ProcessView]:
    """Every process that ever beat, as it told last."""
    return processes_of(await control.redis.hgetall(control.keys.processes), control.clock())  # pyright: ignore


def processes_of(heartbeats: dict[bytes, bytes], now_s: float) -> list[ProcessView]:
    """Processes by name. now_s: Unix time in seconds."""
    views: list[ProcessView] = []
    for name, text in sorted(heartbeats.items()):
        beat = read_record(text)
        age_s = max(0.0, now_s - _number(beat.get("at_s")))
        state = str(beat.get("state", "unknown"))
        told = {"name": name.decode("utf-8", "replace"), "role": str(beat.get("role", "unknown")), "state": state}
        told["trouble"] = str(beat.get("trouble", ""))
        beat |= told | {"alive": age_s <= ALIVE_S and state not in ENDED, "age_s": round(age_s, 1)}
        beat |= {key: int(_number(beat.get(key))) for key in ("revision", "version")}
        views.append(ProcessView.model_validate(beat))
    return views


async def read_orders(control: Control) -> tuple[list[ProcessView], Standing]:
    """Every process that ever beat, and the orders that stand, in one round trip."""
    async with control.redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(control.keys.processes)
        pipe.hgetall(control.keys.orders)
        beats, orders = await pipe.execute()
    return processes_of(beats, control.clock()), standing_of(orders)


async def read_status(control: Control) -> Status:
    """The state of the run, in one round trip to Redis."""
    keys = control.keys
    async with control.redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(keys.processes)
        pipe.hgetall(keys.facts)
        pipe.hgetall(keys.orders)
        pipe.hget(keys.config, "record")
        for stream in (keys.requests, keys.groups, keys.outcomes, keys.quarantine):
            pipe.xlen(stream)
        pipe.scard(keys.outstanding)
        beats, facts, orders, record, *counts = await pipe.execute()
    processes, standing = processes_of(beats, control.clock()), standing_of(orders)
    asked = read_record(record)
    live: Json = asked.get("config", {})
    chronicle = control.chronicle
    return Status(
        at_s=control.clock(),
        run=_run(control, facts),
        revision=_revision(int(asked.get("revision", 0)), processes),
        algorithm=live.get("algorithm", {}).get("kind"),
        hints=live.get("hints", {}).get("kind"),
        hint_schedule=_hint_schedule(processes),
        rehearsal=_rehearsal(chronicle.step),
        version=_versions(processes),
        learner=learner_state(processes, chronicle.step, standing),
        drained=drained_of(standing),
        rates=_rates(processes),
        backlog=_backlog(counts, processes, live),
        evaluations={name: {**e.data, "at_s": e.at_s} for name, e in sorted(chronicle.evaluations.items())},
        last_step=None if chronicle.step is None else chronicle.step.data,
        processes=processes,
    )


def _run(control: Control, facts: dict[bytes, bytes]) -> RunView:
    told = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in facts.items()}
    settings = control.settings
    return RunView(name=settings.run.name, model=settings.model.path, dashboard=told.get("dashboard", ""), facts=told)


def _revision(asked: int, processes: list[ProcessView]) -> RevisionState:
    held = {p.name: p.revision for p in processes if p.alive and p.role in FOLLOWERS}
    settled = bool(held) and all(revision == asked for revision in held.values())
    return RevisionState(asked=asked, in_force=min(held.values(), default=None), settled=settled, processes=held)


def _versions(processes: list[ProcessView]) -> VersionState:
    published = max((p.version for p in processes if p.role == "learner"), default=0)
    generators = {p.name: p.version for p in processes if p.alive and p.role == "generator"}
    return VersionState(published=published, generators=generators)


def learner_state(processes: list[ProcessView], newest: Event | None, standing: Standing) -> LearnerState:
    """How far the learner is. newest: the newest step, which still tells it once the learner is gone."""
    told: Json = next((p.model_extra or {} for p in processes if p.role == "learner"), {})
    step: Json = {} if newest is None else newest.data
    return LearnerState(
        step=_whole(told.get("step", step.get("step"))) or 0,
        max_steps=_whole(told.get("max_steps")),
        updates=_whole(told.get("updates", step.get("updates"))),
        waiting=told["waiting"] if isinstance(told.get("waiting"), bool) else None,
        checkpoint_step=_whole(told.get("checkpoint_step")),
        staleness=_figure(told.get("staleness", step.get("staleness"))),
        paused=OrderView.of(standing.pause),
    )


def drained_of(standing: Standing) -> dict[str, OrderView]:
    """Generator → the order to take no more requests."""
    return {name: OrderView(by=order.by, at_s=order.at_s) for name, order in sorted(standing.drained.items())}


def _hint_schedule(processes: list[ProcessView]) -> HintSchedule | None:
    told = next(((p.model_extra or {}).get("hint_schedule") for p in processes if p.role == "curriculum"), None)
    return _read(HintSchedule, told)


def _rehearsal(newest: Event | None) -> RehearsalState | None:
    return _read(RehearsalState, None if newest is None else newest.data.get("rehearsal"))


def _read(model: type[_Model], told: Any) -> _Model | None:
    """What another process told; None if it told nothing, or nothing of this form."""
    with suppress(ValidationError):
        return None if told is None else model.model_validate(told)
    return None


def _rates(processes: list[ProcessView]) -> Rates:
    def total(role: str) -> float:
        rates = (_number((p.model_extra or {}).get("tokens_per_s")) for p in processes if p.alive and p.role == role)
        return round(sum(rates), 1)

    return Rates(generated_tokens_per_s=total("generator"), trained_tokens_per_s=total("learner"))


def _backlog(counts: list[int], processes: list[ProcessView], live: Json) -> Backlog:
    requests, groups, outcomes, quarantined, outstanding = counts
    credit = _whole(next((p.model_extra or {} for p in processes if p.role == "curriculum"), {}).get("credit"))
    if credit is None and live:
        credit = (live["max_staleness"] + 1) * live["groups_per_step"]
    return Backlog(
        requests=requests,
        groups=groups,
        outcomes=outcomes,
        quarantined=quarantined,
        outstanding=outstanding,
        credit=credit,
    )


def _number(value: Any) -> float:
    return _figure(value) or 0.0


def _figure(value: Any) -> float | None:
    """A number that a process told; None if it told none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    """A whole number that a process told; None if it told none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
