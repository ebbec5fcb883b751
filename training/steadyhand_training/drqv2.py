"""DrQ-v2 (Yarats et al. 2021, arXiv 2107.09645) with prior data: pixels, a deterministic actor, noise on a schedule.

As in the paper: n-step returns, two critics whose lower value counts, the critics' loss alone teaches the encoder,
random shifts, clipped noise in targets and in the actor's loss. Beside it: half of each batch comes from demonstrations
and takeovers, the actor begins cloned and goes on being pulled to what people did, targets stay within what the reward
makes possible, and a robot runs the running average of encoder and actor.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from steadyhand_models.nets.actor_critic import Critics
from steadyhand_models.nets.drqv2 import PixelCritics, ScheduledActor, Trunk
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
from steadyhand_training.sac import SATURATED
from steadyhand_training.watch import value_bounds


class DrqV2:
    """Eye and actor and their running averages, critics and their targets, and the optimisers."""

    def __init__(
        self,
        actor: ScheduledActor,
        trunk: Trunk,
        actions: int,
        settings: LearnerSettings,
        seed: int,
        eye: Eye,
        reward: RewardSettings = DEFAULT,
    ) -> None:
        """The trunk is the critics'; the actor has its own."""
        self.settings = settings
        self.own = settings.drqv2
        self._actions = actions
        self.compute = Compute(settings)
        self.bounds = value_bounds(reward, settings.discount)
        self.actor, self.eye = actor, eye
        self.critics = PixelCritics(trunk, actions, self.own.hidden)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.learned = nn.ModuleDict({"eye": eye, "actor": actor})
        self.average = copy.deepcopy(self.learned).requires_grad_(False)
        self.random = torch.Generator().manual_seed(seed)
        self.updates = torch.zeros((), dtype=torch.int64)  # where the schedule stands
        self.compute.prepare(self.eye, self.actor, self.critics, self.targets)
        self.average.to(self.compute.device)
        self.critic_parameters = list(self.critics.parameters())
        self.eye_parameters = list(eye.parameters())
        self.actor_parameters = list(actor.parameters())
        rate = self.own.learning_rate
        self.critic_optimiser = torch.optim.Adam([*self.critic_parameters, *self.eye_parameters], rate, fused=True)
        self.actor_optimiser = torch.optim.Adam(self.actor_parameters, rate, fused=True)
        self._followed = [
            (list(self.targets.parameters()), self.critic_parameters, self.own.target_rate),
            (list(self.average.parameters()), list(self.learned.parameters()), settings.average_rate),
        ]
        self._set_spread()

    @property
    def std(self) -> float:
        """The noise's standard deviation now: linear from the first to the last over the schedule."""
        share = min(1.0, float(self.updates) / self.own.std_updates)
        return self.own.std_begin + share * (self.own.std_end - self.own.std_begin)

    def update(self, batch: Transitions, act: bool, bc_weight: float) -> dict[str, Tensor]:
        """One gradient step of critics and eye and, with `act`, of the actor. Metrics stay tensors."""
        with self.compute.autocast():
            with torch.no_grad():
                next_seen = self.eye(batch.next)
            seen = self.eye(batch.now)
            metrics = self.update_critics(batch, seen, next_seen)
            if act:
                metrics |= self.update_actor(batch, seen.detach(), bc_weight)
        self.updates += 1
        self._set_spread()
        with torch.no_grad():
            for slow, fast, rate in self._followed:
                follow(slow, fast, rate)
        return metrics

    def warm_up(self, batch: Transitions, target_rate: float | None = None) -> dict[str, Tensor]:
        """One step of the critics alone, which leaves eye and actor as they are."""
        with self.compute.autocast():
            with torch.no_grad():
                seen, next_seen = self.eye(batch.now), self.eye(batch.next)
            forget_gradients(self.eye_parameters)
            metrics = self.update_critics(batch, seen, next_seen)
        slow, fast, rate = self._followed[0]
        with torch.no_grad():
            follow(slow, fast, target_rate or rate)
        return metrics

    def update_critics(self, batch: Transitions, seen: Tensor, next_seen: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            next_action = self._explore(self.actor(next_seen))
            next_value = self.targets(next_seen, next_action).amin(0).clamp_(self.bounds.lo, self.bounds.hi)
            target = (batch.reward + batch.discount * next_value).clamp_(self.bounds.lo, self.bounds.hi)
        value = self.critics(seen, batch.action)
        loss = (value - target).square().mean(-1).sum()
        taught = self.eye_parameters if seen.requires_grad else []
        descend(self.critic_optimiser, loss, [*self.critic_parameters, *taught])
        value = value.detach()
        over = (value.max() - self.bounds.hi).clamp(min=0.0)
        return {"critic_loss": loss.detach(), "q": value.mean(), "target": target.mean(), "q_over_bound": over}

    def update_actor(self, batch: Transitions, seen: Tensor, bc_weight: float) -> dict[str, Tensor]:
        mean = self.actor(seen)
        action = self._explore(mean)
        loss = -self.critics(seen, action).amin(0).mean()
        if bc_weight > 0:
            apart = (mean - batch.executed).square().mean(-1)
            loss = loss + bc_weight * (batch.guided * apart).sum() / batch.guided.sum().clamp(min=1.0)
        descend(self.actor_optimiser, loss, self.actor_parameters)
        saturated = (mean.detach().abs() > SATURATED).float().mean()
        return {"actor_loss": loss.detach(), "saturated": saturated, "std": torch.tensor(self.std)}

    def _explore(self, mean: Tensor) -> Tensor:
        """Actions near the mean ones (B, A), the noise clipped; the gradient passes to the mean also at the ends."""
        drawn = torch.randn(mean.shape, generator=self.random).to(mean.device)
        noisy = mean + (self.std * drawn).clamp(-self.own.std_clip, self.own.std_clip)
        return noisy - noisy.detach() + noisy.detach().clamp(-1.0, 1.0)

    def _set_spread(self) -> None:
        for actor in (self.actor, self.average["actor"]):
            assert isinstance(actor, ScheduledActor)
            actor.log_std.fill_(math.log(self.std))

    def reset_critics(self) -> None:
        """Begin the heads of critics and targets anew, behind the trunk as it is."""
        heads = self.critics.heads
        with weights_drawn_from(self.random):
            fresh = Critics(heads.members, self.critics.trunk.outputs, self._actions, self.own.hidden)
        begin_anew(heads, self.targets.heads, fresh, self.critic_optimiser)

    def networks(self) -> dict[str, Tensor]:
        """Every parameter that learning changes, by name."""
        parts: dict[str, nn.Module] = {"learned": self.learned, "average": self.average}
        return named_weights(parts | {"critics": self.critics, "targets": self.targets}) | {"updates": self.updates}

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that an exact resume needs."""
        return pack(self.networks(), self._optimisers(), self.random)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        unpack(state, self.networks(), self._optimisers(), self.random)

    def _optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"critic_optimiser": self.critic_optimiser, "actor_optimiser": self.actor_optimiser}
