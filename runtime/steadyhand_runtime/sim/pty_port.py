"""Virtual servos behind a real pseudo-terminal, so that a driver opens them like any serial port."""

from __future__ import annotations

import os
import select
import threading
import tty
from pathlib import Path

from steadyhand_runtime.clock import Clock, MonotonicClock
from steadyhand_runtime.sim.servos import Reply, VirtualChain

READ_BYTES = 4096


class PtyPort:
    """Serves a chain on a pty from a thread of its own until `close`.

    Replies of one request are delivered together when the last is ready, as a USB adapter's frames do.
    `link`, when given, becomes a symbolic link to the port, so that its name stays the same. With a `priority` the
    thread asks for SCHED_FIFO, so that the servos stay as punctual as real ones on a busy machine; a refusal is told
    in `degraded`.
    """

    def __init__(
        self, chain: VirtualChain, link: Path | None = None, clock: Clock | None = None, priority: int = 0
    ) -> None:
        self._chain = chain
        self._priority = priority
        self.degraded = ""
        self._clock = clock or MonotonicClock()
        self._master, self._slave = os.openpty()  # the slave stays open: a client that leaves must not hang the port up
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self._wake_read, self._wake_write = os.pipe()
        self.device = os.ttyname(self._slave)
        self._link = link
        if link is not None:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(self.device)
        self._thread = threading.Thread(target=self._serve, name="virtual-servos", daemon=True)
        self._thread.start()

    @property
    def path(self) -> str:
        """What to open: the link if there is one, else the device."""
        return str(self._link) if self._link is not None else self.device

    def close(self) -> None:
        """Stop serving and hang up."""
        if self._wake_write < 0:
            return
        os.write(self._wake_write, b"x")
        self._thread.join()
        if self._link is not None and self._link.is_symlink() and os.readlink(self._link) == self.device:
            self._link.unlink()
        for fd in (self._master, self._slave, self._wake_read, self._wake_write):
            os.close(fd)
        self._wake_write = -1

    def __enter__(self) -> PtyPort:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        if self._priority:
            try:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(self._priority))
            except (OSError, AttributeError) as error:
                self.degraded = f"no SCHED_FIFO {self._priority} for the virtual servos: {error}"
        while True:
            ready, _, _ = select.select([self._master, self._wake_read], [], [])
            if self._wake_read in ready:
                return
            self._answer(os.read(self._master, READ_BYTES))

    def _answer(self, data: bytes) -> None:
        replies = self._chain.feed(data, self._clock.now_ns())
        for group in _grouped(replies):
            self._clock.sleep_until_ns(group[-1].ready_ns)
            try:
                os.write(self._master, b"".join(r.data for r in group))
            except BlockingIOError:
                return  # nobody reads: a real adapter would drop the bytes too


def _grouped(replies: list[Reply]) -> list[list[Reply]]:
    """Replies in order of arrival; one that comes much later than its predecessor is delivered by itself."""
    groups: list[list[Reply]] = []
    for reply in sorted(replies, key=lambda r: r.ready_ns):
        if groups and reply.ready_ns - groups[-1][-1].ready_ns < 2_000_000:
            groups[-1].append(reply)
        else:
            groups.append([reply])
    return groups
