"""An arm's first minutes with a person beside it: read, one joint at a time, the emergency stop, the workspace.

Everything goes through a bus process of its own, by the same messages as in a run. At any time `q` or Ctrl-C lowers the
torque, then switches it off.
"""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from steadyhand_firmware.arm import Arm, load_arm
from steadyhand_models import task
from steadyhand_models.cli import UserError
from steadyhand_models.messages import BusAction, BusState
from steadyhand_runtime import kinematics
from steadyhand_runtime.clock import MonotonicClock, Rate
from steadyhand_runtime.config import BusSettings
from steadyhand_runtime.doctor_checks import Grade, Verdict, fail, ok, warn
from steadyhand_runtime.doctor_line import ANSWER_S, GOAL_HZ, BusLine, Stopped, bus_line
from steadyhand_runtime.operator.terminal_keys import TerminalKeys
from steadyhand_runtime.reset import ResetMotion

F64 = npt.NDArray[np.float64]

LOW_TORQUE = 0.5  # enough to hold the arm's own weight near its rest pose, too little to hurt
READ_S = 2.0
NUDGE_RAD = 0.10
NUDGE_S = 1.5
LEAST_S = 1.0  # of any motion through the workspace
SETTLE_S = 0.5  # the goal is held so long after a motion, before anything is judged
FOLLOWED_SHARE = 0.5  # of a nudge: at low torque gravity keeps some of it
SLOW_RAD_S = 0.4
TRACKING_RAD = 0.25
MARGIN_RAD = 0.10  # beyond a joint's limits: calibration is never exact
STILL_RAD_S = 0.3
WARM_C = 50.0
LEAST_V = 4.5  # below it the servos of either variant report an alarm soon
REACTION_S = 0.1  # from the key to lowered torque
DRILL_S = 20.0
BOX_SHARE = 0.7  # of the task's box: its far corners are beyond a careful first look

Log = Callable[[str], None]


class Person(Protocol):
    """Who stands beside the arm."""

    def agree(self, text: str) -> None:
        """Return when they agree. Raises Stopped."""

    def keys(self) -> list[str]:
        """Keys pressed since the last call; never waits."""

    def drill(self, moving_s: float) -> bool:
        """Whether space is pressed now, `moving_s` into the drill."""


@dataclass
class Finding:
    """What one step of the walk showed."""

    step: str
    verdict: Verdict


@dataclass
class Hands:
    """A person at the terminal."""

    terminal: TerminalKeys
    say: Log

    def agree(self, text: str) -> None:
        self.say(f"{text}  [Enter: go on, q: stop]")
        while True:
            for key, _ in self.terminal.read(0.1):
                if key == "enter":
                    return
                if key in ("q", "esc"):
                    raise Stopped("you stopped")

    def keys(self) -> list[str]:
        return [key for key, _ in self.terminal.read(0.0)]

    def drill(self, moving_s: float) -> bool:
        pressed = self.keys()
        if "q" in pressed:
            raise Stopped("you stopped")
        return "space" in pressed


@dataclass
class NoHands:
    """Agrees to everything and stops on time, for a simulated arm."""

    say: Log
    stop_after_s: float = 1.0

    def agree(self, text: str) -> None:
        self.say(f"{text}  [agreed by --yes]")

    def keys(self) -> list[str]:
        return []

    def drill(self, moving_s: float) -> bool:
        return moving_s >= self.stop_after_s


def judge_reading(states: Sequence[BusState], arm: Arm) -> list[Finding]:
    """What a resting arm's states say: whether all answer, supply, temperatures, and positions that can be."""
    names = np.array(arm.names)
    answered = np.mean([s.valid for s in states], axis=0)
    last = states[-1]

    def of(bad: npt.NDArray[np.bool_], values: F64, unit: str) -> str:
        return ", ".join(f"{n} {v:.2f} {unit}" for n, v in zip(names[bad], values[bad]))

    silent, quiet = answered < 0.5, answered < 0.95
    outside = (last.position_rad < arm.low_rad - MARGIN_RAD) | (last.position_rad > arm.high_rad + MARGIN_RAD)
    moving = np.abs(last.velocity_rad_s) > STILL_RAD_S
    hot = last.temperature_c > WARM_C
    alarmed = last.alarms != 0
    findings = [
        ("answers", silent, answered * 100, "%", fail, "check the cable before the first of them, and the supply"),
        ("steady answers", quiet, answered * 100, "%", warn, "check plugs and cables, and that the host is not busy"),
        (
            "alarms",
            alarmed,
            last.alarms.astype(float),
            "",
            fail,
            "see `steadyhand bus monitor`; switch power off and on",
        ),
        ("temperature", hot, last.temperature_c, "C", warn, "let it cool down before it works"),
        ("position", outside, last.position_rad, "rad", fail, "calibrate it: `steadyhand bus calibrate`"),
        ("stillness", moving, last.velocity_rad_s, "rad/s", warn, "put the arm down and let it rest"),
    ]
    found = [
        Finding(f"reading: {name}", grade(of(bad, values, unit), fix) if bad.any() else ok("all six as they should be"))
        for name, bad, values, unit, grade, fix in findings
    ]
    volts = f"{last.voltage_v.min():.1f} to {last.voltage_v.max():.1f} V"
    return [
        *found,
        Finding("reading: supply", ok(volts) if last.voltage_v.min() > 4.5 else fail(volts, "check the supply")),
    ]


