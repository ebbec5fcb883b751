"""Facts of one run, joined from its journal, ground truth, registry, metrics and the edge's figures; no opinions."""

from __future__ import annotations

import enum
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from steadyhand_models import reward, wire
from steadyhand_models.artifact import ArtifactError, Manifest
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel, EndReason, Label, LabelKind, Source, Step, Swap
from steadyhand_models.registry import Registry
from steadyhand_training.journal import Counts, Journal, Kind, is_import
from steadyhand_training.labels import AFFIRMING, DENYING
from steadyhand_training.metrics import read_json_lines
from steadyhand_training.run_folder import RunFolder
from steadyhand_training.versions import VersionBook

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
NS = 1_000_000_000
TRUTH_SLACK_NS = 60_000_000  # rows come at about 20 Hz
WINDOW = 20  # episodes of the moving averages


class EpisodeKind(str, enum.Enum):
    """Who began an episode."""

    DEMONSTRATION = "demonstration"
    POLICY = "policy"


@dataclass
class EpisodeFacts:
    """One episode. `true_success` is ground truth's word, None where none was recorded; `verdict` the human's."""

    number: int
    begin_ns: int
    end_ns: int = 0
    steps: int = 0
    kind: EpisodeKind = EpisodeKind.POLICY
    takeover_steps: int = 0
    end: EndReason | None = None
    ended_by: str = ""
    verdict: str = ""
    true_success: bool | None = None
    policy_version: int = 0
    classifier_version: int = 0

    @property
    def alone(self) -> bool:
        """The policy drove all of it."""
        return self.kind is EpisodeKind.POLICY and self.takeover_steps == 0

    @property
    def by_classifier(self) -> bool:
        return self.ended_by == "classifier"

    @property
    def false_positive(self) -> bool:
        """The classifier ended it as a success that it was not."""
        return self.by_classifier and self.true_success is False

    @property
    def missed(self) -> bool:
        """It was a success that the classifier in force did not end."""
        judged = self.kind is EpisodeKind.POLICY and self.classifier_version > 0
        return judged and self.true_success is True and not self.by_classifier


class TruthTrack:
    """The simulation's ground truth over time: rows of (stamp_ns, success)."""

    def __init__(self, stamp_ns: I64, success: Bool) -> None:
        order = np.argsort(stamp_ns, kind="stable")
        self._stamp_ns = stamp_ns[order]
        self._success = success[order]
        self._before = np.concatenate([[0], np.cumsum(self._success)])

    def __len__(self) -> int:
        return len(self._stamp_ns)

    def any_between(self, begin_ns: int, end_ns: int) -> bool | None:
        """Whether success was true at any row in [begin, end]; None when there is none."""
        lo, hi = np.searchsorted(self._stamp_ns, [begin_ns, end_ns + 1])
        return bool(self._before[hi] > self._before[lo]) if hi > lo else None

    def at(self, stamp_ns: I64) -> tuple[Bool, Bool]:
        """Success at stamps (T,) by the nearest row, and whether one is near enough to say."""
        if not len(self):
            return np.zeros(len(stamp_ns), np.bool_), np.zeros(len(stamp_ns), np.bool_)
        right = np.clip(np.searchsorted(self._stamp_ns, stamp_ns), 1, max(1, len(self) - 1))
        right = np.minimum(right, len(self) - 1)
        left = np.maximum(right - 1, 0)
        nearer_left = np.abs(stamp_ns - self._stamp_ns[left]) <= np.abs(stamp_ns - self._stamp_ns[right])
        nearest = np.where(nearer_left, left, right)
        return self._success[nearest], np.abs(stamp_ns - self._stamp_ns[nearest]) <= TRUTH_SLACK_NS


def read_truth(path: Path) -> TruthTrack:
    """Ground truth of a run; empty without the file. Rows that a crash cut off are skipped."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="ascii", errors="replace").splitlines()[1:]:
            parts = line.split(",")
            if len(parts) == 6 and parts[0].isdigit() and parts[3] in "01":
                rows.append((int(parts[0]), parts[3] == "1"))
    table = np.array(rows, np.int64).reshape(-1, 2)
    return TruthTrack(table[:, 0], table[:, 1].astype(np.bool_))


@dataclass(frozen=True)
class Recorded:
    """What the robot counted in its own spool; None when that cannot be read."""

    records: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class VersionQuality:
    """One classifier version against ground truth, in the episodes and on the policy's frames that it judged."""

    version: int
    episodes: int
    false_positives: int  # episodes that it ended wrongly
    missed: int  # successes that it left to others
    frames: int
    frame_false_positive_rate: float | None
    frame_false_negative_rate: float | None


