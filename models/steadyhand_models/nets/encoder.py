"""The image encoder: prepared uint8 frames of every camera to one feature vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steadyhand_models.nets.pictures import pictures

Layers = tuple[tuple[int, int, int, int], ...]

# (channels, kernel, stride, padding) of each layer; 64 px shrink to 8 px. A first layer of disjoint patches costs half
# of what overlapping ones do and clones demonstrations of the lift as well.
LAYERS: Layers = ((32, 4, 4, 0), (32, 3, 2, 1), (32, 3, 1, 1))
# DrQ-v2's 3x3 kernels with overlap everywhere, as a picture shifted by a pixel must not look like another; four strides
# instead of its one, which learn at several times the rate.
OVERLAPPING: Layers = ((32, 3, 2, 1), (32, 3, 2, 1), (32, 3, 2, 1), (32, 3, 2, 1))


def convolutions(layers: Layers) -> nn.Sequential:
    """A stack of convolutions with ReLU behind each, for pictures of three colours."""
    stack: list[nn.Module] = []
    inputs = 3
    for channels, kernel, stride, padding in layers:
        stack += [nn.Conv2d(inputs, channels, kernel, stride, padding), nn.ReLU()]
        inputs = channels
    return nn.Sequential(*stack)


class CameraEncoder(nn.Module):
    """One camera: floats (B, 3, H, W) to features (B, F) in [-1, 1] that keep where things are in the picture."""

    def __init__(self, height_px: int, width_px: int, features: int, layers: Layers) -> None:
        super().__init__()
        self.convolve = convolutions(layers)
        with torch.no_grad():
            cells = self.convolve(torch.zeros(1, 3, height_px, width_px)).numel()
        self.project = nn.Linear(cells, features)
        self.norm = nn.LayerNorm(features)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.project(self.convolve(pixels).flatten(1))))


class Encoder(nn.Module):
    """Frames (B, C, H, W, 3) uint8 to features (B, C * F) in [-1, 1]; casting and scaling are part of the graph."""

    def __init__(
        self,
        frames_shape: tuple[int, int, int, int],
        features_per_camera: int,
        layers: Layers = LAYERS,
        light_invariant: bool = True,
    ) -> None:
        """frames_shape is the contract's (cameras, height, width, 3). Not `light_invariant`, it looks at levels as they
        are."""
        super().__init__()
        self._light_invariant = light_invariant
        cameras, height_px, width_px, _ = frames_shape
        self.features = cameras * features_per_camera
        self.cameras = nn.ModuleList(
            CameraEncoder(height_px, width_px, features_per_camera, layers) for _ in range(cameras)
        )

    def forward(self, frames: Tensor) -> Tensor:
        pixels = pictures(frames, self._light_invariant)
        return torch.cat([camera(pixels[:, i]) for i, camera in enumerate(self.cameras)], dim=-1)
