"""What was consumed, and what still waits for a checkpoint."""

from __future__ import annotations

from common.trajectory import Group
from learner.intake import Arrival
from learner.ledger import Ledger


def arrival(number: int, size: int = 10) -> Arrival:
    return Arrival(f"{number}-0", Group(f"g{number}", "p", 1, "generator-1", ()), size)


def test_a_consumed_group_is_seen_and_its_entry_waits() -> None:
    ledger = Ledger()
    ledger.consume(arrival(1))
    ledger.consume(arrival(2, 7))
    assert ledger.has_seen("g1")
    assert not ledger.has_seen("g3")
    assert ledger.unacknowledged == ("1-0", "2-0")
    assert ledger.unacknowledged_bytes == 17


def test_an_acknowledged_entry_is_forgotten_and_its_group_is_not() -> None:
    ledger = Ledger()
    ledger.consume(arrival(1))
    ledger.consume(arrival(2))
    ledger.forget(["1-0", "unknown"])
    assert ledger.unacknowledged == ("2-0",)
    assert ledger.seen == ("g1", "g2")


def test_only_the_newest_groups_are_remembered() -> None:
    ledger = Ledger(seen=("g1", "g2"), remembered=3)
    ledger.consume(arrival(3))
    ledger.consume(arrival(4))
    assert ledger.seen == ("g2", "g3", "g4")


def test_a_restored_ledger_knows_what_the_saved_one_knew() -> None:
    ledger = Ledger()
    ledger.consume(arrival(1))
    restored = Ledger(ledger.seen, ledger.unacknowledged)
    assert restored.has_seen("g1")
    assert restored.unacknowledged == ("1-0",)
    assert restored.unacknowledged_bytes == 0
