"""Frame preparation: the one function that turns a native picture into what models see."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from steadyhand_models.contract import Camera

U8 = npt.NDArray[np.uint8]


def prepare(native: U8, camera: Camera) -> U8:
    """Crop and box-average a native RGB picture (H, W, 3) uint8 to the contract's size (h, w, 3) uint8.

    The crop is a whole multiple of the size, so every output pixel is the rounded mean of the same block on every
    machine. Raises ValueError when the picture is not what the contract says.
    """
    native_width, native_height = camera.native_px
    if native.shape != (native_height, native_width, 3) or native.dtype != np.uint8:
        want = (native_height, native_width, 3)
        raise ValueError(f"camera {camera.name}: expected uint8 {want}, got {native.dtype} {native.shape}")
    x, y, crop_width, crop_height = camera.crop_px
    width, height = camera.size_px
    cut = native[y : y + crop_height, x : x + crop_width]
    rows, columns = crop_height // height, crop_width // width
    if rows == columns == 1:
        return np.ascontiguousarray(cut)
    # Strided sums beat a reshape-and-mean here: no float copy of the native picture.
    total = np.zeros((height, width, 3), np.uint32)
    for i in range(rows):
        for j in range(columns):
            total += cut[i::rows, j::columns]
    return ((total + rows * columns // 2) // (rows * columns)).astype(np.uint8)
