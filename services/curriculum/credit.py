"""Credit: how many training groups may be outstanding, so that none is too old when its turn to be trained comes.

Of n outstanding groups the last is trained after all others, and is by then as many versions old as came meanwhile,
besides those that its generator lacked when it began. Credit returns at the end of a step, while the version that this
step became is still on its way to the generators: an idle one would begin whatever was issued then with the version
before, and a full queue would have it dropped. So the last groups of the credit wait until a generator has caught up.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from common.config.live import LiveConfig
from common.process import Process
from services.curriculum.generators import held_versions

STALLED_S = 60.0
"""After this time without a newer version on either side nothing is held back: what is wrong is not the distance."""


def allowed(live: LiveConfig, lag: int) -> int:
    """How many groups may be outstanding. lag: versions that the most advanced generator is behind the learner.

    (max_staleness + 1) × groups_per_step at most, and none that would be older than max_staleness: with s whole steps
    ahead of it and a version every P steps, a group is lag + ceil(s ÷ P) versions old when it is trained. One that is
    only demonstrations has no age.
    """
    spare = live.max_staleness - (lag if live.algorithm.rollouts else 0)
    if spare < 0:
        return 0
    return live.groups_per_step * (min(live.max_staleness, spare * live.publish_every) + 1)


class Credit:
    """The credit of a run, from what the learner has told and what the generators' heartbeats say."""

    def __init__(self, process: Process, clock: Callable[[], float] = time.monotonic) -> None:
        self._process = process
        self._clock = clock
        self._seen = (0, 0)
        self._moved_s = clock()

    async def read(self, live: LiveConfig, outstanding: int) -> int:
        """How many groups may be outstanding now. Heartbeats are only looked at while that could be more than are."""
        most = allowed(live, 0)
        if outstanding >= most:
            return most
        made = await self._process.patiently("read the learner's version", self._process.delivery.made)
        held = max(await held_versions(self._process), default=None)
        if held is None:  # nobody is there who could begin anything too early
            return most
        if (made, held) != self._seen:
            self._seen, self._moved_s = (made, held), self._clock()
        is_stalled = self._clock() - self._moved_s > STALLED_S
        return allowed(live, 0 if is_stalled else max(0, made - held))
