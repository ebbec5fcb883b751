"""Who answers, and what is wrong with that in words."""

from __future__ import annotations

import pytest
from setup_rig import SetupRig, setup_rig

from steadyhand_firmware.arm import load_arm
from steadyhand_runtime.bus.client import BAUDS
from steadyhand_runtime.bus.survey import ALL_IDS, Finding, Problem, findings, survey

ARM = load_arm()


def found(rig: SetupRig, bauds: tuple[int, ...] = (1_000_000,)) -> list[Finding]:
    seen = []
    for baud in bauds:
        rig.client.use_baud(baud)
        seen += survey(rig.client, ARM.ids, range(12), lambda _: None)
    return findings(ARM, seen, 1_000_000, bauds)


def test_a_complete_arm_has_no_findings() -> None:
    assert found(setup_rig()) == []


def test_everything_is_known_about_who_answers() -> None:
    rig = setup_rig()
    rig.chain.servos[5].eprom.burn("firmware_minor", 9)
    rig.chain.servos[5].temperature_c = 41
    rig.client.write(6, "torque_enable", 1)
    (seen,) = survey(rig.client, [], [6], lambda _: None)
    assert (seen.id, seen.baud, seen.model, seen.firmware) == (6, 1_000_000, 777, "3.9")
    assert (seen.voltage_v, seen.temperature_c, seen.torque_on, seen.garbled) == (7.4, 41, True, False)


def test_every_id_is_asked_and_progress_is_told() -> None:
    rig, steps = setup_rig(ids=(200,)), list[int]()
    assert [s.id for s in survey(rig.client, ARM.ids, ALL_IDS, steps.append)] == [200]
    assert steps == list(range(254))


def test_nobody_and_a_silent_servo_are_different() -> None:
    rig = setup_rig()
    rig.chain.servos[3].silent = True
    (silent,) = found(rig)
    assert silent.problem is Problem.SILENT and "wrist_flex (id 4) does not answer: check the cables" in silent.text
    for servo in rig.chain.servos:
        servo.silent = True
    (nobody,) = found(rig)
    assert nobody.problem is Problem.NOBODY and "--all-bauds" in nobody.text


def test_a_servo_at_another_rate_is_found_there_with_the_command_that_mends_it() -> None:
    rig = setup_rig(mixed_bauds=True)
    rig.chain.servos[2].eprom.burn("baud_rate", 3)
    (finding,) = found(rig, BAUDS)
    assert finding.problem is Problem.WRONG_BAUD
    assert "elbow_flex (id 3) answers at 128000 baud" in finding.text
    assert "steadyhand bus apply --arm so101_follower --baud 128000 --joint elbow_flex" in finding.text


def test_a_shared_id_is_told_even_when_some_answers_get_through() -> None:
    rig = setup_rig(ids=(1, 2, 3, 4, 5, 5))
    rig.chain.place(5, 700)
    problems = {f.problem for f in found(rig)}
    assert problems == {Problem.DUPLICATE, Problem.SILENT}


@pytest.mark.parametrize(
    ("register", "value", "problem", "blocking"),
    [("model_number", 2825, Problem.WRONG_MODEL, True), ("firmware_minor", 9, Problem.FIRMWARE, False)],
)
def test_another_model_blocks_and_mixed_firmware_only_warns(
    register: str, value: int, problem: Problem, blocking: bool
) -> None:
    rig = setup_rig()
    rig.chain.servos[1].eprom.burn(register, value)
    (finding,) = found(rig)
    assert (finding.problem, finding.blocking) == (problem, blocking)


def test_a_wrong_supply_and_alarms_are_told_in_words() -> None:
    rig = setup_rig()
    rig.chain.servos[0].voltage_v = 12.0
    rig.chain.servos[5].trip_overload()
    texts = [str(f) for f in found(rig)]
    assert any("shoulder_pan (id 1): a 7.4 V servo (at most 8.0 V) stands on a supply of 12.0 V" in t for t in texts)
    assert any("gripper (id 6): overload: let it cool" in t for t in texts)


def test_an_id_that_no_joint_has_is_told() -> None:
    (finding,) = found(setup_rig(ids=(1, 2, 3, 4, 5, 6, 9)))
    assert finding.problem is Problem.STRANGER and "no id 9" in finding.text
