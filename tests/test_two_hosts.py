"""Robot and trainer on two hosts: two network namespaces, and between them a slow, lossy wire that is cut."""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_models
import pytest
from edge_rig import CONTRACT
from training_steps import RUN, driven

from steadyhand_models import settings, wire
from steadyhand_models.messages import Channel, Source
from steadyhand_models.registry import Registry
from steadyhand_runtime.config import LinkSettings, RuntimeSettings
from steadyhand_runtime.spool import Spool
from steadyhand_training.journal import Journal

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
ROBOT_IP, TRAINER_IP, PORT = "10.171.0.1", "10.171.0.2", 5570
DELAY_S, JITTER_S, LOSS = 0.02, 0.005, 0.02  # each way: a bad wireless network
CUT_S = 5.0
DEADLINE_S = 60.0


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Wire:
    """Carries IP packets between two TUN devices, late and not all of them; `cut` carries none and tells nobody."""

    def __init__(self, ends: tuple[str, str], seed: int = 0) -> None:
        """Raises OSError where TUN devices are not permitted."""
        self.cut = False
        self.carried = self.lost = 0
        self._fds: list[int] = []
        self._rng = random.Random(seed)
        self._late: list[tuple[float, int, int, bytes]] = []  # due, tie break, to whom, packet
        for name in ends:
            self._fds.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK))
            fcntl.ioctl(self._fds[-1], TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for fd in self._fds:
            os.close(fd)

    def _run(self) -> None:
        while not self._stop.is_set():
            wait_s = max(0.0, min(0.05, self._late[0][0] - time.monotonic())) if self._late else 0.05
            for fd in select.select(self._fds, [], [], wait_s)[0]:
                self._take(fd)
            while self._late and self._late[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(self._late)
                with contextlib.suppress(OSError):
                    os.write(to, packet)

    def _take(self, fd: int) -> None:
        packet = os.read(fd, 65536)
        if self.cut or self._rng.random() < LOSS:
            self.lost += 1
            return
        self.carried += 1
        due_s = time.monotonic() + DELAY_S + self._rng.uniform(-JITTER_S, JITTER_S)
        to = self._fds[1 - self._fds.index(fd)]
        heapq.heappush(self._late, (due_s, self.carried, to, packet))


class Hosts:
    """Two namespaces and the wire between them."""

    def __init__(self) -> None:
        mark = f"{os.getpid():x}"
        self.robot, self.trainer = f"shr{mark}", f"sht{mark}"
        self._names = (self.robot, self.trainer)

    def open(self) -> None:
        """Raises OSError where this user may not, or the kernel cannot."""
        for name in self._names:
            ip("netns", "add", name)
        self.wire = Wire(self._names)
        for name, here, there in zip(self._names, (ROBOT_IP, TRAINER_IP), (TRAINER_IP, ROBOT_IP)):
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", here, "peer", there, "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        self.wire.start()

    def inside(self, name: str, *command: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", name, *command)

    def close(self) -> None:
        if hasattr(self, "wire"):
            self.wire.close()
        for name in self._names:
            with contextlib.suppress(OSError):
                ip("netns", "del", name)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    try:
        made.open()
    except OSError as error:
        made.close()
        pytest.skip(f"network namespaces or TUN devices are not permitted here: {error}")
    yield made
    made.close()


class TwoSides:
    """The real link process on one host, the trainer's real end on the other, and a robot that records."""

    def __init__(self, root: Path, hosts: Hosts) -> None:
        self._root, self._hosts = root, hosts
        self._processes: list[subprocess.Popen[bytes]] = []
        self.sockets = Path(tempfile.mkdtemp(prefix="sht-"))
        chosen = RuntimeSettings(
            run=root / RUN,
            sockets=str(self.sockets),
            link=LinkSettings(address=f"tcp://{TRAINER_IP}:{PORT}", drain_s=30.0),
        )
        chosen.paths.prepare()
        self.paths = chosen.paths
        (root / "runtime.toml").write_text(settings.to_toml(chosen))
        (root / "trainer").mkdir()
        self.spool = Spool(chosen.paths.spool)
        self._episode = 0
        end = str(Path(__file__).with_name("trainer_end.py"))
        self._spawn(hosts.trainer, sys.executable, end, str(root / "trainer"), f"tcp://{TRAINER_IP}:{PORT}")
        module = "steadyhand_runtime.link"
        self.link = self._spawn(hosts.robot, sys.executable, "-m", module, "--config", str(root / "runtime.toml"))

    def _spawn(self, host: str, *command: str) -> subprocess.Popen[bytes]:
        with (self._root / "log").open("ab") as log:
            process = subprocess.Popen(self._hosts.inside(host, *command), stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def record(self, steps: int) -> int:
        """An episode as control would append it; the number of its last record."""
        self._episode += 1
        for step in driven(self._episode, Source.POLICY, steps - 1):
            self.spool.append([wire.encode(step)], 1)
        return self.spool.last_number

    def numbers(self) -> list[int]:
        """Records in the journal in the order of their arrival."""
        path = self._root / "trainer" / "journal.sqlite"
        if not path.exists():
            return []
        journal = Journal(path)
        try:
            return [entry.number for entry in journal.replay()]
        finally:
            journal.close()

    def until(self, condition: Callable[[], bool], why: str) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not condition():
            log = (self._root / "log").read_text()
            assert time.monotonic() < deadline_s, f"{why}\n{log[-3000:]}"
            threading.Event().wait(0.1)

    def publish(self, version: int) -> None:
        Registry(self._root / "trainer" / "registry").publish(onnx_models.policy(CONTRACT, version))

    def has_model(self, version: int) -> bool:
        return version in Registry(self.paths.models).versions(Channel.POLICY)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.spool.close()


def test_steps_flow_and_models_come_back_over_a_bad_wire_that_is_cut_for_seconds(tmp_path: Path, hosts: Hosts) -> None:
    sides = TwoSides(tmp_path, hosts)
    try:
        sides.publish(1)
        first = sides.record(40)
        sides.until(lambda: len(sides.numbers()) >= first, "nothing arrives")
        sides.until(lambda: sides.has_model(1), "no model comes back")
        hosts.wire.cut = True
        sides.record(40)
        sides.publish(2)
        threading.Event().wait(CUT_S)
        assert len(sides.numbers()) == first and not sides.has_model(2)
        hosts.wire.cut = False
        last = sides.record(40)
        sides.until(lambda: len(sides.numbers()) >= last, "what was recorded in the dark does not arrive")
        sides.until(lambda: sides.has_model(2), "the newer model does not arrive")
        assert sides.numbers() == list(range(1, last + 1))
        sides.until(lambda: sides.spool.pending == 0, "the spool keeps what the trainer has")
        assert hosts.wire.lost > 10 < hosts.wire.carried
    finally:
        sides.close()
