"""The demo's parts: run folder, settings for its processes, supervision, the live view, and an end at any time."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from steadyhand_models import settings
from steadyhand_models.cli import UserError
from steadyhand_models.messages import ControlStatus, Mode, TrainerStatus, Truth
from steadyhand_runtime.config import RewardSource, RuntimeSettings
from steadyhand_runtime.sim.operator_process import ScriptSettings
from steadyhand_runtime.sim.robot import SimSettings
from steadyhand_training import demo, live
from steadyhand_training.children import Child, Death, Plan, stop_in_order, wait_for, watch
from steadyhand_training.correction import CorrectionRule
from steadyhand_training.trainer_settings import TrainerSettings

S = 1_000_000_000
DEADLINE_S = 20.0
AT = demo.Addresses(Path("/tmp/s"), "tcp://127.0.0.1:1", "tcp://127.0.0.1:2")


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def until_dead(child: Child) -> None:
    assert child.wait(DEADLINE_S), "the child did not end"


def until_logged(child: Child, text: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while text not in child.tail():
        assert time.monotonic() < deadline_s, f"{text!r} was not written: {child.tail()}"
        time.sleep(0.01)


# Run folder and settings


def test_latest_points_to_the_newest_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        demo.prepare_run(demo.DemoSettings(run=str(tmp_path / "runs" / name)))
    latest = tmp_path / "runs" / "latest"
    assert latest.is_symlink() and os.readlink(latest) == "two"


def test_a_folder_outside_runs_gets_no_link_beside_it(tmp_path: Path) -> None:
    demo.prepare_run(demo.DemoSettings(run=str(tmp_path / "mine")))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").touch()
    with pytest.raises(UserError, match="choose another --run"):
        demo.prepare_run(demo.DemoSettings(run=str(tmp_path)))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another --run"):
        demo.prepare_run(demo.DemoSettings(run=str(tmp_path / "file" / "run")))


@pytest.mark.parametrize("classifier", list(demo.Classifier))
def test_every_process_understands_its_settings(tmp_path: Path, classifier: demo.Classifier) -> None:
    chosen = demo.DemoSettings(run=str(tmp_path), seed=7, classifier=classifier, demonstrations=4, wander=1)
    files = demo.write_settings(chosen, demo.prepare_run(chosen), AT)
    sim = settings.load(SimSettings, files["sim"])
    runtime = settings.load(RuntimeSettings, files["runtime"])
    script = settings.load(ScriptSettings, files["operator"])
    trainer = settings.load(TrainerSettings, files["trainer"])
    corrects = classifier is demo.Classifier.CORRECTED
    assert {sim.run, runtime.run, script.run, trainer.run} == {tmp_path}
    assert sim.sockets == runtime.sockets == script.sockets == "/tmp/s"
    assert Path(runtime.bus.port) == sim.port_link
    assert runtime.link.address == trainer.listen == AT.link and trainer.status == AT.trainer_status
    assert trainer.correction.rule is (CorrectionRule.GATED if corrects else CorrectionRule.FIXED)
    assert runtime.control.reward_source is (RewardSource.HYBRID if corrects else RewardSource.CLASSIFIER)
    assert trainer.demonstrations == script.person.demonstrations == 4
    assert trainer.failed_demonstrations == script.person.wander == 1
    assert settings.load(demo.DemoSettings, tmp_path / "settings" / "demo.toml") == chosen


def test_every_process_is_stopped_and_the_trainer_alone_may_be_restarted(tmp_path: Path) -> None:
    chosen = demo.DemoSettings(run=str(tmp_path))
    plans = demo.plans(demo.write_settings(chosen, demo.prepare_run(chosen), AT))
    assert {p.name for p in plans} == set(demo.STOP_ORDER)
    assert [p.name for p in plans if p.restart] == ["trainer"]


# Children


def test_a_dead_child_is_reported_with_its_logs_tail(tmp_path: Path) -> None:
    child = Child(Plan("bus", python("print('the port is gone'); raise SystemExit(3)")), tmp_path)
    child.start()
    until_dead(child)
    with pytest.raises(Death, match=r"(?s)bus ended with exit code 3.*the port is gone"):
        watch([child])


def test_a_child_that_may_be_restarted_is(tmp_path: Path) -> None:
    child = Child(Plan("trainer", python("raise SystemExit(1)"), restart=True), tmp_path)
    child.start()
    until_dead(child)
    assert "started again" in watch([child])[0]
    assert child.restarts == 1
    child.stop()


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    child = Child(Plan("deaf", python(deaf), stop_s=0.2), tmp_path)
    polite = Child(Plan("polite", python("import time; time.sleep(60)")), tmp_path)
    for one in (child, polite):
        one.start()
    until_logged(child, "up")
    assert stop_in_order([child, polite]) == ["deaf"]
    assert child.died() is not None and polite.died() is not None


def test_waiting_ends_when_the_child_dies_first(tmp_path: Path) -> None:
    child = Child(Plan("sim", python("raise SystemExit('no GL: install libegl1')")), tmp_path)
    child.start()
    with pytest.raises(Death, match="install libegl1"):
        wait_for([child], tmp_path / "port", DEADLINE_S, lambda: False)


# The live view

STATUS = ControlStatus(1, 0, Mode.POLICY, 1, 0, 0.0, 2, 1, 3.0, 0.5, 0, 1e-4, 2e-4, 3e-4, 0.01, 0, "", "")
TRAINER = TrainerStatus(0, "learn", 9, 1, 1, 0, 40, 61.0, 4.0, 2, 1, 5, 2, 1, 0, 0.1, 1.0, "", ())


def truth(stamp_ns: int, success: bool) -> Truth:
    return Truth(stamp_ns, np.zeros(3, np.float32), np.zeros(3, np.float32), 0.0, 0.05, success, success)


def play(tally: live.LiveTally, number: int, modes: list[Mode], by: str, success: bool, policy: int = 2) -> None:
    begin_ns = number * 100 * S
    status = replace(STATUS, episode=number, policy_version=policy, classifier_version=1 if policy else 0)
    for i, mode in enumerate(modes):
        tally.control(replace(status, stamp_ns=begin_ns + i * S // 10, mode=mode))
    end_ns = begin_ns + len(modes) * S // 10
    tally.truth(truth(end_ns - S // 20, success))
    message = f"episode {number}: success by {by}"
    tally.control(replace(status, stamp_ns=end_ns, mode=Mode.RESET, message=message))


def test_the_live_view_counts_as_the_report_does() -> None:
    tally = live.LiveTally()
    drive, help_ = [Mode.POLICY] * 4, [Mode.POLICY, Mode.TAKEOVER, Mode.TAKEOVER, Mode.POLICY]
    play(tally, 1, [Mode.TAKEOVER] * 4, "operator", True, policy=0)
    play(tally, 2, drive, "classifier", True)
    play(tally, 3, drive, "classifier", False)
    play(tally, 4, drive, "operator", True)
    play(tally, 5, help_, "classifier", True)
    assert (tally.episodes, tally.demonstrations) == (5, 1)
    assert tally.alone_rate == 2 / 4 and tally.helped_rate == 3 / 4
    assert tally.takeover_rate == 2 / 16
    assert tally.classifiers == {1: live.ClassifierTally(episodes=4, false_positives=1, missed=1)}


def test_an_episode_whose_end_was_not_seen_ends_with_the_next_ones_first_status() -> None:
    tally = live.LiveTally()
    tally.control(replace(STATUS, episode=1))
    tally.control(replace(STATUS, episode=2, stamp_ns=10 * S))
    assert tally.episodes == 1


def test_the_view_shows_what_a_person_asks_for() -> None:
    tally = live.LiveTally()
    tally.control(replace(STATUS, missed_ticks=3))
    tally.learning(TRAINER, 0)
    text = live.line(tally, 9 * S, 61.0)
    for part in ("1:01", "v2, 3 s old", "3 missed", "61/s", "2 flags", "false successes", "alone", "silent for 9 s"):
        assert part in text
    console = Console(file=io.StringIO(), width=120)
    console.print(live.table(tally, 9 * S, 61.0, "demo"))
    assert "policy" in console.file.getvalue()  # type: ignore[attr-defined]


# The whole, with stand-ins for its processes


def stand_ins(code: str) -> object:
    """Plans whose processes run `code`; the simulation's also links a port."""

    def plans(files: dict[str, Path]) -> list[Plan]:
        port = files["sim"].parent.parent / "edge" / "port"
        wait = "import time; time.sleep(60)"
        make = f"open({str(port)!r}, 'w').close(); {wait}"
        return [
            Plan("sim", python(make)),
            Plan("trainer", python(wait), restart=True),
            Plan("runtime", python(code)),
            Plan("operator", python(wait)),
        ]

    return plans


