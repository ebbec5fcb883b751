"""Settings are checked to the last key, and every answer names the fix."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from steadyhand_models import settings, task


@dataclass(frozen=True)
class Inner:
    rate_hz: Annotated[float, Field(gt=0, le=500)] = 100.0
    enabled: bool = False


class Colour(str, Enum):
    DARK_RED = "dark_red"
    BLUE = "blue"


@dataclass(frozen=True)
class Outer:
    """A command."""

    colour: Colour = Colour.BLUE

    name: str = "x"
    folder: Path = Path("runs")
    bus: Inner = field(default_factory=Inner)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_overrides_the_defaults(tmp_path):
    assert settings.load(Outer, write(tmp_path, "[bus]\nrate_hz = 200.0")) == Outer(bus=Inner(rate_hz=200.0))


def test_the_command_line_overrides_the_file(tmp_path):
    path = write(tmp_path, 'name = "file"\n[bus]\nrate_hz = 200.0')
    got = settings.parse_command_line(Outer, ["--config", str(path), "--bus.rate-hz", "50"], "p", "d")
    assert got == Outer(name="file", bus=Inner(rate_hz=50.0))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[bus]\nrate = 5", r"unknown setting 'bus.rate'; did you mean 'bus.rate_hz'\?"),
        ("zzz = 5", "unknown setting 'zzz'; known here: colour, name, folder, bus"),
        ("[bus]\nrate_hz = 501", "bus.rate_hz: Input should be less than or equal to 500"),
        ("[bus]\nrate_hz = 'fast'", "bus.rate_hz: Input should be a valid number"),
        ("name = ", "not valid TOML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(tmp_path, text, says):
    with pytest.raises(settings.SettingsError, match=says) as error:
        settings.load(Outer, write(tmp_path, text))
    assert "s.toml" in str(error.value)


def test_choices_are_spelled_alike_in_files_and_on_the_command_line(tmp_path):
    path = write(tmp_path, 'colour = "dark_red"')
    assert settings.load(Outer, path).colour is Colour.DARK_RED
    assert settings.parse_command_line(Outer, ["--colour", "dark_red"], "p", "d").colour is Colour.DARK_RED


@dataclass(frozen=True)
class Inside:
    dry_run: bool = False


@dataclass(frozen=True)
class Switched:
    yes: bool = False
    quiet: bool = True
    count: int = 1
    inside: Inside = field(default_factory=Inside)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--yes"], Switched(yes=True)),
        (["--yes", "--count", "3"], Switched(yes=True, count=3)),
        (["--quiet", "false", "--yes", "True"], Switched(yes=True, quiet=False)),
        (["--inside.dry-run", "--count", "2"], Switched(count=2, inside=Inside(dry_run=True))),
        (["--inside.dry_run", "true"], Switched(inside=Inside(dry_run=True))),
    ],
)
def test_a_switch_may_stand_alone_or_be_told_its_value(words, expected):
    assert settings.parse_command_line(Switched, words, "p", "d") == expected


def test_bounds_hold_on_the_command_line_too():
    with pytest.raises(settings.SettingsError, match=r"bus\.rate_hz: Input should be greater than 0"):
        settings.parse_command_line(Outer, ["--bus.rate-hz", "-1"], "p", "d")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(settings.SettingsError, match=r"none\.toml: no such settings file"):
        settings.load(Outer, tmp_path / "none.toml")


def test_effective_settings_can_be_read_back(tmp_path):
    chosen = Outer(name='a "quoted" \\ name', folder=Path("/tmp/x"), bus=Inner(33.0, True))
    assert settings.load(Outer, write(tmp_path, settings.to_toml(chosen))) == chosen


def test_every_task_that_ships_is_sound_and_can_be_written_back(tmp_path):
    assert task.names()
    for name in task.names():
        loaded = task.load(name)
        assert loaded.contract().problems() == []
        assert settings.load(task.Task, write(tmp_path, settings.to_toml(loaded))) == loaded


def test_an_unknown_task_names_those_that_exist():
    with pytest.raises(settings.SettingsError, match="no task 'lfit'; known: lift"):
        task.load("lfit")


def test_a_reset_pose_outside_the_workspace_is_refused(tmp_path):
    text = settings.to_toml(task.load("lift")).replace("tip_m = [0.19, 0.0, 0.11]", "tip_m = [0.19, 0.0, 0.9]")
    with pytest.raises(settings.SettingsError, match=r"reset\.tip_m .* lies outside the workspace"):
        task.load(str(write(tmp_path, text)))
