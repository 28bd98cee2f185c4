"""A run that is only pretended: heartbeats, steps and evaluations as real processes would write them."""

from __future__ import annotations

import json
import math
import random
from typing import Any

from redis.asyncio import Redis

from common.config.store import ConfigStore
from common.events import EventKind, EventLog
from common.keys import Keys

FOLLOWERS = {"curriculum": "curriculum", "generator-1": "generator", "generator-2": "generator", "learner": "learner"}


class PretendedRun:
    """Writes what the processes of a run would write. It follows the live configuration like them, at its next step."""

    def __init__(self, redis: Redis, run: str, seed: int = 0) -> None:
        self.keys = Keys(run)
        self.step = 0
        self.revision = 0
        self._redis = redis
        self._events = EventLog(redis, self.keys)
        self._config = ConfigStore(redis, self.keys)
        self._random = random.Random(seed)
        self._taught = 0.0
        self._schedule: dict[str, Any] | None = None

    async def advance(self, at_s: float) -> None:
        """One optimiser step at the Unix time `at_s`, with everything that happens around it."""
        current = await self._config.current()
        assert current is not None
        if current.number != self.revision:
            self.revision = current.number
            for process, role in FOLLOWERS.items():
                await self._config.mark_in_force(process, self.revision, step=self.step, at_s=at_s)
                mark = {"process": process, "role": role, "revision": self.revision, "step": self.step}
                await self._events.append(EventKind.IN_FORCE, mark, at_s=at_s)
        self.step += 1
        kind = current.live.algorithm.kind
        self._taught += 1.0 if kind in ("luffy", "sft") else 0.02
        await self._events.append(EventKind.STEP, self._record(kind, current.live.hints.kind), at_s=at_s)
        for generator in ("generator-1", "generator-2"):
            rate = 850 + 90 * self._random.random()
            told = {"generator": generator, "tokens_per_s": rate, "running": 31, "requests": 6}
            await self._events.append(EventKind.GENERATION, told, at_s=at_s)
        if self.step % 10 == 0:
            for dataset, level in (("hard", 0.9), ("easy", 0.98)):
                await self._events.append(EventKind.EVALUATION, self._evaluation(dataset, level), at_s=at_s)
        self._schedule = self._scheduled(current.live.hints.kind)
        await self.beat(at_s)

    async def beat(self, at_s: float) -> None:
        """The heartbeats of all processes."""
        more: dict[str, dict[str, Any]] = {
            "curriculum": {"issued": self.step * 8, "epoch": 1, "outstanding": 37, "credit": 40, "evaluating": 0}
            | {"hint_schedule": self._schedule},
            "generator": {"tokens_per_s": 893.4, "running": 31, "requests": 6, "generated_tokens": self.step * 9000},
            "learner": {
                "step": self.step,
                "tokens_per_s": 1420.5,
                "waiting": False,
                "max_steps": 400,
                "checkpoint_step": self.step // 10 * 10,
                "staleness": 1.4,
            },
        }
        for name, role in FOLLOWERS.items():
            version = self.step if role == "learner" else max(0, self.step - 1) if role == "generator" else 0
            beat = {"name": name, "role": role, "pid": 1000, "state": "running", "trouble": "", "at_s": at_s}
            beat |= {"revision": self.revision, "version": version, "started_s": at_s - 60, "metrics": "127.0.0.1:9100"}
            await self._redis.hset(self.keys.processes, name, json.dumps(beat | more[role]))  # pyright: ignore

    def _scheduled(self, hints: str) -> dict[str, Any] | None:
        """Where the schedule of a hint policy is, as the curriculum tells it."""
        level = {"cosine_binomial": {"p": 0.62}, "uniform_decay": {"low": 0.31}}.get(hints)
        return None if level is None else {"kind": hints, "phase": 0.25, **level, "mean_hint_length": 12.5}

    def _noise(self, size: float) -> float:
        return size * (self._random.random() - 0.5)

    def _skill(self, level: float) -> float:
        return level / (1 + math.exp(-(self._taught - 45) / 12)) if self._taught > 3 else 0.0

    def _record(self, kind: str, hints: str) -> dict[str, Any]:
        sources = ["policy", "demonstration"] if hints == "demonstration" else ["policy"]
        ratio = {"policy": 1 + self._noise(0.1), "demonstration": 0.02 + 0.5 * self._skill(0.9)}
        return {
            "step": self.step,
            "revision": self.revision,
            "version": self.step,
            "algorithm": kind,
            "hints": hints,
            "loss": self._noise(0.2),
            "reward": max(0.0, self._skill(0.9) + self._noise(0.2)),
            "entropy": 0.4 + 0.5 * math.exp(-self._taught / 40) + self._noise(0.05),
            "staleness": 1.4 + self._noise(0.8),
            "staleness_max": self._random.randint(2, 4),
            "groups": 8,
            "trajectories": 64,
            "tokens": 2900,
            "tokens_per_s": 1400 + self._noise(200),
            "grad_norm": 0.7 + self._noise(0.3),
            "learning_rate": 1e-4,
            "hint_length": None,
            "clip_fraction": {"policy": 0.01},
            "effective_sample_size": {s: 0.97 if s == "policy" else 0.2 + self._skill(0.6) for s in sources},
            "ratio": {s: ratio[s] for s in sources},
            "terms": {"policy": 0.1},
            "flat_groups": 2,
            "updated": True,
            "rehearsal": {"waiting": 7, "entries": 0, "loss": None, "grad_norm": None, "updated": False}
            if kind == "relift"
            else None,
            "stale_dropped": 0,
            "wait_s": 0.5,
            "pack_s": 0.05,
            "transfer_s": 0.0,
            "forward_s": 0.4,
            "backward_s": 0.9,
            "optimizer_s": 0.1,
            "publish_s": 0.05,
            "checkpoint_s": 0.0,
            "step_s": 2.1,
        }

    def _evaluation(self, dataset: str, level: float) -> dict[str, Any]:
        skill = self._skill(level) if dataset == "hard" else min(level, 0.93 + self._noise(0.03))
        told = {"dataset": dataset, "version": self.step, "step": self.step, "accuracy": skill}
        return told | {"pass_at_k": min(1.0, skill * 1.1), "k": 4, "nll": None, "prompts": 128, "seconds": 4.2}
