"""The doctor's verdicts follow from the facts, each finding says how to mend it, and the walk leaves torque off."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from control_world import bus_state
from rich.console import Console

from steadyhand_firmware.arm import load_arm
from steadyhand_models import task
from steadyhand_runtime import doctor, doctor_arm, doctor_probes
from steadyhand_runtime import doctor_checks as judge
from steadyhand_runtime.config import BusSettings, CameraDevice, MetricsSettings, RuntimeSettings
from steadyhand_runtime.doctor import Check
from steadyhand_runtime.doctor_arm import NoHands
from steadyhand_runtime.doctor_checks import GIB, Grade, Verdict
from steadyhand_runtime.kinematics import tip_pose
from steadyhand_runtime.sim.fault_socket import ask

COMMAND = (sys.executable, "-c", "from steadyhand_models.cli import main; raise SystemExit(main())")
GPU = judge.InferenceFacts(
    ("onnxruntime-gpu 1.31",),
    ("CUDAExecutionProvider", "CPUExecutionProvider"),
    ("CUDAExecutionProvider", "CPUExecutionProvider"),
    1,
)
PORT = judge.SerialPortFacts("/dev/ttyACM0", True, "dialout")
SHUT = replace(PORT, writable=False)
CAMERA = judge.CameraFacts("front", "/dev/video0", 30.0, 30.0)
ADDRESS = judge.PortFacts("metrics.port", "127.0.0.1:9100", True)


@pytest.mark.parametrize(
    ("verdict", "grade", "word"),
    [
        (judge.python(judge.PythonFacts((3, 11), 64)), Grade.OK, "3.11"),
        (judge.python(judge.PythonFacts((3, 9), 64)), Grade.FAIL, "3.10 to 3.13"),
        (judge.python(judge.PythonFacts((3, 11), 32)), Grade.FAIL, "64 bit"),
        (judge.onnxruntime(GPU), Grade.OK, "1.31"),
        (judge.onnxruntime(replace(GPU, distributions=())), Grade.FAIL, "pip install"),
        (judge.onnxruntime(replace(GPU, distributions=("a 1", "b 2"))), Grade.FAIL, "uninstall"),
        (judge.onnxruntime(replace(GPU, problem="no library")), Grade.FAIL, "no library"),
        (judge.providers(GPU), Grade.OK, "CUDA"),
        (judge.providers(replace(GPU, obtained=("CPUExecutionProvider",))), Grade.WARN, "got only CPU"),
        (judge.providers(replace(GPU, obtained=("CPUExecutionProvider",), gpus=0)), Grade.OK, "no GPU"),
        (judge.providers(replace(GPU, obtained=())), Grade.FAIL, "no session"),
        (judge.realtime(judge.RealtimeFacts(True, True, "", "me")), Grade.OK, "SCHED_FIFO"),
        (judge.realtime(judge.RealtimeFacts(False, True, "EPERM", "me")), Grade.WARN, "me - rtprio 80"),
        (judge.realtime(judge.RealtimeFacts(True, False, "EPERM", "me")), Grade.WARN, "LimitMEMLOCK=infinity"),
        (judge.kernel(judge.KernelFacts("Linux 6.1", "PREEMPT_RT")), Grade.OK, "PREEMPT_RT"),
        (judge.kernel(judge.KernelFacts("Linux 6.1", "")), Grade.WARN, "PREEMPT_DYNAMIC"),
        (judge.cpu(judge.CpuFacts(4, ("performance",) * 4)), Grade.OK, "4 cores"),
        (judge.cpu(judge.CpuFacts(4, ("performance", "powersave"))), Grade.WARN, "scaling_governor"),
        (judge.cpu(judge.CpuFacts(1, ())), Grade.WARN, "two cores"),
        (judge.timers(judge.TimerFacts(1e-9, 50_000)), Grade.OK, "50 us"),
        (judge.timers(judge.TimerFacts(4e-3, 50_000)), Grade.WARN, "clock source"),
        (judge.timers(judge.TimerFacts(1e-9, 900_000)), Grade.WARN, "900 us"),
        (judge.clock(judge.ClockFacts(True, 0.02)), Grade.OK, "20 ms"),
        (judge.clock(judge.ClockFacts(False)), Grade.WARN, "set-ntp"),
        (judge.clock(judge.ClockFacts(None)), Grade.OK, "not known"),
        (judge.serial(judge.SerialFacts((PORT,), True, "me")), Grade.OK, "ttyACM0"),
        (judge.serial(judge.SerialFacts((), True, "me")), Grade.WARN, "plug"),
        (judge.serial(judge.SerialFacts((PORT, SHUT), True, "me")), Grade.FAIL, "usermod -aG dialout me"),
        (judge.serial(judge.SerialFacts((PORT,), False, "me")), Grade.WARN, "by-id"),
        (judge.cameras([CAMERA]), Grade.OK, "30 Hz"),
        (judge.cameras([]), Grade.WARN, "[[cameras]]"),
        (judge.cameras([CAMERA, replace(CAMERA, problem="busy")]), Grade.FAIL, "busy"),
        (judge.cameras([replace(CAMERA, rate_hz=12.0)]), Grade.WARN, "asked for front 30 Hz"),
        (judge.disk(judge.DiskFacts("/data", 100 * GIB, 3e8)), Grade.OK, "100.0 GiB"),
        (judge.disk(judge.DiskFacts("/data", 5 * GIB, 3e8)), Grade.WARN, "5.0 GiB"),
        (judge.disk(judge.DiskFacts("/data", GIB // 4, 3e8)), Grade.FAIL, "--run"),
        (judge.disk(judge.DiskFacts("/data", 100 * GIB, 2e6)), Grade.WARN, "2 MB/s"),
        (judge.disk(judge.DiskFacts("/data", 0, 0.0, "Read-only")), Grade.FAIL, "Read-only"),
        (judge.addresses([ADDRESS]), Grade.OK, "free"),
        (judge.addresses([replace(ADDRESS, free=False)]), Grade.FAIL, "9100"),
        (judge.addresses([]), Grade.OK, "none"),
        (judge.graphics(judge.GraphicsFacts("egl")), Grade.OK, "egl"),
        (judge.graphics(judge.GraphicsFacts("", "no library")), Grade.WARN, "no library"),
    ],
)
def test_a_verdict_follows_from_the_facts_and_names_the_fix(verdict: Verdict, grade: Grade, word: str) -> None:
    assert verdict.grade is grade
    assert word in f"{verdict.found} {verdict.fix}"
    assert bool(verdict.fix) == (grade is not Grade.OK)


def test_every_check_looks_at_this_host_without_breaking(tmp_path: Path) -> None:
    found = doctor.examine(RuntimeSettings(run=tmp_path / "runs" / "new", metrics=MetricsSettings(port=9)))
    assert list(found) == [check.name for check in doctor.CHECKS]
    assert not [name for name, verdict in found.items() if "could not be checked" in verdict.found]
    assert found["python"].grade is Grade.OK and not (tmp_path / "runs").exists()


def test_a_probe_that_breaks_is_a_finding_and_a_shared_one_looks_once() -> None:
    looks: list[int] = []

    def look(_: RuntimeSettings) -> int:
        looks.append(1)
        return 1

    def broken(_: RuntimeSettings) -> int:
        raise OSError("no such device")

    checks = [Check("a", look, lambda n: judge.ok(str(n))), Check("b", look, lambda n: judge.ok(str(n)))]
    found = doctor.examine(RuntimeSettings(), [*checks, Check("c", broken, lambda n: judge.ok(""))])
    assert len(looks) == 1 and found["a"] == found["b"] == judge.ok("1")
    assert found["c"].grade is Grade.WARN and "no such device" in found["c"].found


@pytest.mark.parametrize(("grade", "code"), [(Grade.OK, 0), (Grade.WARN, 0), (Grade.FAIL, 1)])
def test_the_exit_code_says_whether_something_fails(
    grade: Grade, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fix = "" if grade is Grade.OK else "mend it"
    monkeypatch.setattr(doctor, "examine", lambda _: {"thing": Verdict(grade, "found it", fix)})
    assert doctor.main([]) == code
    text = capsys.readouterr().out
    assert all(word in text for word in ("thing", grade.value, "found it", fix))
    assert doctor.main(["--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"thing": {"grade": grade.value, "found": "found it", "fix": fix}}


def test_brackets_in_a_finding_are_shown_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=120)
    doctor.show({"cameras": judge.cameras([])}, console)
    assert "[[cameras]]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_robots_own_settings_file_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runtime.toml"
    path.write_text('run = "here"\n[link]\nedge = "r2"\n[metrics]\nport = 9200\n')
    seen: list[RuntimeSettings] = []

    def examine(chosen: RuntimeSettings) -> dict[str, Verdict]:
        seen.append(chosen)
        return {}

    monkeypatch.setattr(doctor, "examine", examine)
    assert doctor.main(["--config", str(path)]) == 0
    assert (str(seen[0].run), seen[0].metrics.port, seen[0].link.edge) == ("here", 9200, "r2")


def test_a_camera_that_cannot_be_opened_is_named_with_the_reason(tmp_path: Path) -> None:
    devices = tuple(CameraDevice(name, str(tmp_path / "none.mkv"), format="") for name in ("front", "wrist"))
    found = doctor_probes.cameras(RuntimeSettings(cameras=devices))
    assert [c.name for c in found] == ["front", "wrist"] and all(c.problem for c in found)


# -- the walk ----------------------------------------------------------------------------------------------------------


def resting(**changes: object) -> list[object]:
    arm = load_arm()
    middle = (arm.low_rad + arm.high_rad) / 2
    return [bus_state(1, middle, **({"voltage_v": np.full(6, 7.4)} | changes)) for _ in range(10)]  # type: ignore[arg-type]


def grades(states: list[object]) -> dict[str, Grade]:
    found = doctor_arm.judge_reading(states, load_arm())  # type: ignore[arg-type]
    return {f.step.removeprefix("reading: "): f.verdict.grade for f in found}


def test_a_resting_arm_reads_well() -> None:
    assert set(grades(resting()).values()) == {Grade.OK}


@pytest.mark.parametrize(
    ("step", "changes", "grade"),
    [
        ("alarms", {"alarms": np.array([0, 0, 32, 0, 0, 0])}, Grade.FAIL),
        ("temperature", {"temperature_c": np.array([30, 30, 58, 30, 30, 30.0])}, Grade.WARN),
        ("stillness", {"velocity_rad_s": np.array([0, 0.9, 0, 0, 0, 0])}, Grade.WARN),
        ("supply", {"voltage_v": np.full(6, 0.4)}, Grade.FAIL),
    ],
)
def test_what_is_wrong_with_a_resting_arm_is_found(step: str, changes: dict[str, object], grade: Grade) -> None:
    found = grades(resting(**changes))
    assert found.pop(step) is grade
    assert set(found.values()) == {Grade.OK}


def test_a_servo_that_answers_never_fails_and_one_that_answers_sometimes_warns() -> None:
    silent, whole = {"valid": np.array([True] * 5 + [False])}, {"valid": np.ones(6, bool)}
    assert grades(resting(**silent))["answers"] is Grade.FAIL
    sometimes = grades([*resting(**whole), *resting(**silent)[:3]])
    assert sometimes["answers"] is Grade.OK and sometimes["steady answers"] is Grade.WARN


def test_a_position_beyond_the_joints_range_is_a_calibration_to_make() -> None:
    states = [bus_state(1, load_arm().high_rad + 0.5, voltage_v=np.full(6, 7.4))]
    assert grades(states)["position"] is Grade.FAIL  # type: ignore[arg-type]


@pytest.mark.parametrize(("moved_rad", "grade"), [(0.095, Grade.OK), (0.02, Grade.WARN), (-0.09, Grade.FAIL)])
def test_a_nudge_is_followed_hardly_followed_or_goes_the_wrong_way(moved_rad: float, grade: Grade) -> None:
    assert doctor_arm.judge_nudge("elbow_flex", moved_rad, 0.0).verdict.grade is grade


@pytest.mark.parametrize(
    ("reaction_s", "lowered", "grade"), [(0.02, True, Grade.OK), (0.5, True, Grade.WARN), (0.02, False, Grade.FAIL)]
)
def test_an_emergency_stop_must_work_and_soon(reaction_s: float, lowered: bool, grade: Grade) -> None:
    assert doctor_arm.judge_drill(reaction_s, lowered).verdict.grade is grade


def test_the_corners_lie_in_the_tasks_box_and_in_the_joints_limits() -> None:
    lift = task.load("lift")
    found = doctor_arm.corners(lift)
    assert len(found) >= 6 and np.array_equal(found[0], found[-1])
    for q_rad in found:
        tip_m = tip_pose(q_rad).xyz_m
        assert np.all(tip_m > np.array(lift.workspace.lo_m) - 1e-6)
        assert np.all(tip_m < np.array(lift.workspace.hi_m) + 1e-6)


@pytest.fixture
def servos(tmp_path: Path) -> Iterator[Path]:
    """Virtual servos on a port named `arm`, which take faults on `faults`."""
    words = [*COMMAND, "sim", "servos", "--link", str(tmp_path / "arm"), "--control", str(tmp_path / "faults")]
    words += ["--priority", "60"]  # a busy machine must not make the servos late
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline()
        yield tmp_path
    finally:
        process.kill()
        process.wait()


def torque_is_on(folder: Path) -> bool:
    answer = json.loads(ask(folder / "faults", '{"chain": "state"}'))
    return any(servo["torque_on"] for servo in answer["servos"])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "READ_S": 0.5,
        "NUDGE_S": 0.4,
        "SLOW_RAD_S": 2.5,
        "BOX_SHARE": 0.3,
        "LEAST_S": 0.3,
        "SETTLE_S": 0.25,
    }.items():
        monkeypatch.setattr(doctor_arm, name, value)


def test_the_whole_walk_on_virtual_servos_finds_nothing_wrong_and_leaves_torque_off(servos: Path, quick: None) -> None:
    said: list[str] = []
    person = NoHands(said.append, stop_after_s=0.3)
    findings = doctor_arm.walk(BusSettings(port=str(servos / "arm")), person, said.append)
    failed = [f for f in findings if f.verdict.grade is Grade.FAIL]
    assert not failed, failed
    steps = [f.step for f in findings]
    assert steps[-1] == "workspace" and "emergency stop" in steps
    assert set(load_arm().names) <= set(steps)
    assert not torque_is_on(servos)


def test_a_person_who_stops_in_the_middle_of_a_motion_ends_with_torque_off(servos: Path, quick: None) -> None:
    class Stops(NoHands):
        looks = 0

        def keys(self) -> list[str]:
            self.looks += 1
            assert torque_is_on(servos)
            return ["q"] if self.looks > 5 else []

    person = Stops(lambda text: None)
    findings = doctor_arm.walk(BusSettings(port=str(servos / "arm")), person, lambda text: None)
    assert findings[-1].step == "stopped" and "you stopped" in findings[-1].verdict.found
    assert not torque_is_on(servos)


def test_a_servo_that_dies_under_way_ends_the_walk_with_its_name(servos: Path, quick: None) -> None:
    class Breaks(NoHands):
        def agree(self, text: str) -> None:
            if text.startswith("wrist_flex"):
                ask(servos / "faults", '{"servo": 4, "silent": true}')

    findings = doctor_arm.walk(BusSettings(port=str(servos / "arm")), Breaks(lambda text: None), lambda text: None)
    assert findings[-1].step == "stopped" and "wrist_flex" in findings[-1].verdict.found


def test_an_arm_that_is_not_there_is_said_and_nothing_is_asked(tmp_path: Path, quick: None) -> None:
    findings = doctor_arm.walk(BusSettings(port=str(tmp_path / "none")), NoHands(lambda text: None), lambda text: None)
    assert "no such port" in findings[-1].verdict.found


class Terminal:
    """`steadyhand doctor --arm` on a terminal of its own."""

    def __init__(self, port: Path) -> None:
        self._near, far = pty.openpty()
        words = [*COMMAND, "doctor", "--arm", "--port", str(port)]
        self.process = subprocess.Popen(words, stdin=far, stdout=far, stderr=far)
        os.close(far)
        self._said = b""

    def until(self, word: bytes) -> None:
        """Press Enter at every question until this word is said."""
        deadline_s, asked = time.monotonic() + 100.0, 0
        while word not in self._said:
            assert time.monotonic() < deadline_s and self.process.poll() is None, self._said.decode()
            if select.select([self._near], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):  # it has ended
                    self._said += os.read(self._near, 4096)
            if word not in self._said and self._said.count(b"q: stop]") > asked:
                asked += 1
                os.write(self._near, b"\n")

    def press(self, key: bytes) -> None:
        os.write(self._near, key)

    def ends_with(self) -> int:
        """Its exit code; what it says meanwhile is read, as a terminal would."""
        deadline_s = time.monotonic() + 60.0
        while self.process.poll() is None:
            assert time.monotonic() < deadline_s
            if select.select([self._near], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    os.read(self._near, 4096)
        return int(self.process.returncode)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._near)


@pytest.fixture
def terminal(servos: Path) -> Iterator[Terminal]:
    made = Terminal(servos / "arm")
    yield made
    made.close()


@pytest.mark.parametrize("how", ["ctrl-c", "q"])
def test_ctrl_c_and_q_at_the_terminal_switch_torque_off(servos: Path, terminal: Terminal, how: str) -> None:
    terminal.until(b"shoulder_lift moves")
    assert torque_is_on(servos)
    terminal.press(b"q") if how == "q" else terminal.process.send_signal(signal.SIGINT)
    assert terminal.ends_with() == 1
    assert not torque_is_on(servos)


def test_without_a_terminal_the_walk_is_refused(tmp_path: Path) -> None:
    words = [*COMMAND, "doctor", "--arm", "--port", str(tmp_path / "arm")]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "terminal" in done.stderr and "--yes" in done.stderr
