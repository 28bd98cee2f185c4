"""Starts the control plane of a run: `python -m services.control RUN_FILE`."""

from __future__ import annotations

from common.process import run
from services.control.serving import main

if __name__ == "__main__":
    raise SystemExit(run("control", main))
