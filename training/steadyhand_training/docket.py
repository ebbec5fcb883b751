"""What people said and nothing has been made of yet: when that calls for a classifier to be grown, and from what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from steadyhand_models.messages import Label, LabelKind
from steadyhand_training.champion import Judge, Standing
from steadyhand_training.correction_settings import CorrectionRule, CorrectionSettings
from steadyhand_training.evidence import Evidence
from steadyhand_training.labels import Ledger
from steadyhand_training.replay import Replay
from steadyhand_training.suspicion import Suspicion


@dataclass(frozen=True)
class Looked:
    """What a look at the spoken-of episodes found."""

    due: bool  # whether they call for a candidate
    contradicted: tuple[int, ...] = ()  # episodes of which the champion thinks otherwise than was said
    suspects: tuple[int, ...] = ()  # of these, the ones that look like a wrong key


@dataclass
class _Open:
    waiting: list[int] = field(default_factory=list)  # episodes that were spoken of and not looked at since
    quiet: int = 0  # words since the last candidate that contradicted nothing
    begun_at: int | None = None  # recorded steps when the last course began


class Docket:
    """Collects the episodes that labels are about, and sorts them into the evidence when they are looked at."""

    def __init__(
        self, replay: Replay, ledger: Ledger, evidence: Evidence, judge: Judge, settings: CorrectionSettings
    ) -> None:
        self._replay, self._ledger, self._evidence, self._judge = replay, ledger, evidence, judge
        self._settings = settings
        self._suspicion = Suspicion(replay, ledger, evidence, judge)
        self._open = _Open()

    def hear(self, label: Label) -> int | None:
        """Remember the episode that a label is about, and say which that is."""
        named = self._ledger.target(label) if label.kind is LabelKind.UNDO else label
        if named is None:
            return None
        if named.episode not in self._open.waiting:
            self._open.waiting.append(named.episode)
        return named.episode

    def drop(self, episodes: Sequence[int]) -> None:
        """These have been dealt with otherwise."""
        self._open.waiting = [e for e in self._open.waiting if e not in episodes]

    def begin(self) -> None:
        """A course begins: the next one waits for a while."""
        self._open.quiet, self._open.begun_at = 0, self._replay.size

    def first_due(self) -> bool:
        """Whether enough was said for a first classifier, and enough since the last attempt at one."""
        if not self._rested():
            return False
        self._open.quiet += len(self._ready())
        pool = self._evidence.pool(self._evidence.labelled())
        enough = len(pool.positive) >= self._settings.first_positive
        enough &= len(pool.negative) >= self._settings.first_negative
        return enough and self._open.quiet >= self._settings.quiet_labels

    def look(self, champion: Standing) -> Looked:
        """Sort what was said since the last look; nothing while the last course has hardly begun."""
        if not self._rested():
            return Looked(False)
        ready = self._ready()
        spoken = [e for e in ready if self._admit(e)]
        wrong = [e for e in spoken if not self._judge.agrees(champion, e)]
        gated = self._settings.rule is CorrectionRule.GATED
        suspects = [e for e in wrong if gated and self._suspicion.suspects(champion, e)]
        contradicted = [e for e in wrong if e not in suspects]
        for episode in spoken:
            if episode in contradicted or (self._evidence.is_flagged(episode) and episode not in suspects):
                self._evidence.flag(episode)
        for episode in contradicted if gated else ():
            self._call_back(self._suspicion.supporters(champion, episode))
        self._open.quiet += len(ready)
        due = bool(contradicted) or self._open.quiet >= self._settings.quiet_labels
        return Looked(due, tuple(contradicted), tuple(suspects))

    def suspects(self, standing: Standing, episode: int) -> bool:
        """Whether a word looks wrong to a classifier that never learned from it."""
        return not self._judge.agrees(standing, episode) and self._suspicion.suspects(standing, episode)

    def state(self, growing: Sequence[int]) -> dict[str, Any]:
        """As plain data; the episodes that a course is growing from wait again."""
        again = [e for e in growing if e not in self._open.waiting]
        return asdict(self._open) | {"waiting": self._open.waiting + again}

    def restore(self, state: dict[str, Any]) -> None:
        self._open = _Open(**state)

    def _rested(self) -> bool:
        begun_at = self._open.begun_at
        return begun_at is None or self._replay.size - begun_at >= self._settings.least_steps

    def _ready(self) -> list[int]:
        """Ended episodes that were spoken of since; they wait no longer."""
        ready = [e for e in self._open.waiting if self._replay.ended(e) is not None]
        self.drop(ready)
        return ready

    def _admit(self, episode: int) -> bool:
        """Whether anything is said of an episode, which then is held out or not."""
        if not self._ledger.frame_labels(episode, self._replay).any():
            self._evidence.forget(episode)
            return False
        self._evidence.admit(episode)
        return True

    def _call_back(self, episodes: Sequence[int]) -> None:
        """Flags that another one bears out are believed after all."""
        for episode in episodes:
            if episode in self._evidence.review:
                self._evidence.flag(episode)
