"""The golden set: held-out episodes that every version of a classifier is judged by; it only ever grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from steadyhand_training.strata import Stratum

# Episodes of a stratum beyond which more of the kind would cost time and hardly narrow an interval.
MOST_PER_STRATUM = 60


class GoldenSet:
    """Episodes in order of entry. One that is in stays in: an undone label takes back its word, not its place."""

    def __init__(self, most_per_stratum: int = MOST_PER_STRATUM) -> None:
        self._most = most_per_stratum
        self._episodes: dict[int, tuple[Stratum, ...]] = {}
        self._counts: Counter[Stratum] = Counter()

    def offer(self, episode: int, strata: Iterable[Stratum]) -> bool:
        """Take an episode in, unless every stratum that it would add to is full; whether it is in."""
        if episode in self._episodes:
            return True
        touched = tuple(sorted(set(strata)))
        if touched and all(self._counts[s] >= self._most for s in touched):
            return False
        self._episodes[episode] = touched
        self._counts.update(touched)
        return True

    def __contains__(self, episode: int) -> bool:
        return episode in self._episodes

    def __len__(self) -> int:
        return len(self._episodes)

    @property
    def episodes(self) -> list[int]:
        return list(self._episodes)

    def entries(self) -> list[tuple[int, tuple[Stratum, ...]]]:
        """Every episode with the strata that it entered for."""
        return list(self._episodes.items())

    @property
    def counts(self) -> dict[Stratum, int]:
        """Episodes by stratum."""
        return dict(sorted(self._counts.items()))
