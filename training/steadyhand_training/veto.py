"""How often people veto what a classifier took for success, by version and light, and when an older one is better."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from steadyhand_training.versions import Standing, probability_below

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class VetoSettings:
    """When a classifier is taken back because of vetoes."""

    roll_back: bool = True
    least_episodes: Annotated[int, Field(ge=1, le=1000)] = 5  # ended by each of the two versions under one light
    margin: Share = 0.05  # by which the rate must have risen
    # Asked after every episode that the classifier ended. Measured: of versions that differ in nothing, 10% vetoes over
    # 40 episodes each, 2.5% are called worse (at .95: 5.5%); of rises from 5 to 60% half show after 5 episodes.
    certainty: Share = 0.98


@dataclass(frozen=True)
class Rise:
    """A version is vetoed more often than the one before it; `certainty` is the posterior probability of that."""

    version: int
    previous: int
    vetoed: int
    ended: int
    vetoed_before: int
    ended_before: int
    certainty: float

    def __str__(self) -> str:
        return (
            f"vetoes rose from {self.vetoed_before} of {self.ended_before} episodes that classifier v{self.previous} "
            f"ended to {self.vetoed} of {self.ended} of v{self.version}, certain to {self.certainty:.1%}"
        )


class VetoBook:
    """Episodes that a classifier ended, or would have had it not been vetoed, by version and light.

    Versions are compared under the lights that both have met: a light that changes is no version's fault.
    """

    def __init__(self, settings: VetoSettings) -> None:
        self.settings = settings
        self._ended: dict[int, tuple[int, int, bool]] = {}  # episode -> (version, light, vetoed)

    def judge(self, episode: int, version: int, light: int, vetoed: bool | None) -> None:
        """What became of an episode; None: no classifier ended it."""
        if vetoed is None or version <= 0:
            self._ended.pop(episode, None)
        else:
            self._ended[episode] = (version, light, vetoed)

    def counts(self, version: int) -> tuple[int, int]:
        """(vetoed, ended) of a version under every light."""
        mine = [vetoed for v, _, vetoed in self._ended.values() if v == version]
        return sum(mine), len(mine)

    def rise(self, version: int, previous: int) -> Rise | None:
        """A rise beyond doubt from one version to another, or None."""
        now, before = self._by_light(version), self._by_light(previous)
        least = self.settings.least_episodes
        shared = [light for light in now if sum(before[light]) >= least]
        kept, vetoed = (sum(now[light][i] for light in shared) for i in (0, 1))
        kept_before, vetoed_before = (sum(before[light][i] for light in shared) for i in (0, 1))
        if kept + vetoed < least:
            return None
        recent, earlier = Standing(version, kept, vetoed), Standing(previous, kept_before, vetoed_before)
        certainty = probability_below(recent, earlier, self.settings.margin)
        if certainty <= self.settings.certainty:
            return None
        ended, ended_before = kept + vetoed, kept_before + vetoed_before
        return Rise(version, previous, vetoed, ended, vetoed_before, ended_before, certainty)

    def _by_light(self, version: int) -> dict[int, tuple[int, int]]:
        """(kept, vetoed) by light; zeros where a version never was."""
        found: Counter[tuple[int, bool]] = Counter(
            (light, vetoed) for v, light, vetoed in self._ended.values() if v == version
        )
        lights = {light for _, light, _ in self._ended.values()}
        return {light: (found[light, False], found[light, True]) for light in lights}
