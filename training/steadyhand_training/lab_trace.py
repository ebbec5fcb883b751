"""What one run of the drift experiment did over its recorded steps, joined with ground truth afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from steadyhand_models import reward
from steadyhand_models.artifact import Manifest
from steadyhand_models.messages import Channel, Step
from steadyhand_training.facts import EpisodeFacts, RunFacts, gather, read_truth
from steadyhand_training.gate import GateSettings
from steadyhand_training.journal import Journal, Kind
from steadyhand_training.labels import FLAGS
from steadyhand_training.metrics import read_json_lines
from steadyhand_training.run_folder import RunFolder

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TracedEpisode:
    """One episode of the policy, at the recorded step with which it ended."""

    step: int
    alone: bool  # a true success without takeover
    false_success: bool  # the classifier ended it, and it was none


@dataclass(frozen=True)
class Promoted:
    """A classifier that was published after `step` recorded steps, and the stored rewards that it changed."""

    version: int
    step: int
    flipped: int


@dataclass(frozen=True)
class Trace:
    """A whole run. Frames are those that a classifier judged: `said` (N,) and `true` (N,) at recorded steps (N,)."""

    steps: int
    episodes: tuple[TracedEpisode, ...]
    flags: tuple[int, ...]  # recorded steps at which one was pressed
    promoted: tuple[Promoted, ...]
    frame_steps: I64
    said: Bool
    true: Bool


@dataclass(frozen=True)
class Window:
    """What happened between two numbers of recorded steps. Rates are None where there was nothing to judge."""

    begin: int
    end: int
    episodes: int
    alone: int
    false_successes: int
    flags: int
    flipped: int
    negatives: int
    false_positives: int
    positives: int
    false_negatives: int

    @property
    def success(self) -> float | None:
        return self.alone / self.episodes if self.episodes else None

    @property
    def false_positive_rate(self) -> float | None:
        return self.false_positives / self.negatives if self.negatives else None

    @property
    def false_negative_rate(self) -> float | None:
        return self.false_negatives / self.positives if self.positives else None

    @property
    def false_share(self) -> float | None:
        """Share of episodes that a false success ended."""
        return self.false_successes / self.episodes if self.episodes else None


def read(root: Path) -> Trace:
    """The trace of a finished run. Raises UserError."""
    facts = gather(root)
    stamps, frames, said = _steps(RunFolder(root).journal, facts.published[Channel.CLASSIFIER.value])
    truth, known = read_truth(root / "truth.csv").at(stamps)
    judged = np.flatnonzero(frames & known)
    return Trace(
        steps=len(stamps),
        episodes=tuple(_traced(e, stamps) for e in facts.policy_episodes if e.true_success is not None),
        flags=tuple(int(np.searchsorted(stamps, v.stamp_ns)) for v in facts.labels if v.kind in FLAGS),
        promoted=_promoted(facts),
        frame_steps=judged,
        said=said[judged],
        true=truth[judged],
    )


def _steps(path: Path, classifiers: Sequence[Manifest]) -> tuple[I64, Bool, Bool]:
    """Stamps (N,) of all recorded steps, which of them a classifier judged, and which of these it called success."""
    rules = {m.version: reward.Rule(m.threshold, m.debounce_frames, m.pessimism) for m in classifiers}
    stamps: list[int] = []
    judged: list[bool] = []
    said: list[bool] = []
    journal = Journal(path)
    try:
        for entry in journal.replay():
            if entry.kind is not Kind.STEP or not isinstance(step := entry.message, Step):
                continue
            rule = rules.get(step.classifier_version)
            stamps.append(step.stamp_ns)
            judged.append(rule is not None and step.classifier is not None)
            said.append(rule is not None and _above(step, rule))
    finally:
        journal.close()
    return np.array(stamps, np.int64), np.array(judged, np.bool_), np.array(said, np.bool_)


def _above(step: Step, rule: reward.Rule) -> bool:
    if step.classifier is None:
        return False
    return bool(reward.lower_bound(step.classifier[None], rule.pessimism)[0] > rule.threshold)


def _traced(episode: EpisodeFacts, stamps: I64) -> TracedEpisode:
    alone = episode.takeover_steps == 0 and episode.true_success is True
    return TracedEpisode(int(np.searchsorted(stamps, episode.end_ns)), alone, episode.false_positive)


def _promoted(facts: RunFacts) -> tuple[Promoted, ...]:
    events = (row.get("promotion") for row in facts.metrics if row.get("kind") == "promotion")
    flipped = {int(e["version"]): int(e["flipped"]) for e in events if isinstance(e, dict)}
    manifests = facts.published[Channel.CLASSIFIER.value]
    return tuple(Promoted(m.version, m.training_step, flipped.get(m.version, 0)) for m in manifests)


def outside_margin(root: Path, gate: GateSettings) -> int | None:
    """Promoted versions that had more false successes than the champion beyond the gate's margin in some stratum.

    Worked out again from the figures of `decisions.jsonl`; None when a run has none.
    """
    rows = [row for row in read_json_lines(RunFolder(root).decisions) if row.get("verdict") == "promoted"]
    trials = [row["trial"] for row in rows if isinstance(row.get("trial"), dict)]
    if not trials:
        return None
    return sum(any(_beyond(c["candidate"], c["champion"], gate) for c in trial["strata"]) for trial in trials)


def _beyond(candidate: dict[str, Any], champion: dict[str, Any], gate: GateSettings) -> bool:
    false = int(candidate["false"])
    return false > int(champion["false"]) and false > gate.margin(int(candidate["refuted"]))


def windows(trace: Trace, every_steps: int) -> list[Window]:
    """The run in windows of so many recorded steps; the last one holds up to half as many more, or is shorter."""
    edges = [*range(0, max(1, trace.steps - every_steps // 2), every_steps), trace.steps]
    return [window(trace, begin, end) for begin, end in itertools.pairwise(edges)]


def window(trace: Trace, begin: int, end: int) -> Window:
    """What happened at the recorded steps [begin, end)."""
    episodes = [e for e in trace.episodes if begin <= e.step < end]
    inside = (trace.frame_steps >= begin) & (trace.frame_steps < end)
    said, true = trace.said[inside], trace.true[inside]
    return Window(
        begin=begin,
        end=end,
        episodes=len(episodes),
        alone=sum(e.alone for e in episodes),
        false_successes=sum(e.false_success for e in episodes),
        flags=sum(begin <= step < end for step in trace.flags),
        flipped=sum(p.flipped for p in trace.promoted if begin <= p.step < end),
        negatives=int((~true).sum()),
        false_positives=int((said & ~true).sum()),
        positives=int(true.sum()),
        false_negatives=int((~said & true).sum()),
    )
