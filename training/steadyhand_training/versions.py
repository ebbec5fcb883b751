"""How good each policy version is by autonomous success: posteriors, the best one, and falls beyond doubt. Pure."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steadyhand_models.messages import Label, Source
from steadyhand_training.labels import AFFIRMING, DENYING

F64 = npt.NDArray[np.float64]
Share = Annotated[float, Field(gt=0, lt=1)]
GRID = 1000  # cells of the integrals over a rate
CREDIBLE = 0.05  # the best version is the one with the highest 5% quantile


class OnFall(str, enum.Enum):
    """What becomes of a fall beyond doubt."""

    REPORT = "report"  # log, status and live view say so
    ROLLBACK = "rollback"  # and the best version is published again


@dataclass(frozen=True)
class VersionSettings:
    """When a policy counts as the best, and when as fallen."""

    # Versions come every ten seconds and have one or two episodes each; a handful of neighbours makes a sample.
    half_life_versions: Annotated[float, Field(gt=0, le=1000)] = 5.0
    fall_margin: Share = 0.1
    # It is asked after every verdict. Measured: of policies that stay as they are, judged three times in two versions
    # over 80 versions, none at 80 and 95% and 8% at 50% are called fallen (at .95: 8, 0 and 28%); a drop from 90 to 30%
    # is noticed after 8 versions.
    fall_certainty: Share = 0.98
    least_episodes: Annotated[float, Field(gt=0)] = 8.0  # judged, neighbours counted by their weight


@dataclass(frozen=True)
class Standing:
    """What is known of a version: the weighted evidence of its neighbourhood, as a Beta posterior over its rate."""

    version: int
    won: float
    lost: float

    @property
    def episodes(self) -> float:
        return self.won + self.lost

    @property
    def rate(self) -> float:
        """Posterior mean under a uniform prior."""
        return (self.won + 1) / (self.episodes + 2)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Central credible interval."""
        tail = (1 - level) / 2
        return self.quantile(tail), self.quantile(1 - tail)

    def quantile(self, share: float) -> float:
        cumulated = np.cumsum(_mass(self))
        return float(np.searchsorted(cumulated, share * cumulated[-1]) + 0.5) / GRID


@dataclass(frozen=True)
class Fall:
    """The newest versions are worse than the best one was; `certainty` is the posterior probability of that."""

    best: Standing
    recent: Standing
    certainty: float

    def __str__(self) -> str:
        return (
            f"success fell from {self.best.rate:.0%} (policy v{self.best.version}) to {self.recent.rate:.0%} "
            f"(v{self.recent.version}), certain to {self.certainty:.1%}"
        )


@dataclass
class VersionBook:
    """Judged autonomous episodes by policy version, and what follows from them.

    A version borrows evidence from the versions before it, which it was learned from, with weights that halve every so
    many versions. A version that was published again (`same`) is judged together with what it is a copy of.
    """

    settings: VersionSettings = field(default_factory=VersionSettings)
    same: dict[int, int] = field(default_factory=dict)  # a version published again -> the one it copies
    since: int = 0  # falls are looked for in versions after this one
    _judged: dict[int, tuple[int, bool]] = field(default_factory=dict)  # episode -> (version, success)
    _best: Standing | None = None
    _stale: bool = True  # `_best` is of other judgements

    def judge(self, episode: int, version: int, success: bool | None) -> bool:
        """What was found of an episode; None takes it back. Whether that is news."""
        before = self._judged.get(episode)
        if success is None or version <= 0:
            self._judged.pop(episode, None)
        else:
            self._judged[episode] = (version, success)
        news = self._judged.get(episode) != before
        self._stale |= news
        return news

    def rolled_back(self, version: int, copied: int) -> None:
        """`version` was published as a copy of `copied`: what came between is history."""
        self.same[version] = self.same.get(copied, copied)
        self.since = version
        self._stale = True

    @property
    def counts(self) -> dict[int, tuple[int, int]]:
        """(won, lost) of every version that was judged."""
        found: dict[int, tuple[int, int]] = {}
        for version, success in self._judged.values():
            won, lost = found.get(self._origin(version), (0, 0))
            found[self._origin(version)] = (won + success, lost + (not success))
        return dict(sorted(found.items()))

    def standing(self, version: int, since: int = 0) -> Standing:
        """A version with its predecessors after `since`."""
        return _pooled(self.counts, version, since, self.settings.half_life_versions)

    @property
    def best(self) -> Standing | None:
        """The version that is good with most certainty; None while none has enough judged episodes."""
        if self._stale:
            self._best, self._stale = self._find_best(), False
        return self._best

    def _find_best(self) -> Standing | None:
        counts = self.counts
        known = [_pooled(counts, version, 0, self.settings.half_life_versions) for version in counts]
        enough = [s for s in known if s.episodes >= self.settings.least_episodes]
        return max(enough, key=lambda s: s.quantile(CREDIBLE), default=None)

    @property
    def recent(self) -> Standing | None:
        """The newest judged version with those before it since the last roll-back; None while none was judged."""
        newest = max((v for v, _ in self._judged.values() if v > self.since), default=None)
        return None if newest is None else self.standing(newest, self.since)

    @property
    def fall(self) -> Fall | None:
        """A fall beyond doubt, or None. The two share evidence when they are close, which makes a fall less certain."""
        best, recent, s = self.best, self.recent, self.settings
        if best is None or recent is None or recent.version <= best.version:
            return None
        if recent.episodes < s.least_episodes:
            return None
        certainty = probability_below(recent, best, s.fall_margin)
        return Fall(best, recent, certainty) if certainty > s.fall_certainty else None

    def _origin(self, version: int) -> int:
        return self.same.get(version, version)


def probability_below(one: Standing, other: Standing, margin: float) -> float:
    """P(rate of one < rate of the other - margin), both posteriors taken as independent."""
    below = np.cumsum(_mass(one)) - 0.5 * _mass(one)
    moved = round(margin * GRID)
    return float((_mass(other)[moved:] * below[: GRID - moved]).sum())


def autonomous(sources: npt.NDArray[np.int8], versions: npt.NDArray[np.int64]) -> int:
    """The version that drove most of an episode's actions (T,) when nobody else did; 0 when somebody did.

    `sources` are places in `list(Source)`.
    """
    if not len(sources) or (sources != list(Source).index(Source.POLICY)).any():
        return 0
    drove = np.bincount(versions)
    return int(len(drove) - 1 - drove[::-1].argmax())


def verdict(labels: list[Label]) -> bool | None:
    """The last word of a person on an episode, None when nobody said anything: silence agrees to nothing."""
    spoken = [label for label in labels if label.kind in AFFIRMING + DENYING]
    return max(spoken, key=lambda label: label.stamp_ns).kind in AFFIRMING if spoken else None


def _pooled(counts: Mapping[int, tuple[int, int]], version: int, since: int, half_life: float) -> Standing:
    weights = {v: 0.5 ** ((version - v) / half_life) for v in counts if since < v <= version}
    won = sum(weight * counts[v][0] for v, weight in weights.items())
    lost = sum(weight * counts[v][1] for v, weight in weights.items())
    return Standing(version, won, lost)


def _mass(standing: Standing) -> F64:
    """The posterior's probability of each of GRID cells of [0, 1]."""
    rate = (np.arange(GRID) + 0.5) / GRID
    a, b = standing.won + 1, standing.lost + 1
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    density = np.exp(scale + (a - 1) * np.log(rate) + (b - 1) * np.log1p(-rate))
    mass: F64 = density / density.sum()
    return mass
