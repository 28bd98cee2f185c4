"""What became of requests: solve rates of the training prompts, and the answers of an evaluation under way."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import WireError
from common.process import Process
from common.streams import Entry
from common.trajectory import Outcome, Purpose
from common.wire import decode_outcome

log = logging.getLogger(__name__)


class Ledger:
    """Prompt id → what is known of it, as kept in Redis.

    attempts, solved, last (mean reward): of rollouts from the bare prompt only. hinted: attempts and solved of those
    that continued a hint. anchor: the hint length that its last successful search found.
    """

    def __init__(self, records: Mapping[bytes, bytes]) -> None:
        self._records: dict[str, dict[str, Any]] = {k.decode(): json.loads(v) for k, v in records.items()}

    def anchor(self, prompt_id: str) -> int | None:
        """The hint length, in tokens, to begin the next search with; None if none was found yet."""
        return self._records.get(prompt_id, {}).get("anchor")

    def updated(self, outcomes: Sequence[Outcome]) -> dict[str, str]:
        """Take training outcomes in; the records that they change, as JSON."""
        changed: dict[str, str] = {}
        for outcome in outcomes:
            record = dict(self._records.get(outcome.prompt_id, {"attempts": 0, "solved": 0}))
            record["attempts"] += len(outcome.rewards)
            record["solved"] += sum(r >= 1.0 for r in outcome.rewards)
            if outcome.rewards:
                record["last"] = sum(outcome.rewards) / len(outcome.rewards)
            if outcome.hinted_rewards:
                hinted = record.get("hinted", {"attempts": 0, "solved": 0})
                record["hinted"] = {
                    "attempts": hinted["attempts"] + len(outcome.hinted_rewards),
                    "solved": hinted["solved"] + sum(r >= 1.0 for r in outcome.hinted_rewards),
                }
            if outcome.anchor is not None:
                record["anchor"] = outcome.anchor
            self._records[outcome.prompt_id] = record
            changed[outcome.prompt_id] = json.dumps(record)
        return changed


class Answers:
    """Outcomes of the evaluation under way, by request. They stay unacknowledged until the evaluation is reported."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.entry_ids: list[str] = []

    def add(self, entry_id: str, outcome: Outcome) -> None:
        """Keep one; a request answered twice counts once."""
        self.entry_ids.append(entry_id)
        self.outcomes.setdefault(outcome.request_id, outcome)

    def of(self, dataset: str) -> list[Outcome]:
        """The answers for one held-out set."""
        return [o for o in self.outcomes.values() if o.dataset == dataset]


async def decode_outcomes(process: Process, entries: Sequence[Entry]) -> list[tuple[str, Outcome]]:
    """The outcomes of stream entries; what cannot be decoded goes to quarantine."""
    decoded: list[tuple[str, Outcome]] = []
    for entry in entries:
        try:
            decoded.append((entry.entry_id, decode_outcome(entry.payload)))
        except WireError as error:
            await process.quarantine(process.delivery.outcomes, entry, str(error))
    return decoded


def by_purpose(decoded: Sequence[tuple[str, Outcome]]) -> dict[Purpose, list[tuple[str, Outcome]]]:
    """Outcomes with the ids of their entries, for every purpose."""
    return {purpose: [item for item in decoded if item[1].purpose is purpose] for purpose in Purpose}
