"""The generators of a run that are alive, going by their heartbeats."""

from __future__ import annotations

import json
import time
from typing import Any

from common.process import Process

ALIVE_S = 5.0


async def held_versions(process: Process) -> list[int]:
    """The weight version that each live generator holds."""
    beats: Any = await process.patiently("read heartbeats", lambda: process.redis.hvals(process.keys.processes))
    since_s = time.time() - ALIVE_S
    found = map(json.loads, beats)
    return [beat["version"] for beat in found if beat["role"] == "generator" and beat["at_s"] >= since_s]
