"""Observation: newest joint state and frames, their ages checked, as the arrays that the contract describes; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steadyhand_models.contract import Contract
from steadyhand_models.messages import BusState, Frame
from steadyhand_models.topics import TOPICS
from steadyhand_runtime.clock import NS_PER_S
from steadyhand_runtime.kinematics import tip_pose

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Observation:
    """What one tick sees: frames (C, H, W, 3) uint8, state (S,) float32 in raw units, joints (6,) rad, tip (3,) m."""

    stamp_ns: int
    frames: npt.NDArray[np.uint8]
    state: npt.NDArray[np.float32]
    joints_rad: F64
    tip_m: F64
    frame_age_s: float
    state_age_s: float


@dataclass(frozen=True, slots=True)
class Blind:
    """Why this tick saw nothing that may be acted on."""

    reason: str


class Observer:
    """Builds observations of one contract. Streams older than their topic's limit are not used."""

    def __init__(self, contract: Contract) -> None:
        self._cameras = [c.name for c in contract.cameras]
        self._shape = contract.frames_shape
        self._bus_stale_s = TOPICS["bus.state"].stale_after_s
        self._frame_stale_s = TOPICS["camera.frame"].stale_after_s

    def see(
        self, now_ns: int, bus: BusState | None, frames: Mapping[str, Frame], target_m: F64 | None
    ) -> Observation | Blind:
        """The observation at now_ns; target_m (3,) is where the tip has been sent, None outside an episode."""
        if bus is None:
            return Blind("no_bus")
        state_age_s = (now_ns - bus.stamp_ns) / NS_PER_S + float(bus.age_s.max())
        if state_age_s > self._bus_stale_s:
            return Blind("stale_bus")
        pixels, oldest_ns = [], now_ns
        for name in self._cameras:
            frame = frames.get(name)
            if frame is None:
                return Blind(f"no_camera_{name}")
            if (now_ns - frame.stamp_ns) / NS_PER_S > self._frame_stale_s:
                return Blind(f"stale_camera_{name}")
            if frame.pixels.shape != self._shape[1:]:
                return Blind(f"wrong_size_camera_{name}")
            pixels.append(frame.pixels)
            oldest_ns = min(oldest_ns, frame.stamp_ns)
        tip_m = tip_pose(bus.position_rad).xyz_m
        ahead_m = np.zeros(3) if target_m is None else target_m - tip_m
        state = np.concatenate([bus.position_rad, bus.velocity_rad_s, tip_m, ahead_m]).astype(np.float32)
        if not np.isfinite(state).all():
            return Blind("state_not_finite")
        return Observation(
            stamp_ns=now_ns,
            frames=np.stack(pixels),
            state=state,
            joints_rad=np.array(bus.position_rad),
            tip_m=tip_m,
            frame_age_s=(now_ns - oldest_ns) / NS_PER_S,
            state_age_s=state_age_s,
        )
