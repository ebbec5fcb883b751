"""The discrete gripper: which side the jaws are on, what its choices do, what changes cost, and what it learns."""

import dataclasses

import numpy as np
import pytest
import torch
from test_learner import CONTRACT, SMALL, make_learner, weights

from steadyhand_models.nets.gripper import CLOSED, OPEN, GripperCritic
from steadyhand_training.algorithm import Sight, Transitions
from steadyhand_training.config import Gripper, LearnerSettings
from steadyhand_training.gripper_critic import GripperLearner, margin_loss, same_effect

torch.set_num_threads(1)
WIDTH, JAW = 4, 1
SETTINGS = LearnerSettings(learning_rate=3e-3, target_rate=0.05, hidden=32)
DISCRETE = dataclasses.replace(SMALL, gripper=Gripper.DISCRETE)


def make_critic() -> GripperCritic:
    torch.manual_seed(0)
    return GripperCritic(WIDTH, 32, JAW)  # calibrated as the SO-101's: closing makes the jaw's angle smaller


def observation(jaw: list[float]) -> torch.Tensor:
    seen = torch.zeros(len(jaw), WIDTH)
    seen[:, JAW] = torch.tensor(jaw)
    return seen


def transitions(seen: torch.Tensor, command: list[float], reward: float = 0.0, discount: float = 0.0) -> Transitions:
    sight, action = Sight(seen, torch.zeros(len(seen), 0)), torch.tensor(command)[:, None]
    each = torch.ones(len(seen))
    return Transitions(sight, action, action, reward * each, discount * each, sight, each)


def test_the_jaws_side_follows_from_what_was_recorded_whatever_way_the_joint_turns() -> None:
    command = torch.tensor([OPEN] * 50 + [CLOSED] * 50)
    for sign in (1.0, -1.0):
        critic = make_critic()
        jaw = sign * torch.cat([torch.linspace(0.2, 1.0, 50), torch.linspace(-0.6, 0.1, 50)])
        critic.calibrate(jaw, command)
        seen = observation([sign * 0.9, sign * -0.5])
        assert critic.side(seen).tolist() == [OPEN, CLOSED]


def test_staying_asks_again_for_the_side_on_which_the_jaws_are() -> None:
    critic = make_critic()
    seen = observation([0.8, -0.8])
    assert critic.effects(seen).tolist() == [[OPEN, OPEN, CLOSED], [OPEN, CLOSED, CLOSED]]
    for choice, want in enumerate([[OPEN, OPEN], [OPEN, CLOSED], [CLOSED, CLOSED]]):
        with torch.no_grad():
            critic.layers[-1].weight.zero_()
            critic.layers[-1].bias.copy_(torch.eye(3)[choice])
        assert critic.choose(seen).flatten().tolist() == want


def test_all_choices_with_the_effect_of_what_was_done_learn_from_it() -> None:
    critic = make_critic()
    assert same_effect(critic, observation([0.8, 0.8]), torch.tensor([-1.0, 0.7])).tolist() == [[1, 1, 0], [0, 0, 1]]
    learner = GripperLearner(critic, SETTINGS)
    seen = observation([0.8] * 32)
    for _ in range(300):
        learner.update(transitions(seen, [-1.0] * 32, reward=0.7), seen, seen, 0.0)
    assert critic(seen)[0, :2].tolist() == pytest.approx([0.7, 0.7], abs=0.03)


def test_a_change_of_side_costs_the_penalty_and_holding_costs_nothing() -> None:
    for command, worth in ((-1.0, 0.5), (1.0, 0.5 - 0.1)):
        settings = dataclasses.replace(
            SETTINGS, gripper_critic=dataclasses.replace(SETTINGS.gripper_critic, penalty=-0.1)
        )
        critic = make_critic()
        learner = GripperLearner(critic, settings)
        seen = observation([0.8] * 32)
        for _ in range(300):
            learner.update(transitions(seen, [command] * 32, reward=0.5), seen, seen, 0.0)
        done = same_effect(critic, seen, torch.tensor([command] * 32))[0].bool()
        assert critic(seen)[0][done].mean().item() == pytest.approx(worth, abs=0.03)


def test_targets_may_fall_to_what_penalties_for_ever_would_cost_and_no_further() -> None:
    learner = GripperLearner(make_critic(), SETTINGS)
    least = -0.02 / (1 - SETTINGS.discount)
    assert learner.bounds.lo == pytest.approx(least) and learner.bounds.hi == 1.0
    with torch.no_grad():
        learner.target.layers[-1].bias.fill_(-100.0)
    seen = observation([0.8])
    target = learner._targets(transitions(seen, [1.0], discount=0.96), torch.ones(1), seen)
    assert target.item() == pytest.approx(least, abs=1e-6)


def test_a_persons_choice_must_lead_by_the_margin() -> None:
    values = torch.tensor([[0.5, 0.2, 0.48], [0.5, 0.2, 0.3]])
    same = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert margin_loss(values, same, 0.05).tolist() == pytest.approx([0.03, 0.25])
    assert margin_loss(torch.tensor([[0.9, 0.2, 0.3]]), same[:1], 0.05).item() == 0.0


def test_cloning_teaches_which_way_people_drive_the_jaws() -> None:
    learner = make_learner(dataclasses.replace(DISCRETE, pretrain_batches=100, warmup_updates=20))
    rows = np.arange(learner.replay.size)
    random = np.random.default_rng(0)
    closed = random.integers(0, 2, len(rows)).astype(np.float32)  # told to the policy by the last entry of the state
    learner.replay.executed[rows, -1] = 2 * closed - 1
    learner.replay.state[rows, -1] += 0.04 * closed
    learner.replay.state[rows, 5] += random.normal(0, 0.3, len(rows))
    learner.pretrain()
    acted = learner.replay.guided_rows()
    frames, state = (torch.from_numpy(v[acted]) for v in (learner.replay.frames, learner.replay.state))
    got = learner.published()(frames, state, torch.zeros(len(acted), 4))[:, -1]
    assert (got.numpy() == learner.replay.executed[acted, -1]).mean() > 0.85


def test_actor_and_critics_leave_the_jaws_to_it_and_the_robot_gets_both_in_one_graph() -> None:
    learner = make_learner(DISCRETE)
    learner.pretrain()
    for _ in range(4):
        learner.update()
    assert learner.policy.actor.mean.out_features == len(CONTRACT.action) - 1
    golden = learner.artifact(1, 0).golden  # refused inside if ONNX differed from torch
    assert set(np.unique(golden.output[:, -1])) <= {OPEN, CLOSED}
    assert np.ptp(golden.output[:, 0]) > 0


def test_a_resumed_learner_continues_exactly(tmp_path) -> None:
    one, two = make_learner(DISCRETE), make_learner(DISCRETE, seed=9)
    one.pretrain()
    for _ in range(3):
        one.update()
    one.save(tmp_path / "learner.pt")
    two.load(tmp_path / "learner.pt")
    for each in (one, two):
        for _ in range(4):
            each.update()
    got, want = weights(two), weights(one)
    assert any(name.startswith("gripper_target") for name in want)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_task_without_such_a_gripper_is_refused_with_the_fix() -> None:
    from steadyhand_training.learner import Learner
    from steadyhand_training.replay import Replay

    other = dataclasses.replace(CONTRACT, action=CONTRACT.action[:3])
    with pytest.raises(ValueError, match="choose 'continuous'"):
        Learner(other, Replay(other, 10), DISCRETE, 0)
