"""The networks of DrQ-v2 (Yarats et al. 2021, arXiv 2107.09645): a convolutional encoder, and trunks that read it.

Beside the paper: a camera each has its own convolutions, the arm's state joins behind the trunk, and critics have
LayerNorm (RLPD), which keeps them from overrating actions that nobody has tried.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from steadyhand_models.nets.actor_critic import Critics
from steadyhand_models.nets.encoder import OVERLAPPING, convolutions
from steadyhand_models.nets.pictures import pictures


class PixelEncoder(nn.Module):
    """Frames (B, C, H, W, 3) uint8 to the flattened maps of all cameras (B, `features`)."""

    def __init__(self, frames_shape: tuple[int, int, int, int], light_invariant: bool = True) -> None:
        super().__init__()
        self._light_invariant = light_invariant
        cameras, height_px, width_px, _ = frames_shape
        self.cameras = nn.ModuleList(convolutions(OVERLAPPING) for _ in range(cameras))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # DrQ's: orthogonal, scaled for ReLU.
                nn.init.orthogonal_(module.weight, math.sqrt(2.0))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.features = cameras * self.cameras[0](torch.zeros(1, 3, height_px, width_px)).numel()

    def forward(self, frames: Tensor) -> Tensor:
        pixels = pictures(frames, self._light_invariant)
        return torch.cat([camera(pixels[:, i]).flatten(1) for i, camera in enumerate(self.cameras)], dim=-1)


class Trunk(nn.Module):
    """Observation (B, features + S) to (B, `outputs`): the maps through a narrow layer, then the state beside it."""

    def __init__(self, features: int, state: int, narrow: int) -> None:
        super().__init__()
        self.features = features
        self.outputs = narrow + state
        self.layers = nn.Sequential(nn.Linear(features, narrow), nn.LayerNorm(narrow), nn.Tanh())

    def forward(self, observation: Tensor) -> Tensor:
        return torch.cat([self.layers(observation[:, : self.features]), observation[:, self.features :]], dim=-1)


class ScheduledActor(nn.Module):
    """A deterministic actor with Gaussian noise, whose spread a schedule sets: `log_std` is part of the graph."""

    log_std: Tensor

    def __init__(self, trunk: Trunk, actions: int, hidden: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.layers = nn.Sequential(
            nn.Linear(trunk.outputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, actions),
        )
        self.register_buffer("log_std", torch.zeros(actions))

    def forward(self, observation: Tensor) -> Tensor:
        """The deterministic action (B, A) in [-1, 1]."""
        return torch.tanh(self.layers(self.trunk(observation)))

    def act(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions (B, A) in [-1, 1] for noise (B, A); zeros give the deterministic ones."""
        return (self(observation) + self.log_std.exp() * noise).clamp(-1.0, 1.0)


class PixelCritics(nn.Module):
    """Two critics behind one trunk: observation (B, features + S) and action (B, A) to values (2, B)."""

    def __init__(self, trunk: Trunk, actions: int, hidden: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = Critics(2, trunk.outputs, actions, hidden)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        values: Tensor = self.heads(self.trunk(observation), action)
        return values