@dataclass
class _Frames:
    """What a classifier version said of frames, for joining with the truth."""

    stamp_ns: list[int] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)


@dataclass
class RunFacts:
    """Everything a report says. `figures` holds the edge's JSON files by process; evaluations are as written."""

    folder: Path
    run: str
    counts: Counts
    recorded: Recorded
    doubled: int  # steps that stand more than once in the journal
    episodes: list[EpisodeFacts]
    labels: list[Label]
    swaps: list[Swap]
    quality: list[VersionQuality]
    published: dict[str, list[Manifest]]
    figures: dict[str, dict[str, Any]]
    metrics: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]
    settings: dict[str, str]
    run_info: dict[str, Any]

    @property
    def policy_episodes(self) -> list[EpisodeFacts]:
        """Ended episodes that the policy began."""
        return [e for e in self.episodes if e.kind is EpisodeKind.POLICY and e.end is not None]

    @property
    def begin_ns(self) -> int:
        return self.episodes[0].begin_ns if self.episodes else 0

    @property
    def duration_s(self) -> float:
        """From the first recorded step to the last."""
        return (max(e.end_ns for e in self.episodes) - self.begin_ns) / NS if self.episodes else 0.0

    @property
    def by_truth(self) -> bool:
        """Whether ground truth judged the policy's episodes."""
        return any(e.true_success is not None for e in self.policy_episodes)

    def book(self, by_truth: bool) -> VersionBook:
        """The policy versions as their autonomous episodes show them, by ground truth or by people's verdicts."""
        book = VersionBook()
        for manifest in self.published[Channel.POLICY.value]:
            if "rolled_back_at" in manifest.metrics:
                book.rolled_back(manifest.version, manifest.parent)
        for episode in self.policy_episodes:
            said = {"success": True, "failure": False}.get(episode.verdict)
            success = episode.true_success if by_truth else said
            book.judge(episode.number, episode.policy_version if episode.alone else 0, success)
        return book

    def minutes(self, stamp_ns: int) -> float:
        return (stamp_ns - self.begin_ns) / NS / 60.0


