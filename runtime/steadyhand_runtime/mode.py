"""The mode of the control loop: a pure state machine over what one tick knows."""

from __future__ import annotations

from dataclasses import dataclass

from steadyhand_models.messages import Mode


@dataclass(frozen=True, slots=True)
class Facts:
    """What a tick knows. `takeover`, `release` and `resume` are presses of this tick, the rest are states."""

    armed: bool = True
    estopped: bool = False
    faulted: bool = False
    reset_done: bool = False
    scene_ready: bool = False
    policy_ready: bool = False
    takeover: bool = False
    release: bool = False
    resume: bool = False
    episode_over: bool = False


def next_mode(mode: Mode, facts: Facts) -> Mode:
    """The mode after this tick. After a fault or an emergency stop nothing moves until a person resumes or re-arms."""
    if facts.estopped:
        return Mode.ESTOP
    if facts.faulted:
        return Mode.FAULT
    if not facts.armed:
        return Mode.IDLE
    if mode is Mode.FAULT:
        return Mode.RESET if facts.resume else Mode.FAULT
    if mode in (Mode.IDLE, Mode.ESTOP):
        return Mode.RESET
    if mode is Mode.RESET:
        return Mode.HOLD if facts.reset_done else Mode.RESET
    if mode is Mode.HOLD:
        return _from_hold(facts)
    return _in_episode(mode, facts)


def _from_hold(facts: Facts) -> Mode:
    if facts.takeover:
        return Mode.TAKEOVER
    return Mode.POLICY if facts.policy_ready and facts.scene_ready else Mode.HOLD


def _in_episode(mode: Mode, facts: Facts) -> Mode:
    if facts.episode_over:
        return Mode.RESET
    if mode is Mode.POLICY:
        return Mode.TAKEOVER if facts.takeover else Mode.POLICY
    return Mode.POLICY if facts.release and facts.policy_ready else Mode.TAKEOVER
