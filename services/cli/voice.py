"""How a command that goes on for a while speaks: a live panel, plain lines, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.live import Live

from common.events import Event
from services.cli.legible import legible
from services.cli.panel import panel, plain_line
from services.cli.progress import Progress

PLAIN_EVERY_S = 8.0
LIVE_EVERY_S = 0.5


class Voice(Protocol):
    """Says things as they happen, and shows how it goes in between."""

    def say(self, text: str, kind: str = "note", **data: Any) -> None:
        """Say one thing that happened. data: the same for programs."""
        ...

    def tell(self, event: Event, sentence: str) -> None:
        """Tell an event; people hear only those that are worth a sentence."""
        ...

    def show(self, progress: Progress) -> None:
        """Show how it goes, as often as is good; may be called all the time."""
        ...

    def table(self, renderable: RenderableType, document: dict[str, Any]) -> None:
        """Show something large at the end. document: the same for programs."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class LiveVoice:
    """A panel that stays at the bottom of the terminal, with what happens scrolling by above it."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.time) -> None:
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        self._shown_s = 0.0

    def say(self, text: str, kind: str = "note", **data: Any) -> None:
        """Print a line above the panel."""
        style = {"error": "red", "warning": "yellow", "revision": "cyan", "evaluation": "green"}.get(kind)
        stamp = time.strftime("%H:%M:%S", time.localtime(self._clock()))
        self._console.print(f"[dim]{stamp}[/]", end=" ", highlight=False)
        self._console.print(legible(text), style=style, markup=False, highlight=False, soft_wrap=True)

    def tell(self, event: Event, sentence: str) -> None:
        """Say the sentence, if there is one."""
        if sentence:
            self.say(sentence, event.kind.value)

    def show(self, progress: Progress) -> None:
        """Draw the panel anew, twice a second at most."""
        now_s = self._clock()
        if now_s - self._shown_s < LIVE_EVERY_S:
            return
        self._shown_s = now_s
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        self._live.update(panel(progress, now_s), refresh=True)

    def table(self, renderable: RenderableType, document: dict[str, Any]) -> None:
        """Print it below the panel's last state."""
        self.close()
        self._console.print(renderable)

    def close(self) -> None:
        """Let go of the bottom of the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class PlainVoice:
    """A line for everything that happens, and one every few seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.time) -> None:
        self._console = console
        self._clock = clock
        self._shown: tuple[int, float] = (0, 0.0)

    def say(self, text: str, kind: str = "note", **data: Any) -> None:
        """Print a line."""
        stamp = time.strftime("%H:%M:%S", time.localtime(self._clock()))
        self._console.print(f"{stamp} {legible(text)}", markup=False, highlight=False, soft_wrap=True)

    def tell(self, event: Event, sentence: str) -> None:
        """Say the sentence, if there is one."""
        if sentence:
            self.say(sentence, event.kind.value)

    def show(self, progress: Progress) -> None:
        """Print where the run is, if it has moved and some seconds have passed."""
        now_s = self._clock()
        step, shown_s = self._shown
        if progress.step != step and now_s - shown_s >= PLAIN_EVERY_S:
            self._shown = (progress.step, now_s)
            self.say(plain_line(progress, now_s))

    def table(self, renderable: RenderableType, document: dict[str, Any]) -> None:
        """Print it."""
        self._console.print(renderable)

    def close(self) -> None:
        """Nothing to leave."""


class JsonVoice:
    """One JSON object a line on standard output: {"at_s", "kind", "text", ...}."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def say(self, text: str, kind: str = "note", **data: Any) -> None:
        """Print an object."""
        self._print({"kind": kind, "text": text, **data})

    def tell(self, event: Event, sentence: str) -> None:
        """Print the event, whether it is worth a sentence or not."""
        self._print({"at_s": event.at_s, "kind": event.kind.value, "text": sentence, "data": event.data})

    def show(self, progress: Progress) -> None:
        """Steps are told as they happen; nothing in between."""

    def table(self, renderable: RenderableType, document: dict[str, Any]) -> None:
        """Print the document."""
        self._print({"kind": "summary", **document})

    def close(self) -> None:
        """Nothing to leave."""

    def _print(self, document: dict[str, Any]) -> None:
        line = {"at_s": round(self._clock(), 3), **document}
        print(json.dumps(line, default=str), file=sys.stdout, flush=True)


def choose_voice(*, as_json: bool, plain: bool) -> Voice:
    """JSON if asked for, plain lines if asked for or if no terminal is there, else the live panel."""
    if as_json:
        return JsonVoice()
    console = Console()
    if plain or not console.is_terminal:
        # A pipe has no width: nothing is cut off or wrapped there.
        return PlainVoice(Console(width=max(console.width, 160), no_color=plain or None))
    return LiveVoice(console)
