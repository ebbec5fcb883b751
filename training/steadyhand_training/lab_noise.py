"""What a person's wrong and late words do to learning: success over error rates and lags, for each reward form."""

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
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel, EndReason
from steadyhand_models.registry import Registry
from steadyhand_models.reward import RewardForm
from steadyhand_training import lab_noise_results, plots
from steadyhand_training.facts import EpisodeFacts, gather
from steadyhand_training.lab_board import Key, Lab, conduct
from steadyhand_training.lab_lines import Recipe
from steadyhand_training.lab_noise_results import Cell, Noise, Trial, Words
from steadyhand_training.lab_report import LabReport
from steadyhand_training.lab_run import LabRun, Tell

Seed = Annotated[int, Field(ge=0, le=1_000_000)]
Rate = Annotated[float, Field(ge=0, le=1)]
Lag = Annotated[float, Field(ge=0, le=10)]
# Probability pays at every step, so its episodes run on after success, on both sides.
_TRAINER = {RewardForm.PROBABILITY: ("--reward.terminate-on-success", "False")}
_ROBOT = {RewardForm.PROBABILITY: ("--control.terminate-on-success", "False")}
_JUDGED_ENDS = (EndReason.SUCCESS, EndReason.FAILURE, EndReason.TIMEOUT)
_DESCRIPTION = """Learn from a person who errs and lags, with every reward form, rate and seed in lockstep; compare.

What is finished is kept: after Ctrl-C the same command goes on with what is missing. Lag is varied without wrong words.

Example: steadyhand lab noise --seeds 0 1 2 --jobs 2 --out docs/results/noise --runs runs/lab-noise
Example: steadyhand lab noise --forms success --false-positive 0 0.3 --false-negative 0 --lag-s 0 --out runs/lab-noise
Example: steadyhand lab noise --short --jobs 2 --out runs/lab-noise-short"""


@dataclass(frozen=True)
class NoiseLabSettings:
    """Which reward forms, how much noise, how often and how long."""

    forms: Annotated[tuple[RewardForm, ...], Field(min_length=1)] = tuple(RewardForm)
    false_positive: Annotated[tuple[Rate, ...], Field(min_length=1)] = (0.0, 0.15, 0.3)  # of failures called a success
    false_negative: Annotated[tuple[Rate, ...], Field(min_length=1)] = (0.0, 0.15, 0.3)  # of successes denied
    lag_s: Annotated[tuple[Lag, ...], Field(min_length=1)] = (0.0, 0.4, 0.8)  # added to reactions of 0.3 to 0.8 s
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    # Recorded by the robot, demonstrations included. Measured with `steadyhand lab learn`: by then most is learned.
    steps: Annotated[int, Field(ge=300)] = 1500
    episodes: Annotated[int, Field(ge=1)] = 100  # of the evaluation of each last policy
    short: bool = False  # one seed, 600 steps, the first form, rates 0 and 0.3, no lag, 20 episodes
    task: str = "lift"
    jobs: Annotated[int, Field(ge=1, le=64)] = 1  # training runs at a time; each takes about one core
    out: Path = Path("runs/lab-noise")  # results.json, noise.png, noise.md
    runs: Path | None = None  # run folders, about 30 MB per 1,000 steps; None: below `out`
    json: Path | None = None  # a further copy of results.json


def shortened(chosen: NoiseLabSettings) -> NoiseLabSettings:
    """The settings that `--short` stands for."""
    if not chosen.short:
        return chosen
    few = replace(chosen, forms=chosen.forms[:1], seeds=chosen.seeds[:1], steps=600, episodes=20)
    return replace(few, false_positive=(0.0, 0.3), false_negative=(0.0, 0.3), lag_s=(0.0,))


def noises(chosen: NoiseLabSettings) -> list[Noise]:
    """The grid of rates without lag, then the lags without wrong words; each noise once."""
    wrong = [Noise(fp, fn) for fp in chosen.false_positive for fn in chosen.false_negative]
    return list(dict.fromkeys([*wrong, *(Noise(lag_s=lag_s) for lag_s in chosen.lag_s)]))


