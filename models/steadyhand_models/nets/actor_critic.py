"""The actor, the critic ensemble, and the policy that a robot runs: encoder, state scaling and actor in one graph."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadyhand_models.contract import Contract
from steadyhand_models.nets.encoder import Encoder
from steadyhand_models.nets.gripper import GripperCritic
from steadyhand_models.nets.layers import trunk

LOG_STD_LO, LOG_STD_HI = -5.0, 0.0
# Entropy of -1/2 per dimension, the usual target, is that of a Gaussian with exp(-1/2) / sqrt(2 pi e) = 0.147.
INITIAL_STD = 0.15
STATE_CLIP = 5.0


class Actor(nn.Module):
    """Tanh-squashed Gaussian over actions: observation (B, O) to mean and log standard deviation (B, A) before tanh."""

    def __init__(self, inputs: int, actions: int, hidden: int) -> None:
        super().__init__()
        self.trunk = trunk(inputs, hidden)
        self.mean = nn.Linear(hidden, actions)
        self.log_std = nn.Linear(hidden, actions)
        nn.init.zeros_(self.log_std.weight)
        share = (math.log(INITIAL_STD) - LOG_STD_LO) / (LOG_STD_HI - LOG_STD_LO)
        nn.init.constant_(self.log_std.bias, math.atanh(2.0 * share - 1.0))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(observation)
        squashed = torch.tanh(self.log_std(hidden))
        return self.mean(hidden), LOG_STD_LO + 0.5 * (LOG_STD_HI - LOG_STD_LO) * (squashed + 1.0)

    def act(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions (B, A) in [-1, 1] for noise (B, A); zeros give the deterministic ones."""
        mean, log_std = self(observation)
        return torch.tanh(mean + log_std.exp() * noise)

    def sample(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, A) in (-1, 1) for standard normal noise (B, A), and their log densities (B,)."""
        mean, log_std = self(observation)
        return self.squash(mean, log_std, noise)

    @staticmethod
    def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The actions (B, A) that noise (B, A) picks from tanh of a Gaussian, and their log densities (B,)."""
        raw = mean + log_std.exp() * noise
        # log N(raw) - log |d tanh / d raw|, the latter in the form that does not overflow (SAC, appendix C).
        normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        turn = 2.0 * (math.log(2.0) - raw - F.softplus(-2.0 * raw))
        return torch.tanh(raw), (normal - turn).sum(-1)


class EnsembleLinear(nn.Module):
    """E linear layers at once: (E, B, I) to (E, B, O) by one batched product."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleNorm(nn.Module):
    """LayerNorm of (E, B, H) with a gain and offset for each member."""

    def __init__(self, members: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gain = nn.Parameter(torch.ones(members, 1, hidden))
        self.offset = nn.Parameter(torch.zeros(members, 1, hidden))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.hidden,)) * self.gain + self.offset


class Critics(nn.Module):
    """E critics in one: observation (B, O) and action (B, A) to values (E, B); LayerNorm bounds extrapolation."""

    def __init__(self, members: int, inputs: int, actions: int, hidden: int) -> None:
        super().__init__()
        self.members = members
        self.layers = nn.Sequential(
            EnsembleLinear(members, inputs + actions, hidden),
            EnsembleNorm(members, hidden),
            nn.ReLU(),
            EnsembleLinear(members, hidden, hidden),
            EnsembleNorm(members, hidden),
            nn.ReLU(),
            EnsembleLinear(members, hidden, 1),
        )

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([observation, action], dim=-1)
        value: Tensor = self.layers(x.expand(self.members, *x.shape)).squeeze(-1)
        return value


class Policy(nn.Module):
    """What the robot runs: frames uint8 (B, C, H, W, 3), raw state (B, S), noise (B, A) to action (B, A) in [-1, 1].

    Noise of zero gives the deterministic action; standard normal noise samples. The encoder maps frames to features
    (B, `features`), the actor observations (B, features + S) to actions; a gripper, where there is one, chooses the
    last dimension instead of the actor. `behind` makes one that takes features instead of frames.
    """

    state_offset: Tensor
    state_scale: Tensor

    def __init__(
        self,
        contract: Contract,
        features_per_camera: int = 64,
        hidden: int = 128,
        *,
        encoder: nn.Module | None = None,
        actor: nn.Module | None = None,
        gripper: GripperCritic | None = None,
    ) -> None:
        """Raises ValueError when the contract's scales cannot normalise a state."""
        super().__init__()
        _refuse_bad_scales(contract)
        self.encoder = encoder if encoder is not None else Encoder(contract.frames_shape, features_per_camera)
        width = int(self.encoder.features)  # type: ignore[arg-type]  # nn.Module types attributes as tensors
        self.observation = width + len(contract.state)
        moves = len(contract.action) - (gripper is not None)
        self.actor = actor if actor is not None else Actor(self.observation, moves, hidden)
        self.gripper = gripper
        self.register_buffer("state_offset", torch.from_numpy(contract.state_offset))
        self.register_buffer("state_scale", torch.from_numpy(contract.state_scale))

    def behind(self, head: nn.Module | None = None) -> Policy:
        """This policy for the features of an encoder of its own, sharing all weights; `head` is what goes on from them
        to (B, `features`)."""
        made = copy.copy(self)
        # A table of its own: that of a shallow copy would be this policy's.
        made._modules = self._modules | {"encoder": head if head is not None else nn.Identity()}
        return made

    def normalise(self, state: Tensor) -> Tensor:
        """State (B, S) in the contract's units to numbers of order one; a broken sensor cannot blow them up."""
        return ((state - self.state_offset) / self.state_scale).clamp(-STATE_CLIP, STATE_CLIP)

    def observe(self, frames: Tensor, state: Tensor) -> Tensor:
        """Observations (B, features + S)."""
        return torch.cat([self.encoder(frames), self.normalise(state)], dim=-1)

    def forward(self, frames: Tensor, state: Tensor, noise: Tensor) -> Tensor:
        observation = self.observe(frames, state)
        if self.gripper is None:
            action: Tensor = self.actor.act(observation, noise)  # type: ignore[operator]
            return action
        motion = self.actor.act(observation, noise[:, :-1])  # type: ignore[operator]
        return torch.cat([motion, self.gripper.choose(observation)], dim=-1)


def _refuse_bad_scales(contract: Contract) -> None:
    for field in contract.state:
        if not (math.isfinite(field.offset) and math.isfinite(field.scale) and field.scale > 0.0):
            raise ValueError(
                f"state {field.name}: offset {field.offset}, scale {field.scale} cannot normalise it; "
                "give it a positive scale in the task"
            )
