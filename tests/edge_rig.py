"""A whole robot for tests of failures: simulated arm, the real daemon with its processes, a trainer's end, a person."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_models
import zmq

from steadyhand_models import wire
from steadyhand_models.messages import (
    BusAction,
    BusState,
    CommandReply,
    ControlStatus,
    Drive,
    EndReason,
    EventKind,
    Mode,
    OperatorEvent,
    Step,
)
from steadyhand_models.registry import Registry
from steadyhand_runtime.operator.channel import OperatorClient, subscribe
from steadyhand_runtime.sim.fault_socket import ask
from steadyhand_runtime.spool import Spool

DEADLINE_S = 60.0
CONTRACT = onnx_models.lift().contract()
COMMAND = (sys.executable, "-c", "from steadyhand_models.cli import main; raise SystemExit(main())")
PICTURES = 12
M = TypeVar("M")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def jpegs() -> list[bytes]:
    """Different noisy pictures of the cameras' native size."""
    import av

    rng = np.random.default_rng(0)
    out = io.BytesIO()
    with av.open(out, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=20)
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuvj420p"
        for _ in range(PICTURES):
            pixels = rng.integers(0, 256, (128, 128, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    start = b"\xff\xd8"
    return [start + part for part in out.getvalue().split(start) if part]


class VideoSource:
    """A camera on a TCP port: sends a picture 20 times a second to whoever connects; `frozen` repeats one."""

    def __init__(self, pictures: Sequence[bytes]) -> None:
        self.frozen = False
        self._pictures = pictures
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self._server.getsockname()[1]}"

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._server.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._server.accept()
            except TimeoutError:
                continue
            with connection:
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        number = 0
        while not self._stop.wait(0.05):
            number += not self.frozen
            try:
                connection.sendall(self._pictures[number % PICTURES])
            except OSError:
                return


class Person:
    """Sees what a person sees and presses what a person presses. `present` False: walked away without a word."""

    def __init__(self, folder: Path) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._status = subscribe(self._context, folder, "control.status")
        self._bus = subscribe(self._context, folder, "bus.state")
        self._client = OperatorClient(folder, "tester", self._context)
        self.present = True
        self.driving = False
        self.status: ControlStatus | None = None
        self.bus: BusState | None = None
        self.status_ns = self.bus_ns = 0  # when they were heard last
        self.replies: list[Any] = []
        self._presses = 0
        self._drive_due_s = 0.0

    def pump(self) -> None:
        """One look and one sign of life."""
        self._status.poll(10)
        now_ns = time.monotonic_ns()
        status, bus = self._newest(self._status, ControlStatus), self._newest(self._bus, BusState)
        if status is not None:
            self.status, self.status_ns = status, now_ns
        if bus is not None:
            self.bus, self.bus_ns = bus, now_ns
        if not self.present:
            return
        self.replies += self._client.pump(now_ns)
        if self.driving and time.monotonic() >= self._drive_due_s:
            self._drive_due_s = time.monotonic() + 0.05
            self._client.drive(Drive(now_ns, np.array([0.2, 0.0, 0.0, 0.0], np.float32), False))

    def until(self, condition: Callable[[], object], why: str = "", within_s: float = DEADLINE_S) -> None:
        deadline_s = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline_s, f"{why or 'not in time'}: {self.status} {self.bus}"
            self.pump()

    def watch(self, seconds: float) -> list[tuple[ControlStatus, BusState]]:
        """Everything heard in that time, for what must not happen in it."""
        seen = []
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            self.pump()
            if self.status is not None and self.bus is not None:
                seen.append((self.status, self.bus))
        return seen

    def command(self, action: BusAction) -> CommandReply:
        """Ask the bus and wait for its answer."""
        number = self._client.command(action, time.monotonic_ns())
        self.until(lambda: any(getattr(r, "command_id", None) == number for r in self.replies))
        return next(r for r in self.replies if getattr(r, "command_id", None) == number)

    def press(self, kind: EventKind) -> None:
        self._presses += 1
        now_ns = time.monotonic_ns()
        self._client.send(OperatorEvent(f"press-{now_ns}-{self._presses}", kind, now_ns, "tester", "test", 0.2))

    def mode(self) -> Mode | None:
        return self.status.mode if self.status is not None else None

    def next_tick(self) -> None:
        """Wait for a status newer than now."""
        now_ns = time.monotonic_ns()
        self.until(lambda: self.status is not None and self.status.stamp_ns > now_ns)

    def close(self) -> None:
        self._client.close()
        self._status.close()
        self._bus.close()
        self._context.destroy(linger=0)

    @staticmethod
    def _newest(heard: zmq.Socket[bytes], kind: type[M]) -> M | None:
        try:
            return wire.decode(heard.recv(zmq.DONTWAIT), kind)
        except zmq.Again:
            return None


class Rig:
    """One robot in one folder. `simulated` arms see through the simulation's cameras, bare servos through streams."""

    def __init__(
        self, root: Path, simulated: bool, edge: Path | None = None, environment: dict[str, str] | None = None
    ):
        self.root, self.simulated = root, simulated
        self.run = root / "robot"
        self.sockets = Path(tempfile.mkdtemp(prefix="she-"))
        self.port, self.metrics_port = free_port(), free_port()
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self._opened = contextlib.ExitStack()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.run.mkdir(parents=True)
        if edge is not None:
            (self.run / "edge").symlink_to(edge)
        self._prepare()

    def _prepare(self) -> None:
        Registry(self.run / "edge" / "models").publish(onnx_models.policy(CONTRACT, 1, bias=0.0))
        self.sources: list[VideoSource] = []
        if self.simulated:
            self.spawn("sim", *COMMAND, "sim", "robot", "--run", str(self.run), "--sockets", str(self.sockets))
        else:
            self.control = self.sockets / "faults"
            arm = self.run / "edge" / "port"
            self.spawn(
                "sim", *COMMAND, "sim", "servos", "--link", str(arm), "--control", str(self.control), "--priority", "60"
            )
            pictures = jpegs()
            self.sources = [VideoSource(pictures) for _ in CONTRACT.cameras]
        self.until_there(self.run / "edge" / "port")
        (self.root / "trainer").mkdir()
        (self.root / "runtime.toml").write_text(self.settings())
        self.start_trainer()
        self.start_daemon()
        self.person = Person(self.sockets)

    def settings(self) -> str:
        cameras = ""
        for camera, source in zip(CONTRACT.cameras, self.sources):
            cameras += f'\n[[cameras]]\nname = "{camera.name}"\ndevice = "{source.address}"\nformat = "mjpeg"\n'
        return (
            f'run = "{self.run}"\nsockets = "{self.sockets}"\n[bus]\nport = "{self.run}/edge/port"\n'
            f'[link]\naddress = "tcp://127.0.0.1:{self.port}"\ndrain_s = 20.0\n'
            f"[metrics]\nport = {self.metrics_port}\n{cameras}"
        )

    # -- processes -------------------------------------------------------------------------------------------------

    def spawn(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment
            )
        return self.processes[name]

    def start_trainer(self) -> None:
        end = str(Path(__file__).with_name("trainer_end.py"))
        self.spawn("trainer", sys.executable, end, str(self.root / "trainer"), f"tcp://127.0.0.1:{self.port}")

    def start_daemon(self) -> None:
        self.spawn("runtime", *COMMAND, "runtime", "--config", str(self.root / "runtime.toml"))

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def children(self) -> dict[str, Any]:
        """What the daemon says of its processes."""
        try:
            return json.loads((self.run / "edge" / "daemon.json").read_text())
        except (OSError, ValueError):
            return {}

    def pid(self, child: str) -> int:
        """The process id of a child that is running now."""
        self.person.until(lambda: _alive(self.children().get(child, {}).get("pid")), f"no process {child}")
        return int(self.children()[child]["pid"])

    def signal(self, child: str, number: int) -> int:
        pid = self.pid(child)
        os.kill(pid, number)
        return pid

    def replaced(self, child: str, pid: int) -> None:
        """Wait until another process has taken the place of this one."""
        self.person.until(lambda: self.children().get(child, {}).get("pid") not in (None, pid), f"{child} stays away")

    def log(self, child: str = "") -> str:
        path = self.run / "logs" / f"{child}.log" if child else self.root / "runtime.log"
        return path.read_text() if path.exists() else ""

    def until_there(self, path: Path) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not path.exists():
            assert time.monotonic() < deadline_s, (self.root / "sim.log").read_text()
            threading.Event().wait(0.02)

    # -- the arm ---------------------------------------------------------------------------------------------------

    def fault(self, **what: Any) -> dict[str, Any]:
        """Let something happen to the bare servos."""
        answer = json.loads(ask(self.control, json.dumps(what)))
        assert answer["ok"], answer
        return answer

    def ready(self) -> None:
        """Everything runs, the arm is armed and the policy drives it and is recorded, whatever was before."""
        person = self.person
        person.present, person.driving = True, False
        due_s = 0.0
        deadline_s = time.monotonic() + DEADLINE_S
        while not (person.status and person.mode() is Mode.POLICY and person.status.seq > 3 and self._steady()):
            assert time.monotonic() < deadline_s, f"{person.status} {person.bus} {self.log()[-3000:]}"
            person.pump()
            fresh = time.monotonic_ns() - person.bus_ns < 500_000_000 and person.bus is not None
            if fresh and time.monotonic() > due_s:
                due_s = time.monotonic() + 1.0
                self._go_on()

    def hears_the_bus_again(self) -> None:
        """Wait for a state that is newer than now, of an arm that answers."""
        since_ns, person = time.monotonic_ns(), self.person
        person.until(
            lambda: person.bus is not None and person.bus.stamp_ns > since_ns and person.bus.valid.all(),
            "the bus does not come back",
        )

    def _steady(self) -> bool:
        person = self.person
        now_ns = time.monotonic_ns()
        fresh = now_ns - person.bus_ns < 500_000_000 and now_ns - person.status_ns < 500_000_000
        return fresh and person.bus is not None and person.bus.armed

    def _go_on(self) -> None:
        bus, mode = self.person.bus, self.person.mode()
        assert bus is not None
        if bus.fault or bus.estopped:
            self.person.command(BusAction.CLEAR)
        if not bus.armed:
            self.person.command(BusAction.ARM)
        if mode is Mode.FAULT:
            self.person.press(EventKind.SCENE_READY)
        elif mode is Mode.TAKEOVER:
            self.person.press(EventKind.ABORT)

    # -- what was recorded -----------------------------------------------------------------------------------------

    def link(self) -> dict[str, Any]:
        try:
            return json.loads((self.run / "edge" / "link.json").read_text())
        except (OSError, ValueError):
            return {}

    def journal_numbers(self) -> list[int]:
        """Numbers of the records in the trainer's journal, in the order of their arrival."""
        with contextlib.closing(sqlite3.connect(self.root / "trainer" / "journal.sqlite", timeout=10)) as journal:
            return [n for (n,) in journal.execute("SELECT number FROM records ORDER BY position")]

    def journal_steps(self) -> list[Step]:
        """The steps in the trainer's journal, in the order of their arrival."""
        with contextlib.closing(sqlite3.connect(self.root / "trainer" / "journal.sqlite", timeout=10)) as journal:
            rows = journal.execute("SELECT payload FROM records WHERE kind = 'step' ORDER BY position").fetchall()
        return [wire.decode(payload, Step) for (payload,) in rows]

    def ends(self) -> dict[int, EndReason]:
        """How each episode ended, as the trainer's journal has it."""
        return {step.episode: step.end for step in self.journal_steps() if step.end is not None}

    def arrived(self, number: int) -> None:
        """Wait until the trainer has this record; whatever it has must have come once and in order."""
        self.person.until(lambda: len(self.journal_numbers()) >= number, "the trainer does not get the records")
        numbers = self.journal_numbers()
        assert numbers == list(range(1, len(numbers) + 1))

    def recorded(self) -> int:
        """Number of the last record in the robot's spool."""
        spool = Spool(self.run / "edge" / "spool.sqlite")
        try:
            return spool.last_number
        finally:
            spool.close()

    def everything_arrived_once(self) -> None:
        """Stop the robot in order; then the journal must hold every record of the spool once and in order."""
        if "trainer" not in self.processes or self.processes["trainer"].poll() is not None:
            self.start_trainer()
        self.arrived(self.recorded())
        self.stop_daemon()
        self.arrived(max(1, self.recorded()))

    def stop_daemon(self) -> int:
        daemon = self.processes["runtime"]
        daemon.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + DEADLINE_S
        while daemon.poll() is None:
            assert time.monotonic() < deadline_s, self.log()[-2000:]
            self.person.pump()
        return int(daemon.returncode)

    def close(self) -> None:
        with contextlib.suppress(KeyError):
            if self.processes["runtime"].poll() is None:
                self.processes["runtime"].terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.processes["runtime"].wait(30)
        for process in self.processes.values():
            process.kill()
            process.wait()
        for source in self.sources:
            source.close()
        if hasattr(self, "person"):
            self.person.close()
        shutil.rmtree(self.sockets, ignore_errors=True)


def _alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def rig(root: Path, simulated: bool = True, **options: Any) -> Iterator[Rig]:
    made = Rig(root, simulated, **options)
    try:
        yield made
    finally:
        made.close()
