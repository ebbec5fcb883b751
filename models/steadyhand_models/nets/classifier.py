"""The reward classifier's network: one small backbone over all cameras and an ensemble of heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DEFAULT_HEADS = 3
_CHANNELS = (16, 32, 32, 32)  # one stride-2 convolution each; wider ones cost time and gained nothing on the lift task
_FEATURES = 96
_HIDDEN = 32
# Levels added before the logarithm: nearer to black, rounding and noise are all there is to a colour.
_BLACK_LEVELS = 8.0
_NEIGHBOURHOOD_PX = 8
_FLAT = 1e-4  # variance of a channel below which it holds nothing to look at


def without_lamp(pictures: Tensor) -> Tensor:
    """Pictures (B, cameras, 3, H, W) of levels 0..255 without the light that fell on them: (B, 3 * cameras, H, W).

    A lamp multiplies what it falls on, so in logarithms it adds. Differences of colours lose its strength with every
    shading and shadow (Finlayson and Hordley 2001), lightness keeps what it differs by from its neighbourhood (Land and
    McCann 1971), and the lamp's own colour is a constant that goes with each channel's mean.
    """
    height, width = pictures.shape[-2:]
    red, green, blue = torch.log(pictures + _BLACK_LEVELS).unbind(2)
    lightness = (red + green + blue) / 3.0
    around = nn.functional.avg_pool2d(lightness, _NEIGHBOURHOOD_PX, ceil_mode=True, count_include_pad=False)
    around = nn.functional.interpolate(around, size=(height, width), mode="bilinear", align_corners=False)
    seen = torch.cat([red - green, blue - green, lightness - around], dim=1)
    # By hand: the exporter does not know how many channels torch's own normalisation would get.
    centred = seen - seen.mean((2, 3), keepdim=True)
    return centred * torch.rsqrt(centred.square().mean((2, 3), keepdim=True) + _FLAT)


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
        # Contiguous before anything else: in the order of the bytes a logarithm takes ten times as long.
        pictures = frames.permute(0, 1, 4, 2, 3).contiguous().to(torch.float32)
        seen = without_lamp(pictures) if self._light_invariant else pictures.flatten(1, 2) * (1.0 / 127.5) - 1.0
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
