"""Rendering: one offscreen renderer that draws the scene's cameras for given joint and cube positions."""

from __future__ import annotations

import atexit
import ctypes.util
import os
import sys
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from steadyhand_runtime.sim.scene import CAMERA_NAMES, Lamp, SceneSettings, SimError, scene_xml

U8 = npt.NDArray[np.uint8]

_GL_ADVICE = "install one with: apt-get install libegl1 libgl1-mesa-dri (or: apt-get install libosmesa6)"


def import_mujoco() -> Any:
    """MuJoCo, with an offscreen GL chosen before its first import unless MUJOCO_GL says otherwise.

    Without any GL library physics still works and `Eye` explains what to install. Raises SimError when mujoco is missing.
    """
    if "mujoco" not in sys.modules and "MUJOCO_GL" not in os.environ and sys.platform.startswith("linux"):
        if ctypes.util.find_library("EGL"):
            os.environ["MUJOCO_GL"] = "egl"
        elif ctypes.util.find_library("OSMesa"):
            os.environ["MUJOCO_GL"] = "osmesa"
        elif "DISPLAY" not in os.environ:
            os.environ["MUJOCO_GL"] = "disable"
    try:
        import mujoco
    except ImportError as error:
        if "mujoco" in str(error) and "No module" in str(error):
            raise SimError("mujoco is not installed: pip install 'steadyhand[sim]'") from None
        raise SimError(f"mujoco cannot load its GL library ({error}): {_GL_ADVICE}") from None
    except (AttributeError, OSError, RuntimeError) as error:
        raise SimError(f"mujoco cannot load its GL library ({error}): {_GL_ADVICE}") from None
    return mujoco


class Eye:
    """Draws the cameras. Has a model and data of its own, so that it may live in another thread than the physics.

    A GL context belongs to the thread that made it: make, use and close an Eye in one thread.
    """

    def __init__(self, settings: SceneSettings) -> None:
        """Raises SimError, saying what to install, when no GL works."""
        self._mujoco = import_mujoco()
        self._model = self._mujoco.MjModel.from_xml_string(scene_xml(settings))
        self._data = self._mujoco.MjData(self._model)
        width, height = settings.image_px
        try:
            self._renderer: Any = self._mujoco.Renderer(self._model, height, width)
        except Exception as error:  # each GL binding raises its own kind
            raise SimError(f"no GL context can be made ({error}): {_GL_ADVICE}") from None
        flags = self._renderer.scene.flags
        flags[self._mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        flags[self._mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self.set_lamp(settings.lamp)
        _open_eyes.add(self)

    def set_lamp(self, lamp: Lamp) -> None:
        """Move and colour the lamp from the next picture on."""
        light, aim = self._model.light("lamp"), np.subtract((0.2, 0.0, 0.0), lamp.position_m)
        light.pos[:] = lamp.position_m
        light.dir[:] = aim / np.linalg.norm(aim)
        light.diffuse[:] = np.multiply(lamp.colour, lamp.intensity)
        self._model.vis.headlight.ambient[:] = np.multiply(lamp.colour, lamp.ambient)

    def render(self, camera_name: str, qpos: npt.NDArray[np.float64]) -> U8:
        """Picture (H, W, 3) of one camera, with MuJoCo's positions qpos (13,): six joints, then the cube's pose."""
        if camera_name not in CAMERA_NAMES:
            raise SimError(f"no camera {camera_name!r}: choose one of {', '.join(CAMERA_NAMES)}")
        if self._renderer is None:
            raise SimError("this Eye is closed")
        if not np.array_equal(self._data.qpos, qpos):
            self._data.qpos[:] = qpos
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)
        self._renderer.update_scene(self._data, camera=camera_name)
        picture: U8 = self._renderer.render()
        return picture

    def close(self) -> None:
        """Free the GL context; harmless when repeated."""
        renderer, self._renderer = self._renderer, None
        if renderer is not None:
            renderer.close()


_open_eyes: weakref.WeakSet[Eye] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # A context left to the interpreter's end makes EGL complain on stderr.
    for eye in list(_open_eyes):
        eye.close()
