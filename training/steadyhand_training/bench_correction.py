"""Time from a person's key to the corrected classifier on the robot, in real time while learning goes on."""

from __future__ import annotations

import dataclasses
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.console import Console
from rich.progress import Progress

from steadyhand_models import bench, settings, task
from steadyhand_models.bench import Target
from steadyhand_models.messages import ControlStatus, TrainerStatus
from steadyhand_training import correction_times, demo, live
from steadyhand_training.bench_relabel import Relabelling, relabel
from steadyhand_training.children import Child, Plan, stop_in_order, wait_for, watch
from steadyhand_training.correction_times import PARTS, Journey, Way, missed_between
from steadyhand_training.demo import STOP_ORDER, Addresses, DemoSettings, Ears, Stop
from steadyhand_training.run_folder import RunFolder

MEDIAN_S, WORST_S, RELABEL_S = 5.0, 10.0, 5.0  # promised: key to staged classifier; every stored reward anew
LISTEN_S = 0.25
LINE_EVERY_S = 10.0
PREPARE_S = 900.0  # demonstrations and pretraining on a slow machine
_DESCRIPTION = """Time from a person's key to the corrected classifier on the robot, and of a relabelling.

Example: steadyhand bench correction --minutes 4 --json correction.json"""


@dataclass(frozen=True)
class CorrectionBenchSettings:
    """A demo in real time. With few batches in the first fit there is more to contradict."""

    minutes: Annotated[float, Field(ge=0, le=120)] = 6.0  # of learning; 0: no run, only the relabelling
    seed: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    task: str = "lift"
    light: str = "steady"  # a light scenario of the simulation
    demonstrations: Annotated[int, Field(ge=2, le=100)] = 4
    first_batches: Annotated[int, Field(ge=1, le=1000)] = 200  # as the trainer's default
    slice_s: Annotated[float, Field(gt=0, le=10)] | None = None  # correction_slice_s; without one the trainer's own
    relabel_steps: Annotated[int, Field(ge=0, le=100_000)] = 30_000  # stored steps of the relabelling; 0: none
    run: Path | None = None  # keep the run here; without it nothing is kept
    json: Path | None = None
    check: bool = False  # exit code 1 when a target is missed


@dataclass(frozen=True)
class Figures:
    """What was measured; parts of it are missing where they were not asked for."""

    journey: Journey = field(default_factory=lambda: Journey(0, ()))
    missed_ticks: int = 0  # while one of them was on its way, at most
    updates_per_s: float = 0.0
    relabelling: Relabelling | None = None

    @property
    def whole_s(self) -> list[float]:
        return [way.whole_s for way in self.journey.ways]


class Tally(live.LiveTally):
    """A demo's counts, how many ticks control had missed when, and how fast it learned."""

    def __init__(self) -> None:
        super().__init__()
        self.missed: list[tuple[int, int]] = []
        self.updates_per_s: list[float] = []

    def control(self, status: ControlStatus) -> None:
        super().control(status)
        self.missed.append((status.stamp_ns, status.missed_ticks))

    def learning(self, trainer: TrainerStatus, now_ns: int) -> None:
        super().learning(trainer, now_ns)
        if trainer.updates:
            self.updates_per_s.append(trainer.updates_per_s)


