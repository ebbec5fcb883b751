"""`steadyhand bench loop` compares like with like, judges honestly, and runs from end to end."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from steadyhand_models.bench import Target
from steadyhand_models.cli import UserError
from steadyhand_runtime.bench import loop, loop_figures, loop_load, loop_slices, loop_wire
from steadyhand_runtime.bench.loop_figures import Lateness, Variant, Wire
from steadyhand_runtime.bench.loop_slices import Kind, Measured, Slice

GOOD = Lateness(100, 1e-4, 2e-3, 3e-3, 4e-3, 1e-3, 2e-3, 0.0, 0.0)
PUNCTUAL = Lateness(100, 5e-5, 1e-4, 2e-4, 3e-4, 1e-5, 5e-5, 0.0, 0.0)
WIRE = Wire(150, 4.7e-3, 0.8e-3, 0.05, 0.004, 0.06)


def found(fifo: Lateness | None = PUNCTUAL, plain: Lateness = GOOD) -> dict[Variant, Lateness]:
    """One rate, idle and loaded; the naive loop is GOOD."""
    made = {}
    for loaded in (False, True):
        made[Variant(Kind.NAIVE, 100.0, False, loaded)] = GOOD
        made[Variant(Kind.OURS, 100.0, False, loaded)] = plain
        if fifo is not None:
            made[Variant(Kind.OURS, 100.0, True, loaded)] = fifo
    return made


def verdict(targets: list[Target], word: str) -> list[bool | None]:
    chosen = [t.met for t in targets if word in t.what]
    assert chosen
    return chosen


def test_a_punctual_loop_meets_every_target() -> None:
    judged = loop_figures.targets(found(), 0.0, 0.16, WIRE)
    assert all(t.met for t in judged), judged


def test_priority_that_was_not_granted_is_not_known_rather_than_met() -> None:
    judged = loop_figures.targets(found(fifo=None), 0.0, 0.16, None)
    assert verdict(judged, "with real-time priority") == [None] and verdict(judged, "wire") == [None]


@pytest.mark.parametrize(
    ("word", "targets"),
    [
        ("with real-time priority: p99", loop_figures.targets(found(fifo=GOOD), 0.0, 0.0, WIRE)),
        ("waited for a core", loop_figures.targets(found(fifo=GOOD), 0.0, 0.0, WIRE)),
        (
            "under load, without",
            loop_figures.targets(found(plain=Lateness(1, 2e-4, 2e-3, 0, 0, 0, 0, 0, 0)), 0, 0, WIRE),
        ),
        ("drift", loop_figures.targets(found(), 0.002, 0.16, WIRE)),
        ("wire", loop_figures.targets(found(), 0.0, 0.16, Wire(150, 18e-3, 0.8e-3, 0.05, 0.004, 0.06))),
    ],
)
def test_a_miss_is_called_one(word: str, targets: list[Target]) -> None:
    assert verdict(targets, word) == [False]


def test_percentiles_are_over_all_slices_and_steal_is_a_share_of_all_cores() -> None:
    slices = [Measured([1000] * 99, [10] * 99, 1.0, 100, 0.5), Measured([9_000_000], [8_000_000], 1.0, 100, 0.0)]
    seen = loop_figures.lateness(slices, 100.0, cores=2)
    assert (seen.ticks, seen.max_s, seen.p50_s) == (100, 9e-3, 1e-6)
    assert seen.stolen == pytest.approx(0.125)
    assert seen.runqueue_p999_s > 0.007


def test_drift_counts_what_fell_behind_and_not_the_period_that_has_just_begun() -> None:
    assert loop_figures.drift([Measured([], [], 1.009, 100, 0.0)], 100.0) == 0.0
    assert loop_figures.drift([Measured([], [], 1.20, 100, 0.0)], 100.0) == pytest.approx(0.19 / 1.20)


def test_both_loops_tick_and_ours_accounts_for_every_period() -> None:
    for kind in Kind:
        measured = loop_slices.run(Slice(kind, 200.0, 0.3, fifo=False))
        assert len(measured.late_ns) == len(measured.runqueue_ns) > 0
        assert min(measured.late_ns) >= 0 and measured.stolen_s >= 0.0
        if kind is Kind.OURS:
            assert loop_figures.drift([measured], 200.0) < 0.05


def test_slices_of_a_round_are_every_loop_at_every_rate_in_a_drawn_order() -> None:
    orders = [[(s.kind, s.hz, s.fifo) for s in loop._order(1.0, random.Random(seed))] for seed in range(6)]
    assert all(sorted(o) == sorted(orders[0]) for o in orders) and len({tuple(o) for o in orders}) > 1
    assert len(orders[0]) == len(loop.RATES_HZ) * len(loop.LOOPS)


def test_a_learner_that_cannot_start_is_replaced_by_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_load, "LEARNER", "steadyhand_runtime.no_such_module")
    with loop_load.Training(cores=1) as load:
        assert "matrix" in load.what


def test_figures_of_a_run_without_goals_are_refused() -> None:
    with pytest.raises(UserError, match="no goal"):
        loop_wire.from_figures({"tick_to_wire_histogram": []})
    names = ("tick_to_wire", "inference", "frame_age", "state_age", "frame_to_wire")
    figures = {f"{name}_s": {"p99": 0.5} for name in names} | {"tick_to_wire_histogram": [[0.5, 3], [0.6, 4]]}
    assert loop_wire.from_figures(figures) == Wire(7, *[0.5] * 5)


def test_the_command_measures_shows_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Light(loop_load.Training):
        def __enter__(self) -> Light:
            self.what = "nothing"
            return self

    monkeypatch.setattr(loop, "Training", Light)
    monkeypatch.setattr(loop, "ROUNDS", 1)
    path = tmp_path / "loop.json"
    assert loop.main(["--seconds", "5", "--drift-s", "0", "--wire-s", "0", "--json", str(path)]) == 0
    text = capsys.readouterr().out
    assert "absolute deadlines" in text and "targets" in text and "drift" in text
    saved = json.loads(path.read_text())
    assert {(one["hz"], one["loaded"]) for one in saved["loops"]} == {(h, x) for h in loop.RATES_HZ for x in (0, 1)}
    assert saved["wire"] is None and saved["targets"]


def test_a_worker_that_died_is_said() -> None:
    worker = loop.Worker()
    worker._process.kill()
    worker._process.wait()
    with pytest.raises(UserError, match="ended"):
        worker.run(Slice(Kind.OURS, 100.0, 0.01, False))
    worker.close()
