"""The light of the simulated table over time: scenarios from TOML files, and the light of each at any step; pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic import dataclasses as checked

from steadyhand_models import settings

Metre = Annotated[float, Field(ge=-5, le=5)]
Share = Annotated[float, Field(ge=0, le=1)]
Position = tuple[Metre, Metre, Annotated[float, Field(gt=0, le=5)]]
Place = tuple[Metre, Metre]
Size = tuple[Annotated[float, Field(gt=0, le=5)], Annotated[float, Field(gt=0, le=5)]]
Colour = tuple[Share, Share, Share]
Gain = Annotated[float, Field(ge=0.1, le=10)]
Gamma = Annotated[float, Field(ge=0.2, le=5)]
Count = Annotated[int, Field(ge=0, le=10_000_000)]


@checked.dataclass(frozen=True)
class Light:
    """One lamp, a shadow that something beside the table casts on it, and the cameras' exposure.

    `intensity` scales the lamp's `colour`, `ambient` is light of that colour from everywhere. The shadow is a rectangle
    with a soft edge; a `shadow_darkness` of 0 is none, 1 is black. A picture value v in 0..1 becomes
    (gain * v) ** gamma, cut off at white.
    """

    position_m: Position = (0.60, 0.25, 0.60)
    colour: Colour = (1.0, 0.97, 0.92)
    intensity: Share = 0.75
    ambient: Share = 0.35
    shadow_centre_m: Place = (0.21, 0.0)
    shadow_size_m: Size = (0.20, 0.20)
    shadow_yaw_rad: Annotated[float, Field(ge=-4, le=4)] = 0.0
    shadow_darkness: Share = 0.0
    gain: Gain = 1.0
    gamma: Gamma = 1.0


@dataclass(frozen=True)
class Change:
    """From `at_step` on, over `over_steps` steps, what is named here becomes so; the rest stays as it is."""

    at_step: Count
    over_steps: Count = 0
    position_m: Position | None = None
    colour: Colour | None = None
    intensity: Share | None = None
    ambient: Share | None = None
    shadow_centre_m: Place | None = None
    shadow_size_m: Size | None = None
    shadow_yaw_rad: Annotated[float, Field(ge=-4, le=4)] | None = None
    shadow_darkness: Share | None = None
    gain: Gain | None = None
    gamma: Gamma | None = None

    def after(self, before: Light) -> Light:
        """The light when the change is complete."""
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(Light)}
        return dataclasses.replace(before, **{name: value for name, value in named.items() if value is not None})


@dataclass(frozen=True)
class Scenario:
    """How the light begins and what becomes of it."""

    description: str
    start: Light = field(default_factory=Light)
    change: tuple[Change, ...] = ()

    @property
    def first_step(self) -> int | None:
        """The step of the first change, None where nothing changes."""
        return self.change[0].at_step if self.change else None

    def at(self, step: int) -> Light:
        """The light at a step."""
        light = self.start
        for change in self.change:
            if step < change.at_step:
                break
            share = (step - change.at_step) / change.over_steps if change.over_steps else 1.0
            light = between(light, change.after(light), min(1.0, share))
        return light

    def moved(self, first_step: int) -> Scenario:
        """The same with its first change at another step, and the later ones as long behind it as before."""
        shift = first_step - (self.first_step or 0)
        return dataclasses.replace(
            self, change=tuple(dataclasses.replace(c, at_step=c.at_step + shift) for c in self.change)
        )


def between(one: Light, other: Light, share: float) -> Light:
    """The light that is `share` (0..1) of the way from one to the other."""
    if share >= 1.0 or one == other:
        return other
    values: dict[str, Any] = {}
    for field_ in dataclasses.fields(Light):
        a, b = (np.asarray(getattr(light, field_.name), np.float64) for light in (one, other))
        mixed = (a + share * (b - a)).tolist()
        values[field_.name] = tuple(mixed) if isinstance(mixed, list) else mixed
    return Light(**values)


def load(name_or_path: str) -> Scenario:
    """A scenario by the name of one that ships, or by path. Raises SettingsError saying what exists or is wrong."""
    path = Path(name_or_path)
    if path.suffix == ".toml":
        return _checked(settings.load(Scenario, path), str(path))
    shipped = resources.files("steadyhand_runtime.sim") / "lights" / f"{name_or_path}.toml"
    if not shipped.is_file():
        raise settings.SettingsError(f"no light '{name_or_path}'; known: {', '.join(names())}; or give a .toml file")
    with resources.as_file(shipped) as real:
        return _checked(settings.load(Scenario, real), name_or_path)


def names() -> list[str]:
    """Scenarios that ship with the product."""
    folder = resources.files("steadyhand_runtime.sim") / "lights"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def chosen(name_or_path: str, first_step: int | None) -> Scenario:
    """A scenario, with its first change at first_step unless that is None. Raises SettingsError."""
    scenario = load(name_or_path)
    return scenario if first_step is None else scenario.moved(first_step)


def _checked(scenario: Scenario, where: str) -> Scenario:
    for before, after in zip(scenario.change, scenario.change[1:]):
        if after.at_step < before.at_step + before.over_steps:
            raise settings.SettingsError(
                f"light {where}: the change at step {after.at_step} begins before the one at {before.at_step} is over; "
                "order them, or shorten over_steps"
            )
    return scenario
