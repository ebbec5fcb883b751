"""The report as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

from steadyhand_training import plots
from steadyhand_training.facts import EpisodeFacts, RunFacts
from steadyhand_training.video import Video

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 0.9em; } td, th { padding: 0.2em 0.7em; text-align: right; }
th { background: #f3f3f3; } tr:nth-child(even) td { background: #fafafa; }
td:first-child, th:first-child { text-align: left; }
.key { display: flex; flex-wrap: wrap; gap: 0.8em; }
.key div { background: #f3f5f8; border-radius: 6px; padding: 0.6em 1em; }
.key b { display: block; font-size: 1.4em; } svg { max-width: 100%; height: auto; } video { max-width: 100%; }
pre { background: #f7f7f7; padding: 0.8em; overflow-x: auto; font-size: 0.85em; } .none { color: #777; }
"""


def render(facts: RunFacts, summary: dict[str, Any], video: Video | None) -> str:
    """The page; sections whose facts are missing say so."""
    sections = [
        f"<h1>Steadyhand run {html.escape(facts.run)}</h1>",
        _key_figures(summary),
        _section("Learning curve", _if(facts.policy_episodes, lambda: plots.learning_curve(facts))),
        _section("Takeovers", _if(facts.policy_episodes, lambda: plots.takeover_rate(facts))),
        _section("Classifier against ground truth", _classifier(facts)),
        _section("Policy versions", _standing(facts, summary)),
        _section("Video", _video(video)),
        _section("Versions and swaps", _versions(facts, summary) + _swaps(facts)),
        _section("Ticks", _ticks(facts)),
        _section("Learning", _if(_statuses(facts), lambda: _learning(facts, summary))),
        _section("Evaluation", _evaluations(summary)),
        _section("Records", _records(summary)),
        _section("Episodes", _episodes(facts)),
        _section("Settings", "".join(_settings(n, t) for n, t in facts.settings.items())),
    ]
    body = "\n".join(sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Steadyhand run {html.escape(facts.run)}'
        f"</title><style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}%"


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>\n{body or '<p class=none>Nothing was recorded.</p>'}"


def _if(there: Any, draw: Any) -> str:
    return str(draw()) if there else ""


def _key_figures(summary: dict[str, Any]) -> str:
    evaluation, false = summary["evaluation"], summary["false_successes"]
    shown = {
        "final policy, alone": percent(plots.success_rate(evaluation.get("final", {}))),
        "behaviour cloning": percent(plots.success_rate(evaluation.get("behaviour_cloning", {}))),
        "minutes": f"{summary['duration_s'] / 60:.1f}",
        "steps in the journal": summary["steps"]["journal"],
        "policies swapped in": summary["versions"]["policy"]["swapped"],
        "classifiers swapped in": summary["versions"]["classifier"]["swapped"],
        "ticks missed at swaps": summary["versions"]["ticks_missed_at_swaps"],
        "flags": summary["labels"]["flags"],
        "episodes that a false success ended": f"{false['episodes']} of {false['of']}",
    }
    cells = "".join(f"<div><b>{html.escape(str(v))}</b>{html.escape(k)}</div>" for k, v in shown.items())
    return f'<div class="key">{cells}</div>'


def _classifier(facts: RunFacts) -> str:
    if not facts.quality:
        return ""
    rows = [
        (
            f"v{q.version}", q.episodes, q.false_positives, q.missed, q.frames,
            percent(q.frame_false_positive_rate), percent(q.frame_false_negative_rate),
        )
        for q in facts.quality
    ]  # fmt: skip
    head = ("version", "episodes", "false successes", "missed", "frames", "frames false +", "frames false −")
    drawing = plots.classifier_quality(facts) if any(q.episodes for q in facts.quality) else ""
    return drawing + _table(head, rows)


def _standing(facts: RunFacts, summary: dict[str, Any]) -> str:
    words = {"truth": "ground truth", "verdict": "people's verdicts"}
    lines = []
    for name, found in summary["best"].items():
        if found is None:
            continue
        lo, hi = found["interval"]
        text = f"Best by {words[name]}: v{found['version']}, {percent(found['success'])} alone ({percent(lo)} to "
        text += f"{percent(hi)}); the newest {percent(found['newest_success'])}."
        lines.append(f"{text} {found['fall']}." if found["fall"] else text)
    drawing = plots.versions(facts) if lines else ""
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines) + drawing


def _learning(facts: RunFacts, summary: dict[str, Any]) -> str:
    learning = summary["learning"]
    figures = (
        f"{learning.get('updates', 0)} updates, {learning.get('utd_ratio', 0.0):.2f} per recorded step; values at the "
        f"end {learning.get('critic_q', 0.0):.2f} of at most {learning.get('q_bound', 0.0):.2f}"
    )
    warned = [(f"{w['time_s'] / 60:.1f}", w["warning"]) for w in learning["warnings"]]
    table = _table(("minute", "warning"), warned) if warned else ""
    return f"<p>{html.escape(figures)}</p>{table}{plots.updates(facts)}{plots.values(facts)}"


