"""The SAC update: what the critics learn, what bounds them, and what cloning and temperature do to the actor."""

import dataclasses

import pytest
import torch

from steadyhand_models.nets.actor_critic import Actor
from steadyhand_training.algorithm import Eye, Sight, Transitions
from steadyhand_training.config import LearnerSettings
from steadyhand_training.sac import Sac

torch.set_num_threads(1)
OBSERVATION, ACTIONS = 6, 2
SETTINGS = LearnerSettings(hidden=32, learning_rate=3e-3, target_rate=0.05, temperature=1e-3)


def make_sac(settings: LearnerSettings = SETTINGS, seed: int = 0) -> Sac:
    torch.manual_seed(seed)
    return Sac(Actor(OBSERVATION, ACTIONS, settings.hidden), OBSERVATION, ACTIONS, settings, seed)


def sight(observation: torch.Tensor) -> Sight:
    return Sight(observation, torch.zeros(len(observation), 0))


def bandit(seed: int, size: int = 64, mask: float = 0.0) -> Transitions:
    """One step and done; the reward is 1 for actions near +0.5 in every dimension, falling to 0."""
    random = torch.Generator().manual_seed(seed)
    observation = torch.randn(size, OBSERVATION, generator=random)
    action = 2 * torch.rand(size, ACTIONS, generator=random) - 1
    reward = (1 - (action - 0.5).abs().mean(-1)).clamp(0, 1)
    every = torch.full((size,), mask * SETTINGS.discount)
    return Transitions(
        sight(observation), action, action, reward, every, sight(observation.roll(1, 0)), torch.ones(size)
    )


def chain(value: float, mask: float) -> Transitions:
    observation = torch.ones(32, OBSERVATION)
    action = torch.zeros(32, ACTIONS)
    reward, masks = torch.full((32,), value), torch.full((32,), mask * SETTINGS.discount)
    return Transitions(sight(observation), action, action, reward, masks, sight(observation), torch.zeros(32))


def test_the_actor_finds_the_rewarded_action() -> None:
    sac = make_sac(dataclasses.replace(SETTINGS, learning_rate=6e-3))
    for i in range(300):
        metrics = sac.update(bandit(i), act=True, bc_weight=0.0)
    mean, _ = sac.actor(bandit(999).now.view)
    assert (torch.tanh(mean) - 0.5).abs().mean() < 0.15
    assert metrics["critic_loss"] < 0.05


def test_terminal_transitions_learn_their_reward_and_nothing_behind_it() -> None:
    sac = make_sac()
    for _ in range(300):
        sac.update(chain(0.3, mask=0.0), act=False, bc_weight=0.0)
    assert sac.critics(torch.ones(1, OBSERVATION), torch.zeros(1, ACTIONS)).mean().item() == pytest.approx(
        0.3, abs=0.02
    )


def test_bootstrapped_targets_never_leave_what_the_reward_makes_possible() -> None:
    # A reward of 1 forever would be worth 1 / (1 - discount) = 25 without the bound.
    sac = make_sac()
    for _ in range(300):
        metrics = sac.update(chain(1.0, mask=1.0), act=False, bc_weight=0.0)
        assert metrics["target"] <= 1.0
    assert metrics["q"].item() == pytest.approx(1.0, abs=0.1)


def test_an_overrated_state_that_pays_nothing_cannot_keep_its_value_alive() -> None:
    # A pose that only leads to itself, overrated at 1.2: its target must lie below the bound at once and keep falling.
    sac = make_sac()
    for critics in (sac.critics, sac.targets):
        with torch.no_grad():
            critics.layers[-1].weight.zero_()
            critics.layers[-1].bias.fill_(1.2)
    first = sac.update(chain(0.0, mask=1.0), act=False, bc_weight=0.0)["target"]
    assert first <= sac.settings.discount
    for _ in range(300):
        last = sac.update(chain(0.0, mask=1.0), act=False, bc_weight=0.0)["target"]
    assert last < 0.9 * first


def test_targets_carry_no_entropy_bonus() -> None:
    # With reward zero everywhere no value stands above what noise leaves, however much entropy there is to be had:
    # in these units an entropy bonus would be worth up to the bound of 1.
    sac = make_sac(LearnerSettings(hidden=32, learning_rate=3e-3, target_rate=0.05, temperature=1.0))
    for i in range(300):
        batch = bandit(i, mask=1.0)
        metrics = sac.update(dataclasses.replace(batch, reward=torch.zeros(64)), act=False, bc_weight=0.0)
    assert metrics["q"].abs() < 0.1


def test_cloning_pulls_the_actor_to_guided_actions_only() -> None:
    for guided, near in ((1.0, True), (0.0, False)):
        sac = make_sac()
        batch = dataclasses.replace(
            bandit(1),
            executed=torch.full((64, ACTIONS), -0.8),
            reward=torch.zeros(64),
            guided=torch.full((64,), guided),
        )
        for _ in range(150):
            sac.update(batch, act=True, bc_weight=10.0)
        apart = (torch.tanh(sac.actor(batch.now.view)[0]) + 0.8).abs().mean()
        assert (apart < 0.1) == near


