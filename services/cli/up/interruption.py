"""Being asked to stop: the first signal ends the work in order, a second one hurries."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Whether we were asked to stop (`asked`), and asked again (`hurry`)."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()

    def note(self) -> None:
        """Take one request to stop in."""
        if self.asked.is_set():
            self.hurry.set()
        self.asked.set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals in while the block runs."""
        loop = asyncio.get_running_loop()
        # Under nohup SIGHUP is ignored, and has to stay so.
        heard = [
            number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP
        ]
        for number in heard:
            loop.add_signal_handler(number, self.note)
        try:
            yield
        finally:
            for number in heard:
                loop.remove_signal_handler(number)