def judge_nudge(joint: str, moved_rad: float, back_rad: float) -> Finding:
    """Whether a joint followed its small motion and came back."""
    found = f"moved {moved_rad:+.3f} rad of {NUDGE_RAD:+.3f}, ends {back_rad:+.3f} rad away"
    if moved_rad < -FOLLOWED_SHARE / 2 * NUDGE_RAD:
        return Finding(joint, fail(found, "it turns the wrong way: check that the arm was put together and calibrated"))
    if moved_rad < FOLLOWED_SHARE * NUDGE_RAD:
        return Finding(joint, warn(found, "it hardly follows: support the arm less, check for a block and the supply"))
    return Finding(joint, ok(found))


def judge_drill(reaction_s: float, lowered: bool) -> Finding:
    """Whether the emergency stop was obeyed, and how soon."""
    found = f"{reaction_s * 1e3:.1f} ms from the key to lowered torque"
    if not lowered:
        return Finding("emergency stop", fail("the arm was not stopped", "do not run this arm: switch its power off"))
    if reaction_s > REACTION_S:
        return Finding("emergency stop", warn(found, "something holds the bus up: see `steadyhand doctor`"))
    return Finding("emergency stop", ok(found))


def corners(chosen: task.Task, share: float = BOX_SHARE) -> list[F64]:
    """Joints (6,) of the reset pose, each corner of the task's box that can be reached, and the reset pose again."""
    space, home = chosen.workspace, ResetMotion(chosen).pose_rad
    lo, hi = np.array(space.lo_m), np.array(space.hi_m)
    centre, half = (lo + hi) / 2, (hi - lo) / 2 * share
    found = []
    for signs in itertools.product((-1.0, 1.0), repeat=3):
        solution = kinematics.solve(centre + half * np.array(signs), space.pitch_hi_rad)
        if solution.reachable:
            found.append(np.append(solution.q_rad, home[5]))
    return [home, *found, home]


