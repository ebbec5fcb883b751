"""The servo bus: this driver, feetech-servo-sdk and rustypot against the same virtual servos on a wire-timed port."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import Field
from rich.console import Console

from steadyhand_models import bench, settings
from steadyhand_models.bench import Target
from steadyhand_models.cli import UserError
from steadyhand_runtime.bench.bus_client import DeadResult, Job, LateResult, RateResult
from steadyhand_runtime.bench.bus_figures import Measured, Speed, speed, targets, wire_limit_hz
from steadyhand_runtime.bench.bus_stacks import BARE, OURS, STACKS, is_installed
from steadyhand_runtime.bench.servos import Servos, ServosError

MISSING = "not installed: pip install 'steadyhand[peers]'"
LEFT_OUT = "left out by --peers false"
CLIENT_TIMEOUT_S = 600.0
VALUES = ("failed", "wrong", "followed")
FAILURES = ("late", "dead", "mute")
R = TypeVar("R", RateResult, LateResult, DeadResult)


@dataclass(frozen=True)
class BenchBusSettings:
    """Cycle rate, CPU and behaviour under faults of three ways to talk to the same six servos.

    Example: steadyhand bench bus --rounds 3 --json bus.json
    """

    cycles: Annotated[int, Field(ge=100, le=1_000_000)] = 2000  # of each stack in each round
    rounds: Annotated[int, Field(ge=1, le=100)] = 5
    baud: Annotated[int, Field(ge=38_400, le=1_000_000)] = 1_000_000
    gap_s: Annotated[float, Field(ge=0, le=0.01)] = 50e-6  # before each reply; that of real servos is not known
    seed: Annotated[int, Field(ge=0)] = 0  # which stack begins, and where the goals start to swing
    peers: bool = True  # false: only this project's driver
    json: Path | None = None  # every figure of every round
    check: bool = False  # exit with 1 when a target is missed


def main(argv: Sequence[str]) -> int:
    """`steadyhand bench bus`: 0, or 1 with --check when a target is missed."""
    chosen = settings.parse_command_line(BenchBusSettings, argv, "steadyhand bench bus", BenchBusSettings.__doc__ or "")
    try:
        measured = measure(chosen)
    except ServosError as error:
        raise UserError(str(error)) from None
    limit_hz = wire_limit_hz(chosen.baud, chosen.gap_s)
    judged = targets(measured, limit_hz)
    _show(chosen, measured, judged, limit_hz)
    if chosen.json is not None:
        bench.write_json(chosen.json, "bus", chosen.seed, _figures(chosen, measured, judged, limit_hz))
    return 1 if chosen.check and any(t.met is False for t in judged) else 0


def measure(chosen: BenchBusSettings) -> dict[str, Measured]:
    """Every stack in every round and scenario, in turn, the order rotating. Raises ServosError."""
    measured = {name: Measured(name, problem=_absence(name, chosen)) for name in (*STACKS, BARE)}
    present = [name for name in measured if not measured[name].problem]
    draw = random.Random(chosen.seed)
    first = draw.randrange(len(present))
    console = Console(stderr=True)
    with console.status("starting") as status, tempfile.TemporaryDirectory(prefix="steadyhand-bench-") as folder:
        for number in range(chosen.rounds):
            phase_rad = draw.uniform(0.0, 2.0 * math.pi)
            with _servos(chosen, Path(folder), f"round{number}") as servos:
                for name in _rotated(present, first + number):
                    status.update(f"round {number + 1} of {chosen.rounds}: {name}")
                    job = _job(chosen, servos, name, "rate", phase_rad)
                    _attempt(measured[name], job)
        for name in (n for n in _rotated(present, first) if n != BARE):
            for scenario in FAILURES:
                status.update(f"{scenario}: {name}")
                with _servos(chosen, Path(folder), f"{scenario}{STACKS.index(name)}") as servos:
                    _attempt(measured[name], _job(chosen, servos, name, scenario))
    return measured


def _absence(stack: str, chosen: BenchBusSettings) -> str:
    """Why a stack is not measured, if so."""
    if stack not in (OURS, BARE) and not chosen.peers:
        return LEFT_OUT
    return "" if is_installed(stack) else MISSING


def _servos(chosen: BenchBusSettings, folder: Path, name: str) -> Servos:
    (folder / name).mkdir()
    return Servos(folder / name, chosen.baud, chosen.gap_s)


def _rotated(names: Sequence[str], by: int) -> list[str]:
    return [names[(i + by) % len(names)] for i in range(len(names))]


def _job(chosen: BenchBusSettings, servos: Servos, stack: str, scenario: str, phase_rad: float = 0.0) -> Job:
    return Job(stack, scenario, servos.port, str(servos.control), chosen.baud, chosen.cycles, phase_rad)


def _attempt(measured: Measured, job: Job) -> None:
    """Do a job and keep its result; a stack that fails is a finding, not the end of the bench."""
    try:
        if job.scenario == "rate":
            measured.rates.append(_client(job, RateResult))
        elif job.scenario == "late":
            measured.late = _client(job, LateResult)
        elif job.scenario == "dead":
            measured.dead = _client(job, DeadResult)
        else:
            measured.mute = _client(job, DeadResult)
    except UserError as error:
        measured.problem = str(error)


def _client(job: Job, result: type[R]) -> R:
    """Run a job in a fresh process. Raises UserError with the last line that it complained."""
    text = pydantic.TypeAdapter(Job).dump_json(job).decode()
    command = [sys.executable, "-m", "steadyhand_runtime.bench.bus_client", text]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise UserError(f"{job.stack}, {job.scenario}: no end after {CLIENT_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no word"]
        raise UserError(f"{job.stack}, {job.scenario}: {said[-1][:300]}")
    return pydantic.TypeAdapter(result).validate_json(done.stdout)


def _show(chosen: BenchBusSettings, measured: dict[str, Measured], judged: list[Target], limit_hz: float) -> None:
    mine = speed(measured[OURS].rates, limit_hz)
    where = f"{chosen.baud} baud, {chosen.gap_s * 1e6:.0f} us before each reply"
    bench.show(
        f"six goals written, six servos read; {where}; the wire alone allows {limit_hz:.0f} Hz",
        ("stack", "rate Hz", "of the wire", "p50 ms", "p99 ms", "CPU us", "rate ours/its", "CPU its/ours", *VALUES),
        [_speed_row(m, speed(m.rates, limit_hz), mine) for m in measured.values()],
        caption=f"medians over {chosen.rounds} rounds of {chosen.cycles} cycles; CPU: user and system, per cycle",
    )
    bench.show(
        "faults",
        ("stack", "70 ms late: stale", "in cycles", "dead: Hz", "valid", "wrong", "dead+mute: Hz", "valid", "wrong"),
        [_fault_row(m) for m in measured.values() if m.name != BARE],
        caption="stale: values of an earlier cycle reported as fresh; valid: right values of the other five, median",
    )
    bench.show_targets(judged, unknown="no peer")
    for m in measured.values():
        if m.problem:
            Console().print(f"{m.name}: {m.problem}", markup=False, highlight=False)


def _speed_row(measured: Measured, its: Speed | None, mine: Speed | None) -> list[str]:
    if its is None or mine is None:
        return [measured.name, *["-"] * 10]
    return [
        measured.name,
        f"{its.rate_hz:.0f}",
        f"{its.wire_share:.1%}",
        f"{its.p50_s * 1e3:.3f}",
        f"{its.p99_s * 1e3:.3f}",
        f"{its.cpu_s * 1e6:.0f}",
        f"{mine.rate_hz / its.rate_hz:.2f}",
        f"{its.cpu_s / mine.cpu_s:.1f}",
        str(its.failed),
        str(its.wrong),
        "yes" if its.followed else "no",
    ]


def _fault_row(measured: Measured) -> list[str]:
    row = [measured.name]
    late = measured.late
    row += [f"{late.stale} of {late.reported}", str(late.stale_cycles)] if late else ["-", "-"]
    for dead in (measured.dead, measured.mute):
        row += [f"{dead.rate_hz:.0f}", f"{dead.median_valid:.0f}", str(dead.wrong)] if dead else ["-", "-", "-"]
    return row


def _figures(
    chosen: BenchBusSettings, measured: dict[str, Measured], judged: list[Target], limit_hz: float
) -> dict[str, Any]:
    stacks = {}
    for name, m in measured.items():
        its = speed(m.rates, limit_hz)
        stacks[name] = {**asdict(m), "medians": asdict(its) if its else None}
    return {
        "settings": {**asdict(chosen), "json": str(chosen.json)},
        "wire_limit_hz": limit_hz,
        "stacks": stacks,
        "targets": [asdict(t) for t in judged],
    }
