"""A servo that falls silent is left out, the others stay punctual, and it is checked before it comes back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numbered_servos import cycle_and_check, make_driver

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import Calibration
from steadyhand_runtime.bus.driver import Driver, Reading
from steadyhand_runtime.bus.roster import LONG_NS, MISSES, SILENT_NS, Roster
from steadyhand_runtime.bus.transport import InProcessTransport
from steadyhand_runtime.clock import ManualClock
from steadyhand_runtime.sim.servos import AfterSilent, StillPlant, VirtualChain

PERIOD_NS = 10_000_000


@dataclass
class Rig:
    chain: VirtualChain
    clock: ManualClock
    driver: Driver

    def cycle(self, n: int = 1) -> Reading:
        for _ in range(n):
            self.clock.advance_s(0.01)
            reading = self.driver.cycle(None)
        return reading


@pytest.fixture(params=list(AfterSilent))
def rig(request: pytest.FixtureRequest) -> Rig:
    clock = ManualClock()
    chain = VirtualChain(StillPlant(), after_silent=request.param)
    made = Rig(chain, clock, Driver(InProcessTransport(chain, clock), load_arm(), Calibration.default(), clock))
    made.driver.connect()
    return made


@pytest.mark.parametrize("mute", [False, True])
@pytest.mark.parametrize("dead", [1, 3, 6])
def test_with_one_dead_servo_the_other_five_stay_valid_above_90_hz(dead: int, mute: bool) -> None:
    servos, driver, clock = make_driver(mute)
    servos.fate = lambda i: None if i == dead and servos.cycle > 20 else 0.0
    flags, late = [], 0
    for _ in range(300):
        start_ns = clock.now_ns()
        flags.append(cycle_and_check(servos, driver, clock))
        late += clock.now_ns() - start_ns > PERIOD_NS
    others = np.delete(np.array(flags), dead - 1, axis=1)
    assert others.mean() > 0.995
    assert late <= 300 * 0.1
    assert not any(f[dead - 1] for f in flags[20:])


@pytest.mark.parametrize("mute", [False, True])
def test_with_two_dead_servos_the_other_four_come_back(mute: bool) -> None:
    servos, driver, clock = make_driver(mute)
    servos.fate = lambda i: None if i in (2, 4) and servos.cycle > 20 else 0.0
    flags = np.array([cycle_and_check(servos, driver, clock) for _ in range(200)])
    assert flags[60:, [0, 2, 4, 5]].all()


def test_a_servo_that_answers_again_is_listed_again(rig: Rig) -> None:
    rig.chain.servos[2].silent = True
    assert rig.cycle(30).valid.tolist() == [True, True, False, True, True, True]
    rig.chain.servos[2].silent = False
    assert rig.cycle(200).all_valid
    assert rig.driver.counters()[2].recoveries == 1
    assert rig.driver.counters()[2].timeouts >= MISSES


def test_another_model_in_the_place_of_a_servo_does_not_come_back(rig: Rig) -> None:
    rig.chain.servos[2].silent = True
    rig.cycle(100)
    rig.chain.servos[2].memory[3:5] = (2825).to_bytes(2, "little")
    rig.chain.servos[2].silent = False
    assert not rig.cycle(300).valid[2]


def test_a_servo_on_the_wrong_supply_does_not_come_back(rig: Rig) -> None:
    rig.chain.servos[2].silent = True
    rig.cycle(100)
    rig.chain.servos[2].voltage_v = 12.0
    rig.chain.servos[2].silent = False
    assert not rig.cycle(300).valid[2]


def test_a_servo_that_was_away_gets_its_torque_limit_before_it_is_listed(rig: Rig) -> None:
    rig.driver.limit_torque(np.full(6, 0.3))
    rig.chain.servos[5].silent = True
    rig.cycle(100)
    rig.chain.servos[5].power_cycle()
    rig.chain.servos[5].silent = False
    while not rig.cycle().valid[5]:
        pass
    assert rig.chain.servos[5].torque_share() == 0.3


def test_a_servo_that_lost_its_power_is_capped_again_and_told(rig: Rig) -> None:
    rig.driver.limit_torque(np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.5]))
    rig.cycle(40)
    assert rig.driver.take_power_losses() == []
    rig.chain.servos[5].power_cycle()
    rig.chain.servos[0].power_cycle()
    rig.cycle(20)
    assert [t.joint for t in rig.driver.take_power_losses()] == ["shoulder_pan", "gripper"]
    assert rig.driver.take_power_losses() == []
    assert [rig.chain.servos[j].torque_share() for j in (0, 5)] == [0.999, 0.5]
    assert [c.power_losses for c in rig.driver.counters()] == [1, 0, 0, 0, 0, 1]


def test_a_limit_that_did_not_arrive_is_written_again_and_is_no_loss_of_power(rig: Rig) -> None:
    rig.driver.limit_torque(np.full(6, 0.3))
    rig.chain.servos[1].memory[48:50] = (700).to_bytes(2, "little")
    rig.cycle(20)
    assert rig.chain.servos[1].torque_share() == 0.3
    assert rig.driver.take_power_losses() == []


def test_nobody_is_left_out_for_a_moment_of_a_busy_host() -> None:
    roster = Roster((1, 2, 3))
    roster.note({1, 2, 3}, 0)
    for n in range(10):
        roster.note({1}, n)
    assert roster.listed == (1, 2, 3)
    roster.note({1}, SILENT_NS + 1)
    assert roster.listed == (1,)


def test_when_nobody_answers_nobody_is_left_out_and_the_questions_become_rare() -> None:
    roster = Roster((1, 2, 3))
    asked = 0
    for n in range(500):
        if roster.may_ask(n * PERIOD_NS):
            asked += 1
            roster.note(set(), n * PERIOD_NS)
    assert sorted(roster.listed) == [1, 2, 3]
    assert 8 < asked < 30
    roster.heard_late({2}, 0)
    assert roster.may_ask(500 * PERIOD_NS)


def test_an_absent_servo_is_asked_at_growing_distances() -> None:
    roster = Roster((1, 2))
    roster.leave_out(2, 0)
    asked = []
    for now_ns in range(0, 6_000_000_000, PERIOD_NS):
        if roster.due(now_ns) is not None:
            asked.append(now_ns)
            roster.postpone(2, now_ns)
    gaps = np.diff(asked)
    assert list(gaps) == sorted(gaps) and gaps[0] == 50_000_000 and gaps[-1] == 1_000_000_000
    assert roster.was_long_away(2, LONG_NS + 1) and not roster.was_long_away(2, LONG_NS)
