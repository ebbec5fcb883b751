"""What every experiment does with its training runs: carry them out side by side, show how far they are, stop them."""

from __future__ import annotations

import abc
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from steadyhand_models.cli import UserError
from steadyhand_training.lab_run import LabRun, Stopped, Tell

LINE_EVERY_S = 30.0
POLL_S = 0.5
TRAINING_SHARE = 0.8  # of a run's progress; display only


@dataclass(frozen=True)
class Key:
    """One training run: a course that one or more lines share, and a seed."""

    course: str
    seed: int

    def __str__(self) -> str:
        return f"{self.course}-seed{self.seed}"


class Board:
    """How far every training run is: bars in a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, keys: Sequence[Key]) -> None:
        self._console = console
        columns = (
            TextColumn("{task.fields[name]:<24}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[what]}"),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._bars = {
            key: self._progress.add_task("", total=1.0, name=str(key), what="waiting", start=False) for key in keys
        }
        self._due_s = dict.fromkeys(keys, 0.0)
        self._lock = threading.Lock()

    def __enter__(self) -> Board:
        self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()

    def tell(self, key: Key, share: float, what: str) -> None:
        """Called from the threads that follow the runs."""
        bar = self._bars[key]
        self._progress.start_task(bar)
        self._progress.update(bar, completed=share, what=what)
        with self._lock:
            if not self._console.is_terminal and time.monotonic() >= self._due_s[key]:
                self._due_s[key] = time.monotonic() + LINE_EVERY_S
                print(f"{key}: {100 * share:3.0f}%  {what}", flush=True)


def carry_out(keys: Sequence[Key], job: Callable[[Key], None], jobs: int) -> list[str]:
    """Do `job` for every key, `jobs` at a time; what went wrong, in words. The others go on when one fails."""
    problems: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        work = {pool.submit(job, key): key for key in keys}
        left: set[Future[None]] = set(work)
        while left:
            done, left = wait(left, timeout=POLL_S)
            for future in done:
                try:
                    future.result()
                except Stopped:
                    problems.append(f"{work[future]}: stopped; the same command goes on with it")
                except UserError as error:
                    problems.append(f"{work[future]}: {error}")
    return problems


def stop_on_signals(stop: threading.Event) -> None:
    """Ctrl-C and SIGTERM let every process end in order; a second one ends at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)


class Lab(abc.ABC):
    """An experiment of many training runs, `jobs` of them at a time. `problems` says in words what went wrong."""

    def __init__(self, runs: Mapping[Key, LabRun], jobs: int, stop: threading.Event) -> None:
        self.runs, self.jobs, self.stop = runs, jobs, stop
        self.problems: list[str] = []

    def run(self, board: Board) -> None:
        """Train and judge everything that is not done yet; what fails is kept in `problems` and the rest goes on."""
        self.problems += carry_out(list(self.runs), lambda key: self._course(key, board), self.jobs)

    def _course(self, key: Key, board: Board) -> None:
        if self.stop.is_set():
            raise Stopped
        board.tell(key, 0.0, "training")
        self.runs[key].train(lambda share, what: board.tell(key, TRAINING_SHARE * share, what))
        self.judge(key, lambda share, what: board.tell(key, TRAINING_SHARE + (1 - TRAINING_SHARE) * share, what))
        board.tell(key, 1.0, "done")

    @abc.abstractmethod
    def judge(self, key: Key, tell: Tell) -> None:
        """Judge what a finished run has learned, and keep the result. Raises UserError, Stopped."""


def conduct(lab: Lab, present: Callable[[], None]) -> int:
    """Run an experiment and `present` what came of it: 0, 1 when a run failed, 130 when it was interrupted."""
    stop_on_signals(lab.stop)
    with Board(Console(), list(lab.runs)) as board:
        lab.run(board)
    present()
    for problem in lab.problems:
        print(problem, flush=True)
    return 130 if lab.stop.is_set() else int(bool(lab.problems))