def test_ctrl_c_stops_everything_and_writes_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "plans", stand_ins("import time; time.sleep(60)"))
    chosen = demo.DemoSettings(run=str(tmp_path / "run"))
    stop = demo.Stop()
    one = demo.Demo(chosen, demo.prepare_run(chosen), stop)
    monkeypatch.setattr(demo.Ears, "listen", lambda *_: setattr(stop, "asked", 1))
    assert one.run() == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["outcome"] == "interrupted"
    assert (tmp_path / "run" / "report.html").is_file() and (tmp_path / "run" / "summary.json").is_file()
    assert all(child.died() is not None for child in one._children)


def test_a_lost_process_ends_the_demo_with_its_reason_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "plans", stand_ins("raise SystemExit('the disk is full')"))
    chosen = demo.DemoSettings(run=str(tmp_path / "run"))
    one = demo.Demo(chosen, demo.prepare_run(chosen), demo.Stop())
    assert one.run() == 1
    assert "the disk is full" in capfd.readouterr().err
    assert (tmp_path / "run" / "report.html").is_file()
    assert all(child.died() is not None for child in one._children)


@pytest.mark.parametrize(("option", "answer"), [("--minutes=0", "minutes"), ("--task=sweep", "known: lift")])
def test_a_wrong_option_is_answered_with_help(option: str, answer: str) -> None:
    with pytest.raises(settings.SettingsError, match=answer):
        demo.main([option])
