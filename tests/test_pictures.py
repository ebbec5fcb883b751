"""What the networks look at: much the same under another lamp, and never anything that is not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from steadyhand_models.nets import classifier
from steadyhand_models.nets.drqv2 import PixelEncoder
from steadyhand_models.nets.encoder import Encoder
from steadyhand_models.nets.pictures import pictures, without_lamp

torch.set_num_threads(1)  # more threads than free cores wait for each other

SHAPE = (2, 32, 32, 3)
DIM_AND_WARM = torch.tensor([0.7, 0.5, 0.3])


def coloured(count: int = 4) -> torch.Tensor:
    """Pictures (B, 3, 32, 32) in 60..200 with patches of colour."""
    patches = torch.rand((count, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return 60 + 140 * patches.repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_a_lamp_that_dims_and_turns_warm_hardly_changes_what_is_left() -> None:
    before = without_lamp(coloured())
    after = without_lamp(coloured() * DIM_AND_WARM[:, None, None])
    other = without_lamp(coloured().flip(0))
    assert (after - before).abs().mean() < 0.1 * (other - before).abs().mean()


def test_a_shadow_across_the_picture_changes_no_colour() -> None:
    shadow = torch.ones(32, 32)
    shadow[:, 20:] = 0.5
    before, after = without_lamp(coloured()), without_lamp(coloured() * shadow)
    changed = (after - before).abs().mean((0, 2, 3))  # red - green, blue - green, lightness
    assert changed[:2].max() < 0.15 * (before - before.flip(0)).abs().mean()


def test_every_camera_is_seen_for_itself() -> None:
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8))
    for invariant in (True, False):
        both = pictures(frames, invariant)
        assert both.shape == (3, 2, 3, 32, 32)
        assert torch.equal(pictures(frames.flip(1), invariant), both.flip(1))
    assert both.min() >= -1.0 and both.max() <= 1.0


def network(kind: str, light_invariant: bool) -> nn.Module:
    torch.manual_seed(0)
    if kind == "classifier":
        return classifier.build(SHAPE, 2, 0, light_invariant)
    if kind == "drqv2":
        return PixelEncoder(SHAPE, light_invariant)
    return Encoder(SHAPE, 16, light_invariant=light_invariant)


@pytest.mark.parametrize("kind", ["classifier", "encoder", "drqv2"])
def test_a_covered_camera_gives_finite_answers(kind: str) -> None:
    dark = torch.zeros((2, *SHAPE), dtype=torch.uint8)
    for invariant in (True, False):
        assert torch.isfinite(network(kind, invariant)(dark)).all()


@pytest.mark.parametrize("kind", ["classifier", "encoder", "drqv2"])
def test_a_network_of_levels_sees_the_lamp(kind: str) -> None:
    frames = torch.stack([coloured(), coloured().flip(0)], dim=1).permute(0, 1, 3, 4, 2)
    dimmed = (frames * DIM_AND_WARM).to(torch.uint8)
    moved = {}
    for invariant in (True, False):
        net = network(kind, invariant)
        see = net.features if isinstance(net, classifier.Classifier) else net
        with torch.inference_mode():
            before, after = see(frames.to(torch.uint8)), see(dimmed)
        moved[invariant] = float((after - before).abs().mean() / before.abs().mean())
    assert moved[True] < 0.5 * moved[False]
