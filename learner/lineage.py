"""Lineage: which step each weight version comes from, and how far behind a version is.

A learner that was killed goes back to its checkpoint and publishes under higher numbers, so the difference of two
version numbers does not tell a group's age any more. Its step does: staleness is the number of publications that this
learner's own history holds after the step of the version. A resumed run counts exactly as the uninterrupted one would,
unless publish_min_interval_s is set: then the clock decides, in each life anew, after which steps there is a version.
Even so the weights are the same to the bit as long as no group is dropped as stale.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

_KEPT = 4096


class Lineage:
    """What was published so far.

    step_of: version → the step it comes from (lost histories included). published: steps at which this history
    published, ascending.
    """

    def __init__(self, step_of: Mapping[int, int] | None = None, published: Sequence[int] = ()) -> None:
        self._step_of = dict(step_of or {})
        self._step_of.setdefault(0, 0)
        self._published = list(published)

    def note(self, version: int, step: int) -> None:
        """Learn that a version comes from a step."""
        self._step_of[version] = step
        if len(self._step_of) > _KEPT:
            del self._step_of[min(self._step_of)]

    def publish(self, version: int, step: int) -> None:
        """A version was published at `step` of this history."""
        self.note(version, step)
        self._published.append(step)
        del self._published[:-_KEPT]

    def staleness(self, version: int) -> int:
        """How many publications of this history came after the weights of `version`."""
        return len(self._published) - bisect_right(self._published, self._step(version))

    def _step(self, version: int) -> int:
        """The step of a version; of the next older one that is known if it is not."""
        if version in self._step_of:
            return self._step_of[version]
        older = [known for known in self._step_of if known < version]
        return self._step_of[max(older)] if older else 0

    @property
    def step_of(self) -> dict[int, int]:
        """Version → step, for the checkpoint."""
        return dict(self._step_of)

    @property
    def published(self) -> tuple[int, ...]:
        """Steps of this history's publications, for the checkpoint."""
        return tuple(self._published)
