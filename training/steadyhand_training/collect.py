"""Collect demonstrations and labelled frames without training, until a first policy and classifier can grow."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, Any

from pydantic import Field
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from steadyhand_models import settings as toml
from steadyhand_models import task as tasks
from steadyhand_models.registry import Registry
from steadyhand_training import log
from steadyhand_training.collection import Collected, Collection, Progress
from steadyhand_training.discards import Discards
from steadyhand_training.ingest import Ingest
from steadyhand_training.journal import Journal
from steadyhand_training.run_folder import RunFolder, write_whole
from steadyhand_training.status import Reporter, View
from steadyhand_training.strata import PHASES

TURN_S = 0.1
LINE_EVERY_S = 10.0
CREDIT = 1 << 40  # lockstep: as many steps as the robot likes
_NOTES = {"places": "far row first, right to left", "phases": "frames of success + of anything else"}
KEYS = "u takes the last episode back, r counts it again, q ends"
_DESCRIPTION = """Collect demonstrations without training; `steadyhand train --run` goes on from the same folder.

The robot's host runs as for training and needs no other settings. Frames count once their episode has a word.

Example: steadyhand collect --run runs/lift --demonstrations 10"""

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class CollectSettings:
    """Where to, and how much is enough."""

    run: Path = Path("runs/latest")
    task: str = "lift"
    listen: str = "tcp://127.0.0.1:5570"  # robots connect here; port * takes any that is free
    status: str = "tcp://127.0.0.1:5571"
    demonstrations: Count = 10
    positive_frames: Count = 200  # HIL-SERL's classifier
    negative_frames: Count = 1000  # HIL-SERL's classifier
    until_enough: bool = False  # end by itself then
    lockstep: bool = False  # for a simulated robot that takes steps only when it is told to


@dataclass(frozen=True)
class Want:
    """One counter and where it should get."""

    name: str
    have: int
    wanted: int

    @property
    def enough(self) -> bool:
        return self.have >= self.wanted


def wants(chosen: CollectSettings, progress: Progress) -> list[Want]:
    return [
        Want("demonstrations", progress.demonstrations, chosen.demonstrations),
        Want("frames of success", progress.positive, chosen.positive_frames),
        Want("frames of anything else", progress.negative, chosen.negative_frames),
    ]


class Collector:
    """The trainer's receiving side without its learning: ingest, journal, labels, status."""

    def __init__(self, chosen: CollectSettings, folder: RunFolder) -> None:
        """Raises UserError when an address or the folder cannot be used."""
        self.chosen = chosen
        self.message = ""
        self._task = tasks.load(chosen.task)
        self._discards = Discards(folder.discards)
        self._ingest = Ingest(self._task.contract(), folder.journal, Registry(folder.registry), chosen.listen)
        self._journal = Journal(folder.journal)
        self._reporter = Reporter(chosen.status, folder.metrics)
        self.collection = Collection(self._task, self._discards)
        self._folder = folder

    def start(self) -> None:
        self._ingest.start()
        self._folder.write_addresses(self._ingest.endpoint, self._reporter.endpoint)
        if self.chosen.lockstep:
            self._ingest.credit(CREDIT)
        self._catch_up()
        log.info("collect.ready", link=self._ingest.endpoint, episodes=self.collection.tally.episodes)

    def turn(self, timeout_s: float) -> None:
        """Take in what comes within a time, and say where things stand."""
        self._ingest.arrived.wait(timeout_s)
        self._ingest.arrived.clear()
        self._catch_up()
        now_s = time.monotonic()
        if self._reporter.due(now_s):
            self._reporter.report(self._view(), now_s)

    def close(self) -> None:
        self._ingest.stop()
        self._catch_up()
        self._reporter.report(self._view(), time.monotonic())
        self._journal.close()
        self._reporter.close()
        self._folder.address.unlink(missing_ok=True)

    @property
    def robots(self) -> list[str]:
        return self._ingest.robots

    @property
    def discarded(self) -> int:
        return len(self._discards)

    @property
    def enough(self) -> bool:
        return all(want.enough for want in wants(self.chosen, self.collection.progress()))

    def undo(self) -> None:
        """Take the episode back that ended last."""
        last = self.collection.last
        if last is None:
            self.message = "there is no episode to take back"
            return
        self._discards.add(last.episode)
        self._recount()
        self.message = f"episode {last.episode.number} is taken back; it stays in the journal"

    def redo(self) -> None:
        """Count the episode again that was taken back last."""
        episode = self._discards.restore()
        self._recount()
        self.message = "nothing was taken back" if episode is None else f"episode {episode.number} counts again"

    def _recount(self) -> None:
        self.collection = Collection(self._task, self._discards)
        self._catch_up()

    def _catch_up(self) -> None:
        while entries := self._journal.after(self.collection.position):
            self.collection.take_in(entries)

    def _view(self) -> View:
        progress = self.collection.progress()
        counts: dict[str, float] = {
            "positive_frames": progress.positive,
            "negative_frames": progress.negative,
            "places": progress.places,
        }
        return View(
            phase="collect",
            message=self.message,
            tally=self.collection.tally,
            arrived=self._ingest.counters,
            updates=0,
            steps_learning=0,
            policy_version=0,
            classifier_version=0,
            q_bound=0.0,
            learner=counts,
            correction={},
        )


