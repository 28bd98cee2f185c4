"""The operator at the terminal: follows the events of a run, tells what is worth telling, and keeps to the scenario."""

from __future__ import annotations

import asyncio

from common.events import Event, EventKind
from services.cli.client import ControlClient, ControlUnreachable, Refused, follow
from services.cli.progress import Progress
from services.cli.up.phases import SESSION
from services.cli.up.scenario import Scenario, curl
from services.cli.voice import Voice

AUTHOR = "scenario"
_RETRY_S = 1.0


class Operator:
    """Follows one session, which began at `started_s` (Unix time). What happened earlier is taken in silently."""

    def __init__(self, progress: Progress, scenario: Scenario, voice: Voice, started_s: float) -> None:
        self._progress = progress
        self._scenario = scenario
        self._voice = voice
        self._started_s = started_s
        self.first_step_s: float | None = None

    async def follow(self) -> None:
        """Follow the control plane's event feed until cancelled."""
        acting: asyncio.Task[None] | None = None
        async for event in follow(lambda: self._progress.dashboard):
            self._take(event)
            if acting is None and self._progress.dashboard:
                acting = asyncio.create_task(self._keep_to_scenario())
            if acting is not None and acting.done():
                acting.result()

    def _take(self, event: Event) -> None:
        """Take an event in, and tell it if it is news."""
        is_ours = event.kind is EventKind.PROCESS and event.data.get("name") == SESSION
        sentence = "" if is_ours else self._progress.absorb(event)
        if event.at_s < self._started_s:
            if event.kind is EventKind.PROCESS:
                self._progress.processes.clear()
            return
        if event.kind is EventKind.STEP:
            self._step(event)
        elif sentence:
            self._voice.say(sentence, event.kind.value, data=event.data)

    def _step(self, event: Event) -> None:
        if self.first_step_s is None:
            self.first_step_s = event.at_s - self._started_s
            self._voice.say(f"first optimiser step {self.first_step_s:.1f} s after the start", "first_step")

    async def _keep_to_scenario(self) -> None:
        """Send every change of the scenario when the learner has come that far."""
        await self._skip_applied()
        while True:
            due = self._scenario.due(self._progress.step)
            if due is not None and await asyncio.to_thread(self._send, *due):
                self._scenario.advance()
            await asyncio.sleep(_RETRY_S if due is not None else 0.1)