def test_temperature_falls_while_entropy_is_above_its_target_and_rises_below() -> None:
    for sign in (1.0, -1.0):
        sac = make_sac()
        sac.target_entropy = -sign * 100.0
        before = sac.log_temperature.item()
        sac.update(bandit(0), act=True, bc_weight=0.0)
        assert (sac.log_temperature.item() - before) * sign < 0


def test_the_actors_step_leaves_the_critics_alone_and_the_other_way_round() -> None:
    sac = make_sac()
    before = {name: value.clone() for name, value in sac.networks().items()}
    batch = bandit(0)
    sac.update_actor(batch, batch.now.view, bc_weight=0.0)
    changed = {name for name, value in sac.networks().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("learned.actor.", "log_temperature")) for name in changed)
    before = {name: value.clone() for name, value in sac.networks().items()}
    sac.update_critics(batch, batch.now.view, batch.next.view)
    changed = {name for name, value in sac.networks().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("critics.") for name in changed)


def test_a_target_takes_the_lowest_of_its_random_subset() -> None:
    settings = LearnerSettings(hidden=32, critics=4, critics_in_target=2)
    sac = make_sac(settings)
    observation, action = torch.randn(8, OBSERVATION), torch.randn(8, ACTIONS)
    values = sac.targets(observation, action)
    pairs = {(a, b): torch.minimum(values[a], values[b]) for a in range(4) for b in range(a + 1, 4)}
    seen = set()
    for _ in range(60):
        got = sac._target_value(observation, action)
        seen |= {pair for pair, lowest in pairs.items() if torch.equal(got, lowest)}
    assert seen == set(pairs)


def test_a_resumed_sac_continues_exactly() -> None:
    one, two = make_sac(seed=0), make_sac(seed=1)
    for i in range(5):
        one.update(bandit(i), act=True, bc_weight=0.1)
    two.load_state_dict(one.state_dict())
    for i in range(5, 10):
        one.update(bandit(i), act=True, bc_weight=0.1)
        two.update(bandit(i), act=True, bc_weight=0.1)
    for name, value in one.networks().items():
        assert torch.equal(value, two.networks()[name]), name


def test_an_entropy_backup_raises_the_values_of_a_policy_that_varies() -> None:
    means = {}
    for backup in (False, True):
        sac = make_sac(dataclasses.replace(SETTINGS, temperature=0.05, entropy_backup=backup))
        with torch.no_grad():
            sac.actor.log_std.bias.fill_(5.0)
        for i in range(300):
            batch = bandit(i, mask=1.0)
            metrics = sac.update(dataclasses.replace(batch, reward=torch.zeros(64)), act=False, bc_weight=0.0)
        means[backup] = metrics["target"].item()
    assert means[True] > means[False] + 0.1


def test_a_value_above_the_bound_is_reported_and_one_below_is_not() -> None:
    sac = make_sac()
    assert sac.update(bandit(0), act=False, bc_weight=0.0)["q_over_bound"] == 0.0
    with torch.no_grad():
        sac.critics.layers[-1].weight.zero_()
        sac.critics.layers[-1].bias.fill_(1.5)
    assert sac.update(bandit(0), act=False, bc_weight=0.0)["q_over_bound"].item() == pytest.approx(0.5)


def test_actions_at_their_ends_are_counted_as_saturated() -> None:
    sac = make_sac()
    assert sac.update(bandit(0), act=True, bc_weight=0.0)["saturated"] < 0.2
    with torch.no_grad():
        sac.actor.mean.bias[0] = 50.0
    assert sac.update(bandit(0), act=True, bc_weight=0.0)["saturated"] >= 0.5


def test_the_critics_teach_a_learned_eye_the_actor_does_not_and_warming_up_leaves_it_alone() -> None:
    torch.manual_seed(0)
    eye = Eye(torch.nn.Linear(OBSERVATION, OBSERVATION))
    sac = Sac(Actor(OBSERVATION, ACTIONS, 32), OBSERVATION, ACTIONS, SETTINGS, 0, eye)
    before = {name: value.clone() for name, value in sac.networks().items()}
    sac.warm_up(bandit(0))
    changed = {name for name, value in sac.networks().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("critics.", "targets.")) for name in changed)
    sac.update(bandit(0), act=False, bc_weight=0.0)
    taught = eye.head.weight.clone()
    assert not torch.equal(taught, before["learned.eye.head.weight"])
    batch = bandit(1)
    sac.update_actor(batch, sac.eye(batch.now).detach(), bc_weight=0.0)
    assert torch.equal(eye.head.weight, taught)
    assert not torch.equal(sac.average["eye"].head.weight, taught)