# -- what is shown -----------------------------------------------------------------------------------------------------


def rows(collector: Collector) -> list[tuple[str, str]]:
    """(name, value) of every line below the counters."""
    progress, last = collector.collection.progress(), collector.collection.last
    dark, bright = progress.brightness
    cells = progress.cells
    return [
        ("robot", ", ".join(collector.robots) or "none connected yet"),
        ("last episode", _episode(last)),
        ("failed", f"{progress.failed} demonstrations of what is no success"),
        ("places", f"{progress.places} of {cells.size} parts of the workspace"),
        *(("", " ".join(f"{count:3d}" for count in row)) for row in cells[::-1]),
        ("light", f"{progress.lights} lights; pictures from {dark:.0f} to {bright:.0f} of 255 on average"),
        ("phases", "; ".join(f"{p.value} {won} + {lost}" for p, (won, lost) in zip(PHASES, progress.phases.tolist()))),
        ("taken back", f"{collector.discarded}  {collector.message}"),
    ]


def table(collector: Collector) -> Table:
    """The live view for a terminal."""
    shown = Table(title=f"steadyhand collect: {collector.chosen.run}", show_header=False, title_justify="left")
    for style in ("bold", "", ""):
        shown.add_column(style=style)
    for want in wants(collector.chosen, collector.collection.progress()):
        bar = ProgressBar(total=max(1, want.wanted), completed=min(want.have, max(1, want.wanted)), width=30)
        shown.add_row(want.name, bar, f"{want.have} of {want.wanted}{'  enough' if want.enough else ''}")
    for name, value in rows(collector):
        shown.add_row(name, value, _NOTES.get(name, ""))
    shown.caption = KEYS
    return shown


def line(collector: Collector) -> str:
    """The live view in one line, for a log."""
    found = wants(collector.chosen, collector.collection.progress())
    counters = ", ".join(f"{w.name} {w.have} of {w.wanted}" for w in found)
    return f"{counters} | last: {_episode(collector.collection.last)}"


def _episode(last: Collected | None) -> str:
    if last is None:
        return "none yet"
    kind = "demonstration" if last.demonstration else "episode"
    frames = f"{last.positive} frames of success, {last.negative} of anything else"
    return f"{kind} {last.episode.number}: {last.steps} steps, {last.end.value}; {frames}"


class Keys:
    """Single keys of a terminal; none where stdin is not one. Use as a context manager."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def __enter__(self) -> Keys:
        if sys.stdin.isatty():
            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def read(self) -> str:
        """The next key that was pressed, or nothing."""
        if self._before is None or not select.select([sys.stdin], [], [], 0)[0]:
            return ""
        # Past the buffer of sys.stdin, from which select would not hear of a second key.
        return os.read(sys.stdin.fileno(), 1).decode("ascii", "ignore")


def press(collector: Collector, key: str, stop: threading.Event) -> None:
    """What a key does."""
    if key == "u":
        collector.undo()
    elif key == "r":
        collector.redo()
    elif key == "q":
        stop.set()


def serve(collector: Collector, stop: threading.Event, console: Console) -> None:
    """Until told to stop, or until there is enough when that was asked for."""
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    due_s = 0.0
    with Keys() as keys:
        if live is not None:
            live.start()
        try:
            while not stop.is_set() and not (collector.chosen.until_enough and collector.enough):
                collector.turn(TURN_S)
                press(collector, keys.read(), stop)
                if live is not None:
                    live.update(table(collector), refresh=True)
                elif time.monotonic() >= due_s:
                    due_s = time.monotonic() + LINE_EVERY_S
                    print(line(collector), flush=True)
        finally:
            if live is not None:
                live.stop()


def main(argv: Sequence[str]) -> int:
    """`steadyhand collect`: until q, Ctrl-C, or enough."""
    words = toml.parse_command_line(CollectSettings, argv, "steadyhand collect", _DESCRIPTION)
    folder, stop = RunFolder(words.run), threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()

    log.configure()
    with folder.claim():
        write_whole(folder.settings.with_name("collect.toml"), toml.to_toml(words))
        collector = Collector(words, folder)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, ask)
        try:
            collector.start()
            serve(collector, stop, Console())
        finally:
            collector.close()
        print(line(collector))
        print(f"learn from it with: steadyhand train --run {words.run} --demonstrations {words.demonstrations}")
    return 0
