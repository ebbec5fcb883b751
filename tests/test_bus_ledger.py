"""No late reply is ever taken for a fresh one: the ledger by itself, and the driver against arbitrary lateness."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_servos import Fate, cycle_and_check, make_driver

from steadyhand_runtime.bus.ledger import MAX_BYTES, QUARANTINE_NS, Ledger

lateness = st.one_of(
    st.just(0.0), st.none(), st.just("bad"), st.floats(0.0, 0.012), st.floats(0.0, 0.2), st.floats(0.0, 4.5)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 30), lateness), min_size=1, max_size=60), st.booleans())
def test_no_value_older_than_its_cycle_is_ever_valid(plan: list[tuple[int, int, Fate]], mute: bool) -> None:
    servos, driver, clock = make_driver(mute)
    fates: dict[tuple[int, int], Fate] = {(cycle + 1, servo): fate for servo, cycle, fate in plan}
    servos.fate = lambda i: fates.get((servos.cycle, i), 0.0)
    for _ in range(60):
        cycle_and_check(servos, driver, clock)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.003, 4.5), st.sets(st.integers(1, 6), min_size=1), st.integers(1, 40))
def test_servos_that_are_always_late_are_never_believed(late_s: float, ids: set[int], cycles: int) -> None:
    servos, driver, clock = make_driver()
    servos.fate = lambda i: late_s if i in ids and servos.cycle <= cycles else 0.0
    for _ in range(cycles + 40):
        cycle_and_check(servos, driver, clock)


def test_one_reply_that_is_70_ms_late_costs_one_servo_one_cycle_at_most() -> None:
    servos, driver, clock = make_driver()
    servos.fate = lambda i: 0.07 if (servos.cycle, i) == (5, 3) else 0.0
    flags = [cycle_and_check(servos, driver, clock) for _ in range(45)]
    assert sum(not f.all() for f in flags) <= 1
    assert driver.counters()[2].late_replies >= 1


def test_all_are_valid_again_soon_after_everybody_was_silent() -> None:
    servos, driver, clock = make_driver()
    servos.fate = lambda i: None if servos.cycle < 300 else 0.0
    flags = [cycle_and_check(servos, driver, clock) for _ in range(400)]
    assert not any(f.any() for f in flags[:299])
    assert flags[340].all()


def test_a_length_is_free_until_a_reply_of_it_is_owed_and_again_when_it_came() -> None:
    ledger = Ledger()
    assert ledger.free_size((1, 2), 6) == 6 and not ledger
    ledger.owe(2, 6, 0)
    ledger.owe(1, 7, 0)
    assert (ledger.free_size((1, 2), 6), ledger.free_size((1,), 6), ledger.free_size((3,), 6)) == (8, 6, 6)
    assert ledger.settle(2, 6) and not ledger.settle(2, 6)
    assert ledger.free_size((1, 2), 6) == 6


def test_two_owed_replies_of_a_length_must_both_come() -> None:
    ledger = Ledger()
    ledger.owe(1, 6, 0)
    ledger.owe(1, 6, 5)
    assert ledger.settle(1, 6) and ledger.free_size((1,), 6) == 7
    assert ledger.settle(1, 6) and ledger.free_size((1,), 6) == 6


def test_what_never_comes_is_forgotten_after_the_quarantine() -> None:
    ledger = Ledger()
    ledger.owe(1, 6, 0)
    ledger.expire(QUARANTINE_NS - 1)
    assert ledger.free_size((1,), 6) == 7
    ledger.expire(QUARANTINE_NS)
    assert ledger.free_size((1,), 6) == 6 and not ledger


def test_when_every_length_is_owed_there_is_none_to_ask_in() -> None:
    ledger = Ledger()
    for size in range(6, MAX_BYTES + 1):
        ledger.owe(1, size, 0)
    assert ledger.free_size((1,), 6) is None
    assert ledger.owed_by(1) == MAX_BYTES - 5
