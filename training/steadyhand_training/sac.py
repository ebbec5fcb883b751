"""Soft actor-critic with prior data: the update of RLPD (Ball et al. 2023) on encoded observations.

Half of each batch comes from demonstrations and takeovers, critics are a LayerNorm ensemble, the target takes the
minimum of a random subset and has no entropy term unless asked for, and targets stay within what the reward makes
possible. Where the encoder still learns, the critics' loss teaches it and the actor reads it (DrQ, SERL).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from steadyhand_models.nets.actor_critic import LOG_STD_LO, Actor, Critics
from steadyhand_models.nets.gripper import GripperCritic
from steadyhand_models.reward import DEFAULT, RewardSettings
from steadyhand_training.algorithm import (
    Eye,
    Transitions,
    begin_anew,
    descend,
    follow,
    forget_gradients,
    named_weights,
    pack,
    unpack,
    weights_drawn_from,
)
from steadyhand_training.compute import Compute
from steadyhand_training.config import LearnerSettings
from steadyhand_training.constraint import HumanConstraint
from steadyhand_training.gripper_critic import GripperLearner
from steadyhand_training.watch import ValueBounds, value_bounds

SATURATED = 0.98  # an action beyond this is at its end
WIDEST, NARROWEST = math.log(2.0), LOG_STD_LO + 0.5 * math.log(2.0 * math.pi * math.e)  # entropies of one dimension


class Sac:
    """Actor and its running average, critics and their targets, the temperature, and the optimisers of all three.

    The average is what a robot should run: single updates swing the actor between being quick and being sure.
    """

    def __init__(
        self,
        actor: Actor,
        observation: int,
        actions: int,
        settings: LearnerSettings,
        seed: int,
        eye: Eye | None = None,
        gripper: GripperCritic | None = None,
        reward: RewardSettings = DEFAULT,
    ) -> None:
        """Of `actions` dimensions a gripper, where there is one, takes the last, and actor and critics the others."""
        self.settings = settings
        self.reward = reward
        self.compute = Compute(settings)
        self.actor = actor
        self.eye = eye if eye is not None else Eye()
        self.moves = actions - (gripper is not None)
        self._observation = observation
        self.critics = self._fresh_critics()
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.gripper = GripperLearner(gripper, settings, reward) if gripper is not None else None
        self.constraint = HumanConstraint(observation, self.moves, settings) if settings.constraint.enabled else None
        self.log_temperature = torch.tensor(settings.temperature).log().to(self.compute.device).requires_grad_(True)
        self.target_entropy = -self.moves / 2
        self.random = torch.Generator().manual_seed(seed)
        learned: dict[str, nn.Module] = {"eye": self.eye, "actor": actor}
        if gripper is not None:
            learned["gripper"] = gripper
        self.learned = nn.ModuleDict(learned)
        self.average = copy.deepcopy(self.learned).requires_grad_(False)
        self._place()
        self._bounds = value_bounds(reward, settings.discount)
        self.critic_parameters = list(self.critics.parameters())
        self.eye_parameters = list(self.eye.parameters())
        self.actor_parameters = list(actor.parameters())
        rate = settings.learning_rate
        self.critic_optimiser = torch.optim.Adam([*self.critic_parameters, *self.eye_parameters], rate, fused=True)
        self.actor_optimiser = torch.optim.Adam(self.actor_parameters, rate, fused=True)
        self.temperature_optimiser = torch.optim.Adam(
            [self.log_temperature], settings.temperature_learning_rate, fused=True
        )

    def _place(self) -> None:
        self.compute.prepare(self.eye, self.actor, self.critics, self.targets)
        self.average.to(self.compute.device)
        for part in (self.gripper, self.constraint):
            if part is not None:
                self.compute.prepare(*part.nets.values())
        self._followed = [
            (list(self.targets.parameters()), list(self.critics.parameters()), self.settings.target_rate),
            (list(self.average.parameters()), list(self.learned.parameters()), self.settings.average_rate),
        ]

    def update(self, batch: Transitions, act: bool, bc_weight: float) -> dict[str, Tensor]:
        """One gradient step of the critics and, with `act`, of actor and temperature. Metrics stay tensors."""
        with self.compute.autocast():
            seen, next_seen = self._look(batch)
            metrics = self.update_critics(batch, seen, next_seen)
            seen = seen.detach()
            if self.constraint is not None:
                metrics |= self.constraint.learn_human(seen, batch.executed[:, : self.moves], batch.guided)
            if self.gripper is not None:
                metrics |= self.gripper.update(batch, seen, next_seen, bc_weight)
            if act:
                metrics |= self.update_actor(batch, seen, bc_weight)
        for slow, fast, rate in self._followed if act else self._followed[:1]:
            with torch.no_grad():
                follow(slow, fast, rate)
        return metrics

    def warm_up(self, batch: Transitions, target_rate: float | None = None) -> dict[str, Tensor]:
        """One step of everything that is no actor, which leaves eye and actor as they are."""
        with self.compute.autocast():
            with torch.no_grad():
                seen, next_seen = self.eye(batch.now), self.eye(batch.next)
            forget_gradients(self.eye_parameters)
            metrics = self.update_critics(batch, seen, next_seen)
            if self.constraint is not None:
                self.constraint.learn_human(seen, batch.executed[:, : self.moves], batch.guided)
            if self.gripper is not None:
                self.gripper.update(batch, seen, next_seen, self.settings.bc_weight)
        slow, fast, rate = self._followed[0]
        with torch.no_grad():
            follow(slow, fast, target_rate or rate)
        return metrics

    def _look(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """Observations now, through which the critics teach the eye, and next, through which nothing learns."""
        with torch.no_grad():
            next_seen = self.eye(batch.next)
        return self.eye(batch.now), next_seen

    def update_critics(self, batch: Transitions, seen: Tensor, next_seen: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            next_action, log_density = self.actor.sample(next_seen, self._noise(batch.action))
            next_value = self._target_value(next_seen, next_action)
            bounds = self.bounds
            if self.settings.entropy_backup:
                next_value = next_value - self.log_temperature.exp() * log_density
            # Bounded before it is discounted: were only the sum, a value above 1 / discount would live for ever.
            next_value = next_value.clamp(bounds.lo, bounds.hi)
            target = (batch.reward + batch.discount * next_value).clamp_(bounds.lo, bounds.hi)
        value = self.critics(seen, batch.action[:, : self.moves])
        loss = (value - target).square().mean(-1).sum()
        taught = self.eye_parameters if seen.requires_grad else []
        descend(self.critic_optimiser, loss, [*self.critic_parameters, *taught])
        value = value.detach()
        over = (value.max() - bounds.hi).clamp(min=0.0)
        return {"critic_loss": loss.detach(), "q": value.mean(), "target": target.mean(), "q_over_bound": over}

    def update_actor(self, batch: Transitions, seen: Tensor, bc_weight: float) -> dict[str, Tensor]:
        mean, log_std = self.actor(seen)
        action, log_density = self.actor.squash(mean, log_std, self._noise(batch.action))
        # The lowest critic, as in SAC: with the mean of two the actor found actions that only one of them overrates.
        value = self.critics(seen, action).amin(0)
        temperature = self.log_temperature.detach().exp()
        metrics: dict[str, Tensor] = {}
        each = temperature * log_density - value
        if self.constraint is not None:
            each, metrics = self.constraint.apply(each, seen, torch.tanh(mean))
        loss = each.mean()
        if bc_weight > 0 and self.constraint is None:
            apart = (torch.tanh(mean) - batch.executed[:, : self.moves]).square().mean(-1)
            loss = loss + bc_weight * (batch.guided * apart).sum() / batch.guided.sum().clamp(min=1.0)
        descend(self.actor_optimiser, loss, self.actor_parameters)
        entropy = -log_density.detach().mean()
        temperature_loss = self.log_temperature.exp() * (entropy - self.target_entropy)
        descend(self.temperature_optimiser, temperature_loss, [self.log_temperature])
        saturated = (action.detach().abs() > SATURATED).float().mean()
        found = {"actor_loss": loss.detach(), "entropy": entropy, "temperature": temperature, "saturated": saturated}
        return metrics | found

    @property
    def bounds(self) -> ValueBounds:
        """What the reward makes possible, and with an entropy backup also what the entropy adds or takes each step."""
        if not self.settings.entropy_backup:
            return self._bounds
        each = self.log_temperature.detach().exp().item() * self.moves
        return value_bounds(self.reward, self.settings.discount, penalty=each * NARROWEST, bonus=each * WIDEST)

    def reset_critics(self) -> None:
        """Begin critics and targets anew; a discrete gripper's critic stays, because it also drives the jaws."""
        with weights_drawn_from(self.random):
            fresh = self._fresh_critics()
        begin_anew(self.critics, self.targets, fresh, self.critic_optimiser)

    def _fresh_critics(self) -> Critics:
        return Critics(self.settings.critics, self._observation, self.moves, self.settings.hidden)

    def networks(self) -> dict[str, Tensor]:
        """Every parameter that learning changes, by name."""
        parts: dict[str, nn.Module] = {"learned": self.learned, "average": self.average}
        parts |= {"critics": self.critics, "targets": self.targets}
        for part in (self.gripper, self.constraint):
            parts |= part.nets if part is not None else {}
        return named_weights(parts) | {"log_temperature": self.log_temperature.detach()}

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that an exact resume needs."""
        return pack(self.networks(), self._optimisers(), self.random)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        unpack(state, self.networks(), self._optimisers(), self.random)

    def _optimisers(self) -> dict[str, torch.optim.Optimizer]:
        optimisers: dict[str, torch.optim.Optimizer] = {
            "critic_optimiser": self.critic_optimiser,
            "actor_optimiser": self.actor_optimiser,
            "temperature_optimiser": self.temperature_optimiser,
        }
        for part in (self.gripper, self.constraint):
            optimisers |= part.optimisers if part is not None else {}
        return optimisers

    def _target_value(self, observation: Tensor, action: Tensor) -> Tensor:
        values = self.targets(observation, action)
        if self.settings.critics_in_target < self.settings.critics:
            chosen = torch.randperm(self.settings.critics, generator=self.random)
            values = values[chosen[: self.settings.critics_in_target].to(values.device)]
        lowest: Tensor = values.amin(0)
        return lowest

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(len(like), self.moves, generator=self.random).to(like.device)
