"""Evaluate a published policy over many simulated episodes, judged by the simulation's ground truth."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.table import Table

from steadyhand_models import settings as toml
from steadyhand_models import task as tasks
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel
from steadyhand_models.registry import Registry
from steadyhand_training.metrics import wilson

STEADYHAND = (sys.executable, "-c", "import sys; from steadyhand_models.cli import main; sys.exit(main())")


@dataclass(frozen=True)
class EvaluateSettings:
    """What to evaluate, and how often."""

    registry: Path = Path("runs/latest/registry")
    version: Annotated[int, Field(ge=0)] = 0  # 0 is the newest
    episodes: Annotated[int, Field(gt=0, le=100_000)] = 200
    seed: Annotated[int, Field(ge=0)] = 1000
    task: str = "lift"
    json: Path | None = None  # where the result is written for programs
    frames: Path | None = None  # .npz file for the front camera's pictures of the first episodes
    frame_episodes: Annotated[int, Field(ge=1, le=100)] = 4


@dataclass(frozen=True)
class Evaluation:
    """A policy's autonomous success with its 95% Wilson interval; times are of successful episodes, NaN without any."""

    version: int
    training_step: int
    episodes: int
    successes: int
    success_rate: float
    success_lo: float
    success_hi: float
    time_to_success_mean_s: float
    time_to_success_p50_s: float
    time_to_success_p90_s: float
    seed: int


def summarise(
    rows: Sequence[dict[str, Any]], rate_hz: float, version: int, training_step: int, seed: int
) -> Evaluation:
    """Condense one row per episode, each with `success` and `steps`. Raises UserError when rows are not that."""
    try:
        times_s = np.array([row["steps"] / rate_hz for row in rows if row["success"]], np.float64)
    except (KeyError, TypeError) as error:
        raise UserError(f"the simulation's result cannot be read: {error!r}") from None
    lo, hi = wilson(len(times_s), len(rows))
    p50_s, p90_s = np.percentile(times_s, [50, 90]) if len(times_s) else (math.nan, math.nan)
    return Evaluation(
        version=version,
        training_step=training_step,
        episodes=len(rows),
        successes=len(times_s),
        success_rate=len(times_s) / len(rows) if rows else 0.0,
        success_lo=lo,
        success_hi=hi,
        time_to_success_mean_s=float(times_s.mean()) if len(times_s) else math.nan,
        time_to_success_p50_s=float(p50_s),
        time_to_success_p90_s=float(p90_s),
        seed=seed,
    )


def evaluate(settings: EvaluateSettings) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Run the episodes in a process of the simulation; the result and one row per episode. Raises UserError."""
    registry = Registry(settings.registry)
    version = settings.version or registry.newest(Channel.POLICY)
    if version is None:
        raise UserError(f"{settings.registry}: no policy there; give --registry RUN_FOLDER/registry")
    manifest = registry.manifest(Channel.POLICY, version)
    task = tasks.load(settings.task)
    if manifest.contract_hash != task.contract().hash:
        raise UserError(f"policy v{version} was not learned for task '{settings.task}': its contract is another one")
    rows = _simulate(settings, version)
    return summarise(rows, task.rate_hz, version, manifest.training_step, settings.seed), rows


def _simulate(settings: EvaluateSettings, version: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="steadyhand-") as folder:
        result = Path(folder) / "result.json"
        code = _run(_command(settings, version, result))
        if code in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        if code != 0 or not result.is_file():
            raise UserError(f"the simulation ended with code {code}; its message stands above")
        try:
            data = json.loads(result.read_text(encoding="utf-8"))
            return list(data["episodes"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"the simulation's result cannot be read: {error!r}") from None


def _run(command: Sequence[str]) -> int:
    """Exit code of a command, which never outlives this one."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with subprocess.Popen(command) as child:
            try:
                return child.wait()
            finally:
                child.terminate()
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _command(settings: EvaluateSettings, version: int, result: Path) -> list[str]:
    options: dict[str, object] = {
        "--registry": settings.registry,
        "--version": version,
        "--episodes": settings.episodes,
        "--seed": settings.seed,
        "--task": settings.task,
        "--json": result,
    }
    if settings.frames is not None:
        options |= {"--frames": settings.frames, "--frame-episodes": settings.frame_episodes}
    return [*STEADYHAND, "sim", "evaluate", *(str(word) for pair in options.items() for word in pair)]


def show(result: Evaluation, console: Console) -> None:
    """The result as a table."""
    table = Table(title=f"policy v{result.version} after {result.training_step} updates")
    for column in ("episodes", "successes", "success", "95% interval", "time to success: mean", "median", "90%"):
        table.add_column(column, justify="right")
    times = (result.time_to_success_mean_s, result.time_to_success_p50_s, result.time_to_success_p90_s)
    table.add_row(
        str(result.episodes),
        str(result.successes),
        f"{result.success_rate:.1%}",
        f"{result.success_lo:.1%} - {result.success_hi:.1%}",
        *("-" if math.isnan(t) else f"{t:.1f} s" for t in times),
    )
    console.print(table)


def main(argv: Sequence[str]) -> int:
    """`steadyhand evaluate`."""
    settings = toml.parse_command_line(
        EvaluateSettings,
        argv,
        prog="steadyhand evaluate",
        description="Evaluate a published policy in simulation, without exploration or help.\n\n"
        "Example: steadyhand evaluate --registry runs/latest/registry --episodes 200 --json result.json",
    )
    result, rows = evaluate(settings)
    show(result, Console())
    if settings.json is not None:
        plain = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(result).items()}
        try:
            settings.json.write_text(json.dumps({**plain, "rows": rows}, indent=2), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{settings.json}: cannot be written ({error.strerror})") from None
    return 0
