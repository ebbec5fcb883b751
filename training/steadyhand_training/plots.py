"""The report's diagrams as inline SVG, and those of the experiments as PNG."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from steadyhand_training.facts import RunFacts, moving

if TYPE_CHECKING:
    from steadyhand_training import lab_drift_results as drift
    from steadyhand_training.lab_noise_results import Cell, Chart
    from steadyhand_training.lab_results import LineResult
    from steadyhand_training.lab_trace import Window

matplotlib.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "axes.grid": True, "grid.alpha": 0.3})

BLUE, ORANGE, GREEN, RED, GREY = "#3465a4", "#e07b00", "#3a9a3a", "#c03030", "#888888"
COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)
WIDTH_IN, HEIGHT_IN = 8.4, 3.2


def learning_curve(facts: RunFacts) -> str:
    """Success over time by ground truth, alone and with help, with behaviour cloning's line and the final policy's."""
    figure, axes = _figure()
    judged = [e for e in facts.policy_episodes if e.true_success is not None]
    at = [facts.minutes(e.end_ns) for e in judged]
    alone = [float(bool(e.true_success) and e.takeover_steps == 0) for e in judged]
    helped = [float(bool(e.true_success)) for e in judged]
    axes.plot(at, moving(helped), color=GREY, lw=1.2, label="success, help included (20 episodes)")
    axes.plot(at, moving(alone), color=BLUE, lw=2.0, label="success alone (20 episodes)")
    for name, colour, text in (
        ("behaviour_cloning", ORANGE, "behaviour cloning, evaluated"),
        ("final", GREEN, "final policy, evaluated"),
    ):
        rate = success_rate(facts.evaluations.get(name, {}))
        if rate is not None:
            axes.axhline(rate, color=colour, ls="--", lw=1.4, label=f"{text}: {100 * rate:.0f}%")
    _mark_promotions(axes, facts)
    axes.set_xlim(0, None)
    axes.set_ylim(-0.03, 1.03)
    _finish(axes, "minutes", "success by ground truth")
    return _svg(figure)


def takeover_rate(facts: RunFacts) -> str:
    """Share of steps and of episodes in which the operator drove."""
    figure, axes = _figure()
    episodes = facts.policy_episodes
    at = [facts.minutes(e.end_ns) for e in episodes]
    steps = moving([float(e.steps) for e in episodes])
    driven = moving([float(e.takeover_steps) for e in episodes])
    axes.plot(at, [d / s if s else 0.0 for d, s in zip(driven, steps)], color=BLUE, lw=2.0, label="of steps")
    axes.plot(at, moving([float(e.takeover_steps > 0) for e in episodes]), color=GREY, lw=1.2, label="of episodes")
    axes.set_xlim(0, None)
    axes.set_ylim(-0.03, 1.03)
    _finish(axes, "minutes", "takeovers (20 episodes)")
    return _svg(figure)


def classifier_quality(facts: RunFacts) -> str:
    """False and missed successes of every classifier version, as shares of the episodes that it judged."""
    figure, axes = _figure()
    shown = [q for q in facts.quality if q.episodes]
    at = np.arange(len(shown))
    axes.bar(at - 0.2, [q.false_positives / q.episodes for q in shown], 0.4, color=RED, label="false successes")
    axes.bar(at + 0.2, [q.missed / q.episodes for q in shown], 0.4, color=GREY, label="missed successes")
    axes.set_xticks(at, [f"v{q.version}\n{q.episodes} ep." for q in shown], fontsize=8)
    axes.set_xlim(-1, max(len(shown), 5))
    axes.set_ylim(0, 1)
    _finish(axes, "classifier version", "share of its episodes")
    return _svg(figure)


def lateness(histogram: Sequence[Sequence[float]], period_s: float) -> str:
    """Histogram of a loop's lateness: (upper edge in s, samples) pairs."""
    figure, axes = _figure(height_in=2.4)
    edges = np.array([max(pair[0], 1e-6) for pair in histogram]) * 1e3
    counts = np.array([pair[1] for pair in histogram])
    axes.bar(edges, counts, width=edges * 0.09, align="center", color=BLUE)
    axes.set_xscale("log")
    axes.set_yscale("log")
    if period_s:
        axes.axvline(period_s * 1e3, color=RED, ls="--", lw=1.2, label="one period")
    _finish(axes, "late by (ms)", "ticks")
    return _svg(figure)


def updates(facts: RunFacts) -> str:
    """Updates per second and recorded steps over time, from the trainer's statuses."""
    figure, axes = _figure(height_in=2.4)
    rows = [r for r in facts.metrics if r.get("kind") == "status"]
    at = [facts.minutes(int(r["stamp_ns"])) for r in rows]
    axes.plot(at, [r.get("updates_per_s", 0.0) for r in rows], color=BLUE, lw=1.2, label="updates per second")
    _finish(axes, "minutes", "updates/s")
    return _svg(figure)


