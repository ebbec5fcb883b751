"""Success against steps for every way to learn: RLPD-SAC, DrQ-v2, behaviour cloning, and no takeovers, over seeds."""

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
from steadyhand_training import lab_results, plots
from steadyhand_training.lab_board import Key, Lab, conduct
from steadyhand_training.lab_lines import RECIPES, Line, Recipe
from steadyhand_training.lab_report import LabReport
from steadyhand_training.lab_results import LineResult, Trial
from steadyhand_training.lab_run import LabRun, Tell

Seed = Annotated[int, Field(ge=0, le=1_000_000)]
_DESCRIPTION = """Learn the task with every line and seed in lockstep, faster than real time, and compare them.

What is finished is kept: after Ctrl-C the same command goes on with what is missing.

Example: steadyhand lab learn --seeds 0 1 2 --steps 6000 --out docs/results/learn --runs runs/lab-learn
Example: steadyhand lab learn --short --out runs/lab-short"""


@dataclass(frozen=True)
class LearnLabSettings:
    """Which lines, how often and how long."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    steps: Annotated[int, Field(ge=300)] = 6000  # recorded by the robot, demonstrations included
    episodes: Annotated[int, Field(ge=1)] = 200  # of the evaluation of the last policy
    curve_episodes: Annotated[int, Field(ge=1)] = 40  # of each one before
    every_steps: Annotated[int, Field(ge=50)] = 500  # between evaluated policies
    lines: Annotated[tuple[Line, ...], Field(min_length=1)] = tuple(Line)
    short: bool = False  # one seed, 1,500 steps, the first line, 40 episodes: minutes on two cores
    task: str = "lift"
    jobs: Annotated[int, Field(ge=1, le=64)] = 1  # training runs at a time; each takes about one core
    out: Path = Path("runs/lab-learn")  # results.json, learn.png, learn.md
    runs: Path | None = None  # run folders, about 30 MB per 1,000 steps; None: below `out`
    json: Path | None = None  # a further copy of results.json


def shortened(chosen: LearnLabSettings) -> LearnLabSettings:
    """The settings that `--short` stands for."""
    if not chosen.short:
        return chosen
    return replace(chosen, seeds=chosen.seeds[:1], lines=(Line.RLPD_SAC,), steps=1500, episodes=40, curve_episodes=20)


class LearnLab(Lab):
    """All lines with all seeds."""

    def __init__(self, chosen: LearnLabSettings, stop: threading.Event) -> None:
        self.chosen = chosen
        self.recipes = {line: RECIPES[line] for line in dict.fromkeys(chosen.lines)}
        courses = {recipe.course: self._owner(recipe) for recipe in self.recipes.values()}
        root = chosen.runs or chosen.out / "runs"
        runs = {
            Key(course, seed): LabRun(
                recipe, (root / f"{course}-seed{seed}").absolute(), seed, chosen.task, chosen.steps, stop
            )
            for seed in dict.fromkeys(chosen.seeds)
            for course, recipe in courses.items()
        }
        super().__init__(runs, chosen.jobs, stop)
        self.trials: dict[tuple[Line, int], Trial] = {}

    @staticmethod
    def _owner(recipe: Recipe) -> Recipe:
        """The recipe that a course is named after."""
        return next(r for r in RECIPES.values() if r.course == recipe.course and not r.first_only)

    def judge(self, key: Key, tell: Tell) -> None:
        lines = [line for line, recipe in self.recipes.items() if recipe.course == key.course]
        for line in lines:
            self.trials[line, key.seed] = self._trial(self.runs[key], line, tell)

    def _trial(self, run: LabRun, line: Line, tell: Tell) -> Trial:
        chosen = self.chosen
        versions = [1] if self.recipes[line].first_only else run.chosen(chosen.every_steps)
        points = run.judge(
            versions,
            chosen.curve_episodes,
            chosen.episodes,
            lambda share, what: tell(share, f"{line.value}: {what}"),
        )
        return Trial(run.seed, tuple(points), run.minutes or 0.0)

    def results(self) -> list[LineResult]:
        """Every line that has at least one trial."""
        found = []
        for line, recipe in self.recipes.items():
            trials = tuple(self.trials[line, s] for s in self.chosen.seeds if (line, s) in self.trials)
            if trials:
                found.append(LineResult(line.value, recipe.title, trials))
        return found


def write(chosen: LearnLabSettings, results: Sequence[LineResult], problems: Sequence[str], command: str) -> str:
    """results.json, learn.png and learn.md in the out folder; says where. Raises UserError."""
    figures = {
        "steps": chosen.steps,
        "seeds": list(chosen.seeds),
        "lines": lab_results.to_json(results),
        "missing": list(problems),
    }
    report = LabReport("learn", command, figures, lab_results.markdown(results, command), plots.learning_lines(results))
    return report.write(chosen.out, chosen.json)


def main(argv: Sequence[str]) -> int:
    """`steadyhand lab learn`: 0 when everything ran, 1 when a run failed, 130 when it was interrupted."""
    chosen = shortened(settings.parse_command_line(LearnLabSettings, argv, "steadyhand lab learn", _DESCRIPTION))
    tasks.load(chosen.task)
    lab = LearnLab(chosen, threading.Event())

    def present() -> None:
        if results := lab.results():
            where = write(chosen, results, lab.problems, shlex.join(["steadyhand", "lab", "learn", *argv]))
            bench.show("success against steps", lab_results.HEAD, lab_results.rows(results))
            print(where)

    return conduct(lab, present)
