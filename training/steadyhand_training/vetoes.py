"""Which episodes a classifier ended, and which of them people vetoed: replay and ledger joined into one book."""

from __future__ import annotations

from steadyhand_models.messages import EndReason, LabelKind, Source
from steadyhand_training.labels import DENYING, Ledger
from steadyhand_training.replay import SOURCES, Replay
from steadyhand_training.strata import Strata
from steadyhand_training.veto import Rise, VetoBook, VetoSettings

_DEMONSTRATION = SOURCES.index(Source.DEMONSTRATION)


class Vetoes:
    """Keeps the book of vetoes up to date. But for `published` everything in it follows from what is recorded."""

    def __init__(self, replay: Replay, ledger: Ledger, strata: Strata, settings: VetoSettings) -> None:
        self.published: dict[int, int] = {}  # classifiers that were in force -> their versions in the registry
        self._replay, self._ledger, self._strata = replay, ledger, strata
        self._book = VetoBook(settings)

    def notice(self, episode: int) -> None:
        """An episode ended, or something was said of it."""
        rows = self._replay.rows(episode)
        if not len(rows) or self._replay.ended(episode) is None:
            return
        version = int(self._replay.classifier_version[rows[-1]])
        self._book.judge(episode, version, self._strata.light(episode), self._vetoed(episode))

    def counts(self, version: int) -> tuple[int, int]:
        """(vetoed, ended) of a classifier that is or was in force."""
        return self._book.counts(self.published.get(version, version))

    def rise(self, version: int, previous: int) -> Rise | None:
        """Whether a classifier is vetoed more often than the one before it, beyond doubt; None where it is not so."""
        if not self._book.settings.roll_back:
            return None
        return self._book.rise(self.published.get(version, version), self.published.get(previous, previous))

    def _vetoed(self, episode: int) -> bool | None:
        """Whether the success that a classifier saw was vetoed; None where it saw none, or a person ended it."""
        said = {label.kind for label in self._ledger.labels(episode)}
        demonstrated = (self._replay.source[self._replay.rows(episode)] == _DEMONSTRATION).any()
        if demonstrated or LabelKind.SUCCESS in said:
            return None
        vetoed = LabelKind.FALSE_POSITIVE in said  # also before it could end the episode
        if self._replay.ended(episode) is not EndReason.SUCCESS and not vetoed:
            return None
        return bool(said & set(DENYING))
