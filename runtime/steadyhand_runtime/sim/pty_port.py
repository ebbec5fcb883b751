"""Virtual servos behind a real pseudo-terminal, so that a driver opens them like any serial port."""

from __future__ import annotations

import bisect
import ctypes
import fcntl
import operator
import os
import select
import struct
import sys
import threading
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from steadyhand_runtime.clock import NS_PER_S, PR_SET_TIMERSLACK, Clock, MonotonicClock
from steadyhand_runtime.sim import pty_delay
from steadyhand_runtime.sim.pty_delay import PtyDelay
from steadyhand_runtime.sim.servos import Reply, VirtualChain

READ_BYTES = 4096
SAME_BURST_NS = 2_000_000
PLUG_S = 30.0
# asm-generic/ioctls.h and termbits.h: struct termios2 ends with the two speeds, whatever their number.
TCGETS2, TCSETS2 = 0x802C542A, 0x402C542B
TERMIOS2 = struct.Struct("IIII20sII")
CBAUD, BOTHER = 0o010017, 0o010000


class PtyPort:
    """Serves a chain on a pty from a thread of its own until `close`.

    Replies of one request are delivered together when the last is ready, as a USB adapter's frames do; with a
    `usb_frame_ns` they wait for the next such frame. `link`, when given, becomes a symbolic link to the port, so that
    its name stays the same. With a `priority` the thread asks for SCHED_FIFO, so that the servos stay as punctual as
    real ones on a busy machine; a refusal is told in `degraded`. For `spin_ns` before and after a delivery the thread
    does not sleep, so that neither the reply nor a host's next request waits for it to wake. With `compensate` the
    delay of the pty itself is measured first and taken off, so that replies can be read when a wire would have brought
    them. The host's speed is read from its end of the pty: servos that are set to another one stay silent.
    """

    def __init__(
        self,
        chain: VirtualChain,
        link: Path | None = None,
        clock: Clock | None = None,
        priority: int = 0,
        usb_frame_ns: int = 0,
        spin_ns: int = 0,
        compensate: bool = False,
    ) -> None:
        self._chain = chain
        self._link = link
        self._clock = clock or MonotonicClock()
        self._priority = priority
        self._usb_frame_ns = usb_frame_ns
        self._spin_ns = spin_ns
        self.degraded = ""
        self.device = ""
        self._lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        self._closing = False
        self._is_plugged = self._want_plugged = True
        self._settled = threading.Condition()
        self._due: list[_Delivery] = []
        self._awake_until_ns = 0
        self._line = bytearray(TERMIOS2.size)
        self._open()
        self._delay = pty_delay.measure(self._master, self._slave) if compensate else PtyDelay()
        self._thread = threading.Thread(target=self._serve, name="virtual-servos", daemon=True)
        self._thread.start()

    @property
    def path(self) -> str:
        """What to open: the link if there is one, else the device."""
        return str(self._link) if self._link is not None else self.device

    @contextmanager
    def between_requests(self) -> Iterator[VirtualChain]:
        """The chain while no request is carried out."""
        with self._lock:
            yield self._chain

    def plug(self, plugged: bool) -> None:
        """Pull the adapter's cable, which hangs the port up, or plug it in as a new device behind the same link.

        Raises TimeoutError when the port's thread does not get to it.
        """
        with self._settled:
            self._want_plugged = plugged
            os.write(self._wake_write, b"p")
            if not self._settled.wait_for(lambda: self._is_plugged == self._want_plugged, PLUG_S):
                raise TimeoutError("the port's thread does not answer")

    def close(self) -> None:
        """Stop serving and hang up."""
        if self._wake_write < 0:
            return
        self._closing = True
        os.write(self._wake_write, b"x")
        self._thread.join()
        if self._is_plugged:
            self._hang_up()
        for fd in (self._wake_read, self._wake_write):
            os.close(fd)
        self._wake_write = -1

    def __enter__(self) -> PtyPort:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        self._master, self._slave = os.openpty()  # the slave stays open: a client that leaves must not hang the port up
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        _set_speed(self._slave, self._chain.baud)
        self._line[:] = bytes(TERMIOS2.size)
        self.device = os.ttyname(self._slave)
        if self._link is not None:
            self._link.parent.mkdir(parents=True, exist_ok=True)
            self._link.unlink(missing_ok=True)
            self._link.symlink_to(self.device)

    def _hang_up(self) -> None:
        if self._link is not None and self._link.is_symlink() and os.readlink(self._link) == self.device:
            self._link.unlink()
        os.close(self._master)
        os.close(self._slave)
        self._due.clear()

    def _serve(self) -> None:
        self.degraded = _be_punctual(self._priority)
        while True:
            self._replug()
            fds = [self._master, self._wake_read] if self._is_plugged else [self._wake_read]
            ready = select.select(fds, [], [], self._patience_s())[0]
            now_ns = self._clock.now_ns()
            if self._wake_read in ready:
                os.read(self._wake_read, READ_BYTES)
                if self._closing:
                    return
            elif ready:
                self._take(os.read(self._master, READ_BYTES), now_ns - self._delay.from_host_ns)
            self._deliver()

    def _replug(self) -> None:
        if self._is_plugged == self._want_plugged:
            return
        with self._settled:
            if self._want_plugged:
                self._open()
            else:
                self._hang_up()
            self._is_plugged = self._want_plugged
            self._settled.notify_all()

    def _patience_s(self) -> float | None:
        """How long to wait for a request before the next delivery."""
        now_ns = self._clock.now_ns()
        if now_ns < self._awake_until_ns:
            return 0.0
        if not self._due:
            return None
        return max(0, self._due[0].at_ns - self._spin_ns - now_ns) / NS_PER_S

    def _take(self, data: bytes, now_ns: int) -> None:
        with self._lock:
            self._follow_speed()
            replies = self._chain.feed(data, now_ns)
        for delivery in _grouped(replies, self._usb_frame_ns):
            early = _Delivery(delivery.at_ns - self._delay.to_host_ns, delivery.data)
            bisect.insort(self._due, early, key=_delivery_time)

    def _deliver(self) -> None:
        while self._due and self._due[0].at_ns - self._spin_ns <= self._clock.now_ns():
            delivery = self._due.pop(0)
            while self._clock.now_ns() < delivery.at_ns:
                pass
            self._awake_until_ns = delivery.at_ns + self._spin_ns
            try:
                os.write(self._master, delivery.data)
            except BlockingIOError:
                continue  # nobody reads: a real adapter would drop the bytes too

    def _follow_speed(self) -> None:
        """Tell the chain the speed that the host set at its end, when it has changed."""
        before = self._line[-4:]
        try:
            fcntl.ioctl(self._master, TCGETS2, self._line)
        except OSError:
            return  # no such call here: every speed is as good as the right one
        baud = int.from_bytes(self._line[-4:], sys.byteorder)
        if self._line[-4:] != before and baud > 0:
            self._chain.listen_at(baud)


