"""`steadyhand bench infer`: pacing and its figures, ratios within a round, and one short run of the whole."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from steadyhand_models.pacing import WARM_CALLS, Timing, paced
from steadyhand_runtime.bench import infer
from steadyhand_runtime.bench.infer_worker import DEFAULT, OURS


def slices(ours: float, torch: float, default_cores: float) -> infer.Slices:
    """Two rounds, the second on a machine of half the speed."""
    made: infer.Slices = {}
    for rate_hz in infer.RATES_HZ:
        for stack, p50_s, cores in ((OURS, ours, 0.1), (infer.TORCH, torch, 0.1), (DEFAULT, ours, default_cores)):
            made[stack, rate_hz] = [Timing(p50_s * k, p50_s * k, cores * k) for k in (1.0, 2.0)]
    return made


def met(made: infer.Slices) -> list[bool]:
    return [t.met for t in infer.targets(made)]


def test_targets_compare_what_was_measured_in_the_same_round() -> None:
    assert met(slices(1.0, 2.0, 1.0)) == [True] * 4
    assert met(slices(1.7, 2.0, 1.0)) == [False, True] * 2
    assert met(slices(1.0, 2.0, 0.2)) == [True, False] * 2


def test_rows_are_medians_over_the_rounds() -> None:
    row = infer.summarise(OURS, 10.0, [Timing(1.0, 5.0, 0.1), Timing(2.0, 4.0, 0.3), Timing(9.0, 6.0, 0.2)])
    assert (row.p50_s, row.p99_s, row.cores) == (2.0, 5.0, 0.2)


def test_paced_calls_come_at_the_rate_after_warming_and_idle_time_costs_no_processor() -> None:
    numbers: list[int] = []
    begun_s = time.perf_counter()
    timing = paced(numbers.append, rate_hz=100.0, calls=20)
    assert numbers == [*range(WARM_CALLS), *range(20)]
    assert time.perf_counter() - begun_s >= 20 / 100.0
    assert 0 <= timing.p50_s <= timing.p99_s
    assert timing.cores < 0.9


@pytest.mark.slow
def test_a_short_run_measures_every_stack_at_both_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "infer.json"
    assert infer.main(["--rounds", "1", "--slice-s", "1", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [(r["stack"], r["rate_hz"]) for r in rows] == [(s, r) for r in infer.RATES_HZ for s in infer.STACKS]
    assert all(r["p50_s"] > 0 and r["cores"] > 0 for r in rows)
    assert "torch eager" in capsys.readouterr().out