def values(facts: RunFacts) -> str:
    """What the critics expect, against the most that can be earned."""
    figure, axes = _figure(height_in=2.4)
    rows = [r for r in facts.metrics if r.get("kind") == "status" and r.get("updates")]
    at = [facts.minutes(int(r["stamp_ns"])) for r in rows]
    axes.plot(at, [r.get("critic_q", 0.0) for r in rows], color=BLUE, lw=1.2, label="mean of the critics")
    axes.plot(at, [r.get("q_bound", 0.0) for r in rows], color=RED, ls="--", lw=1.2, label="the most there is to earn")
    _finish(axes, "minutes", "value")
    return _svg(figure)


def versions(facts: RunFacts) -> str:
    """Success of the policy versions with what their neighbours lend them, and a 95% credible band."""
    figure, axes = _figure()
    book = facts.book(facts.by_truth)
    standings = [book.standing(version) for version in book.counts]
    at, bands = [s.version for s in standings], [s.interval() for s in standings]
    judge = "ground truth" if facts.by_truth else "people's verdicts"
    axes.plot(at, [s.rate for s in standings], color=BLUE, lw=2.0, label=f"success alone by {judge}")
    axes.fill_between(at, [lo for lo, _ in bands], [hi for _, hi in bands], color=BLUE, alpha=0.15, lw=0)
    if book.best is not None:
        axes.axvline(book.best.version, color=GREEN, ls="--", lw=1.4, label=f"best: v{book.best.version}")
    axes.set_ylim(-0.03, 1.03)
    _finish(axes, "policy version", "success alone")
    return _svg(figure)


def learning_lines(results: Sequence[LineResult]) -> bytes:
    """PNG of success against steps: each line's mean with its interval, its seeds thin behind it."""
    figure, axes = _figure(height_in=4.4)
    furthest = max(p.steps for r in results for t in r.trials for p in t.points)
    for colour, result in zip(itertools.cycle(COLOURS), results):
        curve = result.curve
        if len(curve) == 1:  # cloned once: a level, not a course
            axes.axhline(curve[0].rate, color=colour, ls="--", lw=1.8, label=_label(result))
            axes.axhspan(curve[0].lo, curve[0].hi, color=colour, alpha=0.12, lw=0)
            continue
        for trial in result.trials:
            at = [p.steps for p in trial.points]
            axes.plot(at, [p.successes / p.episodes for p in trial.points], color=colour, lw=0.7, alpha=0.5)
        at_mean = [place.steps for place in curve]
        axes.plot(at_mean, [place.rate for place in curve], color=colour, lw=2.2, label=_label(result))
        axes.fill_between(at_mean, [p.lo for p in curve], [p.hi for p in curve], color=colour, alpha=0.15, lw=0)
    axes.set_xlim(0, furthest)
    axes.set_ylim(-0.03, 1.03)
    _finish(axes, "steps of the robot", "success alone, by ground truth")
    return _png(figure)


def drift_lines(results: Sequence[drift.LineResult]) -> bytes:
    """PNG of what a changed light does to each line: panels over the robot's steps, the change marked."""
    panels: tuple[tuple[str, Callable[[Window], float | None]], ...] = (
        ("success alone", lambda w: w.success),
        ("episodes ended by a false success", lambda w: w.false_share),
        ("false-positive rate, frames", lambda w: w.false_positive_rate),
        ("false-negative rate, frames", lambda w: w.false_negative_rate),
        ("flags per window", lambda w: float(w.flags)),
        ("rewards that promotions changed", lambda w: float(w.flipped)),
    )
    figure = Figure(figsize=(2 * WIDTH_IN, 4 * HEIGHT_IN), layout="constrained")
    grid = figure.subplots(4, 2).ravel()
    for axes, (title, of) in zip(grid, panels):
        for colour, line in zip(COLOURS, results):
            _course(axes, colour, line, of)
        _finish(axes, "steps of the robot", title)
    for axes, name, light in zip(grid[len(panels) :], ("old_light", "new_light"), ("old", "new")):
        for colour, line in zip(COLOURS, results):
            for i, trial in enumerate(line.trials):
                held = [(c.step, getattr(c, name)) for c in trial.classifiers]
                held += [(trial.windows[-1].end, value) for _, value in held[-1:]]
                at, values = [step for step, _ in held], [value for _, value in held]
                axes.step(at, values, where="post", color=colour, lw=1.2, label=None if i or not at else line.title)
        axes.axhline(0.95, color=GREY, ls="--", lw=1.0)
        axes.set_ylim(0.45, 1.01)
        _finish(axes, "steps of the robot", f"balanced accuracy, {light} light")
    for axes in grid:
        axes.axvline(results[0].trials[0].change_step, color="black", ls=":", lw=1.4)
        axes.set_xlim(0, max(w.end for r in results for t in r.trials for w in t.windows))
    return _png(figure)


