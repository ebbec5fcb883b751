"""Evaluate a policy: over many simulated episodes by ground truth, or a recorded run's by its human's verdicts."""

from __future__ import annotations

import dataclasses
import enum
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
import numpy.typing as npt
from pydantic import Field
from rich.console import Console
from rich.table import Table

from steadyhand_models import settings as toml
from steadyhand_models import task as tasks
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel
from steadyhand_models.registry import Registry
from steadyhand_training import video
from steadyhand_training.facts import gather
from steadyhand_training.metrics import wilson
from steadyhand_training.video import Scene, Video

STEADYHAND = (sys.executable, "-c", "import sys; from steadyhand_models.cli import main; sys.exit(main())")


class By(str, enum.Enum):
    """Whose word counts."""

    TRUTH = "truth"  # the simulation's: episodes are run anew
    VERDICT = "verdict"  # a person's, on the episodes of a recorded run that the policy did alone


@dataclass(frozen=True)
class EvaluateSettings:
    """What to evaluate, how often, and who judges."""

    by: By = By.TRUTH
    run: Path | None = None  # run folder; with --by truth short for its registry
    registry: Path = Path("runs/latest/registry")
    version: Annotated[int, Field(ge=0)] = 0  # 0 is the newest; with --by verdict the newest that was judged
    episodes: Annotated[int, Field(gt=0, le=100_000)] = 200
    seed: Annotated[int, Field(ge=0)] = 1000
    task: str = "lift"
    json: Path | None = None  # where the result is written for programs
    frames: Path | None = None  # .npz file for the front camera's pictures of the first episodes
    frame_episodes: Annotated[int, Field(ge=1, le=100)] = 4
    video: Path | None = None  # .mp4 or .webm of the first episodes


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
    by: str = By.TRUTH.value
    takeovers: int = 0  # episodes of this version in which somebody took over; they are not among `episodes`
    unjudged: int = 0  # that it did alone, and nobody said a word about


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
    registry = Registry(settings.registry if settings.run is None else settings.run / "registry")
    version = settings.version or registry.newest(Channel.POLICY)
    if version is None:
        raise UserError(f"{registry.root}: no policy there; give --registry RUN_FOLDER/registry")
    manifest = registry.manifest(Channel.POLICY, version)
    task = tasks.load(settings.task)
    if manifest.contract_hash != task.contract().hash:
        raise UserError(f"policy v{version} was not learned for task '{settings.task}': its contract is another one")
    rows = _simulate(dataclasses.replace(settings, registry=registry.root), version, task.rate_hz)
    return summarise(rows, task.rate_hz, version, manifest.training_step, settings.seed), rows


def recorded(settings: EvaluateSettings) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Judge what a version did in a recorded run by the verdicts that stand. Raises UserError."""
    if settings.run is None:
        raise UserError("--by verdict counts the episodes of a recorded run; give --run RUN_FOLDER")
    facts = gather(settings.run)
    rate_hz = tasks.load(settings.task).rate_hz
    judged_versions = [e.policy_version for e in facts.policy_episodes if e.alone and e.verdict]
    version = settings.version or max(judged_versions, default=0)
    own = [e for e in facts.policy_episodes if e.policy_version == version]
    alone = [e for e in own if e.alone]
    judged = [e for e in alone if e.verdict]
    if not judged:
        raise UserError(
            f"{settings.run}: nobody gave a verdict on an episode that policy v{version} did alone; "
            "press success or failure after its episodes, or choose another --version"
        )
    if settings.video is not None:
        scenes = [Scene(e, f"policy v{version}, episode {e.number}: {e.verdict}") for e in judged]
        _write_video(settings.video, video.of(facts, scenes[: settings.frame_episodes], rate_hz))
    # The last step has no action.
    rows = [{"episode": e.number, "success": e.verdict == "success", "steps": e.steps - 1} for e in judged]
    steps = {m.version: m.training_step for m in facts.published[Channel.POLICY.value]}
    result = dataclasses.replace(
        summarise(rows, rate_hz, version, steps.get(version, 0), settings.seed),
        by=By.VERDICT.value,
        takeovers=len(own) - len(alone),
        unjudged=len(alone) - len(judged),
    )
    return result, rows


def _simulate(settings: EvaluateSettings, version: int, rate_hz: float) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="steadyhand-") as folder:
        result = Path(folder) / "result.json"
        if settings.video is not None and settings.frames is None:
            settings = dataclasses.replace(settings, frames=Path(folder) / "frames.npz")
        code = _run(_command(settings, version, result))
        if code in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        if code != 0 or not result.is_file():
            raise UserError(f"the simulation ended with code {code}; its message stands above")
        try:
            data = json.loads(result.read_text(encoding="utf-8"))
            rows = list(data["episodes"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"the simulation's result cannot be read: {error!r}") from None
        if settings.video is not None and settings.frames is not None:
            _write_video(settings.video, _film(settings.frames, rows, version, rate_hz))
        return rows


def _film(frames: Path, rows: Sequence[dict[str, Any]], version: int, rate_hz: float) -> Video | None:
    """What the front camera saw in the first episodes."""
    pictures: list[npt.NDArray[np.uint8]] = []
    with np.load(frames, allow_pickle=False) as saved:
        for name, row in zip(sorted(saved.files), rows):
            outcome = f"success after {row['steps'] / rate_hz:.1f} s" if row["success"] else "no success"
            caption = f"policy v{version}, {name.replace('_', ' ')}: {outcome}"
            shown = [video.captioned(picture, caption) for picture in saved[name]]
            pictures += shown + shown[-1:] * video.REST_FRAMES
    return video.encode(pictures, rate_hz) if pictures else None


def _write_video(path: Path, film: Video | None) -> None:
    if film is None:
        raise UserError("no video could be made: nothing was recorded, or the installed av has no encoder for one")
    try:
        path.write_bytes(film.data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


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
    caption = None
    if result.by == By.VERDICT.value:
        caption = (
            f"by verdict; beside them {result.takeovers} episodes with a takeover, and {result.unjudged} that it did "
            "alone and nobody judged"
        )
    table = Table(title=f"policy v{result.version} after {result.training_step} updates", caption=caption)
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
        description="Evaluate a policy without exploration or help in simulation, or by the verdicts of a recorded run."
        "\n\nExample: steadyhand evaluate --registry runs/latest/registry --episodes 200 --video film.mp4"
        "\nExample: steadyhand evaluate --run runs/lift --by verdict --version 12 --json result.json",
    )
    result, rows = evaluate(settings) if settings.by is By.TRUTH else recorded(settings)
    show(result, Console())
    if settings.json is not None:
        plain = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(result).items()}
        try:
            settings.json.write_text(json.dumps({**plain, "rows": rows}, indent=2), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{settings.json}: cannot be written ({error.strerror})") from None
    return 0
