"""The reward classifier's network: one small backbone over all cameras and an ensemble of heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steadyhand_models.nets.pictures import pictures

DEFAULT_HEADS = 3
_CHANNELS = (16, 32, 32, 32)  # one stride-2 convolution each; wider ones cost time and gained nothing on the lift task
_FEATURES = 96
_HIDDEN = 32


class Classifier(nn.Module):
    """Probability of success per head from prepared frames.

    Casting, scaling and the calibration temperature are inside, so that the exported graph needs nothing beside it.
    The cameras' pictures enter as channels of one: a convolution each would cost half as much time again.
    """

    temperature: Tensor

    def __init__(
        self, frames_shape: tuple[int, int, int, int], heads: int = DEFAULT_HEADS, light_invariant: bool = True
    ) -> None:
        """frames_shape is the contract's (cameras, height, width, 3). Not `light_invariant`, it looks at levels as they
        are."""
        super().__init__()
        self._light_invariant = light_invariant
        cameras, height, width, colours = frames_shape
        layers: list[nn.Module] = []
        inputs = cameras * colours
        for outputs in _CHANNELS:
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
            height, width, inputs = (height + 1) // 2, (width + 1) // 2, outputs
        self.backbone = nn.Sequential(*layers, nn.Flatten())
        self.fuse = nn.Sequential(nn.Linear(inputs * height * width, _FEATURES), nn.LayerNorm(_FEATURES))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(_FEATURES, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1)) for _ in range(heads)
        )
        self.register_buffer("temperature", torch.ones(1))

    def features(self, frames: Tensor) -> Tensor:
        """What the heads see (B, FEATURES), not negative, of frames (B, cameras, H, W, 3) uint8."""
        seen = pictures(frames, self._light_invariant).flatten(1, 2)
        return torch.relu(self.fuse(self.backbone(seen)))

    def logits(self, frames: Tensor) -> Tensor:
        """Uncalibrated log-odds (B, heads) of frames (B, cameras, H, W, 3) uint8."""
        features = self.features(frames)
        return torch.cat([head(features) for head in self.heads], dim=1)

    def forward(self, frames: Tensor) -> Tensor:
        """Calibrated probabilities (B, heads) of frames (B, cameras, H, W, 3) uint8."""
        return torch.sigmoid(self.logits(frames) / self.temperature)


def build(frames_shape: tuple[int, int, int, int], heads: int, seed: int, light_invariant: bool = True) -> Classifier:
    """A fresh network whose weights depend on the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(frames_shape, heads, light_invariant)
