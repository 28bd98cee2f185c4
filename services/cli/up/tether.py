"""Ties a program that is not ours to the process that started it: when that one dies, so does the program.

    python -m services.cli.up.tether PARENT_PID PROGRAM ARGUMENT...

Our own programs ask the kernel for the same thing themselves (common.process).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Ask the kernel to end this process with its parent, then become the program."""
    parent, program = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        # The wish survives execv. SIGTERM, so that Redis still writes down what it has.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit("the parent process is gone")
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
