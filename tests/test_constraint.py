"""The state-wise constraint: the bound follows the person's own spread, and the multiplier follows the bound."""

import dataclasses

import torch
from test_learner import SMALL, make_learner, weights
from test_sac import SETTINGS, bandit

from steadyhand_models.nets.actor_critic import Actor
from steadyhand_training.config import ConstraintSettings
from steadyhand_training.constraint import HumanConstraint
from steadyhand_training.sac import Sac

torch.set_num_threads(1)
WIDTH, ACTIONS = 2, 2
ON = ConstraintSettings(enabled=True, learning_rate=3e-3)
CONSTRAINED = dataclasses.replace(SETTINGS, constraint=ON)


def make_constraint() -> HumanConstraint:
    torch.manual_seed(0)
    return HumanConstraint(WIDTH, ACTIONS, CONSTRAINED)


def places(count: int) -> torch.Tensor:
    """Observations of two places, one in each half of the rows."""
    return torch.cat([torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]])]).repeat_interleave(count // 2, 0)


def test_the_bound_is_tight_where_people_agree_and_wide_where_they_differ() -> None:
    constraint, seen = make_constraint(), places(128)
    random = torch.Generator().manual_seed(0)
    spread = torch.where(seen[:, :1] > 0, 0.05, 0.5)
    for _ in range(400):
        action = 0.3 + spread * torch.randn(128, ACTIONS, generator=random)
        constraint.learn_human(seen, action, torch.ones(128))
    mean, std = constraint._person(seen)
    assert (mean - 0.3).abs().mean() < 0.12
    assert std[0].mean() < 0.12 and 0.35 < std[-1].mean() < 0.7


def test_only_guided_actions_tell_what_a_person_would_do() -> None:
    constraint, seen = make_constraint(), places(64)
    guided = (torch.arange(64) % 2).float()
    action = torch.where(guided[:, None] > 0, 0.6, -0.6).expand(-1, ACTIONS)
    for _ in range(300):
        constraint.learn_human(seen, action, guided)
    assert (constraint._person(seen)[0] - 0.6).abs().max() < 0.1


def test_the_multiplier_rises_where_the_bound_is_broken_and_falls_where_it_holds() -> None:
    constraint, seen = make_constraint(), places(64)
    mean, _ = constraint._person(seen)
    action = (mean + torch.where(seen[:, :1] > 0, 1.5, 0.0)).detach()  # far from the person in the first place only
    before = constraint.multiplier(seen).detach()
    for _ in range(100):
        constraint.apply(torch.zeros(64), seen, action)
    after = constraint.multiplier(seen).detach()
    assert (after[:32] > before[:32] + 0.5).all() and (after[32:] < before[32:] - 0.2).all() and (after >= 0).all()


def test_an_actor_under_the_constraint_does_not_stray_from_what_people_agree_on() -> None:
    apart = {}
    light = dataclasses.replace(SETTINGS, critics=2, hidden=16, learning_rate=6e-3)
    for settings in (light, dataclasses.replace(light, constraint=ON)):
        torch.manual_seed(0)
        sac = Sac(Actor(6, 2, settings.hidden), 6, 2, settings, 0)
        for i in range(500):
            batch = bandit(i, 32)  # rewards +0.5; people do -0.3
            batch = dataclasses.replace(batch, executed=torch.full((32, 2), -0.3))
            metrics = sac.update(batch, act=i > 100, bc_weight=0.0)
        mean, _ = sac.actor(bandit(999).now.view)
        apart[settings.constraint.enabled] = (torch.tanh(mean) + 0.3).abs().mean().item()
    assert apart[False] > 0.5 and apart[True] < 0.4
    assert {"lambda", "constraint_broken", "human_loss"} <= set(metrics)


def test_a_resumed_learner_continues_exactly(tmp_path) -> None:
    chosen = dataclasses.replace(SMALL, constraint=ON)
    one, two = make_learner(chosen), make_learner(chosen, seed=9)
    one.pretrain()
    for _ in range(3):
        one.update()
    one.save(tmp_path / "learner.pt")
    two.load(tmp_path / "learner.pt")
    for each in (one, two):
        for _ in range(4):
            each.update()
    got, want = weights(two), weights(one)
    assert any(name.startswith("multiplier") for name in want)
    assert all(torch.equal(got[name], want[name]) for name in want)
