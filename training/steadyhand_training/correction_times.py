"""A word's way from the key to the corrected classifier that waits on the robot, read from a run's records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from steadyhand_models.messages import Channel, LabelKind, SwapOutcome
from steadyhand_training.decisions import Verdict
from steadyhand_training.metrics import read_json_lines
from steadyhand_training.run_folder import RunFolder

NS_PER_S = 1e9
# Kinds of lines; decisions have a file of their own.
LABEL, CANDIDATE, DECISION, PUBLISH, SWAP = "label", "candidate", "decision", "publish", "swap"
# (name, from, to), in order; the stamps are a Way's.
PARTS = (
    ("label arrival", "pressed_ns", "heard_ns"),
    ("due wait", "heard_ns", "begun_ns"),
    ("growth and gate", "begun_ns", "promoted_ns"),
    ("checkpoint and export", "promoted_ns", "published_ns"),
    ("transfer", "published_ns", "found_ns"),
    ("verify on the robot", "found_ns", "staged_ns"),
)


@dataclass(frozen=True)
class Way:
    """One contradiction that led to a promotion, by monotonic stamps: robot and trainer must share a machine's clock.

    Pressed; heard by the trainer; its candidate begun, promoted, published; found whole by the robot; staged there.
    """

    episode: int
    version: int
    pressed_ns: int
    heard_ns: int
    begun_ns: int
    promoted_ns: int
    published_ns: int
    found_ns: int
    staged_ns: int

    @property
    def whole_s(self) -> float:
        """From the key to the classifier that waits for its boundary."""
        return (self.staged_ns - self.pressed_ns) / NS_PER_S

    def part_s(self, since: str, until: str) -> float:
        """Seconds between two stamps."""
        return float(getattr(self, until) - getattr(self, since)) / NS_PER_S


@dataclass(frozen=True)
class Journey:
    """What became of the words that contradicted the classifier: the ways of those that led to a promotion, and how
    many were put up for review before one."""

    contradictions: int
    ways: tuple[Way, ...]
    reviewed: int = 0


def read(folder: RunFolder) -> Journey:
    """What became of every contradiction of a run."""
    decided = ({**row, "kind": DECISION, DECISION: row} for row in read_json_lines(folder.decisions))
    return journey([*read_json_lines(folder.metrics), *decided])


def journey(rows: Iterable[dict[str, Any]]) -> Journey:
    """Follow every contradiction through the lines of a run's metrics and decisions.

    A contradiction is the first word that stands on an episode for which a candidate was begun: a flag, or a success or
    failure that the classifier in force sees otherwise. It belongs to the first candidate that was begun for its
    episode after it was heard and that was promoted. Where the classifier of that promotion was replaced before its
    boundary, the next one that was swapped in counts. What goes to review is on its way no longer: a person is asked.
    """
    kept = [row for row in rows if row.get("kind") in (LABEL, CANDIDATE, DECISION, PUBLISH, SWAP)]
    kept.sort(key=lambda row: int(row["stamp_ns"]))
    candidates = [row for row in kept if row["kind"] == CANDIDATE]
    about = {episode for row in candidates for episode in row[CANDIDATE]["episodes"]}
    words = [row for row in _first_words(kept) if row[LABEL]["episode"] in about]
    ways = [way for row in words if (way := _way(row, kept)) is not None]
    reviewed = {episode for row in kept if _is_review(row) for episode in row[DECISION]["episodes"]}
    left = {int(row[LABEL]["episode"]) for row in words} - {way.episode for way in ways}
    return Journey(len(words), tuple(ways), len(left & reviewed))


def _first_words(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first word on each episode that was not taken back."""
    labels = [row for row in rows if row["kind"] == LABEL]
    undone = {row[LABEL]["undo_of"] for row in labels if row[LABEL]["kind"] == LabelKind.UNDO.value}
    first: dict[int, dict[str, Any]] = {}
    for row in labels:
        if row[LABEL]["kind"] != LabelKind.UNDO.value and row[LABEL]["event_id"] not in undone:
            first.setdefault(int(row[LABEL]["episode"]), row)
    return list(first.values())


def _way(word: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Way | None:
    heard_ns, episode = int(word["stamp_ns"]), int(word[LABEL]["episode"])
    found = _promotion(episode, heard_ns, rows)
    if found is None:
        return None
    begun_ns, promoted_ns = found
    published = _first(rows, PUBLISH, promoted_ns, lambda what: what["channel"] == Channel.CLASSIFIER.value)
    if published is None:
        return None
    version = int(published[PUBLISH]["version"])
    swap = _first(rows, SWAP, 0, lambda what: _is_ready(what, version))
    if swap is None:
        return None
    return Way(
        episode,
        int(swap[SWAP]["version"]),
        int(word[LABEL]["stamp_ns"]),
        heard_ns,
        begun_ns,
        promoted_ns,
        int(published["stamp_ns"]),
        int(swap[SWAP]["found_ns"]),
        int(swap[SWAP]["staged_ns"]),
    )


def _promotion(episode: int, heard_ns: int, rows: Sequence[dict[str, Any]]) -> tuple[int, int] | None:
    """When the promoted candidate for an episode was begun and when it was promoted."""
    begun_ns: int | None = None
    for row in rows:
        if row["kind"] == CANDIDATE and row["stamp_ns"] >= heard_ns:
            begun_ns = int(row["stamp_ns"]) if episode in row[CANDIDATE]["episodes"] else None
        elif _is_review(row) and row["stamp_ns"] >= heard_ns and episode in row[DECISION]["episodes"]:
            return None
        elif row["kind"] == DECISION and begun_ns is not None:
            verdict = row[DECISION]["verdict"]
            if verdict == Verdict.PROMOTED.value:
                return begun_ns, int(row["stamp_ns"])
            if verdict == Verdict.REJECTED.value:
                begun_ns = None
    return None


def _is_review(row: dict[str, Any]) -> bool:
    return row["kind"] == DECISION and row[DECISION]["verdict"] == Verdict.REVIEW.value


def _is_ready(swap: dict[str, Any], version: int) -> bool:
    swapped = swap["channel"] == Channel.CLASSIFIER.value and swap["outcome"] == SwapOutcome.SWAPPED.value
    return bool(swapped and swap["version"] >= version and swap["staged_ns"])


def _first(rows: Sequence[dict[str, Any]], kind: str, since_ns: int, fits: Any) -> dict[str, Any] | None:
    return next((r for r in rows if r["kind"] == kind and r["stamp_ns"] >= since_ns and fits(r[kind])), None)


def missed_between(samples: Sequence[tuple[int, int]], since_ns: int, until_ns: int) -> int:
    """Control ticks missed in a stretch of time, from (stamp, missed so far) of a control loop's statuses."""
    before = [missed for stamp_ns, missed in samples if stamp_ns <= since_ns]
    after = [missed for stamp_ns, missed in samples if stamp_ns >= until_ns]
    if not before or not after:
        return 0
    return after[0] - before[-1]
