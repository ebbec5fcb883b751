"""`bus calibrate` as a person does it: the terminal on one side, the arm's joints in the other hand."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from setup_rig import Person, served, wait_for

from steadyhand_firmware.arm import load_arm
from steadyhand_firmware.calibration import RAD_PER_TICK
from steadyhand_firmware.lerobot import load_calibration
from steadyhand_models.cli import UserError
from steadyhand_runtime.bus import command
from steadyhand_runtime.bus.calibrate_command import moved_joints
from steadyhand_runtime.sim.plant import StillPlant
from steadyhand_runtime.sim.pty_port import PtyPort
from steadyhand_runtime.sim.servos import VirtualChain

ARM = load_arm()
HALF = [round((j.high_rad - j.low_rad) / 2 / RAD_PER_TICK) for j in ARM.joints]
CENTRE = [4095, 0, 2047, 4000, 1234, 3000]  # several seams lie in the middle of the travel
BIG_STEP = 600


@dataclass
class Arm:
    """A hand on every joint, and how often the last servo was asked for its position."""

    chain: VirtualChain
    port: PtyPort
    looks: int = 0
    pose: list[int] = field(default_factory=lambda: list(CENTRE))

    def __post_init__(self) -> None:
        feed = self.chain.feed

        def count(data: bytes, now_ns: int) -> list:
            self.looks += data[2:6] == bytes((6, 4, 2, 56))
            return feed(data, now_ns)

        self.chain.feed = count  # type: ignore[method-assign, assignment]
        self.put(CENTRE)

    def put(self, ticks: Sequence[int]) -> None:
        with self.port.between_requests():
            for index, raw in enumerate(ticks):
                self.chain.place(index, raw)
        self.pose = list(ticks)

    def turn(self, ticks: Sequence[int]) -> None:
        """Move there in steps, each seen by the program before the next."""
        start = self.pose
        steps = max(abs(t - s) for t, s in zip(ticks, start)) // BIG_STEP + 1
        for n in range(1, steps + 1):
            self.put([s + (t - s) * n // steps for s, t in zip(start, ticks)])
            looks = self.looks
            wait_for(lambda looks=looks: self.looks >= looks + 2, "the program looks at the arm")

    def registers(self) -> list[bytes]:
        return [bytes(s.memory[9:13] + s.memory[31:33]) for s in self.chain.servos]


@pytest.fixture
def arm(tmp_path: Path) -> Iterator[Arm]:
    chain = VirtualChain(StillPlant())
    for servo in chain.servos:
        servo.eprom.burn("homing_offset", 85)
    with served(tmp_path, chain) as port:
        yield Arm(chain, port)


def begin(person: Person) -> None:
    person.sees("middle of its travel and press Enter")
    person.types()
    person.sees("Move every joint from end to end")


def test_an_arm_is_calibrated_by_hand(arm: Arm, tmp_path: Path) -> None:
    path = tmp_path / "cal" / "follower.json"
    with Person("calibrate", "--port", arm.port.path, "--file", str(path)) as person:
        begin(person)
        arm.turn([c - h for c, h in zip(CENTRE, HALF)])
        arm.turn([c + h // 3 for c, h in zip(CENTRE, HALF)])
        person.types()
        person.sees(r"shoulder_pan: \d+ of about 220 degrees: sweep on to both ends")
        arm.turn([c + h for c, h in zip(CENTRE, HALF)])
        person.types()
        assert "285" not in person.sees(r"store this in the servos .*\[y/N\] ").split("homing offset")[0]
        assert all(r == b"\x00\x00\xff\x0f\x55\x00" for r in arm.registers())
        person.types("y")
        assert person.ends() == 0, person.text
        assert "moved meanwhile" not in person.text

    with arm.port.between_requests():
        arm.chain.power_cycle()
    calibration = load_calibration(path, ARM)
    saved = json.loads(path.read_text())
    for j, (joint, servo) in enumerate(zip(ARM.joints, arm.chain.servos)):
        assert servo.offset_ticks() == saved[joint.name]["homing_offset"] == calibration.homing_offset[j]
        assert (servo.word(9), servo.word(11)) == (saved[joint.name]["range_min"], saved[joint.name]["range_max"])
        assert not servo.torque_on
        centred = (CENTRE[j] - servo.offset_ticks()) % 4096
        middle_rad = 0.0 if joint.full_turn else (joint.low_rad + joint.high_rad) / 2
        assert calibration.to_rad([centred] * 6)[j] == pytest.approx(middle_rad, abs=2.5 * RAD_PER_TICK)


@pytest.mark.parametrize("answer", ["interrupt while sweeping", "n", "interrupt while storing"])
def test_leaving_early_leaves_the_servos_as_they_were_without_torque(arm: Arm, tmp_path: Path, answer: str) -> None:
    before = arm.registers()
    path = tmp_path / "follower.json"
    with Person("calibrate", "--port", arm.port.path, "--file", str(path)) as person:
        begin(person)
        if answer != "interrupt while sweeping":
            arm.turn([c - h for c, h in zip(CENTRE, HALF)])
            arm.turn([c + h for c, h in zip(CENTRE, HALF)])
            person.types()
            person.sees(r"\[y/N\] ")
            person.types("n" if answer == "n" else "y")
        if answer == "interrupt while storing":
            wait_for(lambda: arm.chain.servos[2].memory[55] == 0, "the third servo is being written")
        if answer != "n":
            person.process.send_signal(signal.SIGINT)
        assert person.ends() == (1 if answer == "n" else 130), person.text
        assert "Traceback" not in person.text
    assert arm.registers() == before
    with arm.port.between_requests():
        arm.chain.power_cycle()
    assert arm.registers() == before
    assert [s.memory[55] for s in arm.chain.servos] == [1] * 6
    assert not path.exists()


def test_torque_goes_off_only_after_the_arm_is_supported(arm: Arm, tmp_path: Path) -> None:
    arm.chain.servos[1].memory[40] = 1
    with Person("calibrate", "--port", arm.port.path, "--file", str(tmp_path / "f.json")) as person:
        person.sees("Torque is on and goes off now: support the arm and press Enter")
        assert arm.chain.servos[1].torque_on
        person.types()
        person.sees("middle of its travel")
        assert not arm.chain.servos[1].torque_on
        person.process.send_signal(signal.SIGINT)
        assert person.ends() == 130


def test_a_joint_that_is_not_where_it_was_is_named() -> None:
    before = [0, 2000, 2000, 4090, None, 100]
    after = [4000, 2101, 2099, 50, 7, 100]
    assert moved_joints(ARM, before, after) == ["shoulder_lift", "wrist_roll"]


def test_a_file_that_cannot_be_written_is_told_before_anybody_moves_the_arm(arm: Arm, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another file with --file"):
        command.main(["calibrate", "--port", arm.port.path, "--file", str(tmp_path / "file" / "x.json")])
    assert arm.looks == 0
