"""The contract's hash changes with every meaning, and its difference says where."""

import dataclasses

import pytest

from steadyhand_models import contract as c
from steadyhand_models import task


def lift() -> c.Contract:
    return task.load("lift").contract()


def test_the_hash_is_stable_and_survives_json():
    again = c.from_json(lift().to_json())
    assert again == lift()
    assert again.hash == lift().hash


@pytest.mark.parametrize(
    "change",
    [
        {"rate_hz": 30.0},
        {"frame_stack": 3},
        {"pitch_rule": "level"},
        {"robot": "so100"},
        {"state": lift().state[:-1]},
        {"joints": (dataclasses.replace(lift().joints[0], sign=-1), *lift().joints[1:])},
        {"cameras": (dataclasses.replace(lift().cameras[0], crop_px=(0, 0, 64, 64)), lift().cameras[1])},
        {"action": (*lift().action[:-1], dataclasses.replace(lift().action[-1], hi=2.0))},
    ],
)
def test_every_change_of_meaning_changes_the_hash_and_is_shown(change):
    other = dataclasses.replace(lift(), **change)
    assert other.hash != lift().hash
    lines = c.difference(lift(), other)
    assert lines
    assert any(line.startswith(next(iter(change))) for line in lines)


def test_a_difference_names_the_field_and_both_values():
    cameras = lift().cameras
    other = dataclasses.replace(lift(), cameras=(dataclasses.replace(cameras[0], crop_px=(0, 0, 64, 64)), *cameras[1:]))
    assert c.difference(lift(), other) == ["cameras[0].crop_px: (0, 0, 128, 128) -> (0, 0, 64, 64)"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"joints": 3}', '{"robot": "so101", "joints": [], "extra": 1}'])
def test_what_is_no_contract_is_refused(text):
    with pytest.raises(ValueError, match="not a contract"):
        c.from_json(text)


def test_a_scale_of_nothing_is_a_problem():
    field = dataclasses.replace(lift().state[0], scale=0.0)
    problems = dataclasses.replace(lift(), state=(field, *lift().state[1:])).problems()
    assert problems == ["state shoulder_pan_position: scale 0.0 must be positive"]


def test_a_crop_outside_the_picture_is_a_problem():
    camera = dataclasses.replace(lift().cameras[0], crop_px=(64, 0, 128, 128))
    problems = dataclasses.replace(lift(), cameras=(camera, lift().cameras[1])).problems()
    assert len(problems) == 1
    assert "leaves the native picture" in problems[0]
