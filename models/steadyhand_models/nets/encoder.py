"""The image encoder: prepared uint8 frames of every camera to one feature vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Channels of the three strided layers; 64 px shrink to 8 px. Wider ones cost time and gained nothing on the lift task.
CHANNELS = (16, 32, 32)
KERNELS = (5, 3, 3)
STRIDE = 2


class CameraEncoder(nn.Module):
    """One camera: floats (B, 3, H, W) to features (B, F) in [-1, 1] that keep where things are in the picture."""

    def __init__(self, height_px: int, width_px: int, features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for channels, kernel in zip(CHANNELS, KERNELS):
            layers += [nn.Conv2d(inputs, channels, kernel, STRIDE, kernel // 2), nn.ReLU()]
            inputs = channels
        self.convolve = nn.Sequential(*layers)
        shrink = STRIDE ** len(CHANNELS)
        cells = -(-height_px // shrink) * -(-width_px // shrink)
        self.project = nn.Linear(cells * inputs, features)
        self.norm = nn.LayerNorm(features)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.project(self.convolve(pixels).flatten(1))))


class Encoder(nn.Module):
    """Frames (B, C, H, W, 3) uint8 to features (B, C * F) in [-1, 1]; casting and scaling are part of the graph."""

    def __init__(self, frames_shape: tuple[int, int, int, int], features_per_camera: int) -> None:
        super().__init__()
        cameras, height_px, width_px, _ = frames_shape
        self.features = cameras * features_per_camera
        self.cameras = nn.ModuleList(
            CameraEncoder(height_px, width_px, features_per_camera) for _ in range(cameras)
        )

    def forward(self, frames: Tensor) -> Tensor:
        pixels = frames.to(torch.float32).permute(0, 1, 4, 2, 3) / 255.0 - 0.5
        return torch.cat([camera(pixels[:, i]) for i, camera in enumerate(self.cameras)], dim=-1)
