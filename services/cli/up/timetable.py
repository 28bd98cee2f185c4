"""The timetable: sends the changes of a scenario to the control plane when the learner has come that far."""

from __future__ import annotations

import asyncio

from services.cli.client import ControlClient, ControlUnreachable, Refused
from services.cli.progress import Progress
from services.cli.up.scenario import Scenario, ScheduledChange, curl
from services.cli.voice import Voice

AUTHOR = "scenario"
_LOOK_S = 0.1
_RETRY_S = 1.0


class Timetable:
    """Keeps to a scenario. A change that was sent in an earlier session is not sent again."""

    def __init__(self, scenario: Scenario, progress: Progress, voice: Voice) -> None:
        self._scenario = scenario
        self._progress = progress
        self._voice = voice

    async def keep(self) -> None:
        """Send what is due until everything was sent."""
        knows_history = False
        while not self._scenario.is_done:
            await asyncio.sleep(_LOOK_S)
            due = self._scenario.due(self._progress.step)
            if due is None or not self._progress.dashboard:
                continue
            try:
                with ControlClient(self._progress.dashboard) as client:
                    if knows_history:
                        await self._send(client, *due)
                    else:
                        history = await asyncio.to_thread(client.revisions)
                        self._scenario.skip_applied(str(revision["reason"]) for revision in history)
                        knows_history = True
            except Refused as error:  # the history: while Redis is away it cannot be read
                if error.is_our_fault:
                    raise
                await asyncio.sleep(_RETRY_S)
            except ControlUnreachable:
                await asyncio.sleep(_RETRY_S)

    async def _send(self, client: ControlClient, reason: str, change: ScheduledChange) -> None:
        """Send one change. One that is refused is told and left out; one that meets a passing trouble stays due."""
        try:
            await asyncio.to_thread(client.patch, change.patch, reason=reason, author=AUTHOR)
        except Refused as error:
            if not error.is_our_fault:
                await asyncio.sleep(_RETRY_S)
                return
            self._voice.say(f"{reason}: the control plane refuses it: {error}", "error")
        else:
            command = curl(client.url, change.patch)
            self._voice.say(f"scenario, step {self._progress.step}: {command}", "scenario", reason=reason, curl=command)
        self._scenario.advance()
