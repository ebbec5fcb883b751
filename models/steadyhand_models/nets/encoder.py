"""The image encoder: prepared uint8 frames of every camera to one feature vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# (channels, kernel, stride, padding) of each layer; 64 px shrink to 8 px. A first layer of disjoint patches costs half
# of what overlapping ones do and clones demonstrations of the lift as well.
LAYERS = ((32, 4, 4, 0), (32, 3, 2, 1), (32, 3, 1, 1))


class CameraEncoder(nn.Module):
    """One camera: floats (B, 3, H, W) to features (B, F) in [-1, 1] that keep where things are in the picture."""

    def __init__(self, height_px: int, width_px: int, features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for channels, kernel, stride, padding in LAYERS:
            layers += [nn.Conv2d(inputs, channels, kernel, stride, padding), nn.ReLU()]
            inputs = channels
        self.convolve = nn.Sequential(*layers)
        with torch.no_grad():
            cells = self.convolve(torch.zeros(1, 3, height_px, width_px)).numel()
        self.project = nn.Linear(cells, features)
        self.norm = nn.LayerNorm(features)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.project(self.convolve(pixels).flatten(1))))


class Encoder(nn.Module):
    """Frames (B, C, H, W, 3) uint8 to features (B, C * F) in [-1, 1]; casting and scaling are part of the graph."""

    def __init__(self, frames_shape: tuple[int, int, int, int], features_per_camera: int) -> None:
        super().__init__()
        cameras, height_px, width_px, _ = frames_shape
        self.features = cameras * features_per_camera
        self.cameras = nn.ModuleList(CameraEncoder(height_px, width_px, features_per_camera) for _ in range(cameras))

    def forward(self, frames: Tensor) -> Tensor:
        pixels = frames.to(torch.float32).permute(0, 1, 4, 2, 3) / 255.0 - 0.5
        return torch.cat([camera(pixels[:, i]) for i, camera in enumerate(self.cameras)], dim=-1)
