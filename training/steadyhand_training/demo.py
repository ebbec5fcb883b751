"""Run everything in simulation with one command: robot, runtime, trainer and a scripted operator, then a report."""

from __future__ import annotations

import enum
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TypeVar

import zmq
from pydantic import Field
from rich.console import Console
from rich.live import Live

from steadyhand_models import settings, task, wire
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Channel, ControlStatus, TrainerStatus, Truth
from steadyhand_models.registry import Registry
from steadyhand_models.topics import endpoint
from steadyhand_training import live, report
from steadyhand_training.children import Child, Death, Plan, steadyhand, stop_in_order, wait_for, watch
from steadyhand_training.run_folder import RunFolder, write_whole

M = TypeVar("M")
START_S = 120.0  # first GL context, first import of torch
VIEW_S = 0.25
LINE_EVERY_S = 10.0
EVALUATION_SEED = 10_000  # added to the run's: cubes of the evaluation are not those of learning
_DESCRIPTION = """Teach a simulated SO-101 to lift a cube, in real time, and report on it.

Example: steadyhand demo --minutes 2 --seed 1"""


class Classifier(str, enum.Enum):
    """What becomes of the first, honest beginner's classifier."""

    CORRECTED = "corrected"  # learns from the operator's flags
    FIXED = "fixed"  # stays as it is


@dataclass(frozen=True)
class DemoSettings:
    """The demo. Ctrl-C stops it in order at any time, and the report is written."""

    minutes: Annotated[float, Field(gt=0, le=24 * 60)] = 12.0
    seed: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    classifier: Classifier = Classifier.CORRECTED
    run: str = ""  # run folder; empty: runs/<date>-<time>
    task: str = "lift"
    demonstrations: Annotated[int, Field(ge=2, le=1000)] = 4
    light: str = "steady"  # a light scenario of the simulation, or a .toml file: moved_lamp, dusk, clouds
    wander: Annotated[int, Field(ge=0, le=1000)] = 0  # failed ones: easy negatives beyond the ways to the cube
    evaluate_episodes: Annotated[int, Field(ge=0, le=10_000)] = 200  # after the run, in lockstep; 0: no evaluation


class Stop:
    """Ctrl-C and SIGTERM as a question; a second one hurries."""

    def __init__(self) -> None:
        self.asked = 0

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1


@dataclass(frozen=True)
class Addresses:
    """Where the demo's processes meet."""

    sockets: Path
    link: str
    trainer_status: str


