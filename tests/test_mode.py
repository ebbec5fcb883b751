"""The mode machine, over every mode and every combination of facts."""

from __future__ import annotations

import itertools
from dataclasses import fields

import pytest

from steadyhand_models.messages import Mode
from steadyhand_runtime.mode import Facts, next_mode

ALL_FACTS = [Facts(*bits) for bits in itertools.product([False, True], repeat=len(fields(Facts)))]
HEALTHY = Facts()


def reference(mode: Mode, f: Facts) -> Mode:
    """The table as a person would read it aloud: who may leave which mode, and for where."""
    if f.estopped:
        return Mode.ESTOP
    if f.faulted:
        return Mode.FAULT
    if not f.armed:
        return Mode.IDLE
    table = {
        Mode.IDLE: [(True, Mode.RESET)],
        Mode.ESTOP: [(True, Mode.RESET)],
        Mode.FAULT: [(f.resume, Mode.RESET)],
        Mode.RESET: [(f.reset_done, Mode.HOLD)],
        Mode.HOLD: [(f.takeover, Mode.TAKEOVER), (f.policy_ready and f.scene_ready, Mode.POLICY)],
        Mode.POLICY: [(f.episode_over, Mode.RESET), (f.takeover, Mode.TAKEOVER)],
        Mode.TAKEOVER: [(f.episode_over, Mode.RESET), (f.release and f.policy_ready, Mode.POLICY)],
    }
    return next((target for condition, target in table[mode] if condition), mode)


@pytest.mark.parametrize("mode", list(Mode))
def test_every_transition_is_the_table_s(mode: Mode) -> None:
    for facts in ALL_FACTS:
        assert next_mode(mode, facts) is reference(mode, facts), (mode, facts)


def test_an_emergency_stop_wins_over_everything_in_every_mode() -> None:
    assert {next_mode(m, f) for m in Mode for f in ALL_FACTS if f.estopped} == {Mode.ESTOP}


def test_no_mode_that_moves_the_arm_is_reached_unarmed_faulted_or_stopped() -> None:
    unsafe = [f for f in ALL_FACTS if f.estopped or f.faulted or not f.armed]
    moving = {Mode.POLICY, Mode.TAKEOVER, Mode.RESET}
    assert not moving & {next_mode(m, f) for m in Mode for f in unsafe}


def test_a_fault_is_left_only_by_a_person() -> None:
    left = [f for f in ALL_FACTS if f.armed and next_mode(Mode.FAULT, f) not in (Mode.FAULT, Mode.ESTOP)]
    assert left and all(f.resume for f in left)


def test_the_policy_never_starts_by_itself_but_from_a_ready_scene_or_a_released_takeover() -> None:
    for mode in Mode:
        for facts in ALL_FACTS:
            if mode is not Mode.POLICY and next_mode(mode, facts) is Mode.POLICY:
                assert facts.policy_ready
                assert (mode is Mode.HOLD and facts.scene_ready) or (mode is Mode.TAKEOVER and facts.release)


def test_nothing_happens_without_news() -> None:
    assert [m for m in Mode if next_mode(m, HEALTHY) is m] == [
        Mode.HOLD,
        Mode.POLICY,
        Mode.TAKEOVER,
        Mode.RESET,
        Mode.FAULT,
    ]
