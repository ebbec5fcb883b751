"""Turn a run folder into summary.json and one self-contained report.html."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadyhand_models import settings, task
from steadyhand_models.cli import UserError
from steadyhand_models.messages import SwapOutcome
from steadyhand_training import page, plots, video
from steadyhand_training.facts import EpisodeFacts, RunFacts, gather, label_counts, moving
from steadyhand_training.run_folder import write_whole
from steadyhand_training.versions import VersionBook

_DESCRIPTION = """Write summary.json and report.html of a run, whole or broken off.

Example: steadyhand report --run runs/latest"""


@dataclass(frozen=True)
class ReportSettings:
    """What to report on."""

    run: Path = Path("runs/latest")
    video: bool = True


def write(root: Path, with_video: bool = True) -> dict[str, Any]:
    """Write both files of a run and return the summary. Raises UserError."""
    facts = gather(root)
    summary = summarise(facts)
    film = video.make(facts, _rate_hz(facts)) if with_video else None
    try:
        write_whole(root / "summary.json", json.dumps(summary, indent=1) + "\n")
        write_whole(root / "report.html", page.render(facts, summary, film))
    except OSError as error:
        raise UserError(f"{root}: the report cannot be written ({error.strerror})") from None
    return summary


def summarise(facts: RunFacts) -> dict[str, Any]:
    """The report's facts for programs; plain JSON types. Times are seconds since the first recorded step."""
    records = facts.counts.steps + facts.counts.labels + facts.counts.swaps + facts.counts.unreadable
    return {
        "run": facts.run,
        "demo": facts.run_info,
        "duration_s": facts.duration_s,
        "steps": {"recorded": facts.recorded.steps, "journal": facts.counts.steps},
        "records": {
            "recorded": facts.recorded.records,
            "journal": records,
            "resent_and_dropped": facts.counts.duplicates,
            "duplicates": facts.doubled,
            "unreadable": facts.counts.unreadable,
        },
        "episodes": [_episode(facts, e) for e in facts.episodes],
        "autonomous_success": _success_over_time(facts),
        "takeover_rate": _takeover_rate(facts.policy_episodes),
        "takeover_rate_last_20": _takeover_rate(facts.policy_episodes[-20:]),
        "false_successes": {
            "episodes": sum(e.false_positive for e in facts.policy_episodes),
            "of": len(facts.policy_episodes),
            "last_20": sum(e.false_positive for e in facts.policy_episodes[-20:]),
        },
        "versions": _versions(facts),
        "best": {name: _best(facts.book(name == "truth")) for name in ("truth", "verdict")},
        "swaps": [_swap(facts, i) for i in range(len(facts.swaps))],
        "ticks": {name: _ticks(figures) for name, figures in facts.figures.items() if "ticks" in figures},
        "labels": _labels(facts),
        "classifier": [
            {
                "version": q.version,
                "episodes": q.episodes,
                "false_positives": q.false_positives,
                "missed": q.missed,
                "frames": q.frames,
                "frame_false_positive_rate": q.frame_false_positive_rate,
                "frame_false_negative_rate": q.frame_false_negative_rate,
            }
            for q in facts.quality
        ],
        "evaluation": {name: _plain(result) for name, result in facts.evaluations.items()},
        "learning": _learning(facts),
    }


def _episode(facts: RunFacts, e: EpisodeFacts) -> dict[str, Any]:
    return {
        "episode": e.number,
        "begin_s": (e.begin_ns - facts.begin_ns) / 1e9,
        "end_s": (e.end_ns - facts.begin_ns) / 1e9,
        "kind": e.kind.value,
        "steps": e.steps,
        "takeover_steps": e.takeover_steps,
        "end": e.end.value if e.end else None,
        "ended_by": e.ended_by,
        "verdict": e.verdict or None,
        "true_success": e.true_success,
        "policy_version": e.policy_version,
        "classifier_version": e.classifier_version,
    }


def _success_over_time(facts: RunFacts) -> list[dict[str, float]]:
    """Share of the last 20 policy episodes that succeeded without a takeover, by ground truth, at each one's end."""
    judged = [e for e in facts.policy_episodes if e.true_success is not None]
    rates = moving([float(bool(e.true_success) and e.takeover_steps == 0) for e in judged])
    return [
        {"time_s": (e.end_ns - facts.begin_ns) / 1e9, "episode": e.number, "rate": rate}
        for e, rate in zip(judged, rates)
    ]


def _takeover_rate(episodes: Sequence[EpisodeFacts]) -> float | None:
    """Share of the steps that began with the policy in which the operator drove."""
    steps = sum(e.steps for e in episodes)
    return sum(e.takeover_steps for e in episodes) / steps if steps else None


