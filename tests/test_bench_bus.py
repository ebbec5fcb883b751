"""`steadyhand bench bus`: its arithmetic, its judgements on real virtual servos, and one short run of the whole."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadyhand_models import cli
from steadyhand_models.bench import Target
from steadyhand_runtime.bench import bus, bus_client, bus_stacks
from steadyhand_runtime.bench.bus_client import (
    DeadResult,
    Job,
    LateResult,
    RateResult,
    judge_dead,
    measure_late,
    run,
    swing,
)
from steadyhand_runtime.bench.bus_figures import Measured, speed, targets, wire_limit_hz
from steadyhand_runtime.bench.bus_stacks import BARE, FEETECH, IDS, OURS, RUSTYPOT, STACKS, Stack, Ticks, open_stack
from steadyhand_runtime.bench.servos import Control, Servos, ServosError
from steadyhand_runtime.clock import MonotonicClock
from steadyhand_runtime.sim.fault_socket import FaultSocket
from steadyhand_runtime.sim.plant import FollowingPlant
from steadyhand_runtime.sim.pty_port import PtyPort
from steadyhand_runtime.sim.servos import VirtualChain

RATE = RateResult(690.0, 1.4e-3, 2e-3, 50e-6, 0, 0, True)
LATE = LateResult(240, 0, 0, 246)
DEAD = DeadResult(150.0, 5.0, 0.99, 0)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """Ours on six virtual servos behind a pty, with their faults at hand."""
    clock = MonotonicClock()
    control = tmp_path / "control"
    with (
        PtyPort(VirtualChain(FollowingPlant(clock)), tmp_path / "arm", clock) as port,
        FaultSocket(port, control, clock),
    ):
        yield Job(OURS, "rate", port.path, str(control), 1_000_000, 200)


def of(job: Job, stack: str, scenario: str) -> Job:
    if not bus_stacks.is_installed(stack):
        pytest.skip(f"{stack} is not installed: pip install 'steadyhand[peers]'")
    return replace(job, stack=stack, scenario=scenario)


def measured(**changes: Any) -> dict[str, Measured]:
    ours = Measured(OURS, [RATE], LATE, DEAD, DEAD)
    for name, value in changes.items():
        setattr(ours, name, value)
    peers = {FEETECH: replace(RATE, cpu_s=900e-6), RUSTYPOT: replace(RATE, cpu_s=55e-6)}
    return {OURS: ours} | {n: Measured(n, [r], LATE, DEAD, DEAD) for n, r in peers.items()}


def missed(found: list[Target]) -> list[str]:
    return [t.what for t in found if t.met is False]


def test_the_wires_limit_counts_every_byte_and_every_gap() -> None:
    assert wire_limit_hz(1_000_000, 0.0) == pytest.approx(1e6 / (26 * 10 + 14 * 10 + 72 * 10))
    assert wire_limit_hz(1_000_000, 50e-6) == pytest.approx(1e6 / 1420)
    assert wire_limit_hz(500_000, 50e-6) == pytest.approx(1e6 / 2540)


def test_rounds_are_summed_up_by_medians_and_counts_by_sums() -> None:
    rates = [replace(RATE, rate_hz=hz, failed=1, wrong=2) for hz in (100.0, 700.0, 690.0)]
    found = speed([*rates[:2], replace(rates[2], followed=False)], 700.0)
    assert found is not None
    assert (found.rate_hz, found.failed, found.wrong, found.followed) == (690.0, 3, 6, False)
    assert found.wire_share == pytest.approx(690 / 700)
    assert speed([], 700.0) is None


def test_every_target_is_met_by_good_figures() -> None:
    assert [t.met for t in targets(measured(), 704.0)] == [True] * 7


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rates": [replace(RATE, rate_hz=660.0)]}, ["cycle rate"]),
        ({"rates": [replace(RATE, wrong=1)]}, ["values"]),
        ({"rates": [replace(RATE, followed=False)]}, ["values"]),
        ({"rates": [replace(RATE, cpu_s=56e-6)]}, ["CPU per cycle"]),
        ({"rates": [replace(RATE, cpu_s=61e-6)]}, ["CPU per cycle", "CPU per cycle"]),
        ({"late": replace(LATE, stale=1)}, ["one answer 70 ms late"]),
        ({"late": replace(LATE, reported=0)}, ["one answer 70 ms late"]),
        ({"dead": replace(DEAD, rate_hz=89.0)}, ["one servo dead"]),
        ({"dead": replace(DEAD, wrong=1)}, ["one servo dead"]),
        ({"mute": replace(DEAD, median_valid=2.0)}, ["one dead, later ones mute"]),
        ({"mute": None}, ["one dead, later ones mute"]),
    ],
)
def test_each_shortcoming_misses_its_own_target(change: dict[str, Any], what: list[str]) -> None:
    assert missed(targets(measured(**change), 704.0)) == what


def test_a_peer_that_is_not_there_misses_no_target() -> None:
    alone = measured() | {n: Measured(n, problem="not installed") for n in (FEETECH, RUSTYPOT)}
    found = targets(alone, 704.0)
    assert missed(found) == []
    assert [t.met for t in found].count(None) == 2


def test_goals_stay_within_their_swing_and_differ_between_servos() -> None:
    for cycle in range(0, 1000, 7):
        ticks = swing(cycle, 0.3)
        assert all(abs(t - 2048) <= 300 for t in ticks)
        assert len(set(ticks)) > 1


def test_of_a_dead_chain_only_right_values_of_living_servos_count() -> None:
    truth = [1000 + n for n in IDS]
    good: Ticks = tuple(None if i == bus_client.DEAD_SERVO else t for i, t in zip(IDS, truth))
    invented = tuple(0 if p is None else p for p in good)
    stale = (5, *good[1:])
    assert judge_dead([good] * 9 + [stale], truth, 0.1) == DeadResult(100.0, 5.0, 0.9, 1)
    assert judge_dead([invented] * 2, truth, 1.0).wrong == 2
    assert judge_dead([(None,) * 6] * 3, truth, 1.0).median_valid == 0.0


@pytest.mark.parametrize("stack", (*STACKS, BARE))
def test_every_stack_reads_right_values_and_moves_the_servos_to_its_goals(job: Job, stack: str) -> None:
    result = run(of(job, stack, "rate"))
    assert isinstance(result, RateResult)
    assert result.followed and result.wrong == 0
    assert result.rate_hz > 0 and result.cpu_s > 0 and result.p50_s <= result.p99_s


def test_ours_reports_no_value_of_an_earlier_cycle_after_a_late_answer(job: Job) -> None:
    result = run(of(job, OURS, "late"))
    assert isinstance(result, LateResult)
    assert result.stale == 0
    assert result.possible == 246 and result.reported > 0


class Lagging:
    """A stack that always answers with what it read in the cycle before."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._last = stack.cycle(None)
        self.goal, self.ticks, self.close = stack.goal, stack.ticks, stack.close

    def cycle(self, goal: Any) -> Any:
        last, self._last = self._last, self._stack.cycle(goal)
        return last