def recipe(form: RewardForm, noise: Noise) -> Recipe:
    """How a run with this reward form and a person this noisy is started. What was pressed wrong stays."""
    person = (
        "--operator.false-success-rate", f"{noise.false_positive:g}",
        "--operator.false-failure-rate", f"{noise.false_negative:g}",
        "--operator.lag-s", f"{noise.lag_s:g}", "--operator.undo-rate", "0",
    )  # fmt: skip
    course = f"{form.value}-{noise}"
    trainer = ("--reward.form", form.value, *_TRAINER.get(form, ()))
    return Recipe(f"{form.value}, {noise}", course, trainer, (*_ROBOT.get(form, ()), *person))


class NoiseLab(Lab):
    """All reward forms under all noises with all seeds; the first seed's grid is whole before the second begins."""

    def __init__(self, chosen: NoiseLabSettings, stop: threading.Event) -> None:
        self.chosen = chosen
        self.root = (chosen.runs or chosen.out / "runs").absolute()
        self.cells = {
            (made := recipe(form, noise)).course: (form, noise, made)
            for form in dict.fromkeys(chosen.forms)
            for noise in noises(chosen)
        }
        runs = {
            (key := Key(course, seed)): LabRun(made, self.root / str(key), seed, chosen.task, chosen.steps, stop)
            for seed in dict.fromkeys(chosen.seeds)
            for course, (_, _, made) in self.cells.items()
        }
        super().__init__(runs, chosen.jobs, stop)
        self.trials: dict[Key, Trial] = {}

    def judge(self, key: Key, tell: Tell) -> None:
        run = self.runs[key]
        last = Registry(run.folder.registry).newest(Channel.POLICY)
        if last is None:
            raise UserError(f"{run.root}: its policies are gone; remove the folder, and the same command runs it again")
        (final,) = run.judge([last], self.chosen.episodes, self.chosen.episodes, tell)
        self.trials[key] = Trial(run.seed, run.minutes or 0.0, final, words(gather(run.root).policy_episodes))

    def results(self) -> list[Cell]:
        """Every cell that has at least one trial."""
        found = []
        for course, (form, noise, _) in self.cells.items():
            trials = tuple(t for key in self.runs if key.course == course and (t := self.trials.get(key)))
            if trials:
                found.append(Cell(form.value, noise, trials))
        return found


def words(episodes: Sequence[EpisodeFacts]) -> Words:
    """What a person said last of each episode, beside what was true.

    Episodes without ground truth do not count, nor those that were cut off: nobody is asked about them.
    """
    over = [e for e in episodes if e.end in _JUDGED_ENDS]
    failures = [e for e in over if e.true_success is False]
    successes = [e for e in over if e.true_success is True]
    return Words(
        failures=len(failures),
        called_success=sum(e.verdict == "success" for e in failures),
        successes=len(successes),
        denied=sum(e.verdict == "failure" for e in successes),
    )


def write(chosen: NoiseLabSettings, cells: Sequence[Cell], problems: Sequence[str], command: str) -> str:
    """results.json, noise.png and noise.md in the out folder; says where. Raises UserError."""
    figures = {
        "steps": chosen.steps,
        "seeds": list(chosen.seeds),
        "cells": lab_noise_results.to_json(cells),
        "missing": list(problems),
    }
    report = LabReport(
        "noise",
        command,
        figures,
        lab_noise_results.markdown(cells, command),
        plots.noise_maps(lab_noise_results.charts(cells)),
    )
    return report.write(chosen.out, chosen.json)


def main(argv: Sequence[str]) -> int:
    """`steadyhand lab noise`: 0 when everything ran, 1 when a run failed, 130 when it was interrupted."""
    chosen = shortened(settings.parse_command_line(NoiseLabSettings, argv, "steadyhand lab noise", _DESCRIPTION))
    tasks.load(chosen.task)
    lab = NoiseLab(chosen, threading.Event())

    def present() -> None:
        if cells := lab.results():
            where = write(chosen, cells, lab.problems, shlex.join(["steadyhand", "lab", "noise", *argv]))
            bench.show("a person who errs and lags", lab_noise_results.HEAD, lab_noise_results.rows(cells))
            print(where)

    return conduct(lab, present)
