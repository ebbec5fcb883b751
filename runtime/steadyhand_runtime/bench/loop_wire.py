"""A short run of the real processes for `steadyhand bench loop`: daemon and simulated robot, in real time."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq

from steadyhand_models import settings, wire
from steadyhand_models.cli import UserError
from steadyhand_models.messages import BusAction, ControlStatus, EventKind, Mode, OperatorEvent
from steadyhand_runtime.bench.loop_figures import Wire
from steadyhand_runtime.config import BusSettings, LinkSettings, RuntimeSettings
from steadyhand_runtime.operator.channel import OperatorClient, subscribe

START_S = 120.0
STOP_S = 30.0
COMMAND = (sys.executable, "-c", "from steadyhand_models.cli import main; raise SystemExit(main())")
SAMPLES = (sys.executable, "-m", "steadyhand_models.nets.samples", "--policies", "1", "--out")
NOBODY = "tcp://127.0.0.1:9"  # the discard port: this run needs no trainer


def measure(seconds: float) -> Wire:
    """Ages and latencies while a policy drives, or while the reset pose is held where torch is not there to make one.

    Raises UserError when the processes do not come up.
    """
    with tempfile.TemporaryDirectory(prefix="steadyhand-loop-") as text:
        folder = Path(text)
        run = RuntimeSettings(
            run=folder / "run",
            sockets=str(folder / "s"),
            bus=BusSettings(port=str(folder / "run/edge/port")),
            link=LinkSettings(address=NOBODY, drain_s=0.0),
        )
        run.paths.prepare()
        _make_policy(folder, run.paths.models)
        (folder / "runtime.toml").write_text(settings.to_toml(run), encoding="utf-8")
        sim = [*COMMAND, "sim", "robot", "--run", str(run.run), "--sockets", run.sockets]
        with _process(sim, folder / "sim.log"):
            _wait_for(Path(run.bus.port), folder / "sim.log")
            with _process([*COMMAND, "runtime", "--config", str(folder / "runtime.toml")], folder / "runtime.log"):
                _drive(folder / "s", seconds)
        figures = json.loads((run.paths.edge / "control.json").read_text(encoding="utf-8"))
    return from_figures(figures)


def from_figures(figures: dict[str, Any]) -> Wire:
    """The p99 of what control.json holds. Raises UserError where it holds nothing of it."""

    def p99_s(name: str) -> float:
        return float(figures[f"{name}_s"]["p99"])

    goals = sum(int(count) for _, count in figures.get("tick_to_wire_histogram", []))
    if not goals:
        raise UserError("no goal reached the servos in the short run: look at `steadyhand demo --minutes 2` first")
    return Wire(
        goals, p99_s("tick_to_wire"), p99_s("inference"), p99_s("frame_age"), p99_s("state_age"), p99_s("frame_to_wire")
    )


def _make_policy(folder: Path, models: Path) -> None:
    """An untrained policy of the real size for the robot; none where torch is not installed."""
    done = subprocess.run([*SAMPLES, str(folder / "samples")], capture_output=True)
    made = folder / "samples" / "good" / "policy"
    if done.returncode == 0 and made.is_dir():
        (models / "policy").parent.mkdir(parents=True, exist_ok=True)
        made.rename(models / "policy")


@contextlib.contextmanager
def _process(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(port: Path, log: Path) -> None:
    deadline_s = time.monotonic() + START_S
    while not port.exists():
        if time.monotonic() > deadline_s:
            raise UserError(f"the simulated robot did not come up: {log.read_text(encoding='utf-8')[-300:]}")
        threading.Event().wait(0.05)


def _drive(sockets: Path, seconds: float) -> None:
    """Arm, say that the scene is ready, and let it run. Raises UserError when control does not come up."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    client = OperatorClient(sockets, "bench", context)
    statuses = subscribe(context, sockets, "control.status")
    deadline_s, ask_s, until_s, presses = time.monotonic() + START_S, 0.0, 0.0, 0
    try:
        while not until_s or time.monotonic() < until_s:
            client.pump(now_ns := time.monotonic_ns())
            if statuses.poll(20):
                mode = wire.decode(statuses.recv(), ControlStatus).mode
                if not until_s and mode in (Mode.HOLD, Mode.POLICY):
                    until_s = time.monotonic() + seconds
                if time.monotonic() > ask_s:
                    ask_s, presses = time.monotonic() + 1.0, presses + 1
                    if mode is Mode.IDLE:
                        client.command(BusAction.ARM, now_ns)
                    else:
                        name = f"ready-{presses}"
                        client.send(OperatorEvent(name, EventKind.SCENE_READY, now_ns, "bench", "bench", 0.0))
            if not until_s and time.monotonic() > deadline_s:
                raise UserError("control did not come up in the short run: look at `steadyhand demo --minutes 2` first")
    finally:
        client.close()
        statuses.close()
        context.destroy(linger=0)
