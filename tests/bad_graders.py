"""Graders that misbehave in every way a grader can, when the response tells them to."""

from __future__ import annotations

import os
import signal
import sys
import time

from services.generator.graders import Grade


def obedient(response: str, answer: str) -> Grade | float:
    """1 if the response is the answer; or whatever else it asks for."""
    match response:
        case "hang":
            time.sleep(600)
        case "hang in C":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
            time.sleep(600)
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            sys.exit(3)
        case "raise":
            raise KeyError("no such answer")
        case "nan":
            return float("nan")
        case "pid":
            return float(os.getpid())
        case "ignores":
            return float(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
    return Grade(float(response == answer))


def by_answer(response: str, answer: str) -> Grade | float:
    """Obeys the answer of the request instead, so that a request decides."""
    return 1.0 if answer == "fine" else obedient(answer, "")


def last_digit(response: str, answer: str) -> float:
    """1 if the response ends with the answer."""
    return float(response.endswith(answer))
