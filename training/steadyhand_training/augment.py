"""Augmentation: random shifts of prepared frames, on arrays and on tensors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

U8 = npt.NDArray[np.uint8]


def shift(frames: U8, offset_px: npt.NDArray[np.int64]) -> U8:
    """Frames (B, C, H, W, 3), each camera's picture moved by offset_px (B, C, 2) rows and columns; edges repeat."""
    _, _, height, width, _ = frames.shape
    down = np.clip(np.arange(height) - offset_px[..., :1], 0, height - 1)
    right = np.clip(np.arange(width) - offset_px[..., 1:], 0, width - 1)
    item = np.arange(frames.shape[0])[:, None, None, None]
    camera = np.arange(frames.shape[1])[:, None, None]
    return frames[item, camera, down[..., None], right[..., None, :]]


def random_shift(frames: U8, most_px: int, rng: np.random.Generator) -> U8:
    """Every picture moved by up to `most_px` pixels each way, as in DrQ."""
    return shift(frames, rng.integers(-most_px, most_px + 1, (*frames.shape[:2], 2)))


def steady_offsets(rows: npt.NDArray[np.int64], copies: int, cameras: int, most_px: int) -> npt.NDArray[np.int64]:
    """Offsets (len(rows), copies, cameras, 2) of the shifted copies of each row, always the same for a row.

    A cache of encoded copies that is built again after a restart is thereby equal to the one before.
    """
    span = copies * cameras * 2
    with np.errstate(over="ignore"):
        word = rows.astype(np.uint64)[:, None] * np.uint64(span) + np.arange(1, span + 1, dtype=np.uint64)
        # The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
        word *= np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
    drawn = (word % np.uint64(2 * most_px + 1)).astype(np.int64) - most_px
    return drawn.reshape(len(rows), copies, cameras, 2)


def shift_pictures(frames: Tensor, offset_px: Tensor) -> Tensor:
    """What `shift` does, on tensors: frames (B, C, H, W, 3) uint8 moved by offset_px (B, C, 2) on their device."""
    batch, cameras, height, width, colours = frames.shape
    down = (torch.arange(height, device=frames.device) - offset_px[..., :1]).clamp(0, height - 1)
    right = (torch.arange(width, device=frames.device) - offset_px[..., 1:]).clamp(0, width - 1)
    # Whole rows first: one index then moves a row of pixels instead of one.
    picture = torch.arange(batch * cameras, device=frames.device)[:, None] * height
    rows = frames.reshape(-1, width, colours)[(picture + down.flatten(0, 1)).flatten()]
    place = right.flatten(0, 1).repeat_interleave(height, 0)[..., None].expand(-1, -1, colours)
    return rows.gather(1, place).view(frames.shape)