def prepare_run(chosen: DemoSettings) -> Path:
    """Make the run folder, and let runs/latest point to it. Raises UserError naming the fix."""
    root = Path(chosen.run or f"runs/{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    if (root / "journal.sqlite").exists():
        raise UserError(f"{root}: holds a run already; choose another --run, or see it with `steadyhand report`")
    try:
        for folder in ("settings", "logs", "edge"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
        if root.parent.name == "runs":
            aside = root.parent / f".latest.{os.getpid()}"
            aside.unlink(missing_ok=True)
            aside.symlink_to(root.name)
            aside.replace(root.parent / "latest")
    except OSError as error:
        raise UserError(f"{root}: the run folder cannot be written ({error.strerror}); choose another --run") from None
    return root


def write_settings(chosen: DemoSettings, run: Path, at: Addresses) -> dict[str, Path]:
    """One settings file for each process; what they do not name keeps its default."""
    fixed = chosen.classifier is Classifier.FIXED
    common = {"run": str(run), "task": chosen.task}
    edge = {**common, "sockets": str(at.sockets)}
    tables: dict[str, dict[str, Any]] = {
        "sim": {**edge, "seed": chosen.seed, "light": chosen.light},
        "runtime": {
            **edge,
            "bus": {"port": str(run / "edge" / "port")},
            "control": {"seed": chosen.seed, "reward_source": "classifier" if fixed else "hybrid"},
            "link": {"address": at.link},
        },
        "trainer": {
            **common,
            "seed": chosen.seed,
            "listen": at.link,
            "status": at.trainer_status,
            "demonstrations": chosen.demonstrations,
            "failed_demonstrations": chosen.wander,
            "correction": {"rule": "fixed" if fixed else "gated"},
        },
        "operator": {
            **edge,
            "seed": chosen.seed,
            "person": {"demonstrations": chosen.demonstrations, "wander": chosen.wander},
        },
    }
    paths = {}
    for name, table in tables.items():
        paths[name] = run / "settings" / f"{name}.toml"
        paths[name].write_text(_toml(table), encoding="utf-8")
    (run / "settings" / "demo.toml").write_text(settings.to_toml(chosen), encoding="utf-8")
    return paths


def plans(files: dict[str, Path]) -> list[Plan]:
    """The processes in the order of their start."""

    def plan(name: str, *words: str, stop_s: float, restart: bool = False) -> Plan:
        return Plan(name, steadyhand(*words, "--config", str(files[name])), stop_s, restart)

    return [
        plan("sim", "sim", "robot", stop_s=10.0),
        plan("trainer", "train", stop_s=60.0, restart=True),
        plan("runtime", "runtime", stop_s=30.0),
        plan("operator", "sim", "operator", stop_s=5.0),
    ]


STOP_ORDER = ("operator", "runtime", "trainer", "sim")  # the trainer hears the robot's last words before it ends


class Ears:
    """Newest statuses and truth of a running demo."""

    def __init__(self, at: Addresses) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._control = self._subscribe(endpoint(at.sockets, "control.status"))
        self._truth = self._subscribe(endpoint(at.sockets, "sim.truth"))
        self._trainer = self._subscribe(at.trainer_status)

    def listen(self, tally: live.LiveTally, timeout_s: float) -> None:
        """Take in what comes within timeout_s."""
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            self._control.poll(max(1, min(20, round(1e3 * left_s))))
            truth = _newest(self._truth, Truth)
            if truth is not None:
                tally.truth(truth)
            status = _newest(self._control, ControlStatus)
            if status is not None:
                tally.control(status)
            trainer = _newest(self._trainer, TrainerStatus)
            if trainer is not None:
                tally.learning(trainer, time.monotonic_ns())

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _subscribe(self, address: str) -> zmq.Socket[bytes]:
        subscriber = self._context.socket(zmq.SUB)
        subscriber.setsockopt(zmq.CONFLATE, 1)
        subscriber.setsockopt(zmq.SUBSCRIBE, b"")
        subscriber.connect(address)
        return subscriber


class View:
    """Shows a tally: a table that is drawn anew in a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._line_due_s = 0.0

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, tally: live.LiveTally, left_s: float) -> None:
        now_ns = time.monotonic_ns()
        if self._live is not None:
            self._live.update(live.table(tally, now_ns, left_s, self._title), refresh=True)
        elif time.monotonic() >= self._line_due_s:
            self._line_due_s = time.monotonic() + LINE_EVERY_S
            print(live.line(tally, now_ns, left_s), flush=True)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Demo:
    """One demo in one run folder. `run` returns the exit code."""

    def __init__(self, chosen: DemoSettings, run: Path, stop: Stop) -> None:
        self._chosen, self._run, self._stop = chosen, run, stop
        self._console = Console(soft_wrap=True)
        sockets = Path(tempfile.mkdtemp(prefix="steadyhand-"))
        link, status = free_ports(2)
        self._at = Addresses(sockets, f"tcp://127.0.0.1:{link}", f"tcp://127.0.0.1:{status}")
        self._children: list[Child] = []
        self._outcome = "complete"

    def run(self) -> int:
        """Everything: start, live view, ordered stop, evaluation, report."""
        begun = time.time()
        self._say(f"run folder {self._run}; Ctrl-C ends the demo in order and writes the report")
        try:
            self._live()
        except UserError as error:
            self._outcome = "failed"
            print(f"steadyhand demo: {error}", file=sys.stderr, flush=True)
        finally:
            self._end_processes()
        if self._outcome == "complete" and self._chosen.evaluate_episodes:
            self._evaluate()
        self._write_info(begun)
        self._report()
        return 1 if self._outcome == "failed" else 0

    def _live(self) -> None:
        """Start the processes and watch them for as long as was asked. Raises UserError when one is lost."""
        files = write_settings(self._chosen, self._run, self._at)
        for plan in plans(files):
            child = Child(plan, self._run / "logs")
            child.start()
            self._children.append(child)
            if plan.name == "sim":
                wait_for(self._children, self._run / "edge" / "port", START_S, lambda: bool(self._stop.asked))
            if self._stop.asked:
                break
        ears, tally = Ears(self._at), live.LiveTally()
        try:
            with View(self._console, f"steadyhand demo, seed {self._chosen.seed}: {self._run}") as view:
                self._watch(ears, tally, view)
        finally:
            ears.close()

    def _watch(self, ears: Ears, tally: live.LiveTally, view: View) -> None:
        whole_s = 60.0 * self._chosen.minutes
        started_s = time.monotonic()
        ends_s: float | None = None
        while not self._stop.asked:
            ears.listen(tally, VIEW_S)
            for news in watch(self._children):
                view.say(news)
            now_s = time.monotonic()
            if ends_s is None and tally.status is not None:
                ends_s = now_s + whole_s
            if ends_s is None and now_s - started_s > START_S:
                raise Death(f"the control loop did not come up within {START_S:.0f} s; see {self._run / 'logs'}")
            left_s = ends_s - now_s if ends_s is not None else whole_s
            view.show(tally, max(0.0, left_s))
            if left_s <= 0:
                return
        self._outcome = "interrupted"

    def _end_processes(self) -> None:
        self._say("stopping: operator, runtime, trainer, simulation")
        order = sorted(self._children, key=lambda c: STOP_ORDER.index(c.plan.name))
        for name in stop_in_order(order):
            self._say(f"{name} did not stop by itself and was killed; see {self._run / 'logs' / name}.log")
        shutil.rmtree(self._at.sockets, ignore_errors=True)

    # -- after the run ---------------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """The final policy and the cloned one side by side, in lockstep, judged by ground truth."""
        newest = Registry(RunFolder(self._run).registry).newest(Channel.POLICY)
        if newest is None:
            self._say("no policy was published: nothing to evaluate")
            return
        evaluations = {"final": newest, "behaviour_cloning": 1}
        running = [self._evaluation(name, version) for name, version in evaluations.items()]
        self._say(f"evaluating policy v{newest} and the cloned v1, {self._chosen.evaluate_episodes} episodes each")
        self._follow(running)
        for child in running:
            child.stop()

    def _evaluation(self, name: str, version: int) -> Child:
        chosen, run = self._chosen, self._run
        words = (
            "evaluate", "--registry", str(RunFolder(run).registry), "--version", str(version),
            "--episodes", str(chosen.evaluate_episodes), "--seed", str(EVALUATION_SEED + chosen.seed),
            "--task", chosen.task, "--json", str(run / f"evaluation_{name}.json"),
        )  # fmt: skip
        child = Child(Plan(f"evaluate_{name}", steadyhand(*words)), run / "logs")
        child.start()
        return child

    def _follow(self, running: Sequence[Child]) -> None:
        """Show how far evaluations are, until all have ended or Ctrl-C."""
        due_s = 0.0
        while not self._stop.asked and any(child.died() is None for child in running):
            running[0].wait(VIEW_S)
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + LINE_EVERY_S
                self._say("   ".join(f"{c.plan.name}: {c.tail().splitlines()[-1].strip()}" for c in running))
        for child in running:
            if child.died() not in (0, None):
                self._say(f"{child.plan.name} failed; its log ends with\n{child.tail()}")

    def _write_info(self, begun: float) -> None:
        chosen = self._chosen
        info = {
            "task": chosen.task,
            "seed": chosen.seed,
            "classifier": chosen.classifier.value,
            "minutes": chosen.minutes,
            "outcome": self._outcome,
            "begun_unix_s": begun,
            "trainer_restarts": sum(c.restarts for c in self._children if c.plan.name == "trainer"),
        }
        write_whole(self._run / "run.json", json.dumps(info, indent=1) + "\n")

    def _report(self) -> None:
        summary = report.write(self._run)
        for line in report.headline(summary):
            self._say(line)
        self._say(f"report: {self._run / 'report.html'}\nsummary: {self._run / 'summary.json'}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)


def _newest(subscriber: zmq.Socket[bytes], kind: type[M]) -> M | None:
    try:
        return wire.decode(subscriber.recv(zmq.DONTWAIT), kind)
    except (zmq.Again, wire.WireError):
        return None


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody uses now; held together, so that they differ."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _toml(table: dict[str, Any]) -> str:
    """A table of plain values and tables of such; JSON's strings, numbers and booleans are TOML's."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for name, inner in table.items():
        if isinstance(inner, dict):
            lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in inner.items())]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    """`steadyhand demo`: 0 when it ran its time or was stopped, 1 when a process was lost."""
    chosen = settings.parse_command_line(DemoSettings, argv, "steadyhand demo", _DESCRIPTION)
    task.load(chosen.task)
    run = prepare_run(chosen)
    stop = Stop()
    stop.install()
    return Demo(chosen, run, stop).run()
