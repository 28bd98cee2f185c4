"""A pretended run that obeys: it answers dry runs, carries out orders, grades additions and shows its groups."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pretended_run import PretendedRun
from redis.asyncio import Redis
from tokenizers import Tokenizer

from common.additions import Additions, AdditionState, AdditionVerdict
from common.config.live import LiveConfig, dump_live
from common.events import EventKind
from common.examined import Examined, ExaminedGroup, ExaminedTrajectory
from common.orders import Orders, Standing
from common.trajectory import Source
from common.trials import Trials
from common.weights import Manifest, PublicationKind, WeightAnnouncements, location_of

SIZE_BYTES = 1_327_104


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt with a right answer and a wrong one."""

    prompt: str
    right: str
    wrong: str


TASKS = (
    Task("4096+1904=", "10;0+0;0+9;1+9+1;4+1+1#6000", "0;9;19;5#5990"),
    Task("7321+2679=", "10;2+7+1;3+6+1;7+2+1#10000", "10;9;9;9#9990"),
    Task("1234+5678=", "12;3+7+1;2+6+1;1+5#6912", "12;10;8;6#6802"),
)


class OperatedRun(PretendedRun):
    """Like a pretended run, with everything that an operator may ask of one. tasks: what its prompts are."""

    def __init__(self, redis: Redis, run: str, tokenizer: Tokenizer, tasks: Sequence[Task] = TASKS) -> None:
        super().__init__(redis, run, seed=1)
        self._client: Any = redis
        self._tokenizer = tokenizer
        self._tasks = tasks
        self._orders = Orders(redis, self.keys)
        self._trials = Trials(redis, self.keys)
        self._examined = Examined(redis, self.keys)
        self._additions = Additions(redis, self.keys)
        self._weights = WeightAnnouncements(redis, self.keys)
        self._dice = random.Random(2)
        self._standing = Standing(None, 0, {})

    async def advance(self, at_s: float) -> None:
        """One step, unless the learner is paused."""
        self._standing = await self._orders.standing()
        await self._judge(at_s)
        if self._standing.pause is not None:
            await self.beat(at_s)
            return
        await super().advance(at_s)
        current = await self._config.current()
        assert current is not None
        await self._publish(at_s)
        await self._answer(current.live)
        await self._show_group(current.live, at_s)

    async def beat(self, at_s: float) -> None:
        """The heartbeats, with what became of orders."""
        await super().beat(at_s)
        for name in ("generator-1", "generator-2"):
            drained = name in self._standing.drained
            still = {"tokens_per_s": 0.0, "running": 0, "requests": 0} if drained else {}
            await self._amend(name, {"draining": drained, "drained": drained} | still)
        done = {"checkpoint_order": self._standing.checkpoints, "paused": self._standing.pause is not None}
        await self._amend("learner", done)

    async def furnish(self, at_s: float) -> None:
        """Prompts with their solve rates, messages in quarantine, and a notice."""
        await self._client.hset(self.keys.facts, "train_prompts", 64)
        for row in range(48):
            attempts = 8 * self._dice.randint(1, 6)
            solved = 0 if row % 3 == 0 else attempts if row % 7 == 0 else self._dice.randint(1, attempts - 1)
            record: dict[str, Any] = {"attempts": attempts, "solved": solved, "last": round(solved / attempts, 2)}
            if row % 6 == 0:
                record |= {"hinted": {"attempts": 8, "solved": 3}, "anchor": 12}
            await self._client.hset(self.keys.prompts, f"train:{row}", json.dumps(record))
            if row % 5:
                await self._client.hset(self.keys.prompt_texts, f"train:{row}", self._task(row).prompt)
        for number, reason in enumerate(("the message is of schema 9: this program reads up to 2", "no such prompt")):
            fields = {
                "stream": "groups",
                "reason": reason,
                "by": "learner",
                "id": f"train:{number}",
                "payload": "x" * 900,
            }
            await self._client.xadd(self.keys.quarantine, fields)
        await self._events.append(EventKind.NOTICE, {"text": "the checkpoint could be written again"}, at_s=at_s)

    def _task(self, row: int) -> Task:
        return self._tasks[row % len(self._tasks)]

    async def _amend(self, name: str, more: dict[str, Any]) -> None:
        beat = json.loads(await self._client.hget(self.keys.processes, name))
        await self._client.hset(self.keys.processes, name, json.dumps(beat | more))

    async def _publish(self, at_s: float) -> None:
        anchor = (self.step - 1) // 50 * 50 + 1
        is_anchor = self.step == anchor
        kind = PublicationKind.ANCHOR if is_anchor else PublicationKind.DELTA
        base, size, changed = (0, SIZE_BYTES, None) if is_anchor else (self.step - 1, SIZE_BYTES // 60, 0.0093)
        told = {"version": self.step, "step": self.step, "kind": kind.value, "base": base, "bytes": size}
        told |= {"full_bytes": SIZE_BYTES, "changed": changed, "snapshot_s": 0.003, "canary_s": 0.04}
        told |= {"encode_s": 0.02, "write_s": 0.02, "seconds": 0.083}
        await self._events.append(EventKind.PUBLICATION, told, at_s=at_s)
        for generator in ("generator-1", "generator-2"):
            took = {"pause_s": 0.011 + 0.004 * self._dice.random(), "apply_s": 0.02, "fetch_s": 0.05}
            told = {"generator": generator, "version": self.step, **took}
            await self._events.append(EventKind.UPDATE, told, at_s=at_s)
        manifest = Manifest(
            *(self.step, self.step, self.revision, kind, base, location_of(self.step), {}, {}, size, at_s),
            anchor=anchor,
            full_bytes=SIZE_BYTES,
            changed=changed,
        )
        await self._weights.announce(manifest)

    async def _judge(self, at_s: float) -> None:
        """Grade what was added: right answers of the prompt's task are used."""
        for addition in await self._additions.newest():
            if (await self._additions.verdicts([addition.addition_id]))[addition.addition_id].state != "waiting":
                continue
            right = addition.text == self._task(int(addition.prompt_id.partition(":")[2])).right
            state = AdditionState.IN_USE if right else AdditionState.REFUSED
            reason = "" if right else "graded 0: its answer is not the prompt's"
            await self._additions.judge(addition.addition_id, AdditionVerdict(state, reason, float(right)))
            told = {"id": addition.addition_id, "prompt_id": addition.prompt_id, "by": addition.by}
            told |= {"state": state.value, "reason": reason}
            await self._events.append(EventKind.ADDITION, told, at_s=at_s)

    async def _answer(self, active: LiveConfig) -> None:
        """Answer the dry runs that wait, from this step."""
        for waiting in await self._trials.waiting():
            assert waiting.trial is not None
            candidates = [
                {"label": c.label, "finding": _finding(c.live, active), "problem": ""} for c in waiting.trial.candidates
            ]
            head = {"step": self.step, "revision": self.revision, "seconds": 0.03}
            await self._trials.answer(waiting, {**head, "active": _finding(active, active), "candidates": candidates})

    async def _show_group(self, live: LiveConfig, at_s: float) -> None:
        row = self.step % 16
        group = ExaminedGroup(
            group_id=f"train:0:{self.step}:train:{row}",
            prompt_id=f"train:{row}",
            generator=f"generator-{1 + self.step % 2}",
            step=self.step,
            revision=self.revision,
            version=self.step - 1,
            algorithm=live.algorithm.kind,
            at_s=at_s,
            trajectories=self._trajectories(self._task(row), live.hints.kind != "none"),
        )
        await self._examined.keep(group)

    def _trajectories(self, task: Task, with_expert: bool) -> tuple[ExaminedTrajectory, ...]:
        right = [self._dice.random() < self._skill(0.9) for _ in range(4)]
        rewards = [float(r) for r in right] + ([1.0, 1.0] if with_expert else [])
        mean = sum(rewards) / len(rewards)
        made = [self._trajectory(task.prompt, task.right if r else task.wrong, 0, float(r) - mean) for r in right]
        if with_expert:
            made.append(self._trajectory(task.prompt, task.right, len(task.right) // 2, 1 - mean))
            made.append(self._trajectory(task.prompt, task.right, len(task.right), 1 - mean, whole=True))
        return tuple(made)

    def _trajectory(
        self, prompt: str, response: str, shown: int, advantage: float, whole: bool = False
    ) -> ExaminedTrajectory:
        """A trajectory whose first `shown` characters the expert wrote, or all of it."""
        asked, hint = self._tokenizer.encode(prompt).ids, self._tokenizer.encode(response[:shown]).ids
        rest = [] if whole else self._tokenizer.encode(response[shown:]).ids
        tokens = np.array([*asked, *hint, *rest], np.int32)
        expert = Source.DEMONSTRATION if whole else Source.HINT
        sources = np.array([Source.PROMPT] * len(asked) + [expert] * len(hint) + [Source.POLICY] * len(rest), np.uint8)
        sampled, taught = sources == Source.POLICY, sources != Source.PROMPT
        says = -np.random.default_rng(len(tokens) + self.step).exponential(0.6, len(tokens))
        moved = np.random.default_rng(self.step).normal(0, 0.25, len(tokens))
        versions = np.where(sampled, self.step - 2 + (np.arange(len(tokens)) > len(tokens) - len(rest) // 2), -1)
        correct = float(advantage >= 0)
        return ExaminedTrajectory(
            tokens=tokens,
            sources=sources,
            versions=versions.astype(np.int32),
            behaviour_logprobs=np.where(sampled, says, math.nan).astype(np.float32),
            expert_logprobs=np.full(len(tokens), math.nan, np.float32),
            policy_logprobs=np.where(taught, says + moved, math.nan).astype(np.float32),
            ratios=np.where(sampled, np.exp(moved), np.where(taught, np.exp(says), math.nan)).astype(np.float32),
            advantage=advantage,
            reward=correct,
            reward_parts={"answer": correct},
        )


def _finding(live: LiveConfig, active: LiveConfig) -> dict[str, Any]:
    """Numbers that move with γ, and a cosine that tells how far a configuration is from the active one."""
    gamma = getattr(live.algorithm, "gamma", 0.1)
    same, kin = dump_live(live) == dump_live(active), live.algorithm.kind == active.algorithm.kind
    sources = ("policy", "demonstration") if live.hints.kind != "none" else ("policy",)
    return {
        "algorithm": live.algorithm.kind,
        "loss": -0.2 - gamma,
        "terms": {"policy": -0.2, "expert": -gamma},
        "gradient_weight": {"policy": 0.42, "expert": 2.1 * gamma},
        "pull": {s: 0.42 if s == "policy" else 2.1 * gamma for s in sources},
        "entropy": 0.83,
        "ratio": {s: 1.002 if s == "policy" else 0.31 for s in sources},
        "effective_sample_size": {s: 0.98 if s == "policy" else 0.44 - gamma / 2 for s in sources},
        "clip_fraction": {s: 0.012 if s == "policy" else 0.0 for s in sources},
        "cosine": 1.0 if same else 0.93 if kin else 0.41,
        "tokens": 2914,
        "trajectories": 72,
        "missing_trajectories": 0,
        "notes": [] if kin else ["its hint policy would bring what this batch has not"],
    }
