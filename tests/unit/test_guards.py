"""Guards: what may be asked of them, and which one the records of steps call upon."""

from __future__ import annotations

from typing import Any

import pytest

from common.config.guards import Figure, Guard
from common.config.live import dump_live, parse_live
from common.errors import ConfigRejected
from services.control.firings import Firing, Step, firings

ROLLBACK = {"kind": "rollback"}


def guard(**fields: Any) -> Guard:
    return Guard.model_validate({"name": "g", "watch": "entropy", "below": 0.5, "action": ROLLBACK, **fields})


def steps(*values: float | None, watch: str = "entropy", first: int = 1) -> list[Step]:
    made = [Step.of({"step": number, "revision": 1, watch: value}) for number, value in enumerate(values, start=first)]
    return [step for step in made if step is not None]


def fired(guard: Guard, told: list[Step]) -> list[tuple[int, float]] | None:
    found = firings([guard], told)
    return list(found[0].evidence) if found else None


def test_there_are_no_guards_by_default() -> None:
    assert parse_live({}).guards == ()


@pytest.mark.parametrize(
    ("values", "evidence"),
    [
        ((0.4, 0.3, 0.2), [(1, 0.4), (2, 0.3), (3, 0.2)]),
        ((0.9, 0.4, 0.3, 0.2), [(2, 0.4), (3, 0.3), (4, 0.2)]),
        ((0.4, 0.3), None),
        ((0.4, 0.3, 0.2, 0.9), None),
        ((0.4, 0.9, 0.3, 0.2), None),
        ((0.4, 0.5, 0.3, 0.2), None),
        ((0.4, None, 0.3, None, 0.2, None), [(1, 0.4), (3, 0.3), (5, 0.2)]),
        ((None, None, None), None),
        ((0.9, 0.1, 0.4, 0.3, 0.2), [(3, 0.4), (4, 0.3), (5, 0.2)]),
        ((), None),
    ],
)
def test_a_guard_fires_when_its_figure_was_out_of_range_in_enough_successive_steps(
    values: tuple[float | None, ...], evidence: list[tuple[int, float]] | None
) -> None:
    assert fired(guard(steps=3), steps(*values)) == evidence


def test_a_bound_itself_is_in_range() -> None:
    assert not guard(below=0.5).is_out(0.5)
    assert not guard(below=None, above=0.0).is_out(0.0)
    assert guard(below=None, above=0.0).is_out(1e-9)


@pytest.mark.parametrize("figure", list(Figure))
def test_every_figure_can_be_watched(figure: Figure) -> None:
    per_source = figure in ("effective_sample_size", "ratio", "clip_fraction")
    record = {"step": 1, "revision": 1, figure: {"hint": 2.0, "policy": 0.0} if per_source else 2.0}
    step = Step.of(record)
    assert step is not None
    assert fired(guard(watch=figure, below=None, above=1, steps=1, source="hint"), [step]) == [(1, 2.0)]
    assert (fired(guard(watch=figure, below=None, above=1, steps=1), [step]) is None) == per_source


@pytest.mark.parametrize("value", [None, "low", True, {"policy": 0.1}, [0.1], float("nan"), float("inf")])
def test_what_is_no_finite_number_is_no_figure(value: Any) -> None:
    step = Step.of({"step": 1, "revision": 1, "entropy": value, "ratio": {"policy": value}})
    assert step is not None
    assert step.figure(guard()) is None
    assert step.figure(guard(watch="ratio", source="policy")) is None


@pytest.mark.parametrize("record", [{}, {"step": "1", "revision": 1}, {"step": 1}, {"step": 1.0, "revision": 1}])
def test_a_record_without_step_or_revision_is_no_step(record: Any) -> None:
    assert Step.of(record) is None


def test_guards_are_called_upon_in_the_order_in_which_they_are_set() -> None:
    both = [guard(name="b", steps=1), guard(name="a", steps=2), guard(name="c", above=9, below=None, steps=1)]
    assert [f.guard.name for f in firings(both, steps(0.1, 0.2))] == ["b", "a"]


def test_the_reason_tells_figure_bound_values_and_steps() -> None:
    low = guard(name="collapse", watch="effective_sample_size", below=0.3, steps=3)
    firing = Firing(low, ((41, 0.21), (42, 0.190000001), (43, 0.2)))
    assert firing.reason == (
        'guard "collapse": effective_sample_size of policy tokens was below 0.3 in 3 successive steps '
        "(0.21, 0.19, 0.2 at steps 41 to 43)"
    )
    assert (
        Firing(guard(steps=1), ((7, 0.25),)).reason == 'guard "g": entropy was below 0.5 in one step (0.25 at step 7)'
    )


def test_the_reason_of_a_long_row_stays_short() -> None:
    firing = Firing(guard(steps=1000), tuple((n, 0.123456789) for n in range(1000)))
    assert "1000 successive steps (the last 8 of them: 0.1235, " in firing.reason
    assert firing.reason.endswith("at steps 992 to 999)")
    assert len(firing.reason) < 200


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"below": None}, "needs one bound"),
        ({"above": 3}, "needs one bound"),
        ({"watch": "mood"}, "Input should be"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"name": "A b"}, "pattern"),
        ({"name": "guard:x"}, "pattern"),
        ({"action": {"kind": "shout"}}, "choose one of 'rollback', 'set', 'pause'"),
        ({"action": {"kind": "set"}}, "Field required"),
        ({"action": {"kind": "set", "patch": {}}}, "at least 1 item"),
        ({"action": {"kind": "set", "patch": {"guards": []}}}, "cannot change the guards"),
        ({"action": {"kind": "set", "patch": {"publish_every": 0}}}, 'guard "g" would make a configuration that is'),
        ({"action": {"kind": "set", "patch": {"algorithm": {"kind": "luffy"}}}}, "set {"),
    ],
)
def test_a_guard_that_could_not_act_is_refused_with_a_sentence(fields: Any, sentence: str) -> None:
    document = {"name": "g", "watch": "entropy", "below": 0.5, "action": ROLLBACK, **fields}
    with pytest.raises(ConfigRejected) as caught:
        parse_live({"guards": [document]})
    assert sentence in str(caught.value)


def test_what_is_wrong_with_an_action_is_told_by_its_path_without_the_kind() -> None:
    wrong = {"name": "g", "watch": "entropy", "below": 0.5, "action": {"kind": "set", "patch": {}}}
    with pytest.raises(ConfigRejected) as caught:
        parse_live({"guards": [wrong]})
    assert caught.value.problems[0][0] == "guards.0.action.patch"


def test_guards_need_names_of_their_own_and_there_may_be_32_of_them() -> None:
    document = {"name": "g", "watch": "entropy", "below": 0.5, "action": ROLLBACK}
    with pytest.raises(ConfigRejected, match="g comes more than once"):
        parse_live({"guards": [document, document]})
    many = [{**document, "name": f"g{n}"} for n in range(33)]
    assert len(parse_live({"guards": many[:32]}).guards) == 32
    with pytest.raises(ConfigRejected, match="at most 32"):
        parse_live({"guards": many})


def test_a_guard_survives_being_written_and_read() -> None:
    live = parse_live(
        {
            "guards": [
                {"name": "g", "watch": "ratio", "above": 3, "action": {"kind": "set", "patch": {"publish_every": 2}}}
            ]
        }
    )
    assert parse_live(dump_live(live)) == live
