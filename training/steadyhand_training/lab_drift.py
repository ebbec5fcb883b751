"""What a changed light does to learning: fixed, naively corrected and gated classifiers beside true reward."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from steadyhand_models import bench, settings
from steadyhand_models import task as tasks
from steadyhand_training import lab_drift_results as drift
from steadyhand_training import lab_trace, plots
from steadyhand_training.gate import GateSettings
from steadyhand_training.lab_board import Key, Lab, conduct
from steadyhand_training.lab_drift_results import Evaluated, LineResult, Standing, Trial
from steadyhand_training.lab_lines import DRIFT_LINES, DRIFT_RECIPES, DriftLine
from steadyhand_training.lab_report import LabReport
from steadyhand_training.lab_run import EVALUATION_SEED, LabRun, Tell
from steadyhand_training.lab_trace import Trace

Seed = Annotated[int, Field(ge=0, le=1_000_000)]
PROBE_EPISODES = 24
PROBE_SEED = 424_242
FINAL_STEPS = 1000  # of the robot, that count as its end
LATE = 10_000_000  # a step by which every change of the light is over
_DESCRIPTION = """Change the light while the robot learns, with every line and seed in lockstep, and compare them.

What is finished is kept: after Ctrl-C the same command goes on with what is missing.

Example: steadyhand lab drift --seeds 0 1 2 --jobs 2 --out docs/results/drift --runs runs/lab-drift
Example: steadyhand lab drift --short --jobs 2 --out runs/lab-drift-short"""


@dataclass(frozen=True)
class DriftLabSettings:
    """Which lines, how often, how long, and which light."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    steps: Annotated[int, Field(ge=300)] = 4000  # recorded by the robot, demonstrations included
    light: str = "moved_lamp"  # a light scenario that ships, or a .toml file
    change_step: Annotated[int, Field(ge=0)] = 2000  # at which its first change comes
    episodes: Annotated[int, Field(ge=1)] = 200  # of each evaluation of the last policy
    every_steps: Annotated[int, Field(ge=50)] = 250  # of one window in the curves
    lines: Annotated[tuple[DriftLine, ...], Field(min_length=1)] = DRIFT_LINES
    short: bool = False  # one seed, 2,500 steps, two lines, the change at step 1,000: minutes on two cores
    task: str = "lift"
    jobs: Annotated[int, Field(ge=1, le=64)] = 1  # training runs at a time; each takes about one core
    out: Path = Path("runs/lab-drift")  # results.json, drift.png, drift.md
    runs: Path | None = None  # run folders, about 30 MB per 1,000 steps; None: below `out`
    json: Path | None = None  # a further copy of results.json


def shortened(chosen: DriftLabSettings) -> DriftLabSettings:
    """The settings that `--short` stands for."""
    if not chosen.short:
        return chosen
    lines = (DriftLine.CORRECTED, DriftLine.FIXED)
    return replace(chosen, seeds=chosen.seeds[:1], lines=lines, steps=2500, change_step=1000, episodes=60)


