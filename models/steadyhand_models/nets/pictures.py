"""Prepared uint8 frames as the floats that the networks look at: with or without the light that fell on them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Levels added before the logarithm: nearer to black, rounding and noise are all there is to a colour.
_BLACK_LEVELS = 8.0
_NEIGHBOURHOOD_PX = 8
_FLAT = 1e-4  # variance of a channel below which it holds nothing to look at


def pictures(frames: Tensor, light_invariant: bool) -> Tensor:
    """Frames (B, C, H, W, 3) uint8 as floats (B, C, 3, H, W): levels in [-1, 1], or what `without_lamp` leaves."""
    # Contiguous before anything else: in the order of the bytes a logarithm takes ten times as long.
    levels = frames.permute(0, 1, 4, 2, 3).contiguous().to(torch.float32)
    if not light_invariant:
        return levels * (1.0 / 127.5) - 1.0
    return without_lamp(levels.flatten(0, 1)).unflatten(0, levels.shape[:2])


def without_lamp(levels: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) of levels 0..255 without the light that fell on them, the same shape.

    A lamp multiplies what it falls on, so in logarithms it adds. Differences of colours lose its strength with every
    shading and shadow (Finlayson and Hordley 2001), lightness keeps what it differs by from its neighbourhood (Land and
    McCann 1971), and the lamp's own colour is a constant that goes with each channel's mean.
    """
    size = levels.shape[-2:]
    red, green, blue = torch.log(levels + _BLACK_LEVELS).unbind(1)
    lightness = (red + green + blue) / 3.0
    around = F.avg_pool2d(lightness[:, None], _NEIGHBOURHOOD_PX, ceil_mode=True, count_include_pad=False)
    around = F.interpolate(around, size=size, mode="bilinear", align_corners=False)[:, 0]
    return F.layer_norm(torch.stack([red - green, blue - green, lightness - around], dim=1), size, eps=_FLAT)
