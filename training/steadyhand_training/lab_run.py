"""One training run of an experiment: its two processes, how far they are, and the evaluation of what they published."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel, Source, Step
from steadyhand_models.registry import Registry
from steadyhand_training import lab_lines
from steadyhand_training.children import Child, Plan, steadyhand, watch
from steadyhand_training.journal import Journal, Kind
from steadyhand_training.lab_lines import Recipe
from steadyhand_training.metrics import last_json_line
from steadyhand_training.run_folder import RunFolder, write_whole

START_S = 180.0  # on a busy machine the first import of torch alone takes a minute
STOP_S = 120.0  # a last checkpoint and a last policy
POLL_S = 0.2
EVALUATION_SEED = 10_000  # added to the run's: cubes of the evaluation are not those of learning
MARK = "lab.json"

Tell = Callable[[float, str], None]  # share done 0..1, what is being done


class Stopped(Exception):
    """Ctrl-C: what is finished stays, the rest is run again next time."""


@dataclass(frozen=True)
class Judged:
    """What one published version could do: `steps` and `takeovers` are what the robot had seen when it came out."""

    version: int
    steps: int
    takeovers: int
    episodes: int
    successes: int


class LabRun:
    """A training run in a folder of its own. A folder whose mark says that it is finished is not run again."""

    def __init__(self, recipe: Recipe, root: Path, seed: int, task: str, steps: int, stop: threading.Event) -> None:
        self.recipe, self.seed, self.task, self.steps = recipe, seed, task, steps
        self.root = root
        self.folder = RunFolder(root)
        self._stop = stop

    @property
    def _words(self) -> list[str]:
        """What the run depends on; a run made with other words is not this one."""
        run, link = "RUN", "LINK"
        return [
            *lab_lines.trainer_words(self.recipe, run, self.seed, self.task),
            *lab_lines.robot_words(self.recipe, run, self.seed, self.task, self.steps, link),
        ]

    @property
    def minutes(self) -> float | None:
        """Wall minutes that the finished run took; None when there is none."""
        try:
            mark = json.loads((self.root / MARK).read_text(encoding="utf-8"))
            return float(mark["minutes"]) if mark["words"] == self._words else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    # -- training --------------------------------------------------------------------------------------------------

    def train(self, tell: Tell) -> None:
        """Run it from scratch unless that was done. Raises UserError when a process fails, Stopped."""
        if self.minutes is not None:
            return
        self._clear()
        begun_s = time.monotonic()
        trainer = self._child("trainer", lab_lines.trainer_words(self.recipe, str(self.root), self.seed, self.task))
        try:
            link = self._link_of(trainer)
            words = lab_lines.robot_words(self.recipe, str(self.root), self.seed, self.task, self.steps, link)
            robot = self._child("robot", words)
            try:
                self._follow(trainer, robot, tell)
            finally:
                robot.stop()
        finally:
            orderly = trainer.stop()
        if not orderly or trainer.died() != 0:
            raise UserError(f"the trainer did not end in order; its log {trainer.log} ends with\n{trainer.tail()}")
        if (registry := Registry(self.folder.registry)).newest(Channel.POLICY) is None:
            raise UserError(f"{registry.root}: no policy was published; see {trainer.log}")
        mark = {"words": self._words, "minutes": (time.monotonic() - begun_s) / 60}
        write_whole(self.root / MARK, json.dumps(mark, indent=1) + "\n")

    def _clear(self) -> None:
        """An empty folder; what another command left in it is not thrown away."""
        if self.root.exists() and any(self.root.iterdir()) and not (self.root / MARK).is_file():
            raise UserError(f"{self.root}: holds something that no experiment made; choose another --runs folder")
        shutil.rmtree(self.root, ignore_errors=True)
        try:
            (self.root / "logs").mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{self.root}: cannot be written ({error.strerror}); choose another --runs") from None
        write_whole(self.root / MARK, "{}\n")

    def _child(self, name: str, words: Sequence[str]) -> Child:
        child = Child(Plan(name, steadyhand(*words), STOP_S), self.root / "logs")
        child.start()
        return child

    def _link_of(self, trainer: Child) -> str:
        """Where the trainer listens, once it does."""
        deadline_s = time.monotonic() + START_S
        while not self.folder.address.is_file():
            self._pause([trainer])
            if time.monotonic() > deadline_s:
                raise UserError(f"the trainer did not come up within {START_S:.0f} s; see {trainer.log}")
        return str(json.loads(self.folder.address.read_text(encoding="utf-8"))["link"])

    def _follow(self, trainer: Child, robot: Child, tell: Tell) -> None:
        """Until the robot has recorded its steps."""
        while robot.died() is None:
            self._pause([trainer])
            status = last_json_line(self.folder.metrics, "status")
            tell(self._share(status), self._saying(status))
        if robot.died() != 0:
            raise UserError(f"the robot failed; its log {robot.log} ends with\n{robot.tail()}")

    def _pause(self, alive: Sequence[Child]) -> None:
        watch(alive)
        if self._stop.wait(POLL_S):
            raise Stopped

    def _share(self, status: dict[str, object] | None) -> float:
        steps = status.get("steps") if status else 0
        return min(1.0, float(steps) / self.steps) if isinstance(steps, (int, float)) else 0.0

    @staticmethod
    def _saying(status: dict[str, object] | None) -> str:
        if status is None:
            return "starting"
        rate = status.get("updates_per_s")
        speed = f", {rate:.0f} updates/s" if isinstance(rate, float) and rate > 0 else ""
        return f"{status.get('phase')}: {status.get('steps')} steps{speed} {status.get('message') or ''}".strip()

    # -- evaluation ------------------------------------------------------------------------------------------------

    def chosen(self, every_steps: int) -> list[int]:
        """The first version, the ones nearest to every so many steps, and the last."""
        if self.recipe.first_only:
            return [1]
        steps = self._steps_of_versions()
        wanted = range(every_steps, self.steps, every_steps)
        near = {min(steps, key=lambda version: abs(steps[version] - want)) for want in wanted}
        return sorted({min(steps), *near, max(steps)})

    def judge(self, versions: Sequence[int], curve_episodes: int, episodes: int, tell: Tell) -> list[Judged]:
        """Evaluate versions, the last one with `episodes`. Those done before are read. Raises UserError, Stopped."""
        steps, taken = self._steps_of_versions(), self._takeovers()
        judged = []
        for i, version in enumerate(versions):
            last = i == len(versions) - 1
            tell(i / len(versions), f"evaluating v{version}, {i + 1} of {len(versions)}")
            tried = episodes if last else curve_episodes
            # The largest evaluation there is: two lines may ask for one version with different numbers of episodes.
            result = self._evaluation(version, tried)
            before = sum(at < steps[version] for at in taken)
            judged.append(Judged(version, steps[version], before, tried, int(result["successes"])))
        return judged

    def _evaluation(self, version: int, episodes: int) -> dict[str, Any]:
        words = ("evaluate", "--version", str(version), "--episodes", str(episodes))
        return self.ask(f"v{version:06d}_{episodes}", (*words, "--seed", str(EVALUATION_SEED + self.seed)))

    def ask(self, name: str, words: Sequence[str]) -> dict[str, Any]:
        """What a command says of the run's registry in its --json file, kept by that name and read when it is there.

        Raises UserError, Stopped.
        """
        path = self.root / "evaluations" / f"{name}.json"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            aside = path.with_suffix(".part")
            known = ("--registry", str(self.folder.registry), "--task", self.task, "--json", str(aside))
            child = self._child(name, (*words, *known))
            try:
                while child.died() is None:
                    if self._stop.wait(POLL_S):
                        raise Stopped
            finally:
                child.stop()
            if child.died() != 0:
                raise UserError(f"an evaluation failed; its log {child.log} ends with\n{child.tail()}")
            aside.replace(path)
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result

    def _steps_of_versions(self) -> dict[int, int]:
        """Recorded steps at which each policy version was published."""
        registry = Registry(self.folder.registry)
        manifests = (registry.manifest(Channel.POLICY, v) for v in registry.versions(Channel.POLICY))
        return {m.version: round(m.metrics["steps"]) for m in manifests}

    def _takeovers(self) -> list[int]:
        """Recorded steps at which a takeover began."""
        begun: list[int] = []
        journal = Journal(self.folder.journal)
        try:
            steps, before = 0, Source.NONE
            for entry in journal.replay():
                if entry.kind is not Kind.STEP or not isinstance(step := entry.message, Step):
                    continue
                if step.source is Source.TAKEOVER and before is not Source.TAKEOVER:
                    begun.append(steps)
                steps, before = steps + 1, step.source
        finally:
            journal.close()
        return begun
