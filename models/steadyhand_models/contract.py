"""The contract: the exact meaning of observation and action, and its hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Joint:
    """One joint: its range in rad about mid-travel; `sign` maps servo direction to the joint's."""

    name: str
    lo_rad: float
    hi_rad: float
    sign: int = 1


@dataclass(frozen=True)
class Camera:
    """One camera: what is cut from its native picture and the size that models see."""

    name: str
    native_px: tuple[int, int]
    crop_px: tuple[int, int, int, int]
    size_px: tuple[int, int]
    colour: str = "rgb"
    dtype: str = "uint8"


@dataclass(frozen=True)
class StateField:
    """One entry of the state vector; models see (value - offset) / scale."""

    name: str
    unit: str
    offset: float
    scale: float


@dataclass(frozen=True)
class ActionField:
    """One entry of the action vector: [-1, 1] maps linearly to [lo, hi] of `unit` in `frame`."""

    name: str
    frame: str
    unit: str
    lo: float
    hi: float


@dataclass(frozen=True)
class Contract:
    """What robot, trainer and every artifact must agree on. Frozen; equal hashes mean equal behaviour."""

    robot: str
    rate_hz: float
    joints: tuple[Joint, ...]
    cameras: tuple[Camera, ...]
    state: tuple[StateField, ...]
    action: tuple[ActionField, ...]
    pitch_rule: str
    frame_stack: int = 1

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 over the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def frames_shape(self) -> tuple[int, int, int, int]:
        """(cameras, height, width, 3) of one observation's prepared frames."""
        width, height = self.cameras[0].size_px
        return len(self.cameras), height, width, 3

    @cached_property
    def state_offset(self) -> npt.NDArray[np.float32]:
        return np.array([f.offset for f in self.state], np.float32)

    @cached_property
    def state_scale(self) -> npt.NDArray[np.float32]:
        return np.array([f.scale for f in self.state], np.float32)

    def problems(self) -> list[str]:
        """Everything that makes this contract unusable, in words; empty when it is sound."""
        found = [f"joint {j.name}: empty range [{j.lo_rad}, {j.hi_rad}]" for j in self.joints if j.lo_rad >= j.hi_rad]
        found += [f"state {f.name}: scale {f.scale} must be positive" for f in self.state if not f.scale > 0]
        found += [f"action {f.name}: empty range [{f.lo}, {f.hi}]" for f in self.action if f.lo >= f.hi]
        if len({c.size_px for c in self.cameras}) > 1:
            found.append("cameras: all prepared sizes must be equal")
        for camera in self.cameras:
            found += _camera_problems(camera)
        return found


def from_json(text: str) -> Contract:
    """Rebuild a contract from `to_json`. Raises ValueError when fields are missing or unknown."""
    try:
        data = json.loads(text)
        return Contract(
            joints=tuple(Joint(**j) for j in data.pop("joints")),
            cameras=tuple(_camera(c) for c in data.pop("cameras")),
            state=tuple(StateField(**f) for f in data.pop("state")),
            action=tuple(ActionField(**f) for f in data.pop("action")),
            **data,
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a contract: {error}") from None


def _camera(data: dict[str, Any]) -> Camera:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Camera(**fields)


def difference(ours: Contract, theirs: Contract) -> list[str]:
    """Field-by-field difference, one line each: `path: ours -> theirs`."""
    lines: list[str] = []
    _compare("", dataclasses.asdict(ours), dataclasses.asdict(theirs), lines)
    return lines


def _compare(path: str, ours: Any, theirs: Any, lines: list[str]) -> None:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            _compare(f"{path}.{key}" if path else key, ours.get(key), theirs.get(key), lines)
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and any(map(_is_container, ours)):
        for i in range(max(len(ours), len(theirs))):
            mine = ours[i] if i < len(ours) else None
            other = theirs[i] if i < len(theirs) else None
            _compare(f"{path}[{i}]", mine, other, lines)
    elif ours != theirs:
        lines.append(f"{path}: {ours!r} -> {theirs!r}")


def _is_container(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple))


def _camera_problems(camera: Camera) -> list[str]:
    x, y, width, height = camera.crop_px
    found = []
    if x < 0 or y < 0 or x + width > camera.native_px[0] or y + height > camera.native_px[1]:
        found.append(f"camera {camera.name}: crop {camera.crop_px} leaves the native picture {camera.native_px}")
    if width % camera.size_px[0] or height % camera.size_px[1]:
        found.append(f"camera {camera.name}: crop {width}x{height} is no whole multiple of {camera.size_px}")
    return found
