"""What a pty itself adds to the wire: the time from a write at one end until the bytes can be read at the other."""

from __future__ import annotations

import fcntl
import os
import statistics
import struct
import sys
import termios
import time
from typing import NamedTuple

PROBE = b"\xff\xff\xfe\x02\x01\xfc"  # a ping to nobody, should a byte of it ever be left behind
SAMPLES = 200
PAUSE_NS = 700_000  # about half a bus cycle: what delivers the bytes has gone to sleep by then, as between two requests
PATIENCE_NS = 5_000_000


class PtyDelay(NamedTuple):
    """Median nanoseconds per direction."""

    from_host_ns: int = 0
    to_host_ns: int = 0


def measure(master: int, slave: int) -> PtyDelay:
    """The delay of a pty that nobody uses yet, both ends open and raw. Takes about 0.3 s, spinning.

    A wire has no such delay: the kernel hands bytes over in a worker of its own, which has to wake up first.
    """
    if not sys.platform.startswith("linux"):
        return PtyDelay()
    return PtyDelay(_median_ns(slave, master), _median_ns(master, slave))


def _median_ns(write_fd: int, read_fd: int) -> int:
    took = []
    for _ in range(SAMPLES):
        begin_ns = time.monotonic_ns() + PAUSE_NS
        while time.monotonic_ns() < begin_ns:
            pass
        begin_ns = time.monotonic_ns()
        os.write(write_fd, PROBE)
        while _waiting(read_fd) < len(PROBE) and time.monotonic_ns() - begin_ns < PATIENCE_NS:
            pass
        took.append(time.monotonic_ns() - begin_ns)
        if _waiting(read_fd):
            os.read(read_fd, len(PROBE))
    termios.tcflush(read_fd, termios.TCIFLUSH)
    return round(statistics.median(took))


def _waiting(fd: int) -> int:
    """Bytes that can be read now."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])
