"""Light scenarios: what a file may say, the light at every step, and what it does to pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from steadyhand_models.settings import SettingsError
from steadyhand_runtime.sim import light as lights
from steadyhand_runtime.sim.light import Change, Light, Scenario

STEADY = Light()


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_every_scenario_that_ships_can_be_read_and_ends_with_a_light_that_stays() -> None:
    assert {"steady", "moved_lamp", "dusk", "clouds"} <= set(lights.names())
    for name in lights.names():
        scenario = lights.load(name)
        assert scenario.description
        assert scenario.at(1_000_000) == scenario.at(1_000_001)


def test_the_experiments_light_changes_at_one_step_and_in_every_way() -> None:
    scenario = lights.load("moved_lamp")
    assert scenario.first_step == 2000
    before, after = scenario.at(1999), scenario.at(2000)
    assert before == STEADY and after == scenario.at(9999)
    assert after.position_m[1] < 0 < before.position_m[1]
    assert after.intensity < before.intensity and after.colour[2] < before.colour[2]
    assert after.shadow_darkness > before.shadow_darkness == 0.0


def test_a_ramp_goes_evenly_from_the_light_before_to_the_one_after() -> None:
    scenario = Scenario("ramp", change=(Change(100, over_steps=50, intensity=0.25, colour=(1.0, 0.5, 0.0)),))
    assert scenario.at(100) == STEADY
    middle = scenario.at(125)
    assert middle.intensity == pytest.approx(0.5)
    assert middle.colour == pytest.approx((1.0, 0.735, 0.46))
    assert middle.position_m == STEADY.position_m
    assert scenario.at(150).intensity == 0.25


def test_what_a_change_does_not_name_stays_as_the_one_before_left_it() -> None:
    scenario = Scenario("two", change=(Change(10, intensity=0.3), Change(20, ambient=0.1)))
    assert (scenario.at(15).intensity, scenario.at(15).ambient) == (0.3, STEADY.ambient)
    assert (scenario.at(20).intensity, scenario.at(20).ambient) == (0.3, 0.1)


def test_the_first_change_can_be_moved_and_takes_the_others_along() -> None:
    moved = Scenario("two", change=(Change(10, intensity=0.3), Change(25, ambient=0.1))).moved(100)
    assert [c.at_step for c in moved.change] == [100, 115]
    assert lights.chosen("moved_lamp", 700).first_step == 700
    assert lights.chosen("moved_lamp", None).first_step == 2000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('description = "x"\ncolor = 1', "unknown setting 'color'"),
        ('description = "x"\n[[change]]\nat_step = 1\nintensty = 0.5', "did you mean 'change.intensity'"),
        ('description = "x"\n[start]\nintensity = 1.5', "start.intensity"),
        ('description = "x"\n[start]\nposition_m = [0.1, 0.2, -0.3]', "start.position_m"),
        ('description = "x"\n[[change]]\nintensity = 0.5', "at_step"),
        ("[start]\nintensity = 0.5", "description"),
        (
            'description = "x"\n[[change]]\nat_step = 9\nover_steps = 5\n[[change]]\nat_step = 12',
            "before the one at 9 is",
        ),
    ],
)
def test_a_file_that_cannot_be_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        lights.load(written(tmp_path, text))


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="moved_lamp"):
        lights.load("mooved_lamp")


def test_a_shadow_darkens_the_table_where_it_falls_by_what_was_said_and_nothing_else() -> None:
    pytest.importorskip("mujoco")
    from steadyhand_runtime.sim.world import World

    world = World(seed=3)
    try:
        world.put_arm((0.0, -1.5, 1.5, 0.5, 0.0, 0.9))
        plain = world.render("front").astype(float)
        world.set_light(Light(shadow_darkness=0.4, shadow_centre_m=(0.24, 0.05), shadow_size_m=(0.16, 0.14)))
        shaded = world.render("front").astype(float)
        world.set_light(Light())
        assert np.array_equal(world.render("front"), plain.astype(np.uint8))
    finally:
        world.close()
    share = shaded.sum(-1) / np.maximum(plain.sum(-1), 1.0)
    core = share < 0.65
    assert 0.02 < core.mean() < 0.6
    assert np.median(share[core]) == pytest.approx(0.6, abs=0.02)
    assert (share > 0.99).mean() > 0.3 and share.max() < 1.01


def test_exposure_scales_bends_and_cuts_off_as_a_camera_does() -> None:
    pytest.importorskip("mujoco")
    from steadyhand_runtime.sim.world import World

    world = World(seed=3)
    try:
        plain = world.render("wrist").astype(float) / 255.0
        world.set_light(Light(gain=2.0, gamma=0.8))
        seen = world.render("wrist").astype(float) / 255.0
    finally:
        world.close()
    assert np.abs(seen - np.minimum(2.0 * plain, 1.0) ** 0.8).max() < 0.01
    assert seen.max() == 1.0 > plain.max()


def test_the_lockstep_robot_sees_the_light_change_at_its_recorded_step(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    from steadyhand_runtime.sim.lockstep import LockstepSettings, Session
    from steadyhand_runtime.telemetry import Log

    chosen = LockstepSettings(run=tmp_path / "run", trainer=False, steps=30, light="moved_lamp", light_change_step=20)
    with Session(chosen, Log()) as session:
        while session.steps < 20:
            session.turn()
        assert session.robot.world.light == STEADY
        session.turn()
        assert session.robot.world.light == lights.load("moved_lamp").at(2000)
