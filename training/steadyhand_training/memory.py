"""The trainer's memory: the journal's entries turned into replay, ledger and counts, live and at resume alike."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from steadyhand_models.messages import EndReason, Label, LabelKind, Source, Step, Swap
from steadyhand_training import log
from steadyhand_training.journal import Entry, Kind, is_import
from steadyhand_training.labels import FLAGS, Ledger
from steadyhand_training.replay import Replay, ReplayFull

# Episode numbers are an edge's own; those of a further edge or run are moved out of the way by this much.
STREAM_STRIDE = 1 << 32


@dataclass(slots=True)
class Tally:
    """What was learned from so far. Demonstrations ended in success; failed ones are counted apart."""

    steps: int = 0
    takeover_steps: int = 0
    episodes: int = 0
    demonstrations: int = 0
    failed_demonstrations: int = 0
    labels: int = 0
    flags: int = 0
    imported: int = 0  # frames that no robot recorded; they count nowhere else
    swaps: int = 0
    not_swapped: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class News:
    """What one entry brought: a replay row, the episodes whose outcome must be worked out again, a label, a swap."""

    row: int | None = None
    settled: tuple[int, ...] = ()
    label: Label | None = None
    swap: Swap | None = None


@dataclass(slots=True)
class _Stream:
    offset: int
    open_episode: int | None = None
    demonstration: bool = False
    imported: bool = False


class Memory:
    """Consumes entries in the journal's order. Deterministic: equal journals make equal memories."""

    def __init__(self, replay: Replay, ledger: Ledger) -> None:
        self.replay = replay
        self.ledger = ledger
        self.tally = Tally()
        self.position = 0
        self._streams: dict[tuple[str, str], _Stream] = {}

    def consume(self, entry: Entry) -> News:
        """Take in one entry; what cannot be used is counted and skipped, never fatal."""
        self.position = entry.position
        if entry.kind is Kind.UNREADABLE:
            self.tally.skipped += 1
            return News()
        message = entry.message
        if isinstance(message, Swap):
            self.tally.swaps += 1
            self.tally.not_swapped += message.outcome.value != "swapped"
            return News(swap=message)
        about = message.about if isinstance(message, Label) else ""
        stream = self._stream(about or entry.edge, entry.run)
        if stream.offset:
            message = dataclasses.replace(message, episode=message.episode + stream.offset)
        return self._label(message) if isinstance(message, Label) else self._step(stream, message)

    def origin(self, episode: int) -> tuple[str, str, int]:
        """(edge, run, number) of an episode as its robot knows it."""
        edge, run = list(self._streams)[episode // STREAM_STRIDE]
        return edge, run, episode % STREAM_STRIDE

    def episode(self, edge: str, run: str, number: int) -> int:
        """The episode that a robot knows by this number."""
        stream = self._streams.get((edge, run))
        return number + (stream.offset if stream is not None else 0)

    def _stream(self, edge: str, run: str) -> _Stream:
        key = (edge, run)
        if key not in self._streams:
            self._streams[key] = _Stream(len(self._streams) * STREAM_STRIDE, imported=is_import(edge))
        return self._streams[key]

    def _label(self, label: Label) -> News:
        if not self.ledger.add(label):
            return News()
        self.tally.labels += 1
        self.tally.flags += label.kind in FLAGS
        episode = label.episode
        if label.kind is LabelKind.UNDO:
            named = self.ledger.target(label)
            episode = named.episode if named is not None else episode
        return News(label=label, settled=(episode,) if len(self.replay.rows(episode)) else ())

    def _step(self, stream: _Stream, step: Step) -> News:
        try:
            row = self.replay.append(step)
        except (ValueError, ReplayFull) as problem:
            self.tally.skipped += 1
            log.warn("memory.step_skipped", reason=problem, kept="in the journal")
            return News()
        settled = []
        if stream.open_episode != step.episode:
            if stream.open_episode is not None:  # its robot died before it could end it
                settled.append(stream.open_episode)
            stream.open_episode, stream.demonstration = step.episode, step.source is Source.DEMONSTRATION
        self.tally.imported += stream.imported
        self.tally.steps += not stream.imported
        self.tally.takeover_steps += step.source is Source.TAKEOVER
        if step.end is not None:
            self._ended(stream, step.end)
            settled.append(step.episode)
        return News(row=row, settled=tuple(settled))

    def _ended(self, stream: _Stream, end: EndReason) -> None:
        self.tally.episodes += not stream.imported
        self.tally.demonstrations += stream.demonstration and end is EndReason.SUCCESS
        self.tally.failed_demonstrations += stream.demonstration and end is EndReason.FAILURE
        stream.open_episode = None
