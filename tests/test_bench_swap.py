"""`steadyhand bench swap`: what it counts as a swap's doing, its targets, and one short run of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steadyhand_runtime.bench import swap
from steadyhand_runtime.bench.busy import Busy
from steadyhand_runtime.bench.swap_worker import OURS, PEER, Result, Rollback, Ticks


def result(*ticks: tuple[float, float, float, int, bool]) -> Result:
    """A round of (action ms, waited ms, stolen ms, missed, swapping) ticks."""
    made = Ticks()
    for action_ms, waited_ms, stolen_ms, missed, swapping in ticks:
        made.late_s.append(0.0)
        made.action_s.append(action_ms / 1e3)
        made.waited_s.append(waited_ms / 1e3)
        made.stolen_s.append(stolen_ms / 1e3)
        made.missed.append(missed)
        made.swapping.append(swapping)
    return Result(made, swapped=1, build_hold_s=0.01)


QUIET = (2.0, 0.0, 0.0, 0, False)


def test_what_a_swap_costs_is_its_slowest_tick_beyond_the_quiet_median() -> None:
    spent = swap.summarise([result(QUIET, (3.0, 0, 0, 0, True), (12.0, 0, 0, 0, True), QUIET, (7.0, 0, 0, 0, True))])
    assert spent.quiet_s == pytest.approx(0.002)
    assert spent.extra_max_s == pytest.approx(0.010)
    assert spent.extra_p50_s == pytest.approx(0.0075)
    assert (spent.swaps, spent.build_hold_s) == (1, 0.01)


def test_waiting_for_a_processor_and_stolen_time_are_nobody_s_doing() -> None:
    spent = swap.summarise([result(QUIET, (62.0, 50.0, 10.0, 0, True))])
    assert spent.extra_max_s == pytest.approx(0.0)


def test_a_tick_missed_in_a_swap_is_the_swap_s_unless_the_machine_explains_it() -> None:
    explained = (150.0, 120.0, 0.0, 2, True)
    unexplained = (150.0, 5.0, 0.0, 2, True)
    elsewhere = (150.0, 0.0, 0.0, 1, False)
    spent = swap.summarise([result(QUIET, explained, QUIET, unexplained, elsewhere)])
    assert (spent.missed, spent.missed_by_swaps) == (5, 1)


def judged(missed: int = 0, periods: float = 1.5, finite: bool = True, reason: str = "slow") -> dict[str, bool]:
    ours = swap.Spent(50, 0, missed, 0.001, 0.001, 0.002, None)
    peer = swap.Spent(50, 0, 0, 0.001, 0.009, 0.020, None)
    rollbacks = [Rollback("slow", 2, 0.5, "slow", True), Rollback("slow", 2, periods, reason, finite)]
    return {t.what: t.met for t in swap.targets({OURS: ours, PEER: peer}, rollbacks)}


def test_targets_are_met_only_when_every_time_was_good() -> None:
    assert all(judged().values()) and len(judged()) == 3
    assert not judged(missed=1)["ticks missed by swaps"]
    for bad in ({"periods": 2.1}, {"finite": False}, {"reason": "never"}):
        assert not judged(**bad)["rolled back: slow"]  # type: ignore[arg-type]


def test_the_load_is_gone_when_it_is_no_longer_wanted() -> None:
    with Busy(2) as busy:
        processes = busy._processes
        assert [p.poll() for p in processes] == [None, None]
    assert all(p.poll() is not None for p in processes)


@pytest.mark.slow
def test_a_short_run_swaps_real_models_and_rolls_every_fault_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "swap.json"
    assert swap.main(["--swaps", "2", "--rounds", "1", "--repeats", "1", "--busy", "1", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert figures["stacks"][OURS]["swaps"] == figures["stacks"][PEER]["swaps"] == 2
    assert {r["fault"] for r in figures["rollbacks"]} == set(swap.FAULTS)
    assert all(r["finite"] and r["reason"] != "never" for r in figures["rollbacks"])
    assert "hot swap" in capsys.readouterr().out
