"""Where the learner stands: everything of its state that is neither weights nor optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field

from learner.checkpoint import Progress
from learner.ledger import Ledger
from learner.lineage import Lineage


@dataclass(slots=True)
class Standing:
    """Changes only between steps. step: steps done. unpublished: optimiser updates since the last publication.

    owes_version: restored weights are not published yet. saved_step: step of the newest checkpoint; None without one.
    """

    step: int = 0
    unpublished: int = 0
    owes_version: bool = False
    saved_step: int | None = None
    ledger: Ledger = field(default_factory=Ledger)
    lineage: Lineage = field(default_factory=Lineage)

    @property
    def has_news(self) -> bool:
        """Whether anything is not yet in a checkpoint."""
        return self.step != (self.saved_step or 0) or bool(self.ledger.unacknowledged)

    def published(self, version: int, *, again: bool) -> None:
        """The weights of this step are published; `again`: they count for nothing, a lost number is replaced."""
        self.owes_version = False
        if again:
            self.lineage.note(version, self.step)
        else:
            self.lineage.publish(version, self.step)
            self.unpublished = 0

    def progress(self, *, version: int, revision: int, updates: int) -> Progress:
        """What a checkpoint notes of it."""
        return Progress(
            step=self.step,
            version=version,
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
        self.unpublished = progress.unpublished
        self.owes_version = True
        self.ledger = Ledger(progress.seen, progress.unacknowledged)
        self.lineage = Lineage(dict(progress.step_of), progress.published)