@dataclass
class Walk:
    """The steps, one after the other; `findings` grows as they are done."""

    chosen: BusSettings
    person: Person
    say: Log
    findings: list[Finding] = field(default_factory=list)

    def run(self) -> None:
        """All of it. Raises Stopped."""
        with bus_line(self.chosen, LOW_TORQUE) as line:
            self.read(line)
            self.person.agree("Next every joint moves a little, at low torque. Keep the space around the arm free.")
            self._arm(line)
            for number, joint in enumerate(load_arm().joints):
                self.nudge(line, number, joint.name)
            self.drill(line)
        self.person.agree(
            "Torque is off. Next the arm goes slowly through its workspace at full torque. Put it upright."
        )
        with bus_line(self.chosen, 1.0) as line:
            self.workspace(line)

    def read(self, line: BusLine) -> None:
        self.say("Reading all six servos; nothing moves.")
        deadline_s = time.monotonic() + READ_S
        states = []
        while time.monotonic() < deadline_s:
            states.append(line.state())
        found = judge_reading(states, load_arm())
        for one in found:
            self._note(one)
        if any(one.verdict.grade is Grade.FAIL for one in found):
            raise Stopped("mend what failed first; nothing has moved")

    def nudge(self, line: BusLine, number: int, name: str) -> None:
        self.person.agree(f"{name} moves by {NUDGE_RAD:.2f} rad and back.")
        before = line.state().position_rad
        middle = (load_arm().low_rad + load_arm().high_rad) / 2
        away = before.copy()
        direction = 1.0 if before[number] <= middle[number] else -1.0
        away[number] += direction * NUDGE_RAD
        self._go(line, before, away, NUDGE_S)
        there = line.state().position_rad[number]
        self._go(line, away, before, NUDGE_S)
        back = line.state().position_rad[number]
        moved_rad = float(direction * (there - before[number]))
        self._note(judge_nudge(name, moved_rad, float(back - before[number])))

    def drill(self, line: BusLine) -> None:
        self.person.agree("Drill: the arm sways a little, and you press SPACE to stop it.")
        middle = line.state().position_rad
        rate, start_s = Rate(MonotonicClock(), GOAL_HZ), time.monotonic()
        while not self.person.drill(moving_s := time.monotonic() - start_s):
            if moving_s > DRILL_S:
                raise Stopped("nobody pressed space: without an emergency stop the walk ends here")
            sway = middle.copy()
            sway[0] += NUDGE_RAD * np.sin(2.0 * moving_s)
            line.send(sway)
            rate.wait()
        reaction_s = line.command(BusAction.ESTOP)  # answered when the torque limits have been written
        finding = judge_drill(reaction_s, self._is_stopped(line))
        self._note(finding)
        if finding.verdict.grade is Grade.FAIL:
            raise Stopped("the emergency stop does not work")
        line.command(BusAction.CLEAR)

    def workspace(self, line: BusLine) -> None:
        self._arm(line)
        at, worst = line.state().position_rad, 0.0
        refused: set[str] = set()
        for there in corners(task.load("lift")):
            seconds = max(LEAST_S, float(np.abs(there - at).max()) / SLOW_RAD_S)
            refused |= self._go(line, at, there, seconds)
            worst = max(worst, float(np.abs(line.state().position_rad[:5] - there[:5]).max()))
            at = there
        found = (
            f"largest distance from a corner {worst:.3f} rad, the guard said {', '.join(sorted(refused)) or 'nothing'}"
        )
        far = worst > TRACKING_RAD or bool(refused)
        fix = "check the calibration, the supply, and what stands in the way"
        self._note(Finding("workspace", warn(found, fix) if far else ok(found)))
        line.command(BusAction.DISARM)

    def _arm(self, line: BusLine) -> None:
        """Torque on and ramped; a goal held at the present pose."""
        line.command(BusAction.ARM)
        deadline_s = time.monotonic() + ANSWER_S
        while not (state := line.state()).armed:
            if state.fault or time.monotonic() > deadline_s:
                raise Stopped(f"the arm does not arm: {state.fault or 'no reason given'}")

    def _go(self, line: BusLine, start: F64, end: F64, seconds: float) -> set[str]:
        """Move in a straight line of the joints; what the guard said on the way. Raises Stopped."""
        rate, begun_s = Rate(MonotonicClock(), GOAL_HZ), time.monotonic()
        said: set[str] = set()
        while (gone_s := time.monotonic() - begun_s) < seconds + SETTLE_S:
            if {"q", "space", "esc"} & set(self.person.keys()):
                line.command(BusAction.ESTOP)
                raise Stopped("you stopped")
            line.send(start + min(1.0, gone_s / seconds) * (end - start))
            rate.wait()
            state = line.state()
            said |= set(state.refusals)
            if state.fault:
                raise Stopped(f"the bus stopped the arm: {state.fault}")
        return said

    def _is_stopped(self, line: BusLine) -> bool:
        deadline_s = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline_s:
            if line.state().estopped:
                return True
        return False

    def _note(self, finding: Finding) -> None:
        self.findings.append(finding)
        verdict = finding.verdict
        self.say(
            f"  {verdict.grade.value:<4} {finding.step}: {verdict.found}{'; ' + verdict.fix if verdict.fix else ''}"
        )


def walk(chosen: BusSettings, person: Person, say: Log) -> list[Finding]:
    """The whole walk; it ends with torque off, also when it is stopped, which is a finding."""
    walking = Walk(chosen, person, say)
    try:
        walking.run()
    except (Stopped, KeyboardInterrupt) as end:
        walking.findings.append(Finding("stopped", fail(str(end) or "interrupted", "torque was lowered, then off")))
    return walking.findings


def walk_from_terminal(chosen: BusSettings, yes: bool) -> int:
    """`steadyhand doctor --arm`: 0 when everything was done and nothing failed, else 1. Raises UserError."""

    def say(text: str) -> None:
        print(text, flush=True)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where whoever started this ignores it
    say(f"The arm on {chosen.port}. At any time: q, or Ctrl-C, lowers its torque and then switches it off.")
    if yes:
        findings = walk(chosen, NoHands(say), say)
    else:
        if not sys.stdin.isatty():
            raise UserError("the walk asks before every step: run it in a terminal, or a simulated arm with --yes")
        with TerminalKeys() as terminal:
            findings = walk(chosen, Hands(terminal, say), say)
    last = findings[-1]
    say(f"{last.step}: {last.verdict.found}" if last.step == "stopped" else "the walk is complete; torque is off")
    return int(any(f.verdict.grade is Grade.FAIL for f in findings))
