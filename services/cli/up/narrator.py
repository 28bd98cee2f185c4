"""The narrator: follows the events of a run and tells those that are worth a line in the terminal."""

from __future__ import annotations

from common.events import Event, EventKind
from services.cli.client import follow
from services.cli.progress import Progress
from services.cli.up.phases import SESSION
from services.cli.voice import Voice


class Narrator:
    """Follows one session, which began at `started_s` (Unix time). What happened earlier is taken in silently.

    The supervisor tells of processes itself, and sooner: their events only update the progress.
    """

    def __init__(self, progress: Progress, voice: Voice, started_s: float) -> None:
        self._progress = progress
        self._voice = voice
        self._started_s = started_s
        self.first_step_s: float | None = None

    async def follow(self) -> None:
        """Follow the control plane's event feed until cancelled."""
        async for event in follow(lambda: self._progress.dashboard):
            self.take(event)

    def take(self, event: Event) -> None:
        """Take an event in, and tell it if it is news."""
        is_news = event.at_s >= self._started_s
        if event.kind is EventKind.PROCESS and (not is_news or event.data.get("name") == SESSION):
            return
        sentence = self._progress.absorb(event)
        if not is_news:
            return
        if event.kind is EventKind.STEP and self.first_step_s is None:
            self.first_step_s = event.at_s - self._started_s
            self._voice.say(f"first optimiser step {self.first_step_s:.1f} s after the start", "first_step")
        self._voice.tell(event, sentence)
