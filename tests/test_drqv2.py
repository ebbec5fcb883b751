"""DrQ-v2: what critics, eye and actor learn, its noise schedule, n-step targets, export and exact resume."""

import dataclasses

import numpy as np
import pytest
import torch
from test_learner import CONTRACT, SMALL, make_learner, record, weights

from steadyhand_models.messages import Source
from steadyhand_models.nets.drqv2 import ScheduledActor, Trunk
from steadyhand_training.algorithm import Eye, Sight, Transitions
from steadyhand_training.config import Algorithm, DrqV2Settings, Encoders, Gripper, LearnerSettings
from steadyhand_training.drqv2 import DrqV2

torch.set_num_threads(1)
FEATURES, STATE, ACTIONS = 5, 2, 2
OWN = DrqV2Settings(
    batch=16, hidden=16, features=8, learning_rate=3e-3, target_rate=0.05, std_updates=100, warmup_updates=2
)
SETTINGS = LearnerSettings(algorithm=Algorithm.DRQV2, drqv2=OWN)
SMALL_DRQ = dataclasses.replace(SMALL, algorithm=Algorithm.DRQV2, drqv2=OWN)


def make_drqv2(own: DrqV2Settings = OWN, seed: int = 0) -> DrqV2:
    torch.manual_seed(seed)
    eye = Eye(torch.nn.Linear(FEATURES, FEATURES))
    actor = ScheduledActor(Trunk(FEATURES, STATE, own.features), ACTIONS, own.hidden)
    settings = dataclasses.replace(SETTINGS, drqv2=own)
    return DrqV2(actor, Trunk(FEATURES, STATE, own.features), ACTIONS, settings, seed, eye)


def bandit(seed: int, size: int = 64, discount: float = 0.0) -> Transitions:
    """One step and done; the reward is 1 for actions near +0.5 in every dimension, falling to 0."""
    random = torch.Generator().manual_seed(seed)
    sight = Sight(torch.randn(size, FEATURES, generator=random), torch.randn(size, STATE, generator=random))
    action = 2 * torch.rand(size, ACTIONS, generator=random) - 1
    reward = (1 - (action - 0.5).abs().mean(-1)).clamp(0, 1)
    return Transitions(sight, action, action, reward, torch.full((size,), discount), sight, torch.ones(size))


def changed(learner: DrqV2, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in learner.networks().items() if not torch.equal(value, before[name])}


def copies(learner: DrqV2) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.networks().items()}


def test_the_actor_finds_the_rewarded_action() -> None:
    learner = make_drqv2()
    for i in range(400):
        metrics = learner.update(bandit(i), act=True, bc_weight=0.0)
    sight = bandit(999).now
    assert (learner.actor(learner.eye(sight)) - 0.5).abs().mean() < 0.2
    assert metrics["critic_loss"] < 0.05


def test_the_critics_teach_the_eye_and_the_actor_does_not() -> None:
    learner = make_drqv2()
    batch, before = bandit(0), copies(learner)
    learner.update_actor(batch, learner.eye(batch.now).detach(), bc_weight=1.0)
    assert all(name.startswith("learned.actor.") for name in changed(learner, before))
    before = copies(learner)
    learner.update_critics(batch, learner.eye(batch.now), learner.eye(batch.next).detach())
    assert {name.split(".")[0] for name in changed(learner, before)} == {"critics", "learned"}
    assert any(name.startswith("learned.eye.") for name in changed(learner, before))
    assert not any(name.startswith("learned.actor.") for name in changed(learner, before))


def test_warming_up_moves_the_critics_only() -> None:
    learner = make_drqv2()
    before = copies(learner)
    learner.warm_up(bandit(0))
    assert {name.split(".")[0] for name in changed(learner, before)} == {"critics", "targets"}


def test_targets_never_leave_what_the_reward_makes_possible() -> None:
    learner = make_drqv2()
    for i in range(200):
        batch = dataclasses.replace(bandit(i, discount=0.96), reward=torch.ones(64))
        metrics = learner.update(batch, act=False, bc_weight=0.0)
        assert metrics["target"] <= 1.0
    assert metrics["q"].item() == pytest.approx(1.0, abs=0.15)