def _course(axes: Axes, colour: str, line: drift.LineResult, of: Callable[[Window], float | None]) -> None:
    """A line's seeds thin, and their mean over each window thick."""
    for trial in line.trials:
        points = [(0.5 * (w.begin + w.end), value) for w in trial.windows if (value := of(w)) is not None]
        axes.plot([at for at, _ in points], [value for _, value in points], color=colour, lw=0.6, alpha=0.45)
    at, means = [], []
    for place in zip(*(t.windows for t in line.trials)):
        values = [value for w in place if (value := of(w)) is not None]
        if values:
            at.append(0.5 * (place[0].begin + place[0].end))
            means.append(sum(values) / len(values))
    axes.plot(at, means, color=colour, lw=2.0, label=line.title if at else None)


def noise_maps(charts: Sequence[Chart]) -> bytes:
    """PNG of success under a person's wrong words, a heat map for each reward form, and under their lag below it."""
    figure = Figure(figsize=(4.0 * len(charts) + 1.0, 6.6), layout="constrained")
    grid = figure.subplots(2, len(charts), squeeze=False, height_ratios=(3, 2))
    for chart, above, below in zip(charts, *grid):
        image = _heat_map(above, chart)
        above.set_title(f"reward form: {chart.form}")
        _lag_bars(below, chart.lags)
    figure.colorbar(image, ax=list(grid[0]), label="success alone, by ground truth")
    return _png(figure)


def _heat_map(axes: Axes, chart: Chart) -> AxesImage:
    """Success by false negatives (across) and false positives (upwards), with its value and interval in each cell."""
    rates = np.array([[np.nan if c is None else c.place.rate for c in row] for row in chart.grid])
    for y, row in enumerate(chart.grid):
        for x, cell in enumerate(row):
            text = f"{cell.place.rate:.0%}\n{cell.place.lo:.0%} – {cell.place.hi:.0%}" if cell else "missing"
            axes.text(x, y, text, ha="center", va="center", color="white" if rates[y, x] < 0.6 else "black")
    axes.grid(False)
    axes.set_facecolor("#dddddd")  # of a cell that is missing
    axes.set_xticks(range(len(chart.false_negatives)), [f"{rate:.0%}" for rate in chart.false_negatives])
    axes.set_yticks(range(len(chart.false_positives)), [f"{rate:.0%}" for rate in chart.false_positives])
    _finish(axes, "false negatives: successes denied", "false positives: failures called success")
    return axes.imshow(rates, cmap="viridis", vmin=0.0, vmax=1.0, origin="lower", aspect="auto")


def _lag_bars(axes: Axes, cells: Sequence[Cell]) -> None:
    """Success with its interval for every lag, no word being wrong."""
    at, places = np.arange(len(cells)), [c.place for c in cells]
    rates = np.array([p.rate for p in places])
    reach = np.abs(np.array([[p.lo for p in places], [p.hi for p in places]]) - rates)
    axes.bar(at, rates, 0.6, yerr=reach, capsize=4, color=BLUE)
    for x, rate in zip(at, rates):
        axes.text(float(x), 0.04, f"{rate:.0%}", ha="center", color="white" if rate > 0.12 else "black")
    axes.set_xticks(at, [f"{c.noise.lag_s:g} s" for c in cells])
    axes.set_xlim(-0.6, max(len(cells), 3) - 0.4)
    axes.set_ylim(0.0, 1.05)
    _finish(axes, "lag of every word, none wrong", "success alone")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    return buffer.getvalue()


def _label(result: LineResult) -> str:
    seeds = len(result.trials)
    return f"{result.title} ({seeds} seed{'s' if seeds > 1 else ''})"


def success_rate(evaluation: dict[str, object]) -> float | None:
    """Success of an evaluation's JSON, None without one."""
    rate = evaluation.get("success_rate", evaluation.get("success"))
    return float(rate) if isinstance(rate, (int, float)) else None


def _mark_promotions(axes: Axes, facts: RunFacts) -> None:
    swaps = [s for s in facts.swaps if s.channel.value == "classifier" and s.outcome.value == "swapped"]
    for i, swap in enumerate(swaps):
        label = "classifier swapped" if i == 0 else None
        axes.axvline(facts.minutes(swap.stamp_ns), color=RED, lw=0.6, alpha=0.5, label=label)


def _figure(height_in: float = HEIGHT_IN) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots()


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="best", fontsize=8, framealpha=0.8)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
