"""What a running demo looks like from outside: counts from statuses and ground truth, and their display."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich.table import Table

from steadyhand_models.messages import ControlStatus, Mode, TrainerStatus, Truth
from steadyhand_training.status import WARNING

NS = 1_000_000_000
RECENT = 20
TRUTH_BEFORE_NS = NS // 2  # success this shortly before an episode's end counts as its own
DRIVING = (Mode.POLICY, Mode.TAKEOVER)


@dataclass
class _Open:
    """The episode that runs."""

    number: int
    by_policy: bool
    classifier_version: int
    ticks: int = 0
    takeover_ticks: int = 0
    succeeded: bool = False


@dataclass(frozen=True)
class Ended:
    """One ended episode that the policy began."""

    succeeded: bool
    ticks: int
    takeover_ticks: int


@dataclass
class ClassifierTally:
    """One classifier version's episodes, and how often ground truth contradicted it."""

    episodes: int = 0
    false_positives: int = 0
    missed: int = 0


@dataclass
class LiveTally:
    """Counts episodes from what control publishes and the simulation knows. Pure; statuses may be lost in between."""

    demonstrations: int = 0
    episodes: int = 0
    recent: deque[Ended] = field(default_factory=lambda: deque(maxlen=RECENT))
    classifiers: dict[int, ClassifierTally] = field(default_factory=dict)
    status: ControlStatus | None = None
    trainer: TrainerStatus | None = None
    trainer_ns: int = 0
    _open: _Open | None = None
    _success_ns: int = -(1 << 62)

    def truth(self, truth: Truth) -> None:
        if truth.success:
            self._success_ns = truth.stamp_ns
            if self._open is not None:
                self._open.succeeded = True

    def control(self, status: ControlStatus) -> None:
        self.status = status
        running = self._open
        if running is not None and (status.mode not in DRIVING or status.episode != running.number):
            self._close(running, status)
        if status.mode in DRIVING:
            if self._open is None:
                self._open = _Open(status.episode, status.policy_version > 0, status.classifier_version)
            self._open.ticks += 1
            self._open.takeover_ticks += status.mode is Mode.TAKEOVER

    def learning(self, trainer: TrainerStatus, now_ns: int) -> None:
        self.trainer, self.trainer_ns = trainer, now_ns

    def _close(self, running: _Open, status: ControlStatus) -> None:
        self._open = None
        self.episodes += 1
        succeeded = running.succeeded or status.stamp_ns - self._success_ns < TRUTH_BEFORE_NS
        if not running.by_policy:
            self.demonstrations += succeeded
            return
        self.recent.append(Ended(succeeded, running.ticks, running.takeover_ticks))
        if running.classifier_version == 0:
            return
        tally = self.classifiers.setdefault(running.classifier_version, ClassifierTally())
        by_classifier = status.message.endswith("by classifier")
        tally.episodes += 1
        tally.false_positives += by_classifier and not succeeded
        tally.missed += succeeded and not by_classifier

    @property
    def alone_rate(self) -> float | None:
        """Share of the recent policy episodes that succeeded without a takeover."""
        return _share(e.succeeded and not e.takeover_ticks for e in self.recent)

    @property
    def helped_rate(self) -> float | None:
        """Share of the recent policy episodes that succeeded, help included."""
        return _share(e.succeeded for e in self.recent)

    @property
    def takeover_rate(self) -> float | None:
        """Share of recent ticks that the operator drove."""
        ticks = sum(e.ticks for e in self.recent)
        return sum(e.takeover_ticks for e in self.recent) / ticks if ticks else None