class DriftLab(Lab):
    """All lines with all seeds."""

    def __init__(self, chosen: DriftLabSettings, stop: threading.Event) -> None:
        self.chosen = chosen
        self.root = (chosen.runs or chosen.out / "runs").absolute()
        light = ("--light", chosen.light, "--light-change-step", str(chosen.change_step))
        recipes = {line: DRIFT_RECIPES[line] for line in dict.fromkeys(chosen.lines)}
        self.lines = {recipe.course: line for line, recipe in recipes.items()}
        runs = {
            (key := Key(recipe.course, seed)): LabRun(
                replace(recipe, robot=(*recipe.robot, *light)),
                self.root / str(key),
                seed,
                chosen.task,
                chosen.steps,
                stop,
            )
            for seed in dict.fromkeys(chosen.seeds)
            for recipe in recipes.values()
        }
        super().__init__(runs, chosen.jobs, stop)
        self.trials: dict[Key, Trial] = {}
        self._probing = threading.Lock()

    def judge(self, key: Key, tell: Tell) -> None:
        tell(0.0, "judging its classifiers and its last policy")
        self.trials[key] = self._trial(self.runs[key])

    def _trial(self, run: LabRun) -> Trial:
        chosen = self.chosen
        trace = lab_trace.read(run.root)
        classifiers = self._standings(run, trace)
        return Trial(
            seed=run.seed,
            minutes=run.minutes or 0.0,
            change_step=chosen.change_step,
            windows=tuple(lab_trace.windows(trace, chosen.every_steps)),
            final=lab_trace.window(trace, max(0, trace.steps - FINAL_STEPS), trace.steps),
            classifiers=classifiers,
            alone=self._evaluate(run, "alone", ()),
            deployed=self._evaluate(run, "deployed", ("--classifier", "0")) if classifiers else None,
            outside_margin=lab_trace.outside_margin(run.root, GateSettings()),
        )

    def _standings(self, run: LabRun, trace: Trace) -> tuple[Standing, ...]:
        """Every published classifier under both lights."""
        if not trace.promoted or run.recipe.by_hand:
            return ()
        old, new = (self._probe(run, name, step) for name, step in (("old", 0), ("new", LATE)))
        return tuple(
            Standing(
                version=p.version,
                step=p.step,
                flags=sum(self.chosen.change_step <= step < p.step for step in trace.flags),
                old_light=old[p.version],
                new_light=new[p.version],
            )
            for p in trace.promoted
        )

    def _probe(self, run: LabRun, name: str, step: int) -> dict[int, float]:
        """Balanced accuracy of a run's classifiers by their version; the first run makes the frames for all."""
        chosen = self.chosen
        frames = self.root / f"probe-{Path(chosen.light).stem}-{name}.npz"
        words = (
            "sim", "probe", "--frames", str(frames), "--light", chosen.light, "--at-step", str(step),
            "--episodes", str(PROBE_EPISODES), "--seed", str(PROBE_SEED),
        )  # fmt: skip
        with self._probing:
            result = run.ask(f"probe_{name}", words)
        return {int(v["version"]): float(v["balanced_accuracy"]) for v in result["verdicts"]}

    def _evaluate(self, run: LabRun, name: str, words: Sequence[str]) -> Evaluated:
        """The last policy under the new light."""
        chosen = self.chosen
        asked = (
            "sim", "evaluate", "--light", chosen.light, "--at-step", str(LATE), "--episodes", str(chosen.episodes),
            "--seed", str(EVALUATION_SEED + run.seed), *words,
        )  # fmt: skip
        result = run.ask(f"{name}_{chosen.episodes}", asked)
        return Evaluated(tuple(bool(e["success"]) for e in result["episodes"]), int(result["false_successes"]))

    def results(self) -> list[LineResult]:
        """Every line that has at least one trial."""
        found = []
        for course, line in self.lines.items():
            trials = tuple(self.trials[key] for key in self.runs if key.course == course and key in self.trials)
            if trials:
                found.append(LineResult(line.value, DRIFT_RECIPES[line].title, trials))
        return found


def write(chosen: DriftLabSettings, results: Sequence[LineResult], problems: Sequence[str], command: str) -> str:
    """results.json, drift.png and drift.md in the out folder; says where. Raises UserError."""
    figures = {
        "steps": chosen.steps,
        "light": chosen.light,
        "change_step": chosen.change_step,
        "seeds": list(chosen.seeds),
        "targets": [{"what": t.what, "met": t.met, "figure": t.figure} for t in drift.targets(results)],
        "lines": drift.to_json(results),
        "missing": list(problems),
    }
    report = LabReport("drift", command, figures, drift.markdown(results, command), plots.drift_lines(results))
    return report.write(chosen.out, chosen.json)


def main(argv: Sequence[str]) -> int:
    """`steadyhand lab drift`: 0 when everything ran, 1 when a run failed, 130 when it was interrupted."""
    chosen = shortened(settings.parse_command_line(DriftLabSettings, argv, "steadyhand lab drift", _DESCRIPTION))
    tasks.load(chosen.task)
    lab = DriftLab(chosen, threading.Event())

    def present() -> None:
        if results := lab.results():
            where = write(chosen, results, lab.problems, shlex.join(["steadyhand", "lab", "drift", *argv]))
            bench.show("a light that changes", drift.HEAD, drift.rows(results))
            for target in drift.targets(results):
                print(f"{ {True: 'yes', False: 'NO', None: '-'}[target.met]:<4}{target.what}: {target.figure}")
            print(where)

    return conduct(lab, present)
