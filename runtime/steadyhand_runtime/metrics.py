"""The runtime's metrics: what stat files, the bus's states and the kernel say, as Prometheus families."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import zmq

from steadyhand_firmware.arm import load_arm
from steadyhand_models import wire
from steadyhand_models.messages import BusState
from steadyhand_models.topics import endpoint
from steadyhand_runtime import clock
from steadyhand_runtime.clock import NS_PER_S, LatenessHistogram
from steadyhand_runtime.prometheus import Family, Histogram, Kind, render

FIFO_PROCESSES = ("bus", "control")  # the processes that ask for real-time priority
# Histograms of control.json by the key that they begin with.
CONTROL_HISTOGRAMS = {
    "late": ("tick_lateness_seconds", "How late ticks began."),
    "work": ("tick_work_seconds", "What a tick took."),
    "inference": ("inference_seconds", "What the models of a tick took."),
    "frame_age": ("frame_age_seconds", "Age of the oldest picture when a tick used it."),
    "state_age": ("joint_state_age_seconds", "Age of the joint state when a tick used it."),
    "frame_to_goal": ("frame_to_goal_seconds", "From a picture to its goal on the way to the bus."),
    "tick_to_wire": ("tick_to_wire_seconds", "From a control tick to the servos having its goal."),
    "frame_to_wire": ("frame_to_wire_seconds", "From a picture to the servos having its goal."),
    "runqueue": ("runqueue_delay_seconds", "How long a tick's thread waited for a core."),
}
LINK_COUNTERS = {
    "reconnects": "Connections to the trainer that were lost.",
    "bad_messages": "Messages from the trainer that could not be read.",
    "models_published": "Models that arrived whole.",
    "models_refused": "Models that were refused.",
}
Figures = Mapping[str, Any]


class BusEar:
    """Hears every state of the bus in a thread: the newest one, and how late its ticks were."""

    def __init__(self, folder: Path) -> None:
        self.newest: BusState | None = None
        self.lateness = LatenessHistogram()
        self.refusals: Counter[str] = Counter()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(endpoint(folder, "bus.state"))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bus-ear", daemon=True)
        self._thread.start()

    def take(self, state: BusState) -> None:
        self.newest = state
        self.lateness.add(round(state.lateness_s * NS_PER_S))
        self.refusals.update(state.refusals)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()
        self._context.term()

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._socket.poll(100):
                continue
            try:
                self.take(wire.decode(self._socket.recv(), BusState))
            except wire.WireError:
                continue  # control says so in its log


def text(edge: Path, processes: Callable[[], Mapping[str, Figures]], ear: BusEar) -> str:
    """Everything that is known now, in Prometheus's format."""
    children = processes()
    return render(
        [
            *of_processes(children),
            *of_bus(ear),
            *of_control(read(edge / "control.json")),
            *of_link(read(edge / "link.json")),
            *of_cameras(read(edge / "camera.json")),
        ]
    )


