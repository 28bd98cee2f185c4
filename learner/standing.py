"""Where the learner stands: everything of its state that is neither weights nor optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field

from learner.ledger import Ledger
from learner.lineage import Lineage
from learner.storage.checkpoint import Progress


@dataclass(slots=True)
class Standing:
    """Where one learner stands. step: steps done. version: the last one that weights were given.

    Changes between steps; but what is written beside the training is entered when it is done: saved_step and the
    ledger's acknowledgements when a checkpoint commits, unpublished and owes_version when a snapshot is lost.

    A version counts from its snapshot on, whether or not it is written already: so a resumed run counts as the
    uninterrupted one did, however fast its disk. unpublished: optimiser updates that no snapshot holds, or only one
    that was lost. owes_version: restored weights, or those of a lost snapshot, are not published yet. saved_step: step
    of the newest checkpoint; None without one.
    """

    step: int = 0
    version: int = 0
    unpublished: int = 0
    owes_version: bool = False
    saved_step: int | None = None
    ledger: Ledger = field(default_factory=Ledger)
    lineage: Lineage = field(default_factory=Lineage)

    @property
    def has_news(self) -> bool:
        """Whether anything is not yet in a checkpoint."""
        return self.step != (self.saved_step or 0) or bool(self.ledger.unacknowledged)

    def publish(self, version: int) -> int:
        """The weights of this step become a version. How many updates it is the first to hold."""
        self.lineage.publish(version, self.step)
        return self._number(version)

    def publish_instead(self, version: int) -> int:
        """The same in place of a version that was lost: the lineage has counted that one already."""
        self.lineage.note(version, self.step)
        return self._number(version)

    def publish_again(self, version: int) -> None:
        """Restored weights become a version once more. The next one falls due as if this were none."""
        self.owes_version = False
        self.version = version
        self.lineage.note(version, self.step)

    def _number(self, version: int) -> int:
        self.owes_version = False
        self.version = version
        updates, self.unpublished = self.unpublished, 0
        return updates

    def lose(self, updates: int | None) -> None:
        """A version with so many updates could not be written: what it held goes with the next one."""
        self.owes_version = True
        self.unpublished += updates or 0

    def progress(self, *, revision: int, updates: int) -> Progress:
        """What a checkpoint notes of it."""
        return Progress(
            step=self.step,
            version=self.version,
            revision=revision,
            updates=updates,
            unpublished=self.unpublished,
            seen=self.ledger.seen,
            unacknowledged=self.ledger.unacknowledged,
            step_of=tuple(sorted(self.lineage.step_of.items())),
            published=self.lineage.published,
        )

    def restore(self, progress: Progress) -> None:
        """Stand where a checkpoint was taken."""
        self.step = self.saved_step = progress.step
        self.version = progress.version
        self.unpublished = progress.unpublished
        self.owes_version = True
        self.ledger = Ledger(progress.seen, progress.unacknowledged)
        self.lineage = Lineage(dict(progress.step_of), progress.published)
