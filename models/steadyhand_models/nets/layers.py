"""Layers that several networks begin with."""

from __future__ import annotations

from torch import nn


def trunk(inputs: int, hidden: int) -> nn.Sequential:
    """(B, I) to (B, H): two normalised layers, as RLPD's."""
    layers = [nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.ReLU())
