"""Learning the discrete gripper: HIL-SERL's DQN (Luo et al. 2024) with DQfD's imitation margin (Hester et al. 2018)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from steadyhand_models.nets.gripper import GripperCritic
from steadyhand_models.reward import DEFAULT, RewardSettings
from steadyhand_training.algorithm import Transitions, descend, follow
from steadyhand_training.config import LearnerSettings
from steadyhand_training.watch import value_bounds


class GripperLearner:
    """The gripper's critic, its target and its optimiser.

    What counts is what a choice does to the jaws, not its name: to close closed jaws is to stay. So all choices with
    the effect of what was executed learn its value together, and a change of the jaws' side costs the penalty.
    """

    def __init__(self, critic: GripperCritic, settings: LearnerSettings, reward: RewardSettings = DEFAULT) -> None:
        self.critic = critic
        self.target = copy.deepcopy(critic).requires_grad_(False)
        self.settings = settings
        self.bounds = value_bounds(reward, settings.discount, penalty=settings.gripper_critic.penalty)
        self.nets: dict[str, nn.Module] = {"gripper_critic": critic, "gripper_target": self.target}
        self._parameters = list(critic.parameters())
        self._target_parameters = list(self.target.parameters())
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "gripper_optimiser": torch.optim.Adam(self._parameters, settings.learning_rate, fused=True)
        }

    def update(self, batch: Transitions, seen: Tensor, next_seen: Tensor, bc_weight: float) -> dict[str, Tensor]:
        """One step: the TD error of double DQN, and for guided rows the margin by which a person's choice must lead."""
        command = batch.executed[:, -1]
        same = same_effect(self.critic, seen, command)
        values = self.critic(seen)
        target = self._targets(batch, self._changed(seen, command), next_seen)
        error = ((values - target[:, None]).square() * same).sum(-1) / same.sum(-1)
        loss = error.mean()
        if bc_weight > 0:
            behind = margin_loss(values, same, self.settings.gripper_critic.margin)
            loss = loss + bc_weight * (batch.guided * behind).sum() / batch.guided.sum().clamp(min=1.0)
        descend(self.optimisers["gripper_optimiser"], loss, self._parameters)
        with torch.no_grad():
            follow(self._target_parameters, self._parameters, self.settings.target_rate)
        return {"gripper_loss": loss.detach(), "gripper_q": values.detach().amax(-1).mean()}

    @torch.no_grad()
    def _targets(self, batch: Transitions, changed: Tensor, next_seen: Tensor) -> Tensor:
        best = self.critic(next_seen).argmax(-1, keepdim=True)
        next_value = self.target(next_seen).gather(-1, best).squeeze(-1).clamp(self.bounds.lo, self.bounds.hi)
        reward = batch.reward + self.settings.gripper_critic.penalty * changed
        return (reward + batch.discount * next_value).clamp(self.bounds.lo, self.bounds.hi)

    def _changed(self, seen: Tensor, command: Tensor) -> Tensor:
        """1.0 (B,) where the command sends the jaws to the other side."""
        return (_sign(command) != self.critic.side(seen)).to(torch.float32)


def same_effect(critic: GripperCritic, seen: Tensor, command: Tensor) -> Tensor:
    """1.0 (B, 3) for the choices that do what the gripper action (B,) did; one or two of the three."""
    return (critic.effects(seen) == _sign(command)[:, None]).to(torch.float32)


def margin_loss(values: Tensor, same: Tensor, margin: float) -> Tensor:
    """How far (B,) the best of the other choices, `margin` ahead, leads the best of those that a person took."""
    taken = values.masked_fill(same == 0, -torch.inf).amax(-1)
    return (values + margin * (1.0 - same)).amax(-1) - taken


def _sign(command: Tensor) -> Tensor:
    """Gripper actions (B,) as the end of the range that they are nearer to."""
    return torch.where(command > 0, 1.0, -1.0)