def _video(video: Video | None) -> str:
    if video is None:
        return ""
    data = base64.b64encode(video.data).decode("ascii")
    return f'<video controls loop muted src="data:{video.mime};base64,{data}"></video>'


def _versions(facts: RunFacts, summary: dict[str, Any]) -> str:
    rows = [
        (name, summary["versions"][name]["published"], summary["versions"][name]["swapped"],
         summary["versions"][name]["refused"], summary["versions"][name]["rolled_back"])
        for name in facts.published
    ]  # fmt: skip
    return _table(("channel", "published", "swapped in", "refused", "rolled back"), rows)


def _swaps(facts: RunFacts) -> str:
    if not facts.swaps:
        return ""
    rows = [
        (
            s.channel.value, f"v{s.version}", f"v{s.previous}", s.outcome.value, s.tick,
            f"{facts.minutes(s.stamp_ns):.2f}", s.missed_ticks, f"{1e3 * s.lateness_s:.2f}", f"{1e3 * s.build_s:.0f}",
            s.reason,
        )
        for s in facts.swaps
    ]  # fmt: skip
    head = ("channel", "version", "before", "outcome", "first tick", "minute", "ticks missed", "late (ms)",
            "build (ms)", "reason")  # fmt: skip
    return f"<details open><summary>{len(rows)} swaps</summary>{_table(head, rows)}</details>"


def _ticks(facts: RunFacts) -> str:
    parts = []
    for name in ("control", "bus", "sim"):
        figures = facts.figures.get(name, {})
        if not figures:
            continue
        late = figures.get("late_s")
        p50, p99 = (
            (late.get("p50", 0.0), late.get("p99", 0.0))
            if isinstance(late, dict)
            else (figures.get("late_p50_s", 0.0), figures.get("late_p99_s", 0.0))
        )
        most = figures.get("late_max_s", 0.0)
        text = (
            f"{name}: {figures.get('ticks', 0)} ticks, {figures.get('missed_ticks', 0)} missed; late by "
            f"{1e3 * p50:.2f} ms (median), {1e3 * p99:.2f} ms (99%), {1e3 * most:.1f} ms (most)"
        )
        degraded = figures.get("realtime_degraded") or []
        notes = "".join(f"<br><span class=none>{html.escape(str(d))}</span>" for d in degraded)
        parts.append(f"<p>{html.escape(text)}{notes}</p>")
        if figures.get("late_histogram"):
            parts.append(plots.lateness(figures["late_histogram"], float(figures.get("period_s", 0.0))))
    return "".join(parts)


def _statuses(facts: RunFacts) -> bool:
    return any(r.get("kind") == "status" for r in facts.metrics)


def _evaluations(summary: dict[str, Any]) -> str:
    rows = []
    for name, result in summary["evaluation"].items():
        shown = {k: v for k, v in result.items() if isinstance(v, (int, float, str))}
        rows += [
            (f"{name}: {key}", f"{value:.4g}" if isinstance(value, float) else value) for key, value in shown.items()
        ]
    return _table(("what", "value"), rows) if rows else ""


def _records(summary: dict[str, Any]) -> str:
    steps, records, labels = summary["steps"], summary["records"], summary["labels"]
    rows = [
        ("steps recorded by the robot", _known(steps["recorded"])),
        ("steps in the journal", steps["journal"]),
        ("records appended by the robot", _known(records["recorded"])),
        ("records in the journal", records["journal"]),
        ("steps that stand twice in the journal", records["duplicates"]),
        ("resent records that were dropped", records["resent_and_dropped"]),
        *((f"labels: {kind}", count) for kind, count in labels["by_kind"].items()),
        ("classifier promotions", labels["promotions"]),
        ("candidates rejected", labels["rejections"]),
    ]
    return _table(("what", "count"), rows)


def _known(count: int | None) -> int | str:
    return "unknown" if count is None else count


def _episodes(facts: RunFacts) -> str:
    if not facts.episodes:
        return ""
    head = ("episode", "minute", "kind", "steps", "takeover", "end", "by", "verdict", "truth", "policy", "classifier")
    rows = [_episode(facts, e) for e in facts.episodes]
    return f"<details><summary>{len(rows)} episodes</summary>{_table(head, rows)}</details>"


def _episode(facts: RunFacts, e: EpisodeFacts) -> tuple[object, ...]:
    truth = {True: "success", False: "no", None: "–"}[e.true_success]
    return (
        e.number, f"{facts.minutes(e.begin_ns):.2f}", e.kind.value, e.steps, e.takeover_steps,
        e.end.value if e.end else "unfinished", e.ended_by, e.verdict or "–", truth,
        f"v{e.policy_version}", f"v{e.classifier_version}",
    )  # fmt: skip


def _settings(name: str, text: str) -> str:
    return f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(text)}</pre></details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    top = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