def rows(tally: LiveTally, now_ns: int, left_s: float) -> list[tuple[str, str]]:
    """(name, value) of every line of the live view."""
    found = [("time left", f"{int(left_s) // 60}:{int(left_s) % 60:02d}")]
    status = tally.status
    if status is not None:
        found += [
            ("robot", f"{status.mode.value}, episode {status.episode} step {status.seq}  {status.message}"),
            ("episodes", f"{tally.episodes}, {tally.demonstrations} demonstrations among them"),
            (f"success, last {RECENT}", f"{percent(tally.alone_rate)} alone, {percent(tally.helped_rate)} with help"),
            ("takeovers", f"{percent(tally.takeover_rate)} of the steps"),
            ("policy", _policy(status)),
            ("classifier", _classifier(tally, status)),
            (
                "ticks",
                f"{status.tick}, {status.missed_ticks} missed; late {1e3 * status.late_p50_s:.2f} ms (median), "
                f"{1e3 * status.late_p99_s:.2f} ms (99%), {1e3 * status.late_max_s:.1f} ms (most)",
            ),
        ]
    trainer = tally.trainer
    if trainer is not None:
        silent_s = (now_ns - tally.trainer_ns) / NS
        silent = f"  (silent for {silent_s:.0f} s)" if silent_s > 5 else ""
        found += [
            ("trainer", f"{trainer.phase}  {trainer.message}{silent}"),
            ("learning", f"{trainer.updates} updates, {trainer.updates_per_s:.0f}/s, {trainer.utd_ratio:.1f} per step"),
            ("values", f"expected {trainer.critic_q:.2f} of at most {trainer.q_bound:.2f}"),
            *_versions(measured(trainer)),
            (
                "labels",
                f"{trainer.labels}, {trainer.flags} flags; {trainer.promotions} promotions, "
                f"{trainer.rejections} rejections",
            ),
            *_questions(measured(trainer)),
            *(("warning", sentence) for sentence in warnings(trainer)),
        ]
    return found


def measured(trainer: TrainerStatus) -> dict[str, float]:
    """The numbers that a status carries by name."""
    found = {}
    for pair in trainer.metrics:
        name, _, value = pair.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            continue
    return found


def warnings(trainer: TrainerStatus) -> list[str]:
    """The sentences that a status carries for its operator."""
    return [pair.partition("=")[2] for pair in trainer.metrics if pair.startswith(f"{WARNING}=")]


def _versions(found: Mapping[str, float]) -> list[tuple[str, str]]:
    """The best policy by verdicts, once one is known."""
    if "best_version" not in found:
        return []
    interval = f"{percent(found.get('best_lo'))} to {percent(found.get('best_hi'))}"
    newest = f"; the newest {percent(found['recent_success'])}" if "recent_success" in found else ""
    best = f"v{found['best_version']:.0f}: {percent(found.get('best_success'))} alone by verdicts ({interval}){newest}"
    return [("best policy", best)]


def _questions(found: Mapping[str, float]) -> list[tuple[str, str]]:
    """How much waits for a person's answer, when anything does."""
    count = found.get("questions", 0.0)
    return [("questions", f"{count:.0f} open: steadyhand classifier review")] if count else []


def table(tally: LiveTally, now_ns: int, left_s: float, title: str) -> Table:
    """The live view for a terminal."""
    shown = Table(title=title, show_header=False, title_justify="left", expand=True)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column()
    for name, value in rows(tally, now_ns, left_s):
        shown.add_row(name, value)
    return shown


def line(tally: LiveTally, now_ns: int, left_s: float) -> str:
    """The live view in one line, for a log."""
    return " | ".join(f"{name}: {value.strip()}" for name, value in rows(tally, now_ns, left_s))


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}%"


def _classifier(tally: LiveTally, status: ControlStatus) -> str:
    if status.classifier_version == 0:
        return "none yet"
    counts = tally.classifiers.get(status.classifier_version, ClassifierTally())
    total = sum(c.false_positives for c in tally.classifiers.values())
    return (
        f"v{status.classifier_version}: {counts.false_positives} false successes and {counts.missed} missed in "
        f"{counts.episodes} episodes ({total} false successes in all)"
    )


def _share(which: Iterable[bool]) -> float | None:
    values = list(which)
    return sum(values) / len(values) if values else None


def _policy(status: ControlStatus) -> str:
    return f"v{status.policy_version}, {status.policy_age_s:.0f} s old" if status.policy_version else "none yet"