def test_the_noise_falls_along_its_schedule_and_is_part_of_what_the_robot_runs() -> None:
    learner = make_drqv2(dataclasses.replace(OWN, std_begin=0.8, std_end=0.2, std_updates=4))
    seen = [learner.std]
    for i in range(6):
        learner.update(bandit(i), act=False, bc_weight=0.0)
        seen.append(learner.std)
    assert seen == pytest.approx([0.8, 0.65, 0.5, 0.35, 0.2, 0.2, 0.2])
    actor = learner.average["actor"]
    observation, noise = torch.zeros(1, FEATURES + STATE), torch.full((1, ACTIONS), 0.5)
    with torch.no_grad():
        assert torch.allclose(actor.act(observation, noise), actor(observation) + 0.2 * 0.5, atol=1e-6)


def test_noise_in_targets_and_in_the_actors_loss_is_clipped() -> None:
    learner = make_drqv2(dataclasses.replace(OWN, std_begin=5.0, std_end=5.0, std_clip=0.3))
    mean = torch.zeros(500, ACTIONS)
    noisy = learner._explore(mean)
    assert noisy.abs().max().item() == pytest.approx(0.3) and noisy.min() < 0 < noisy.max()
    assert learner._explore(mean + 0.95).max() <= 1.0


def test_the_gradient_reaches_an_action_that_noise_has_pushed_over_its_end() -> None:
    mean = torch.full((50, ACTIONS), 0.99, requires_grad=True)
    (gradient,) = torch.autograd.grad(make_drqv2()._explore(mean).sum(), mean)
    assert (gradient == 1.0).all()


def test_cloning_pulls_the_actor_to_guided_actions_only() -> None:
    for guided, near in ((1.0, True), (0.0, False)):
        learner = make_drqv2()
        batch = dataclasses.replace(
            bandit(1), executed=torch.full((64, ACTIONS), -0.8), guided=torch.full((64,), guided)
        )
        for _ in range(150):
            learner.update(batch, act=True, bc_weight=10.0)
        assert ((learner.actor(learner.eye(batch.now)) + 0.8).abs().mean() < 0.15) == near


def test_it_trains_end_to_end_on_shifted_frames_unless_told_otherwise() -> None:
    learner = make_learner(SMALL_DRQ)
    assert learner.settings.sight is Encoders.END_TO_END
    learner.pretrain()
    before = weights(learner)
    for _ in range(3):
        learner.update()
    moved = {name for name, value in weights(learner).items() if not torch.equal(value, before[name])}
    assert any(name.startswith("encoder.cameras") for name in moved)
    batch = learner._batch()
    assert batch.now.view.dtype is torch.uint8 and batch.now.view.shape == (16, *CONTRACT.frames_shape)


def test_its_returns_reach_three_steps_ahead() -> None:
    learner = make_learner(SMALL_DRQ)
    learner.pretrain()
    batch = learner._batch()
    worth = {round(v, 4) for v in batch.reward.tolist()}
    assert worth <= {0.0, 1.0, 0.96, round(0.96**2, 4)} and len(worth) > 2
    assert {round(v, 4) for v in batch.discount.tolist()} <= {0.0, round(0.96**3, 4)}


def test_an_artifact_carries_the_encoder_the_actor_and_the_spread() -> None:
    learner = make_learner(SMALL_DRQ)
    learner.pretrain()
    for _ in range(3):
        learner.update()
    golden = learner.artifact(1, 0).golden  # refused inside if ONNX differed from torch
    published = learner.published()
    inputs = [torch.from_numpy(v) for v in (golden.frames, golden.state, golden.noise)]
    with torch.no_grad():
        assert np.allclose(published(*inputs).numpy(), golden.output, atol=1e-4)
    assert published.state_dict()["actor.log_std"].exp()[0].item() == pytest.approx(learner.algorithm.std)


def test_a_resumed_learner_continues_exactly(tmp_path) -> None:
    one, two = make_learner(SMALL_DRQ), make_learner(SMALL_DRQ, seed=9)
    one.pretrain()
    for _ in range(3):
        one.update()
    one.save(tmp_path / "learner.pt")
    two.load(tmp_path / "learner.pt")
    for each in (one, two):
        record(each.replay, 50, Source.TAKEOVER)
        for _ in range(4):
            each.update()
    got, want = weights(two), weights(one)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert all(torch.equal(one._newest[name], two._newest[name]) for name in one._newest)


def test_settings_that_it_cannot_honour_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="needs algorithm 'rlpd_sac'"):
        LearnerSettings(algorithm=Algorithm.DRQV2, gripper=Gripper.DISCRETE)
