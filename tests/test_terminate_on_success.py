"""Where success does not end an episode, robot and trainer agree: the episode runs on, and every success pays."""

import numpy as np
from control_world import Bench, FakeModel

from steadyhand_models import reward, task
from steadyhand_models.messages import Channel, EndReason, Mode
from steadyhand_models.messages import EventKind as E
from steadyhand_models.reward import RewardSettings
from steadyhand_runtime.config import ControlSettings
from steadyhand_training.replay import Replay

RUNS_ON = RewardSettings(terminate_on_success=False)


def bench_of_light(settings: ControlSettings) -> Bench:
    """The classifier says the light: over half of full brightness for two frames is a success."""
    bench = Bench(settings)
    model = FakeModel(Channel.CLASSIFIER, 5, 0.0, threshold=0.5, debounce_frames=2)
    model.run = lambda frames, *_: np.full(3, frames.mean() / 255, np.float32)  # type: ignore[method-assign]
    bench.stage(model)
    bench.stage(FakeModel(Channel.POLICY, 3, 0.1))
    bench.until(Mode.POLICY)
    return bench


def worth(bench: Bench, settings: RewardSettings) -> reward.Outcome:
    lower = reward.lower_bound(np.array([s.classifier for s in bench.steps]), 1.0)
    silence = np.zeros(len(lower), np.int8)
    return reward.worth(lower, silence, reward.Rule(0.5, 2), bench.steps[-1].end, settings, 0.9)


def play(bench: Bench, lights: list[int]) -> None:
    for light in lights:
        bench.light = light
        if bench.mode is Mode.POLICY:
            bench.tick()


def test_the_episode_runs_on_until_a_person_or_the_limit_ends_it_and_each_success_frame_pays() -> None:
    bench = bench_of_light(ControlSettings(terminate_on_success=False))
    play(bench, [0, 200, 200, 200, 0, 0])
    assert bench.mode is Mode.POLICY
    bench.tick(E.SUCCESS)
    assert bench.steps[-1].end is EndReason.SUCCESS
    out = worth(bench, RUNS_ON)
    assert out.reward.sum() == 2.0 and out.usable.all() and not out.terminal.any()


def test_a_robot_and_a_trainer_that_were_told_otherwise_still_learn_nothing_false() -> None:
    ended, ran_on = (bench_of_light(ControlSettings(terminate_on_success=ends)) for ends in (True, False))
    for bench in (ended, ran_on):
        play(bench, [0, 200, 200, 200, 0, 0])
    ran_on.tick(E.ABORT)
    one, two = worth(ended, RewardSettings()), worth(ran_on, RewardSettings())
    first = int(np.flatnonzero(one.terminal)[0])
    assert np.flatnonzero(two.terminal).tolist() == [first] and not two.usable[first + 1 :].any()
    assert not worth(ended, RUNS_ON).terminal.any(), "an end that the task did not ask for is bootstrapped"


def test_replay_bootstraps_behind_a_success_that_ends_nothing() -> None:
    bench = bench_of_light(ControlSettings(terminate_on_success=False))
    play(bench, [0, 200, 200, 200, 0, 0])
    bench.tick(E.ABORT)
    replay = Replay(task.load("lift").contract(), 64)
    for step in bench.steps:
        replay.append(step)
    replay.set_outcome(bench.steps[0].episode, worth(bench, RUNS_ON))
    batch = replay.sample(200, np.random.default_rng(0), discount=0.9)
    assert (batch.discount == np.float32(0.9)).all()
    assert set(replay.seq[batch.rows[batch.reward > 0]].tolist()) == set(
        np.flatnonzero(worth(bench, RUNS_ON).reward).tolist()
    )
