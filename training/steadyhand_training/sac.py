"""Soft actor-critic with prior data: the update of RLPD (Ball et al. 2023) on encoded observations.

Half of each batch comes from demonstrations and takeovers, critics are a LayerNorm ensemble, the target takes the
minimum of a random subset and has no entropy term. Success ends an episode and pays 1, so targets stay within [0, 1].
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steadyhand_models.nets.actor_critic import Actor, Critics
from steadyhand_training.config import LearnerSettings

VALUE_LO, VALUE_HI = 0.0, 1.0


@dataclass(frozen=True)
class Transitions:
    """B transitions as tensors; observations are features and normalised state."""

    observation: Tensor  # (B, O)
    action: Tensor  # (B, A) what the critics judge
    executed: Tensor  # (B, A) what the actor imitates
    reward: Tensor  # (B,)
    discount_mask: Tensor  # (B,)
    next_observation: Tensor  # (B, O)
    guided: Tensor  # (B,) 1.0 where a person acted


class Sac:
    """Actor and its running average, critics and their targets, the temperature, and the optimisers of all three.

    The average is what a robot should run: single updates swing the actor between being quick and being sure.
    """

    def __init__(self, actor: Actor, observation: int, actions: int, settings: LearnerSettings, seed: int) -> None:
        self.settings = settings
        self.actor = actor
        self.average = copy.deepcopy(actor).requires_grad_(False)
        self.critics = Critics(settings.critics, observation, actions, settings.hidden)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = torch.tensor(settings.temperature).log().requires_grad_(True)
        self.target_entropy = -actions / 2
        self.random = torch.Generator().manual_seed(seed)
        self.critic_parameters = list(self.critics.parameters())
        self.target_parameters = list(self.targets.parameters())
        self.actor_parameters = list(actor.parameters())
        self.average_parameters = list(self.average.parameters())
        rate = settings.learning_rate
        self.critic_optimiser = torch.optim.Adam(self.critic_parameters, rate, fused=True)
        self.actor_optimiser = torch.optim.Adam(self.actor_parameters, rate, fused=True)
        self.temperature_optimiser = torch.optim.Adam(
            [self.log_temperature], settings.temperature_learning_rate, fused=True
        )

    def update(self, batch: Transitions, act: bool, bc_weight: float) -> dict[str, Tensor]:
        """One gradient step of the critics and, with `act`, of actor and temperature. Metrics stay tensors."""
        metrics = self.update_critics(batch)
        if act:
            metrics |= self.update_actor(batch, bc_weight)
        with torch.no_grad():
            follow(self.target_parameters, self.critic_parameters, self.settings.target_rate)
            if act:
                follow(self.average_parameters, self.actor_parameters, self.settings.average_rate)
        return metrics

    def update_critics(self, batch: Transitions) -> dict[str, Tensor]:
        with torch.no_grad():
            next_action, _ = self.actor.sample(batch.next_observation, self._noise(batch.action))
            next_value = self._target_value(batch.next_observation, next_action)
            # Bounded before it is discounted: were only the sum, a value above 1 / discount would live for ever.
            next_value.clamp_(VALUE_LO, VALUE_HI)
            target = batch.reward + self.settings.discount * batch.discount_mask * next_value
            target.clamp_(VALUE_LO, VALUE_HI)
        value = self.critics(batch.observation, batch.action)
        loss = (value - target).square().mean(-1).sum()
        self._step(self.critic_optimiser, loss, self.critic_parameters)
        return {"critic_loss": loss.detach(), "q": value.detach().mean(), "target": target.mean()}

    def update_actor(self, batch: Transitions, bc_weight: float) -> dict[str, Tensor]:
        mean, log_std = self.actor(batch.observation)
        action, log_density = self.actor.squash(mean, log_std, self._noise(batch.action))
        # The lowest critic, as in SAC: with the mean of two the actor found actions that only one of them overrates.
        value = self.critics(batch.observation, action).amin(0)
        temperature = self.log_temperature.detach().exp()
        loss = (temperature * log_density - value).mean()
        if bc_weight > 0:
            apart = (torch.tanh(mean) - batch.executed).square().mean(-1)
            loss = loss + bc_weight * (batch.guided * apart).sum() / batch.guided.sum().clamp(min=1.0)
        self._step(self.actor_optimiser, loss, self.actor_parameters)
        entropy = -log_density.detach().mean()
        temperature_loss = self.log_temperature.exp() * (entropy - self.target_entropy)
        self._step(self.temperature_optimiser, temperature_loss, [self.log_temperature])
        return {"actor_loss": loss.detach(), "entropy": entropy, "temperature": temperature}

    def networks(self) -> dict[str, Tensor]:
        """Every parameter that learning changes, by name."""
        parts = {"actor": self.actor, "average": self.average, "critics": self.critics, "targets": self.targets}
        named = {f"{part}.{name}": value for part, net in parts.items() for name, value in net.state_dict().items()}
        return named | {"log_temperature": self.log_temperature.detach()}

    def restore(self, networks: dict[str, Tensor]) -> None:
        """Set what `networks` returned."""
        with torch.no_grad():
            for name, value in self.networks().items():
                value.copy_(networks[name])

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that an exact resume needs."""
        optimisers = {name: optimiser.state_dict() for name, optimiser in self._optimisers().items()}
        return copy.deepcopy({"networks": self.networks(), "random": self.random.get_state(), **optimisers})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.restore(state["networks"])
        self.random.set_state(state["random"])
        for name, optimiser in self._optimisers().items():
            # torch keeps the tensors that it is given, and the caller may want to load them again.
            optimiser.load_state_dict(copy.deepcopy(state[name]))

    def _optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {
            "critic_optimiser": self.critic_optimiser,
            "actor_optimiser": self.actor_optimiser,
            "temperature_optimiser": self.temperature_optimiser,
        }

    def _target_value(self, observation: Tensor, action: Tensor) -> Tensor:
        values = self.targets(observation, action)
        if self.settings.critics_in_target < self.settings.critics:
            chosen = torch.randperm(self.settings.critics, generator=self.random)
            values = values[chosen[: self.settings.critics_in_target]]
        lowest: Tensor = values.amin(0)
        return lowest

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.random)

    @staticmethod
    def _step(optimiser: torch.optim.Optimizer, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        # Gradients of these parameters only: the actor's step must not spend time on the critics' weights.
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.grad = gradient
        optimiser.step()


def follow(slow: Sequence[Tensor], fast: Sequence[Tensor], rate: float) -> None:
    """Move `slow` towards `fast` by a share of the way (Polyak averaging)."""
    for behind, ahead in zip(slow, fast):
        behind.lerp_(ahead, rate)
