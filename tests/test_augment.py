"""Augmentation: shifts of pictures, drawn or steady, on arrays and on tensors."""

import numpy as np
import torch

from steadyhand_training.augment import random_shift, shift, shift_pictures, steady_offsets


def test_a_shift_moves_each_picture_by_its_own_offset_and_repeats_the_edge() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3), np.uint8)
    offsets = np.zeros((2, 2, 2), np.int64)
    offsets[1, 0] = (2, -3)
    moved = shift(frames, offsets)
    assert np.array_equal(moved[0], frames[0])
    assert np.array_equal(moved[1, 1], frames[1, 1])
    assert np.array_equal(moved[1, 0, 2:, :5], frames[1, 0, :6, 3:])
    assert np.array_equal(moved[1, 0, 0], moved[1, 0, 2])


def test_random_shifts_follow_their_generator() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 2, 16, 16, 3), np.uint8)
    one, two = (random_shift(frames, 4, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, frames)


def test_the_shifted_copies_of_a_row_are_the_same_whenever_they_are_made() -> None:
    rows = np.arange(2000)
    together = steady_offsets(rows, 3, 2, 4)
    assert np.array_equal(together[70:80], steady_offsets(rows[70:80], 3, 2, 4))
    assert together.min() == -4 and together.max() == 4
    assert abs(together.mean()) < 0.1
    assert together.shape == (2000, 3, 2, 2)


def test_a_shift_on_tensors_is_the_one_on_arrays() -> None:
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (5, 2, 12, 20, 3), np.uint8)
    offsets = random.integers(-4, 5, (5, 2, 2))
    moved = shift_pictures(torch.from_numpy(frames), torch.from_numpy(offsets))
    assert np.array_equal(moved.numpy(), shift(frames, offsets))
