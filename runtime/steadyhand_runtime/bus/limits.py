"""The live torque limits (register 48) as they were written, and what it means when a servo has another one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from steadyhand_runtime.bus.kernels import FULL_TORQUE

F64 = npt.NDArray[np.float64]


class TorqueLimits:
    """Limits in counts of 0.1 %, by joint. After power-up a servo has its EPROM's (register 16).

    What is written stays a count below that, so that a servo which lost its power shows.
    """

    def __init__(self, joints: int) -> None:
        self.power_up = [FULL_TORQUE] * joints
        self._written: list[int] | None = None
        self._lost: set[int] = set()

    def write(self, share: F64) -> list[bytes]:
        """Set limits (J,) as shares in 0..1; the registers' bytes."""
        counts = np.rint(np.clip(share, 0.0, 1.0) * FULL_TORQUE).astype(int).tolist()
        self._written = [min(c, max(p - 1, 0)) for c, p in zip(counts, self.power_up)]
        return [self.bytes_of(j) or b"" for j in range(len(counts))]

    def bytes_of(self, joint: int) -> bytes | None:
        """What the register should hold; None before anything was written."""
        return None if self._written is None else self._written[joint].to_bytes(2, "little")

    def check(self, found: Sequence[int], valid: Sequence[float]) -> list[int]:
        """Joints whose limit must be written again, given what the registers hold where `valid` is not 0."""
        if self._written is None:
            return []
        wrong = [j for j, written in enumerate(self._written) if valid[j] and found[j] != written]
        self._lost.update(j for j in wrong if found[j] == self.power_up[j])
        return wrong

    def lost_power(self, joint: int) -> bool:
        return joint in self._lost

    def take_losses(self) -> list[int]:
        """Joints found with their power-up limit since the last call."""
        lost, self._lost = sorted(self._lost), set()
        return lost
