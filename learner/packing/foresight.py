"""Foresight: the next step is planned while the current one computes, from the groups that are there already.

A plan is used only for the very groups, algorithm and layout that it was made of. So it never changes a result: what
was foreseen wrongly is planned anew.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch

from common.config.live import LiveConfig
from common.tasks import end
from common.trajectory import Group
from learner.algorithms import build
from learner.intake import Intake
from learner.packing.layout import Layout
from learner.packing.plan import StepPlan, plan_step

_KEPT = 2  # the plan of the step that begins may be asked for after the next one's was begun


@dataclass(frozen=True, slots=True, eq=False)
class _Foreseen:
    live: LiveConfig
    groups: tuple[Group, ...]
    layout: Layout
    plan: Future[StepPlan]

    def is_for(self, live: LiveConfig, groups: Sequence[Group], layout: Layout) -> bool:
        """Whether it is the plan of such a step."""
        theirs = (self.live.algorithm, self.live.sampling.max_response_tokens, self.layout)
        return (
            theirs == (live.algorithm, live.sampling.max_response_tokens, layout)
            and len(self.groups) == len(groups)
            and all(ours is theirs for ours, theirs in zip(self.groups, groups, strict=True))
        )


class Foresight:
    """Makes plans in a thread of its own, in memory that `device` reads by itself if it is a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._pins = device.type == "cuda"
        self._lock = threading.Lock()
        self._foreseen: tuple[_Foreseen, ...] = ()
        # Memory is pinned through the GPU that a thread has in use, and that is the first one unless it is told.
        use = partial(torch.cuda.set_device, device) if self._pins else None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="foresight", initializer=use)

    def begin(self, live: LiveConfig, groups: Sequence[Group], layout: Layout) -> None:
        """Begin to plan a step."""
        with self._lock:
            plan = self._executor.submit(self._planned, live, groups, layout)
            self._foreseen = (*self._foreseen, _Foreseen(live, tuple(groups), layout, plan))[-_KEPT:]

    def recall(self, live: LiveConfig, groups: Sequence[Group], layout: Layout) -> StepPlan | None:
        """The plan of this step if it was foreseen. One that is being made is waited for."""
        with self._lock:
            found = next((f for f in self._foreseen if f.is_for(live, groups, layout)), None)
            self._foreseen = tuple(f for f in self._foreseen if f is not found)
        if found is None or found.plan.exception() is not None:
            return None
        return found.plan.result()

    def _planned(self, live: LiveConfig, groups: Sequence[Group], layout: Layout) -> StepPlan:
        algorithm = build(live.algorithm, longest_response=live.sampling.max_response_tokens)
        plan = plan_step(algorithm, groups, layout)
        return replace(plan, micro_batches=tuple(m.pinned() for m in plan.micro_batches)) if self._pins else plan


@asynccontextmanager
async def foreseeing(
    intake: Intake, live: LiveConfig, foresee: Callable[[LiveConfig, Sequence[Group]], None]
) -> AsyncGenerator[None]:
    """Meanwhile, call `foresee` with the groups of the next step as soon as all of them are there."""
    looking = asyncio.create_task(_look(intake, live, foresee))
    try:
        yield
    finally:
        await end([looking])


async def _look(intake: Intake, live: LiveConfig, foresee: Callable[[LiveConfig, Sequence[Group]], None]) -> None:
    foresee(live, await intake.foremost(live.groups_per_step))
