"""A straightforward SAC learner to measure ours against: the same networks, data kept and sampled as LeRobot's does.

LeRobot's `ReplayBuffer` keeps float32 pictures of state and next state (by default both, with `optimize_memory` each
once), gathers a batch, shifts every picture of it at random, and its learner encodes state and next state of each batch
anew, with a frozen encoder too. What it does not share with ours on purpose is written as plainly as it can be; where
LeRobot does more work (the critics' and the actor's own passes through a trained encoder), this peer does it once.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steadyhand_models.contract import Contract
from steadyhand_models.messages import Step
from steadyhand_models.nets.actor_critic import Actor, Critics
from steadyhand_models.nets.encoder import Encoder
from steadyhand_training.brains import Plan
from steadyhand_training.config import Encoders, LearnerSettings

PAD_PX = 4  # LeRobot, DrQ


@dataclass(frozen=True)
class PeerBatch:
    """B transitions; pictures float32 (B, cameras, 3, H, W), shifted."""

    pixels: Tensor
    state: Tensor
    next_pixels: Tensor
    next_state: Tensor
    action: Tensor
    reward: Tensor
    done: Tensor


class PeerReplay:
    """Preallocated float32 arrays of whole transitions; with `share_next` the next state is the row behind."""

    def __init__(self, contract: Contract, capacity: int, share_next: bool) -> None:
        cameras, height, width, _ = contract.frames_shape
        self.share_next = share_next
        self.size = 0
        self.pixels = torch.empty(capacity, cameras, 3, height, width)
        self.state = torch.empty(capacity, len(contract.state))
        self.next_pixels = self.pixels if share_next else torch.empty_like(self.pixels)
        self.next_state = self.state if share_next else torch.empty_like(self.state)
        self.action = torch.empty(capacity, len(contract.action))
        self.reward = torch.empty(capacity)
        self.done = torch.empty(capacity)

    @property
    def bytes_per_step(self) -> int:
        tensors = [self.pixels, self.state, self.action, self.reward, self.done]
        if not self.share_next:
            tensors += [self.next_pixels, self.next_state]
        return sum(t[0].numel() * t.element_size() for t in tensors)

    def add(self, step: Step, following: Step) -> None:
        """Keep one transition, decoded."""
        assert step.executed is not None
        row = self.size
        self.pixels[row], self.state[row] = _decoded(step)
        if not self.share_next:
            self.next_pixels[row], self.next_state[row] = _decoded(following)
        self.action[row] = torch.from_numpy(step.executed)
        self.reward[row] = self.done[row] = float(following.end is not None)
        self.size += 1

    def sample(self, batch: int) -> PeerBatch:
        rows = torch.randint(0, self.size - 1, (batch,))
        following = rows + 1 if self.share_next else rows
        both = torch.cat([self.pixels[rows], self.next_pixels[following]])
        pixels, next_pixels = _shifted(both).split(batch)
        return PeerBatch(
            pixels, self.state[rows], next_pixels, self.next_state[following],
            self.action[rows], self.reward[rows], self.done[rows],
        )  # fmt: skip


class PeerSac:
    """Soft actor-critic as in LeRobot: half of a batch from each of two buffers, one or two passes of the encoder."""

    def __init__(self, contract: Contract, replay: PeerReplay, settings: LearnerSettings) -> None:
        self.replay, self.settings = replay, settings
        self.frozen = settings.sight is Encoders.FROZEN
        actions = len(contract.action)
        encoder = Plan(contract, settings).policy().encoder
        assert isinstance(encoder, Encoder)
        self.encoder = encoder.requires_grad_(not self.frozen)
        inputs = self.encoder.features + len(contract.state)
        self.actor = Actor(inputs, actions, settings.hidden)
        self.critics = Critics(settings.critics, inputs, actions, settings.hidden)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = torch.tensor(settings.temperature).log().requires_grad_(True)
        self.target_entropy = -actions / 2
        learned = [*self.critics.parameters(), *(() if self.frozen else self.encoder.parameters())]
        self.critic_optimiser = torch.optim.Adam(learned, settings.learning_rate)
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), settings.learning_rate)
        self.temperature_optimiser = torch.optim.Adam([self.log_temperature], settings.learning_rate)
        self.updates = 0

    def update(self) -> None:
        """One step of the critics and, as often as ours, of actor and temperature."""
        half = self.settings.batch // 2
        batch = _joined(self.replay.sample(half), self.replay.sample(self.settings.batch - half))
        with torch.set_grad_enabled(not self.frozen):
            observation = self._observation(batch.pixels, batch.state)
        with torch.no_grad():
            next_observation = self._observation(batch.next_pixels, batch.next_state)
        self._update_critics(batch, observation, next_observation)
        if self.updates % self.settings.actor_every == 0:
            self._update_actor(observation.detach())
        with torch.no_grad():
            for behind, ahead in zip(self.targets.parameters(), self.critics.parameters()):
                behind.copy_(ahead * self.settings.target_rate + behind * (1 - self.settings.target_rate))
        self.updates += 1

    def _update_critics(self, batch: PeerBatch, observation: Tensor, next_observation: Tensor) -> None:
        with torch.no_grad():
            next_action, _ = self.actor.sample(next_observation, torch.randn_like(batch.action))
            chosen = torch.randperm(self.settings.critics)[: self.settings.critics_in_target]
            next_value = self.targets(next_observation, next_action)[chosen].amin(0)
            target = batch.reward + self.settings.discount * (1 - batch.done) * next_value
        value = self.critics(observation, batch.action)
        loss = F.mse_loss(value, target.expand_as(value), reduction="none").mean(1).sum()
        self.critic_optimiser.zero_grad()
        loss.backward()
        self.critic_optimiser.step()

    def _update_actor(self, observation: Tensor) -> None:
        action, log_density = self.actor.sample(observation, torch.randn(len(observation), self.replay.action.shape[1]))
        value = self.critics(observation, action).amin(0)
        loss = (self.log_temperature.detach().exp() * log_density - value).mean()
        self.actor_optimiser.zero_grad()
        loss.backward()
        self.actor_optimiser.step()
        temperature_loss = -(self.log_temperature.exp() * (log_density.detach() + self.target_entropy)).mean()
        self.temperature_optimiser.zero_grad()
        temperature_loss.backward()
        self.temperature_optimiser.step()

    def _observation(self, pixels: Tensor, state: Tensor) -> Tensor:
        features = [camera(pixels[:, i] - 0.5) for i, camera in enumerate(self.encoder.cameras)]
        return torch.cat([*features, state], dim=-1)


def _decoded(step: Step) -> tuple[Tensor, Tensor]:
    """Pictures (cameras, 3, H, W) in [0, 1] and the state, float32."""
    pixels = torch.from_numpy(step.frames.astype(np.float32)).permute(0, 3, 1, 2) / 255.0
    return pixels, torch.from_numpy(step.state)


def _shifted(pixels: Tensor) -> Tensor:
    """Every picture of (B, cameras, 3, H, W) moved by up to PAD_PX pixels; edges repeat."""
    batch, cameras, _, height, width = pixels.shape
    padded = F.pad(pixels.flatten(0, 1), (PAD_PX,) * 4, mode="replicate")
    down = torch.randint(0, 2 * PAD_PX + 1, (len(padded), 1)) + torch.arange(height)
    right = torch.randint(0, 2 * PAD_PX + 1, (len(padded), 1)) + torch.arange(width)
    item = torch.arange(len(padded))[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[item, down[:, :, None], right[:, None, :]]
    return moved.permute(0, 3, 1, 2).unflatten(0, (batch, cameras))


def _joined(one: PeerBatch, other: PeerBatch) -> PeerBatch:
    names = PeerBatch.__dataclass_fields__
    return PeerBatch(**{name: torch.cat([getattr(one, name), getattr(other, name)]) for name in names})
