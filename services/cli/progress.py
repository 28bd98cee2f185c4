"""How a run is going, as far as its events tell: what the terminal shows, and what is worth a line of its own."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from common.events import Event, EventKind
from common.orders import OrderKind

RECENT_STEPS = 10
RATE_LIFETIME_S = 10.0
LEARNER = "learner"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The newest evaluation of a held-out set. first: the accuracy that the run began with."""

    value: float | None
    first: float | None
    step: int
    nll: float | None


@dataclass(frozen=True, slots=True)
class Rate:
    """A generator's speed, and when it said so."""

    tokens_per_s: float
    at_s: float


@dataclass(slots=True)
class Progress:
    """The newest of everything. None: not known yet.

    hint_length: mean tokens shown in the newest step. schedule: where the hint schedule is, as the curriculum tells in
    its heartbeat, which no event does. rehearsal: the buffer as the newest step left it. paused_by: who paused the
    learner, "" while nobody has. drained: generators that take no more requests, and who wants that.
    """

    run: str = ""
    max_steps: int | None = None
    dashboard: str = ""
    step: int = 0
    version: int = 0
    asked: int = 0
    in_force: int = 0
    algorithm: str = ""
    hints: str = ""
    entropy: float | None = None
    staleness: float | None = None
    trained_tokens_per_s: float | None = None
    quarantined: int = 0
    hint_length: float | None = None
    schedule: Json | None = None
    rehearsal: Json | None = None
    paused_by: str = ""
    drained: dict[str, str] = field(default_factory=dict[str, str])
    updates: int = 0
    rewards: deque[float] = field(default_factory=lambda: deque[float](maxlen=RECENT_STEPS))
    accuracy: dict[str, Accuracy] = field(default_factory=dict[str, Accuracy])
    rates: dict[str, Rate] = field(default_factory=dict[str, Rate])
    versions: dict[str, int] = field(default_factory=dict[str, int])
    processes: dict[str, str] = field(default_factory=dict[str, str])
    configs: dict[int, Json] = field(default_factory=dict[int, Json])

    @property
    def reward(self) -> float | None:
        """Mean reward of the last steps."""
        return sum(self.rewards) / len(self.rewards) if self.rewards else None

    def generated_tokens_per_s(self, now_s: float) -> float:
        """What all generators sample now; one that has said nothing lately counts as idle."""
        return sum(rate.tokens_per_s for rate in self.rates.values() if now_s - rate.at_s < RATE_LIFETIME_S)

    def look(self, status: Json) -> None:
        """Take in what no event tells, or tells only once, from the control plane's GET /v1/status."""
        self.schedule = status["hint_schedule"]
        paused = status["learner"]["paused"]
        self.paused_by = str(paused["by"]) if paused else ""
        self.drained = {name: str(order["by"]) for name, order in status["drained"].items()}

    def absorb(self, event: Event) -> str:
        """Take an event in. The answer is a sentence if it is worth one, else ""."""
        try:
            return self._take(event)
        except (AttributeError, KeyError, TypeError, ValueError):  # the log is for display: none of it ends a run
            return f"a {event.kind.value} event that cannot be read"

    def _take(self, event: Event) -> str:
        data = event.data
        match event.kind:
            case EventKind.STEP:
                self._step(data)
            case EventKind.EVALUATION:
                return self._evaluation(data)
            case EventKind.PUBLICATION:
                self.version = max(self.version, int(data["version"]))
            case EventKind.UPDATE:
                self.updates += 1
                self.versions[str(data["generator"])] = int(data["version"])
            case EventKind.GENERATION:
                self.rates[str(data["generator"])] = Rate(float(data["tokens_per_s"]), event.at_s)
            case EventKind.REVISION:
                return self._revision(data)
            case EventKind.IN_FORCE:
                return self._enforced(data)
            case EventKind.PROCESS:
                self.processes[str(data["name"])] = str(data["state"])
            case EventKind.QUARANTINE:
                self.quarantined += 1
                return f"quarantined a message of {data['stream']}: {data['reason']}"
            case EventKind.ORDER:
                return self._order(OrderKind(data["order"]), str(data["target"]), str(data["by"]))
            case EventKind.ADDITION:
                return describe_addition(data)
            case EventKind.NOTICE:
                return str(data["text"])
        return ""

    def _step(self, data: Json) -> None:
        self.step = int(data["step"])
        self.in_force = int(data["revision"])
        self.algorithm, self.hints = str(data["algorithm"]), str(data["hints"])
        self.entropy, self.staleness = data.get("entropy"), data.get("staleness")
        self.trained_tokens_per_s = data.get("tokens_per_s")
        self.hint_length, self.rehearsal = data.get("hint_length"), data.get("rehearsal")
        if data.get("reward") is not None:
            self.rewards.append(float(data["reward"]))

    def _evaluation(self, data: Json) -> str:
        name, value = str(data["dataset"]), data.get("accuracy")
        before = self.accuracy.get(name)
        first = value if before is None else before.first
        self.accuracy[name] = Accuracy(value, first, int(data["step"]), data.get("nll"))
        parts = [f"accuracy {percent(value)}"]
        if data.get("pass_at_k") is not None:
            parts.append(f"pass@{data['k']} {percent(data['pass_at_k'])}")
        if data.get("nll") is not None:
            parts.append(f"NLL {data['nll']:.3f}")
        return f"held-out {name} after step {data['step']}: {', '.join(parts)} ({data['prompts']} prompts)"

    def _revision(self, data: Json) -> str:
        number = int(data["revision"])
        self.asked = max(self.asked, number)
        self.configs[number] = data["config"]
        if number == 1:
            self.algorithm = self.algorithm or str(data["config"]["algorithm"]["kind"])
            self.hints = self.hints or str(data["config"]["hints"]["kind"])
        reason = f" ({data['reason']})" if data.get("reason") else ""
        return f"revision {number} asked for by {data['author']}{reason}: {describe_changes(data['changes'], number)}"

    def _enforced(self, data: Json) -> str:
        if data["role"] != LEARNER:
            return ""
        self.in_force = int(data["revision"])
        config = self.configs.get(self.in_force)
        if config is not None:
            self.algorithm, self.hints = str(config["algorithm"]["kind"]), str(config["hints"]["kind"])
        return f"revision {data['revision']} in force at the learner from step {data['step']}"

    def _order(self, order: OrderKind, target: str, by: str) -> str:
        match order:
            case OrderKind.PAUSE:
                self.paused_by = by
            case OrderKind.RESUME:
                self.paused_by = ""
            case OrderKind.DRAIN:
                self.drained[target] = by
            case OrderKind.ADMIT:
                self.drained.pop(target, None)
            case OrderKind.CHECKPOINT:
                pass
        return f"{by} orders {target}: {order.value}"


