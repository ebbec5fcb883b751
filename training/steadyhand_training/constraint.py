"""The state-wise constraint of SiLRI (Zhao et al. 2025, arXiv 2512.24288): stay as near to people as they are sure of.

A Gaussian model of the person is fitted to guided actions. In each state the actor's action may be away from the
model's mean by the model's spread there, and no further: where people always do the same the bound is tight, where they
differ it is wide. A multiplier lambda(s) >= 0 rises by dual ascent where the bound is broken and falls where it holds,
and weighs nearness to the person against value: loss = (loss of SAC + lambda d) / (1 + lambda), as in the authors'
code.

Simplified: all networks read the shared observation instead of each having an encoder of its own; demonstrations count
like interventions; the distance is between means, not of samples; SAC takes the place of TD3 beneath it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadyhand_models.nets.actor_critic import Actor
from steadyhand_models.nets.layers import trunk
from steadyhand_training.algorithm import descend
from steadyhand_training.config import LearnerSettings

TINY = 1e-8  # under a root, whose slope at 0 is infinite


class Multiplier(nn.Module):
    """Observation (B, O) to lambda (B,) >= 0; begins at softplus(0) = 0.69 everywhere, as in the authors' code."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.layers = trunk(inputs, hidden)
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers.append(last)

    def forward(self, observation: Tensor) -> Tensor:
        return F.softplus(self.layers(observation).squeeze(-1))


class HumanConstraint:
    """The model of the person, the multiplier, and their optimisers."""

    def __init__(self, observation: int, actions: int, settings: LearnerSettings) -> None:
        self.settings = settings.constraint
        self.human = Actor(observation, actions, settings.hidden)
        self.multiplier = Multiplier(observation, settings.hidden)
        self.nets: dict[str, nn.Module] = {"human": self.human, "multiplier": self.multiplier}
        rate = self.settings.learning_rate
        self._human_parameters = list(self.human.parameters())
        self._multiplier_parameters = list(self.multiplier.parameters())
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "human_optimiser": torch.optim.Adam(self._human_parameters, rate, fused=True),
            "multiplier_optimiser": torch.optim.Adam(self._multiplier_parameters, rate, fused=True),
        }

    def learn_human(self, seen: Tensor, action: Tensor, guided: Tensor) -> dict[str, Tensor]:
        """One step of maximum likelihood on the guided among B actions (B, A)."""
        mean, std = self._person(seen)
        unlikely = 0.5 * ((action - mean) / std).square() + std.log() + 0.5 * math.log(2.0 * math.pi)
        loss = (guided * unlikely.sum(-1)).sum() / guided.sum().clamp(min=1.0)
        descend(self.optimisers["human_optimiser"], loss, self._human_parameters)
        return {"human_loss": loss.detach()}

    def apply(self, loss: Tensor, seen: Tensor, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's loss (B,) under the constraint on its mean action (B, A); the multiplier takes its own step."""
        with torch.no_grad():
            mean, std = self._person(seen)
            bound = std.sum(-1) + self.settings.slack
        apart = (action - mean).square().sum(-1).add(TINY).sqrt()
        broken = (apart - bound).detach()
        strength = self.multiplier(seen)
        descend(self.optimisers["multiplier_optimiser"], -(strength * broken).mean(), self._multiplier_parameters)
        held = strength.detach()
        metrics = {"lambda": held.mean(), "constraint_broken": (broken > 0).float().mean()}
        return (loss + held * apart) / (1.0 + held), metrics

    def _person(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """What a person would do: mean and standard deviation (B, A) of the action itself."""
        mean, log_std = self.human(seen)
        return torch.tanh(mean), log_std.exp()
