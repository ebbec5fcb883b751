"""Lockstep: the real servo protocol, bus and control tick under a scripted operator, and evaluation by ground truth."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_models
import pytest
import zmq
from control_world import FakeModel

from steadyhand_models import wire
from steadyhand_models.artifact import ArtifactError
from steadyhand_models.messages import (
    Ack,
    Channel,
    Credit,
    EndReason,
    Hello,
    Mode,
    ModelRequest,
    Records,
    Source,
    Step,
    Swap,
    Welcome,
)
from steadyhand_models.registry import Registry
from steadyhand_runtime.config import LinkSettings
from steadyhand_runtime.sim import command
from steadyhand_runtime.sim.evaluation import EvaluateSettings, Examiner, evaluate
from steadyhand_runtime.sim.lockstep import LockstepSettings, Session
from steadyhand_runtime.sim.operator import OperatorSettings
from steadyhand_runtime.telemetry import Log

pytest.importorskip("mujoco")
TASK = onnx_models.lift()
CONTRACT = TASK.contract()
QUIET = OperatorSettings(demonstrations=1, wander=0)


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Step], Path]:
    """One demonstration without a trainer: its steps, and the run folder."""
    run = tmp_path_factory.mktemp("lockstep") / "run"
    steps: list[Step] = []
    with Session(LockstepSettings(run=run, seed=1, trainer=False, operator=QUIET), Log()) as session:
        for _ in range(150):
            outputs = session.turn()
            assert outputs is not None
            steps += [r for r in outputs.records if isinstance(r, Step)]
            if steps and steps[-1].end:
                break
    return steps, run


def test_the_scripted_operator_lifts_the_cube_through_the_real_servo_protocol(
    demonstration: tuple[list[Step], Path],
) -> None:
    steps, _ = demonstration
    assert steps[-1].end is EndReason.SUCCESS
    assert {s.source for s in steps[:-1]} == {Source.DEMONSTRATION}
    height_m = np.array([s.state[14] for s in steps])
    assert height_m.min() < 0.03 and height_m[-1] > 0.07
    assert all(0 <= s.state_age_s < 0.02 and 0.025 < s.frame_age_s < 0.035 for s in steps)
    assert np.ptp([s.stamp_ns for s in steps]) == pytest.approx((len(steps) - 1) * 1e8, rel=0.01)


def test_what_was_executed_explains_how_the_tip_was_sent(demonstration: tuple[list[Step], Path]) -> None:
    steps, _ = demonstration
    target = np.array([s.state[12:15] + s.state[15:18] for s in steps], np.float64)
    executed = np.array([s.executed for s in steps[:-1]], np.float64)
    np.testing.assert_allclose(np.diff(target, axis=0), TASK.workspace.step_m * executed[:, :3], atol=1e-5)


def test_everything_recorded_is_in_the_spool_and_the_truth_in_a_file_of_its_own(
    demonstration: tuple[list[Step], Path],
) -> None:
    steps, run = demonstration
    figures = json.loads((run / "edge" / "control.json").read_text())
    assert figures["steps"] == len(steps) and figures["ends"] == {"success": 1}
    rows = (run / "truth.csv").read_text().splitlines()
    assert rows[0].startswith("stamp_ns,lifted_m") and len(rows) == figures["ticks"] + 1
    assert (run / "edge" / "episode").read_text() == "1"


def test_equal_seeds_give_equal_runs(demonstration: tuple[list[Step], Path], tmp_path: Path) -> None:
    steps, _ = demonstration
    again: list[Step] = []
    with Session(LockstepSettings(run=tmp_path / "run", seed=1, trainer=False, operator=QUIET), Log()) as session:
        while len(again) < 10:
            outputs = session.turn()
            assert outputs is not None
            again += [r for r in outputs.records if isinstance(r, Step)]
    for one, other in zip(steps, again):
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.state, other.state)


class SmallTrainer(threading.Thread):
    """Grants credit in small parts and acknowledges; keeps what it was sent."""

    def __init__(self, grants: list[int]) -> None:
        super().__init__(daemon=True)
        self._context: zmq.Context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._grants = grants
        self.granted = 0
        self.records: list[Step | Swap] = []
        self.most_ahead = 0
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            if self._socket.poll(50):
                self._answer(*self._socket.recv_multipart())
        self._socket.close()
        self._context.term()

    def _answer(self, identity: bytes, body: bytes) -> None:
        message = wire.decode(body, Hello, Records, ModelRequest)
        if isinstance(message, Hello):
            self._send(identity, Welcome(message.run, 0))
            self._grant(identity)
        elif isinstance(message, Records):
            self.records += [wire.decode(r.payload, Step, Swap) for r in message.records]
            self._send(identity, Ack(message.records[-1].number))
            taken = sum(isinstance(r, Step) for r in self.records)
            self.most_ahead = max(self.most_ahead, taken - self.granted)
            if taken >= self.granted and self._grants:
                self._grant(identity)

    def _grant(self, identity: bytes) -> None:
        self.granted += self._grants.pop(0)
        self._send(identity, Credit(self.granted))

    def _send(self, identity: bytes, message: object) -> None:
        self._socket.send_multipart([identity, wire.encode(message)])


def test_the_robot_takes_no_more_steps_than_the_trainer_granted(tmp_path: Path) -> None:
    trainer = SmallTrainer([5, 5, 5])
    trainer.start()
    link = LinkSettings(address=f"tcp://127.0.0.1:{trainer.port}")
    chosen = LockstepSettings(run=tmp_path / "run", seed=1, operator=QUIET, link=link, steps=15)
    try:
        with Session(chosen, Log()) as session:
            session.serve(lambda: False)
            assert session.steps == 15
    finally:
        trainer.stop.set()
        trainer.join(10)
    # The step that the stop completes is the sixteenth.
    assert [r.seq for r in trainer.records if isinstance(r, Step)][:15] == list(range(15))
    assert trainer.most_ahead <= 1


def test_a_robot_without_credit_stops_when_told_to(tmp_path: Path) -> None:
    link = LinkSettings(address="ipc:///nowhere-at-all", drain_s=0)
    with Session(LockstepSettings(run=tmp_path / "run", link=link, operator=QUIET), Log()) as session:
        assert session.turn(lambda: True) is None
        assert session.ticks == 0


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_an_evaluation_judges_by_truth_and_leaves_result_and_pictures(tmp_path: Path) -> None:
    Registry(tmp_path / "registry").publish(onnx_models.policy(CONTRACT, 1, bias=0.0))
    chosen = EvaluateSettings(
        registry=tmp_path / "registry", episodes=2, seed=4, task=str(_short_task(tmp_path)),
        frames=tmp_path / "film.npz", frame_episodes=1,
    )  # fmt: skip
    shown: list[int] = []
    result = evaluate(chosen, lambda judged: shown.append(len(judged)))
    assert shown == [1, 2]
    assert result["successes"] == 0 and result["success_rate"] == 0.0 and result["median_steps"] is None
    assert [e["end"] for e in result["episodes"]] == ["timeout", "timeout"]
    assert [e["steps"] for e in result["episodes"]] == [5, 5]
    with np.load(tmp_path / "film.npz") as film:
        assert film.files == ["episode_000"] and film["episode_000"].shape == (6, 128, 128, 3)


def _short_task(folder: Path) -> Path:
    """The lift with five steps to an episode."""
    from steadyhand_models import settings

    path = folder / "short.toml"
    path.write_text(settings.to_toml(replace(TASK, episode_steps=5)), encoding="utf-8")
    return path


def test_a_policy_that_knows_how_is_counted_as_lifting(monkeypatch: pytest.MonkeyPatch) -> None:
    from steadyhand_runtime.sim.expert import ExpertHand

    class Knowing(FakeModel):
        """A policy that is told the truth, as no real one is."""

        hand = ExpertHand(np.random.default_rng(0))

        def run(
            self, frames: np.ndarray, state: np.ndarray | None = None, noise: np.ndarray | None = None
        ) -> np.ndarray:
            assert not noise.any()
            truth = examiner.robot.world.truth()
            action = self.hand.act(truth, state[12:15] + state[15:18])
            return action.astype(np.float32)

    model = Knowing(Channel.POLICY, 1, 0.0)
    examiner = Examiner(TASK, model, seed=2, log=Log())
    try:
        places = []
        for _ in range(2):
            model.hand.begin()
            judged = examiner.episode()
            assert judged.success and judged.end == "success" and judged.steps < 40
            places.append((judged.cube_x_m, judged.cube_y_m))
    finally:
        examiner.close()
    assert places[0] != places[1]
    assert examiner.robot.control.mode in (Mode.RESET, Mode.HOLD)


def test_an_empty_registry_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="give --registry"):
        evaluate(EvaluateSettings(registry=tmp_path), lambda _: None)


# -- the command -------------------------------------------------------------------------------------------------------


def test_sim_lists_its_commands_and_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in ("robot", "servos", "operator", "lockstep", "evaluate"))
    assert command.main(["evalute"]) == 2
    assert "did you mean `steadyhand sim evaluate`?" in capsys.readouterr().err