class Run:
    """One run of the real processes in a folder, as the demo starts them."""

    def __init__(self, chosen: CorrectionBenchSettings, folder: Path, stop: Stop) -> None:
        self._chosen, self._folder, self._stop = chosen, folder, stop
        link, status = demo.free_ports(2)
        sockets = Path(tempfile.mkdtemp(prefix="steadyhand-"))
        self._at = Addresses(sockets, f"tcp://127.0.0.1:{link}", f"tcp://127.0.0.1:{status}")
        self._children: list[Child] = []
        self.tally = Tally()

    def live(self) -> None:
        """Start everything, listen to as much learning as was asked, stop in order. Raises UserError when a process
        is lost or learning does not begin."""
        try:
            self._start()
            self._listen()
        finally:
            order = sorted(self._children, key=lambda child: STOP_ORDER.index(child.plan.name))
            stop_in_order(order)
            shutil.rmtree(self._at.sockets, ignore_errors=True)

    def _start(self) -> None:
        chosen = self._chosen
        for name in ("settings", "logs", "edge"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        wanted = DemoSettings(
            seed=chosen.seed, task=chosen.task, light=chosen.light, demonstrations=chosen.demonstrations
        )
        for plan in demo.plans(demo.write_settings(wanted, self._folder, self._at)):
            child = Child(self._with_words(plan), self._folder / "logs")
            child.start()
            self._children.append(child)
            if plan.name == "sim":
                wait_for(self._children, self._folder / "edge" / "port", demo.START_S, lambda: bool(self._stop.asked))
            if self._stop.asked:
                return

    def _with_words(self, plan: Plan) -> Plan:
        if plan.name != "trainer":
            return plan
        words = ["--correction.first-batches", str(self._chosen.first_batches)]
        if self._chosen.slice_s is not None:
            words += ["--correction-slice-s", str(self._chosen.slice_s)]
        return dataclasses.replace(plan, command=(*plan.command, *words))

    def _listen(self) -> None:
        ears, ends_s, line_s = Ears(self._at), math.inf, 0.0
        begun_s = time.monotonic()
        try:
            while not self._stop.asked and (now_s := time.monotonic()) < ends_s:
                ears.listen(self.tally, LISTEN_S)
                for news in watch(self._children):
                    print(news, flush=True)
                if ends_s == math.inf and self.tally.updates_per_s:
                    ends_s = now_s + 60.0 * self._chosen.minutes
                if ends_s == math.inf and now_s - begun_s > PREPARE_S:
                    raise demo.Death(f"learning did not begin within {PREPARE_S:.0f} s; see the logs in {self._folder}")
                if now_s >= line_s:
                    line_s = now_s + LINE_EVERY_S
                    left_s = min(ends_s - now_s, 60.0 * self._chosen.minutes)
                    print(live.line(self.tally, time.monotonic_ns(), left_s), flush=True)
        finally:
            ears.close()


def measure(chosen: CorrectionBenchSettings, stop: Stop) -> Figures:
    """The run, then the relabelling. Raises UserError."""
    figures = Figures()
    if chosen.minutes:
        with tempfile.TemporaryDirectory(prefix="steadyhand-bench-") as scratch:
            folder = (chosen.run or Path(scratch)).absolute()
            run = Run(chosen, folder, stop)
            run.live()
            found = correction_times.read(RunFolder(folder))
        rates = run.tally.updates_per_s
        figures = Figures(found, _missed(found.ways, run.tally.missed), statistics.median(rates) if rates else 0.0)
    if chosen.relabel_steps and not stop.asked:
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            bar = progress.add_task(f"relabelling {chosen.relabel_steps:,} steps", total=1.0)
            result = relabel(
                chosen.task, chosen.relabel_steps, chosen.seed, lambda share: progress.update(bar, completed=share)
            )
        figures = dataclasses.replace(figures, relabelling=result)
    return figures


def _missed(ways: Sequence[Way], samples: Sequence[tuple[int, int]]) -> int:
    """The most ticks that were missed during any way."""
    return max((missed_between(samples, way.pressed_ns, way.staged_ns) for way in ways), default=0)


def judge(figures: Figures) -> list[Target]:
    """What was promised."""
    whole_s, relabelling = figures.whole_s, figures.relabelling
    median = statistics.median(whole_s) if whole_s else None
    worst = max(whole_s) if whole_s else None
    cached_s = relabelling.cached_s if relabelling is not None else None
    steps = relabelling.steps if relabelling is not None else 30_000
    return [
        _within("key to classifier on the robot, median", median, MEDIAN_S),
        _within("key to classifier on the robot, worst", worst, WORST_S),
        Target(
            "control ticks missed meanwhile", "0", str(figures.missed_ticks),
            figures.missed_ticks == 0 if whole_s else None,
        ),
        _within(f"relabelling {steps:,} steps, scores cached", cached_s, RELABEL_S),
    ]  # fmt: skip


def _within(what: str, found_s: float | None, most_s: float) -> Target:
    if found_s is None:
        return Target(what, f"<= {most_s:g} s", "", None)
    return Target(what, f"<= {most_s:g} s", f"{found_s:.2f} s", found_s <= most_s)


def p90(values: Sequence[float]) -> float:
    """The smallest of the values that nine in ten do not exceed."""
    return sorted(values)[math.ceil(0.9 * len(values)) - 1]


def show(figures: Figures, judged: Sequence[Target]) -> None:
    """All tables."""
    found = figures.journey
    if found.ways:
        parts = [(name, [way.part_s(since, until) for way in found.ways]) for name, since, until in PARTS]
        rows = [(name, *_row(values)) for name, values in [*parts, ("whole", figures.whole_s)]]
        caption = (
            f"{len(found.ways)} of {found.contradictions} words that contradicted the classifier led to a promotion, "
            f"{found.reviewed} went to review; the trainer made {figures.updates_per_s:.0f} updates/s"
        )
        bench.show("seconds from key to classifier", ("part", "median", "p90", "worst"), rows, caption)
    elif figures.updates_per_s:
        print(
            f"{found.contradictions} words contradicted the classifier, none led to a promotion: more --minutes may do"
        )
    if figures.relabelling is not None:
        result = figures.relabelling
        took = [("scoring every frame anew", f"{result.scoring_s:.2f}"), ("relabelling", f"{result.cached_s:.2f}")]
        bench.show(f"{result.steps:,} stored steps", ("part", "CPU seconds"), took)
    bench.show_targets(judged, "not measured")


def _row(values: Sequence[float]) -> tuple[str, str, str]:
    return f"{statistics.median(values):.2f}", f"{p90(values):.2f}", f"{max(values):.2f}"


def to_json(figures: Figures, judged: Sequence[Target]) -> dict[str, Any]:
    """Every figure, as plain JSON."""
    ways = [
        {"whole_s": way.whole_s, **{name: way.part_s(since, until) for name, since, until in PARTS}, **vars(way)}
        for way in figures.journey.ways
    ]
    return {**dataclasses.asdict(figures), "journey": {**dataclasses.asdict(figures.journey), "ways": ways},
            "targets": [dataclasses.asdict(target) for target in judged]}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """`steadyhand bench correction`: 0, 1 with --check when a target is missed, 130 when it was interrupted."""
    chosen = settings.parse_command_line(CorrectionBenchSettings, argv, "steadyhand bench correction", _DESCRIPTION)
    task.load(chosen.task)
    stop = Stop()
    stop.install()
    figures = measure(chosen, stop)
    judged = judge(figures)
    show(figures, judged)
    if chosen.json is not None:
        bench.write_json(chosen.json, "correction", chosen.seed, to_json(figures, judged))
    if stop.asked:
        return 130
    return int(chosen.check and not all(target.met for target in judged))