class _Delivery(NamedTuple):
    at_ns: int
    data: bytes


_delivery_time = operator.attrgetter("at_ns")


def _grouped(replies: Sequence[Reply], usb_frame_ns: int) -> list[_Delivery]:
    """Replies in order of arrival; one that comes much later than its predecessor is delivered by itself."""
    groups: list[list[Reply]] = []
    for reply in replies:
        if usb_frame_ns:
            reply = Reply(-(-reply.ready_ns // usb_frame_ns) * usb_frame_ns, reply.data)
        if groups and reply.ready_ns - groups[-1][-1].ready_ns < (1 if usb_frame_ns else SAME_BURST_NS):
            groups[-1].append(reply)
        else:
            groups.append([reply])
    return [_Delivery(group[-1].ready_ns, b"".join([r.data for r in group])) for group in groups]


def _set_speed(fd: int, baud: int) -> None:
    """Preset a line's speed, for a host that opens it without setting one."""
    line = bytearray(TERMIOS2.size)
    try:
        fcntl.ioctl(fd, TCGETS2, line)
        iflag, oflag, cflag, lflag, rest, _, _ = TERMIOS2.unpack(line)
        fcntl.ioctl(fd, TCSETS2, TERMIOS2.pack(iflag, oflag, cflag & ~CBAUD | BOTHER, lflag, rest, baud, baud))
    except OSError:
        return  # not Linux: the pty keeps its own speed, which nobody looks at


def _be_punctual(priority: int) -> str:
    """Wake this thread to the microsecond, and with a priority before others; returns what was refused."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    if priority:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        except (OSError, AttributeError) as error:
            return f"no SCHED_FIFO {priority} for the virtual servos: {error}"
    return ""