def moving(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """Mean of the last `window` values at every place; shorter at the start."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - window, 0)
    means: list[float] = ((sums[ends] - sums[begins]) / (ends - begins)).tolist()
    return means


def gather(root: Path) -> RunFacts:
    """Read a run folder, whole or broken off. Raises UserError when there is no run in it."""
    folder = RunFolder(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such run folder; give --run RUN_FOLDER")
    published = {channel.value: _manifests(Registry(folder.registry), channel) for channel in Channel}
    reader = _Reader(read_truth(root / "truth.csv"), published[Channel.CLASSIFIER.value])
    counts = Counts(0, 0, 0, 0, 0)
    if folder.journal.is_file():
        journal = Journal(folder.journal)
        try:
            reader.read(journal)
            counts = journal.counts()
        finally:
            journal.close()
    reader.finish()
    return RunFacts(
        folder=root,
        run=reader.run or root.resolve().name,
        counts=counts,
        recorded=_recorded(root / "edge" / "spool.sqlite"),
        doubled=reader.doubled,
        episodes=reader.episodes,
        labels=reader.labels,
        swaps=reader.swaps,
        quality=reader.quality(),
        published=published,
        figures={name: _json(root / "edge" / f"{name}.json") for name in ("control", "bus", "sim", "daemon")},
        metrics=list(read_json_lines(folder.metrics)),
        evaluations={path.stem.removeprefix("evaluation_"): _json(path) for path in root.glob("evaluation_*.json")},
        settings={p.name: p.read_text(encoding="utf-8") for p in sorted((root / "settings").glob("*.toml"))},
        run_info=_json(root / "run.json"),
    )


class _Reader:
    """Takes a journal in, one record at a time."""

    def __init__(self, truth: TruthTrack, classifiers: Sequence[Manifest]) -> None:
        self._truth = truth
        self._rules = {m.version: reward.Rule(m.threshold, m.debounce_frames, m.pessimism) for m in classifiers}
        self._by_number: dict[int, EpisodeFacts] = {}
        self._frames: dict[int, _Frames] = {}
        self.labels: list[Label] = []
        self.swaps: list[Swap] = []
        self.run = ""
        self.doubled = 0
        self._seen: set[tuple[int, int]] = set()

    @property
    def episodes(self) -> list[EpisodeFacts]:
        return sorted(self._by_number.values(), key=lambda e: e.begin_ns)

    def read(self, journal: Journal) -> None:
        for entry in journal.replay():
            if entry.kind is Kind.UNREADABLE or is_import(entry.edge):
                continue
            try:
                message = entry.message
            except wire.WireError:
                continue
            if isinstance(message, Step):
                self._step(message)
            elif isinstance(message, Label):
                self.labels.append(message)
            else:
                self.swaps.append(message)

    def _step(self, step: Step) -> None:
        self.run = step.run
        self.doubled += (step.episode, step.seq) in self._seen
        self._seen.add((step.episode, step.seq))
        facts = self._by_number.setdefault(step.episode, EpisodeFacts(step.episode, step.stamp_ns))
        facts.end_ns = max(facts.end_ns, step.stamp_ns)
        facts.steps += 1
        facts.policy_version, facts.classifier_version = step.policy_version, step.classifier_version
        if step.source is Source.DEMONSTRATION:
            facts.kind = EpisodeKind.DEMONSTRATION
        facts.takeover_steps += step.source is Source.TAKEOVER
        if step.end is not None:
            facts.end = step.end
            facts.ended_by = next((r[len("ended_by_") :] for r in step.reasons if r.startswith("ended_by_")), "")
        if step.classifier is not None and len(step.classifier):
            frames = self._frames.setdefault(step.classifier_version, _Frames())
            frames.stamp_ns.append(step.stamp_ns)
            pessimism = self._rule(step.classifier_version).pessimism
            frames.lower.append(float(reward.lower_bound(step.classifier[None], pessimism)[0]))

    def finish(self) -> None:
        """Join the truth and the human's words."""
        for facts in self._by_number.values():
            facts.true_success = self._truth.any_between(facts.begin_ns, facts.end_ns + TRUTH_SLACK_NS)
        undone = {label.undo_of for label in self.labels if label.kind is LabelKind.UNDO}
        for label in self.labels:
            facts_of = self._by_number.get(label.episode)
            if facts_of is None or label.event_id in undone:
                continue
            if label.kind in AFFIRMING:
                facts_of.verdict = "success"
            elif label.kind in DENYING:
                facts_of.verdict = "failure"

    def quality(self) -> list[VersionQuality]:
        """Every version that judged anything."""
        ended = [e for e in self._by_number.values() if e.kind is EpisodeKind.POLICY and e.end is not None]
        versions = sorted(({e.classifier_version for e in ended} | set(self._frames)) - {0})
        return [self._quality(v, ended) for v in versions]

    def _rule(self, version: int) -> reward.Rule:
        return self._rules.get(version, reward.Rule(0.5, 1))

    def _quality(self, version: int, ended: Iterable[EpisodeFacts]) -> VersionQuality:
        judged = [e for e in ended if e.classifier_version == version and e.true_success is not None]
        frames = self._frames.get(version, _Frames())
        true, known = self._truth.at(np.array(frames.stamp_ns, np.int64))
        said = np.array(frames.lower) > self._rule(version).threshold
        positive, negative = known & true, known & ~true
        return VersionQuality(
            version=version,
            episodes=len(judged),
            false_positives=sum(e.false_positive for e in judged),
            missed=sum(e.missed for e in judged),
            frames=int(known.sum()),
            frame_false_positive_rate=float(said[negative].mean()) if negative.any() else None,
            frame_false_negative_rate=float((~said[positive]).mean()) if positive.any() else None,
        )


def label_counts(labels: Iterable[Label]) -> dict[str, int]:
    return dict(Counter(label.kind.value for label in labels))


def _manifests(registry: Registry, channel: Channel) -> list[Manifest]:
    found = []
    for version in registry.versions(channel):
        try:
            found.append(registry.manifest(channel, version))
        except ArtifactError:
            continue
    return found


def _recorded(spool: Path) -> Recorded:
    """What the robot ever appended to its spool, acknowledged or not."""
    if not spool.is_file():
        return Recorded()
    try:
        db = sqlite3.connect(f"file:{spool}?mode=ro", uri=True)
        try:
            row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
            (steps,) = db.execute("SELECT steps FROM tally").fetchone()
        finally:
            db.close()
    except sqlite3.Error:
        return Recorded()
    return Recorded(int(row[0]) if row else 0, int(steps))


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when the file is missing or broken."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
