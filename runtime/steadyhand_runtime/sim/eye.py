"""Rendering: draws the scene's cameras offscreen, with no display and no graphics card."""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import sys
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from steadyhand_runtime.sim.light import Light
from steadyhand_runtime.sim.scene import CAMERA_NAMES, SHADOW_PANES, SceneSettings, SimError, scene_xml

U8 = npt.NDArray[np.uint8]

_GL_ADVICE = "install one with: apt-get install libegl1 libgl1-mesa-dri (or: apt-get install libosmesa6)"
_GL_LIBRARIES = {"egl": ("libEGL.so.1",), "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")}
_MAX_GEOMS = 100
SHADOW_EDGE_M = 0.012  # width of the soft edge


def import_mujoco() -> Any:
    """MuJoCo. Raises SimError, saying how to install it, when it is missing."""
    try:
        import mujoco
    except ImportError as error:
        raise SimError(f"mujoco cannot be imported ({error}): pip install 'steadyhand[sim]'") from None
    return mujoco


def gl_name() -> str:
    """The offscreen GL to use: what MUJOCO_GL asks for, else EGL, else OSMesa; "native" where the system has its own.

    Raises SimError, saying what to install, when there is none.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    if not sys.platform.startswith("linux"):
        return "native"
    if asked in _GL_LIBRARIES:
        return asked
    if asked in ("disable", "disabled", "off", "false", "0"):
        raise SimError(f"rendering is switched off by MUJOCO_GL={asked}: unset it, and if no GL is found, {_GL_ADVICE}")
    for name, files in _GL_LIBRARIES.items():
        if any(_loads(file) for file in files):
            return name
    raise SimError(f"no offscreen GL library found: {_GL_ADVICE}")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _gl_context(width_px: int, height_px: int) -> Any:
    """A current GL context. Its kind is chosen here and not by MuJoCo's import, which would want a display."""
    name = gl_name()
    try:
        if name == "egl":
            from mujoco.egl import GLContext
        elif name == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco import GLContext
        context = GLContext(width_px, height_px)
        context.make_current()
    except Exception as error:  # each GL binding raises kinds of its own
        raise SimError(f"the GL library {name} does not work here ({error}): {_GL_ADVICE}") from None
    return context


class Eye:
    """Draws the cameras. Has a model and data of its own, so that it may live in another thread than the physics.

    A GL context belongs to the thread that made it: make, use and close an Eye in one thread.
    """

    def __init__(self, settings: SceneSettings) -> None:
        """Raises SimError, saying what to install, when no GL works."""
        self._mujoco = mujoco = import_mujoco()
        self._model = mujoco.MjModel.from_xml_string(scene_xml(settings))
        self._data = mujoco.MjData(self._model)
        width, height = settings.image_px
        self._gl: Any = _gl_context(width, height)
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._pixels: U8 = np.empty((height, width, 3), np.uint8)
        self._scene = mujoco.MjvScene(self._model, maxgeom=_MAX_GEOMS)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._option, self._nothing = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._cameras = {name: self._fixed_camera(name) for name in CAMERA_NAMES}
        self._exposure: U8 | None = None
        self._light: Light | None = None
        self.set_light(settings.light)
        _close_at_exit(self)

    def _fixed_camera(self, name: str) -> Any:
        camera = self._mujoco.MjvCamera()
        camera.type = self._mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = self._model.camera(name).id
        return camera

    def set_light(self, light: Light) -> None:
        """Lamp, shadow and exposure from the next picture on."""
        if light == self._light:
            return
        self._light = light
        lamp, aim = self._model.light("lamp"), np.subtract((0.2, 0.0, 0.0), light.position_m)
        lamp.pos[:] = light.position_m
        lamp.dir[:] = aim / np.linalg.norm(aim)
        lamp.diffuse[:] = np.multiply(light.colour, light.intensity)
        self._model.vis.headlight.ambient[:] = np.multiply(light.colour, light.ambient)
        # Upper and lower faces of both panes together let 1 - shadow_darkness through.
        pane_darkness = 1.0 - (1.0 - light.shadow_darkness) ** (1 / 4)
        for name, wider_m in zip(SHADOW_PANES, (SHADOW_EDGE_M, 0.0)):
            pane = self._model.geom(name)
            pane.pos[:2] = light.shadow_centre_m
            pane.size[:2] = np.multiply(light.shadow_size_m, 0.5) + wider_m
            pane.quat[:] = (math.cos(light.shadow_yaw_rad / 2), 0.0, 0.0, math.sin(light.shadow_yaw_rad / 2))
            pane.rgba[3] = pane_darkness
        self._exposure = _exposure(light.gain, light.gamma)

    def render(self, camera_name: str, qpos: npt.NDArray[np.float64]) -> U8:
        """Picture (H, W, 3) of one camera, with MuJoCo's positions qpos (13,): six joints, then the cube's pose."""
        if camera_name not in self._cameras:
            raise SimError(f"no camera {camera_name!r}: choose one of {', '.join(CAMERA_NAMES)}")
        if self._gl is None:
            raise SimError("this Eye is closed")
        mujoco, model, data = self._mujoco, self._model, self._data
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        camera = self._cameras[camera_name]
        mujoco.mjv_updateScene(model, data, self._option, self._nothing, camera, everything, self._scene)
        self._gl.make_current()
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rect, self._context)
        # GL counts rows from the bottom.
        picture = self._pixels[::-1]
        return np.ascontiguousarray(picture) if self._exposure is None else self._exposure[picture]

    def close(self) -> None:
        """Free the GL context; harmless when repeated."""
        gl, self._gl = self._gl, None
        if gl is not None:
            gl.make_current()
            self._context.free()
            gl.free()


def _exposure(gain: float, gamma: float) -> U8 | None:
    """What becomes of each picture value (256,), None where it stays."""
    if gain == 1.0 and gamma == 1.0:
        return None
    value = np.minimum(gain * np.arange(256) / 255.0, 1.0) ** gamma
    return np.round(255.0 * value).astype(np.uint8)


_open_eyes: weakref.WeakSet[Eye] = weakref.WeakSet()


def _close_at_exit(eye: Eye) -> None:
    # EGL registers its end with the first context; what is registered later runs before it, in time to free them.
    if not _open_eyes:
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _open_eyes.add(eye)


def _close_all() -> None:
    for eye in list(_open_eyes):
        eye.close()
