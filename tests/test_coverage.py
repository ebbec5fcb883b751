"""What is labelled is counted by light, place and phase, so that a person sees where nothing is."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_label_import import labelled
from training_steps import CONTRACT, RUN, TASK, demonstration, driven, records

from steadyhand_models import task as tasks
from steadyhand_models.messages import Source, Step
from steadyhand_training import coverage, dataset, label_import
from steadyhand_training.coverage import place
from steadyhand_training.journal import Journal
from steadyhand_training.strata import phases

NAMES = [field.name for field in CONTRACT.state]


def state(x: float, y: float, jaw_share: float, height_m: float = 0.02) -> np.ndarray:
    """A state with the tip at a place and the jaws open by a share of their way."""
    found = np.array(CONTRACT.state_offset)
    gripper = TASK.gripper
    found[NAMES.index("tip_x")], found[NAMES.index("tip_y")] = x, y
    found[NAMES.index("tip_z")] = TASK.workspace.lo_m[2] + height_m
    found[NAMES.index("gripper_position")] = gripper.closed_rad + jaw_share * (gripper.open_rad - gripper.closed_rad)
    return found


def corner(high: bool) -> tuple[float, float]:
    low, top = TASK.workspace.lo_m, TASK.workspace.hi_m
    return (top[0] - 1e-3, top[1] - 1e-3) if high else (low[0] + 1e-3, low[1] + 1e-3)


def fill(root: Path, messages: list[object]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    journal = Journal(root / "journal.sqlite")
    journal.commit("edge", RUN, records(messages), CONTRACT)
    journal.close()


def test_the_place_is_where_the_jaws_closed_and_else_where_the_arm_ended() -> None:
    near, far = corner(False), corner(True)
    closing = np.stack([state(*near, 1.0), state(*far, 0.1), state(*near, 0.1)])
    open_all_along = np.stack([state(*near, 1.0), state(*far, 1.0)])
    assert place(closing, phases(closing, TASK), TASK) == 11
    assert place(open_all_along, phases(open_all_along, TASK), TASK) == 11
    assert place(closing[::2], phases(closing[::2], TASK), TASK) == 0


def test_frames_are_counted_once_each_in_every_cut(tmp_path: Path) -> None:
    fill(tmp_path, [*demonstration(1), *demonstration(2, success=False), *driven(3, Source.POLICY)])
    found = coverage.gather(dataset.read([tmp_path], TASK))
    assert found.whole.positive > 0 and found.whole.negative > 0 and found.whole.episodes == 2
    for cut in (found.lights, found.places, found.phases):
        assert sum(s.positive for s in cut) == found.whole.positive
        assert sum(s.negative for s in cut) == found.whole.negative


def test_another_light_is_a_row_of_its_own(tmp_path: Path) -> None:
    dark = [
        dataclasses.replace(m, frames=m.frames // 3) if isinstance(m, Step) else m
        for m in demonstration(2, success=False)
    ]
    fill(tmp_path, [*demonstration(1, success=False), *dark])
    found = coverage.gather(dataset.read([tmp_path], TASK))
    assert [s.what for s in found.lights] == ["light 1", "light 2"] and all(s.episodes == 1 for s in found.lights)


def test_imported_frames_have_no_place_and_a_row_of_their_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fill(run, demonstration(1))
    assert label_import.main(["--folder", str(labelled(tmp_path / "in")), "--run", str(run), "--task", "lift"]) == 0
    found = coverage.gather(dataset.read([run], TASK))
    assert found.phases[-1].what == coverage.IMPORTED and found.phases[-1].episodes == 3
    assert sum(s.episodes for s in found.places) == 1


def test_the_command_prints_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, [*demonstration(1), *demonstration(2)])
    assert coverage.main(["--run", str(tmp_path), "--task", "lift", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["whole"]["episodes"] == 2 and len(told["places"]) == 12
    console = Console(file=io.StringIO(), record=True, width=100)
    coverage.show(coverage.gather(dataset.read([tmp_path], tasks.load("lift"))), console)
    text = console.export_text()
    assert "by light" in text and "approach" in text and "few" in text
