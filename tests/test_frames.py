"""Frame preparation crops and averages exactly as the contract says."""

import numpy as np
import pytest

from steadyhand_models.contract import Camera
from steadyhand_models.frames import prepare


def camera(crop: tuple[int, int, int, int], size: tuple[int, int]) -> Camera:
    return Camera("front", native_px=(12, 8), crop_px=crop, size_px=size)


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def test_a_crop_of_the_same_size_is_the_picture_itself():
    out = prepare(picture(), camera((2, 1, 6, 4), (6, 4)))
    np.testing.assert_array_equal(out, picture()[1:5, 2:8])


def test_every_pixel_is_the_rounded_mean_of_its_block():
    out = prepare(picture(), camera((0, 0, 12, 8), (4, 2)))
    blocks = picture().reshape(2, 4, 4, 3, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(out, np.floor(blocks + 0.5).astype(np.uint8))


@pytest.mark.parametrize("bad", [np.zeros((8, 12, 4), np.uint8), np.zeros((12, 8, 3), np.uint8), np.zeros((8, 12, 3))])
def test_a_picture_that_breaks_the_contract_is_refused(bad):
    with pytest.raises(ValueError, match="camera front: expected uint8"):
        prepare(bad, camera((0, 0, 12, 8), (4, 2)))