def describe_addition(data: Json) -> str:
    """What became of a demonstration that was added, in a sentence."""
    reason = f" ({data['reason']})" if data.get("reason") else ""
    by = f" by {data['by']}" if data.get("by") else ""
    return f"demonstration added to {data['prompt_id']}{by}: {data['state']}{reason}"


def describe_changes(changes: list[Json], number: int = 0) -> str:
    """What a revision changed, in a line. A switch of kind is told as such, not key by key."""
    if number == 1:
        return "as in the run file"
    switched = {c["path"].removesuffix(".kind") for c in changes if c["path"].endswith(".kind")}
    told: list[str] = []
    for change in changes:
        path, before, after = change["path"], change["before"], change["after"]
        if path.endswith(".kind"):
            told.append(f"{path.removesuffix('.kind')} {before} → {after}")
        elif path.partition(".")[0] not in switched:
            told.append(f"{path} {_value(before)} → {_value(after)}")
    return ", ".join(told) or "nothing"


def _value(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def describe_schedule(schedule: Json) -> str:
    """Where a hint schedule is, in a few words: its p (UFT) or least share (Prefix-RFT), and how much of it is done."""
    levels = [f"{name} {schedule[name]:.2f}" for name in ("p", "low") if schedule.get(name) is not None]
    length = schedule.get("mean_hint_length")
    lengths = [] if length is None else [f"hints of {length:.1f} tokens"]
    return ", ".join([*levels, f"{percent(schedule.get('phase'))} done", *lengths])


def describe_rehearsal(rehearsal: Json) -> str:
    """The rehearsal buffer in a few words."""
    imitated = f", {rehearsal['entries']} imitated after the newest step" if rehearsal.get("entries") else ""
    return f"{rehearsal['waiting']} demonstrations wait{imitated}"


def percent(value: float | None) -> str:
    """A share as a percentage; "–" if there is none."""
    return "–" if value is None else f"{100 * value:.1f} %"