def test_a_stack_that_hands_out_old_values_is_found_out(job: Job) -> None:
    stack = Lagging(open_stack(OURS, job.port, job.baud))
    control = Control(job.control)
    result = measure_late(stack, control)
    control.close()
    stack.close()
    assert result.stale == result.reported > 0
    assert result.stale_cycles > 0


def test_with_one_servo_dead_ours_keeps_the_others(job: Job) -> None:
    result = run(of(job, OURS, "dead"))
    assert isinstance(result, DeadResult)
    assert result.median_valid == 5.0 and result.wrong == 0


def test_a_servo_process_that_does_not_start_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ServosError, match="did not start"):
        Servos(tmp_path, 1234, 0.0)


def test_a_fault_that_the_servos_refuse_is_reported(job: Job) -> None:
    control = Control(job.control)
    with pytest.raises(ServosError, match="servo 9"):
        control.tell({"servo": 1, "silent": True}, {"servo": 9, "silent": True})
    control.close()


def test_a_client_that_fails_says_why(job: Job) -> None:
    with pytest.raises(cli.UserError, match=r"steadyhand, rate: .*no such port"):
        bus._client(replace(job, port="/dev/none"), RateResult)


def test_a_missing_peer_is_told_how_to_come_by(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rustypot" else find(name))
    assert "pip install 'steadyhand[peers]'" in bus._absence(RUSTYPOT, bus.BenchBusSettings())
    assert bus._absence(OURS, bus.BenchBusSettings(peers=False)) == ""
    assert bus._absence(FEETECH, bus.BenchBusSettings(peers=False)) == bus.LEFT_OUT


def test_a_short_run_prints_its_tables_and_saves_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "bus.json"
    command = [sys.executable, "-m", "steadyhand_models.cli", "bench", "bus", "--cycles", "100", "--rounds", "1"]
    done = subprocess.run([*command, "--peers", "false", "--json", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("rate Hz", "faults", "targets", "left out by --peers false"))
    saved = json.loads(path.read_text())
    assert saved["bench"] == "bus" and len(saved["stacks"][OURS]["rates"]) == 1
    assert saved["stacks"][OURS]["late"]["stale"] == 0
    assert saved["stacks"][OURS]["problem"] == ""
    assert {t["what"] for t in saved["targets"]} >= {"cycle rate", "one servo dead"}