def _versions(facts: RunFacts) -> dict[str, Any]:
    counted: dict[str, Any] = {
        "ticks_missed_at_swaps": sum(s.missed_ticks for s in facts.swaps if s.outcome is SwapOutcome.SWAPPED)
    }
    for channel, manifests in facts.published.items():
        outcomes = [s.outcome for s in facts.swaps if s.channel.value == channel]
        counted[channel] = {
            "published": len(manifests),
            "newest": manifests[-1].version if manifests else 0,
            **{outcome.value: outcomes.count(outcome) for outcome in SwapOutcome},
        }
    return counted


def _best(book: VersionBook) -> dict[str, Any] | None:
    """The best policy version and the newest one, by autonomous episodes."""
    best, recent, fall = book.best, book.recent, book.fall
    if best is None:
        return None
    return {
        "version": best.version,
        "success": best.rate,
        "interval": best.interval(),
        "newest_success": None if recent is None else recent.rate,
        "fall": None if fall is None else str(fall),
    }


def _swap(facts: RunFacts, index: int) -> dict[str, Any]:
    swap = facts.swaps[index]
    return {
        "channel": swap.channel.value,
        "version": swap.version,
        "previous": swap.previous,
        "outcome": swap.outcome.value,
        "reason": swap.reason,
        "tick": swap.tick,
        "time_s": (swap.stamp_ns - facts.begin_ns) / 1e9,
        "missed_ticks": swap.missed_ticks,
        "lateness_s": swap.lateness_s,
        "build_s": swap.build_s,
    }


def _ticks(figures: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in figures.items() if k in ("ticks", "missed_ticks", "period_s") or k.startswith("late_")}


def _labels(facts: RunFacts) -> dict[str, Any]:
    kinds = label_counts(facts.labels)
    status = _last_status(facts)
    return {
        "by_kind": kinds,
        "flags": kinds.get("false_positive", 0) + kinds.get("false_negative", 0),
        "promotions": int(status.get("promotions", 0)),
        "rejections": int(status.get("rejections", 0)),
    }


def _learning(facts: RunFacts) -> dict[str, Any]:
    status = _last_status(facts)
    names = ("phase", "updates", "updates_per_s", "utd_ratio", "demonstrations", "critic_q", "q_bound")
    return {**{k: status[k] for k in names if k in status}, "warnings": _warnings(facts)}


def _warnings(facts: RunFacts) -> list[dict[str, Any]]:
    """Every warning of learning once, with when it first came."""
    first: dict[str, float] = {}
    for row in facts.metrics:
        for sentence in row.get("warnings", ()) if row.get("kind") == "status" else ():
            first.setdefault(str(sentence), (int(row.get("stamp_ns", 0)) - facts.begin_ns) / 1e9)
    return [{"time_s": time_s, "warning": sentence} for sentence, time_s in first.items()]


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    """An evaluation without its single episodes, which stay in its own file."""
    return {k: v for k, v in result.items() if not isinstance(v, (list, dict))}


def _last_status(facts: RunFacts) -> dict[str, Any]:
    return next((r for r in reversed(facts.metrics) if r.get("kind") == "status"), {})


def _rate_hz(facts: RunFacts) -> float:
    """The control rate of the run's task; the shipped one's when that is gone."""
    try:
        return task.load(str(facts.run_info.get("task", "lift"))).rate_hz
    except settings.SettingsError:
        return task.load("lift").rate_hz


def headline(summary: dict[str, Any]) -> list[str]:
    """What a person wants to know first, line by line."""
    steps, versions, labels = summary["steps"], summary["versions"], summary["labels"]
    policy, classifier, false = versions["policy"], versions["classifier"], summary["false_successes"]
    lines = [
        f"{steps['journal']} steps in {len(summary['episodes'])} episodes, {summary['duration_s'] / 60:.1f} minutes; "
        f"takeovers {page.percent(summary['takeover_rate'])} of the steps",
        f"{policy['swapped']} policies and {classifier['swapped']} classifiers swapped in, "
        f"{versions['ticks_missed_at_swaps']} ticks missed at swaps; {labels['flags']} flags, "
        f"{labels['promotions']} promotions",
        f"a false success ended {false['episodes']} of the policy's {false['of']} episodes, "
        f"{false['last_20']} of its last 20",
    ]
    for name, result in sorted(summary["evaluation"].items()):
        lines.append(f"{name.replace('_', ' ')}: {page.percent(plots.success_rate(result))} success, alone")
    return lines


def main(argv: Sequence[str]) -> int:
    """`steadyhand report`: look at a run again."""
    chosen = settings.parse_command_line(ReportSettings, argv, "steadyhand report", _DESCRIPTION)
    summary = write(chosen.run, chosen.video)
    print("\n".join([*headline(summary), str(chosen.run / "report.html"), str(chosen.run / "summary.json")]))
    return 0