def read(path: Path) -> Figures:
    """A stat file, or nothing where there is none yet."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def of_processes(children: Mapping[str, Figures]) -> list[Family]:
    """What the daemon and the kernel know of each process."""
    up = Family("process_up", Kind.GAUGE, "Whether the process runs.")
    restarts = Family("process_restarts_total", Kind.COUNTER, "Times that the process was started again.")
    stalls = Family("process_stalls_total", Kind.COUNTER, "Times that the process stood still and was killed.")
    degraded = Family("realtime_degraded", Kind.GAUGE, "1 where real-time priority or locked memory was not granted.")
    waited = Family("process_runqueue_delay_seconds_total", Kind.COUNTER, "How long the main thread waited for a core.")
    for name, figures in children.items():
        pid = figures.get("pid")
        up.add(float(pid is not None), process=name)
        restarts.add(figures.get("restarts", 0), process=name)
        stalls.add(figures.get("stalls", 0), process=name)
        if pid is None:
            continue
        if name in FIFO_PROCESSES:
            degraded.add(float(not clock.is_realtime(pid)), process=name)
        delay_s = clock.main_thread_delay_s(pid)
        if delay_s is not None:
            waited.add(delay_s, process=name)
    return [up, restarts, stalls, degraded, waited]


def of_bus(ear: BusEar) -> list[Family]:
    """The bus's own ticks, and the arm as it is."""
    late = Family("bus_tick_lateness_seconds", Kind.HISTOGRAM, "How late the bus's ticks began.")
    missed = Family("bus_missed_ticks_total", Kind.COUNTER, "Ticks that the bus skipped.")
    refused = Family("bus_refusals_total", Kind.COUNTER, "Goals that the guard did not follow exactly, by reason.")
    armed = Family("armed", Kind.GAUGE, "Whether the arm follows goals.")
    fault = Family("fault", Kind.GAUGE, "Whether the bus has stopped the arm for a fault.")
    warmth = Family("servo_temperature_celsius", Kind.GAUGE, "Temperature of a servo.")
    supply = Family("servo_supply_volts", Kind.GAUGE, "Supply at a servo.")
    state = ear.newest
    if state is not None:
        late.add(_histogram(ear.lateness))
        missed.add(state.missed_ticks)
        armed.add(float(state.armed))
        fault.add(float(bool(state.fault)))
        for name, celsius, volts in zip(load_arm().names, state.temperature_c, state.voltage_v):
            warmth.add(float(celsius), joint=name)
            supply.add(float(volts), joint=name)
    for reason, count in ear.refusals.items():
        refused.add(count, reason=reason)
    return [late, missed, refused, armed, fault, warmth, supply]


def of_control(figures: Figures) -> list[Family]:
    """The control loop's figures; nothing before its first stat file."""
    if not figures:
        return []
    families = []
    for key, (name, what) in CONTROL_HISTOGRAMS.items():
        edges = [(float(edge), int(count)) for edge, count in figures.get(f"{key}_histogram", [])]
        family = Family(f"control_{name}", Kind.HISTOGRAM, what)
        family.add(Histogram(edges, float(figures.get(f"{key}_sum_s", 0.0))))
        families.append(family)
    for key, name, kind, what in (
        ("ticks", "control_ticks_total", Kind.COUNTER, "Turns of the control loop."),
        ("missed_ticks", "control_missed_ticks_total", Kind.COUNTER, "Ticks that the control loop skipped."),
        ("records", "control_records_total", Kind.COUNTER, "Records handed to the spool."),
        ("episode", "control_episode", Kind.GAUGE, "Number of the newest episode."),
        ("policy_version", "control_policy_version", Kind.GAUGE, "The policy that drives, 0 for none."),
        ("classifier_version", "control_classifier_version", Kind.GAUGE, "The classifier that judges, 0 for none."),
    ):
        family = Family(name, kind, what)
        family.add(figures.get(key, 0))
        families.append(family)
    return families


def of_link(figures: Figures) -> list[Family]:
    """The way to the trainer."""
    if not figures:
        return []
    connected = Family("link_connected", Kind.GAUGE, "Whether the trainer has welcomed this robot.")
    connected.add(float(bool(figures.get("connected"))))
    waiting = Family("link_unacknowledged_records", Kind.GAUGE, "Records that the trainer does not have yet.")
    waiting.add(figures.get("recorded", 0) - figures.get("acked", 0))
    families = [connected, waiting]
    for key, what in LINK_COUNTERS.items():
        family = Family(f"link_{key}_total", Kind.COUNTER, what)
        family.add(figures.get(key, 0))
        families.append(family)
    return families


def of_cameras(figures: Figures) -> list[Family]:
    """Each camera's pictures."""
    published = Family("camera_frames_total", Kind.COUNTER, "Pictures that were published.")
    reopened = Family("camera_reopened_total", Kind.COUNTER, "Times that the device was lost.")
    for name, one in figures.items():
        published.add(one.get("published", 0), camera=name)
        reopened.add(one.get("reopened", 0), camera=name)
    return [published, reopened]


def _histogram(of: LatenessHistogram) -> Histogram:
    return Histogram([(edge_ns / NS_PER_S, count) for edge_ns, count in of.nonzero_ns()], of.sum_ns / NS_PER_S)
