"""World: servos move it, the cube obeys physics, truth is true, and the cameras see it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("mujoco")

from steadyhand_runtime.kinematics import solve, tip_pose
from steadyhand_runtime.sim.eye import Eye
from steadyhand_runtime.sim.light import Light
from steadyhand_runtime.sim.scene import SceneSettings, SimError
from steadyhand_runtime.sim.world import REST_RAD, World

ON = np.ones(6, bool)
OFF = np.zeros(6, bool)
FULL = np.ones(6)


@pytest.fixture
def world() -> Iterator[World]:
    made = World(seed=3)
    yield made
    made.close()


def joints(x: float, y: float, z: float, jaw: float = 0.9) -> np.ndarray:
    return np.append(solve((x, y, z)).q_rad, jaw)


def go(world: World, goal: np.ndarray, seconds: float, limit: np.ndarray = FULL) -> None:
    world.drive(goal, ON, limit)
    world.advance(seconds)


def test_driven_joints_settle_at_their_goals(world: World) -> None:
    world.put_cube(0.26, 0.07)
    goal = joints(0.19, 0.0, 0.11)
    go(world, goal, 1.5)
    np.testing.assert_allclose(world.read().position_rad, goal, atol=0.01)
    assert np.abs(world.read().velocity_rad_s).max() < 0.05


def test_tip_in_the_world_is_where_kinematics_says(world: World) -> None:
    world.put_arm(joints(0.2, 0.04, 0.09))
    np.testing.assert_allclose(world.truth().tip_xyz_m, tip_pose(world.read().position_rad).xyz_m, atol=1e-6)


def test_rest_pose_holds_without_torque(world: World) -> None:
    world.put_cube(0.26, 0.07)
    world.drive(np.array(REST_RAD), OFF, FULL)
    world.advance(2.0)
    np.testing.assert_allclose(world.read().position_rad, REST_RAD, atol=0.05)


def test_an_arm_without_torque_falls_and_one_with_torque_does_not(world: World) -> None:
    raised = joints(0.2, 0.0, 0.12)
    world.put_arm(raised)
    go(world, raised, 1.0)
    assert world.truth().tip_xyz_m[2] == pytest.approx(0.12, abs=0.003)
    world.drive(raised, OFF, FULL)
    world.advance(1.0)
    assert world.truth().tip_xyz_m[2] < 0.09


def test_a_goal_acts_after_the_servos_delay_and_not_before() -> None:
    world = World(SceneSettings(servo_delay_s=0.1))
    start = joints(0.2, 0.0, 0.1)
    world.put_arm(start)
    go(world, start, 0.3)
    before = world.read().position_rad[0]
    moved = start + np.array([0.5, 0, 0, 0, 0, 0])
    go(world, moved, 0.095)
    assert abs(world.read().position_rad[0] - before) < 1e-3
    world.advance(0.1)
    assert world.read().position_rad[0] - before > 0.05


def test_joint_speed_stays_below_the_servos_no_load_speed(world: World) -> None:
    start = joints(0.2, 0.0, 0.12)
    world.put_arm(start)
    go(world, start, 0.1)
    world.drive(start + np.array([1.5, 0, 0, 0, 0, 0]), ON, FULL)
    fastest = 0.0
    for _ in range(60):
        world.advance(0.005)
        fastest = max(fastest, abs(world.read().velocity_rad_s[0]))
    assert 2.0 < fastest < 5.0


def test_torque_limit_caps_the_effort(world: World) -> None:
    start = joints(0.2, 0.0, 0.12)
    world.put_arm(start)
    limit = np.full(6, 0.25)
    world.drive(start, ON, limit)
    for k in range(40):
        world.drive(start + 0.05 * k, ON, limit)
        world.advance(0.01)
        assert np.abs(world.read().effort).max() <= 0.25 + 1e-9


def test_waking_servos_do_not_jump_to_an_old_goal(world: World) -> None:
    world.drive(np.array(REST_RAD) + 0.6, OFF, FULL)
    here = world.read().position_rad
    go(world, here, 0.2)
    np.testing.assert_allclose(world.read().position_rad, here, atol=0.01)


def test_time_left_over_from_an_advance_is_not_lost() -> None:
    fine, coarse = World(seed=1), World(seed=1)
    goal = np.array(REST_RAD) + np.array([0.4, 0.2, 0, 0, 0, 0.5])
    for world in (fine, coarse):
        world.drive(goal, ON, FULL)
    for _ in range(100):
        fine.advance(0.003)
    coarse.advance(0.3)
    np.testing.assert_array_equal(fine.read().position_rad, coarse.read().position_rad)


def test_equal_seeds_place_the_cube_equally_and_inside_its_area() -> None:
    settings = SceneSettings()
    one, two = World(settings, seed=5), World(settings, seed=5)
    (cx, cy), (lx, ly) = settings.cube_area_centre_m, settings.cube_area_m
    for _ in range(20):
        one.place_cube()
        two.place_cube()
        truth = one.truth()
        np.testing.assert_array_equal(truth.cube_xyz_m, two.truth().cube_xyz_m)
        assert abs(truth.cube_xyz_m[0] - cx) <= lx / 2 and abs(truth.cube_xyz_m[1] - cy) <= ly / 2
        assert abs(truth.cube_yaw_rad) <= settings.cube_yaw_rad + 1e-9
        assert truth.lifted_m == pytest.approx(0.0, abs=1e-9)


def test_a_cube_in_the_air_falls_and_is_no_success(world: World) -> None:
    world.put_cube(0.24, 0.05, height_m=0.10)
    assert world.truth().lifted_m == pytest.approx(0.10)
    assert not world.truth().success
    world.advance(1.0)
    assert world.truth().lifted_m == pytest.approx(0.0, abs=0.002)


def test_closing_the_jaws_on_the_cube_and_lifting_is_a_success(world: World) -> None:
    world.put_arm(joints(0.21, 0.007, 0.014))
    world.put_cube(0.21, 0.0, 0.15)
    limit = np.array([1, 1, 1, 1, 1, 0.5])
    go(world, joints(0.21, 0.007, 0.014), 0.2, limit)
    assert not world.truth().grasped
    go(world, joints(0.21, 0.007, 0.014, jaw=-0.1), 0.6, limit)
    held = world.truth()
    assert held.grasped and not held.success
    for z in np.arange(0.014, 0.075, 0.002):
        go(world, joints(0.21, 0.007, z, jaw=-0.1), 0.02, limit)
    world.advance(0.3)
    lifted = world.truth()
    assert lifted.success and lifted.lifted_m > 0.05
    world.advance(5.0)
    assert world.truth().lifted_m == pytest.approx(lifted.lifted_m, abs=0.004), "the cube slips"


def red_pixels(picture: np.ndarray) -> int:
    r, g, b = (picture[..., c].astype(int) for c in range(3))
    return int(((r > 90) & (r > 2 * g) & (r > 2 * b)).sum())


def test_both_cameras_see_the_cube_and_lose_it_when_it_is_gone(world: World) -> None:
    world.put_arm(joints(0.2, 0.0, 0.06))
    world.put_cube(0.21, -0.005)
    for camera in ("front", "wrist"):
        picture = world.render(camera)
        assert picture.shape == (128, 128, 3) and picture.dtype == np.uint8
        assert red_pixels(picture) > 80
    world.put_cube(-1.5, 0.0)
    assert red_pixels(world.render("front")) == red_pixels(world.render("wrist")) == 0


def test_the_lamp_changes_the_picture(world: World) -> None:
    bright = world.render("front").astype(int)
    world.set_light(Light(intensity=0.3, ambient=0.15, colour=(1.0, 0.7, 0.4)))
    dim = world.render("front").astype(int)
    assert dim.mean() < 0.6 * bright.mean()
    world.set_light(world.settings.light)
    np.testing.assert_array_equal(world.render("front"), bright)


def test_an_eye_elsewhere_sees_what_the_world_sees(world: World) -> None:
    eye = Eye(world.settings)
    np.testing.assert_array_equal(eye.render("front", world.qpos()), world.render("front"))
    eye.close()
    eye.close()
    with pytest.raises(SimError, match="closed"):
        eye.render("front", world.qpos())


def test_image_size_is_a_setting() -> None:
    world = World(replace(SceneSettings(), image_px=(96, 64)))
    assert world.render("wrist").shape == (64, 96, 3)
    world.close()


def test_an_unknown_camera_is_refused_with_the_known_ones(world: World) -> None:
    with pytest.raises(SimError, match="front, wrist"):
        world.render("back")


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**clean, **env}, capture_output=True, text=True, timeout=60
    )


def test_rendering_without_a_display_leaves_nothing_on_stderr_at_exit() -> None:
    code = "from steadyhand_runtime.sim.world import World; print(World().render('front').mean() > 10)"
    done = run_python(code)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "True", "")


def test_without_gl_physics_works_and_rendering_says_what_to_install() -> None:
    code = (
        "from steadyhand_runtime.sim.world import World; from steadyhand_runtime.sim.scene import SimError\n"
        "w = World(); w.advance(0.1)\n"
        "try: w.render('front')\n"
        "except SimError as error: print(error)"
    )
    done = run_python(code, MUJOCO_GL="disable")
    assert "apt-get install libegl1 libgl1-mesa-dri" in done.stdout, done.stderr
