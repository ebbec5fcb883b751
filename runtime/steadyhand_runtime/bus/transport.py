"""How bytes reach the servos: a serial port, or virtual servos in this process; both behind `Transport`."""

from __future__ import annotations

import errno
import os
import select
import sys
import termios
from typing import TYPE_CHECKING, Any, Protocol

import serial

from steadyhand_runtime.clock import NS_PER_S, Clock

if TYPE_CHECKING:
    from steadyhand_runtime.sim.servos import Reply, VirtualChain

QUIET_NS = 1_000_000  # a bus this long without a byte is silent; a USB full-speed frame
DRAIN_LIMIT_NS = 4_000_000
NS_PER_MS = 1_000_000
MAX_VMIN = 255
MAX_OLD_BYTES = 4096


class BusError(Exception):
    """The bus cannot be used; the message names the fix."""


class PortLost(BusError):
    """The port is gone in the middle of the work; it may come back."""


class Transport(Protocol):
    """A half-duplex byte link."""

    def write(self, data: bytes | bytearray) -> None:
        """Send everything. What has come in before cannot answer it and is discarded."""
        ...

    def read(self, n: int, deadline_ns: int) -> bytes:
        """What came by the deadline, at most n bytes."""
        ...

    def drain(self) -> int:
        """Discard input until the bus is silent; returns how many bytes there were."""
        ...

    def close(self) -> None: ...


class SerialTransport:
    """A serial port held exclusively. pyserial opens and configures it; the hot path is write, poll and read."""

    def __init__(self, port: str, baud: int, clock: Clock) -> None:
        self._clock = clock
        self._port = port
        self._serial = _open(port, baud)
        self._fd: int = self._serial.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._read_whole = False
        self._vmin = -1
        self._wake_at(1)  # pyserial leaves VMIN at 0, where an empty line reads like a port that hung up

    def write(self, data: bytes | bytearray) -> None:
        """Discard what is left of old input, then send everything. Raises PortLost when the port is gone.

        After an answer that came whole nothing is left, and the call for it is saved.
        """
        try:
            if not self._read_whole:
                termios.tcflush(self._fd, termios.TCIFLUSH)
            self._read_whole = False
            sent = os.write(self._fd, data)
            while sent < len(data):
                sent += os.write(self._fd, memoryview(data)[sent:])
        except BlockingIOError:
            raise PortLost(f"{self._port}: the adapter takes no more data: unplug it and plug it in again") from None
        except (OSError, termios.error) as error:
            raise self._gone(error) from None

    def read(self, n: int, deadline_ns: int) -> bytes:
        """Up to n bytes, fewer when the deadline passes first. Raises PortLost when the port is gone."""
        data = b""
        try:
            left_ns = deadline_ns - self._clock.now_ns()
            if left_ns <= 0:
                return self._available(n)
            if n != self._vmin:
                self._wake_at(n)
            while True:
                if self._wait(left_ns) or left_ns <= 0:
                    data += self._available(n - len(data))
                    if len(data) == n:
                        self._read_whole = True
                        return data
                    if left_ns <= 0:
                        return data
                    self._wake_at(n - len(data))
                left_ns = deadline_ns - self._clock.now_ns()
        except (OSError, termios.error) as error:
            raise self._gone(error) from None

    def drain(self) -> int:
        """Discard input until the bus is silent for a frame, or for a few milliseconds when it never is."""
        start_ns = quiet_from_ns = self._clock.now_ns()
        dropped = 0
        try:
            self._wake_at(1)
            while (now_ns := self._clock.now_ns()) < min(quiet_from_ns + QUIET_NS, start_ns + DRAIN_LIMIT_NS):
                if self._wait(quiet_from_ns + QUIET_NS - now_ns):
                    dropped += len(self._available(MAX_OLD_BYTES))
                    quiet_from_ns = self._clock.now_ns()
        except (OSError, termios.error) as error:
            raise self._gone(error) from None
        return dropped

    def close(self) -> None:
        self._fd = -1  # the number may soon be somebody else's
        try:
            self._serial.close()
        except (OSError, termios.error, serial.SerialException):
            pass  # the device is gone, and so is the hold on it

    def _wake_at(self, n: int) -> None:
        """Let poll wake once for the whole reply instead of once per servo."""
        vmin = min(n, MAX_VMIN)
        if vmin == self._vmin:
            return
        attributes: list[Any] = termios.tcgetattr(self._fd)
        attributes[6][termios.VMIN] = vmin
        attributes[6][termios.VTIME] = 0
        termios.tcsetattr(self._fd, termios.TCSANOW, attributes)
        self._vmin = vmin

    def _wait(self, ns: int) -> bool:
        """Whether there is input before `ns` have passed; poll counts whole milliseconds, select does the rest."""
        whole_ms = ns // NS_PER_MS
        if whole_ms <= 0:
            return bool(select.select([self._fd], [], [], max(0, ns) / NS_PER_S)[0])
        return bool(self._poll.poll(whole_ms))

    def _available(self, n: int) -> bytes:
        """What can be read at once, at most n bytes; the kernel hands a terminal's input out in pieces of 64."""
        data = b""
        while len(data) < n:
            try:
                part = os.read(self._fd, n - len(data))
            except BlockingIOError:
                break
            if not part:
                raise OSError(errno.EIO, "hung up")
            data += part
        return data

    def _gone(self, error: Exception) -> PortLost:
        return PortLost(f"{self._port}: the port was lost ({error}): check the USB cable and the arm's power")


class InProcessTransport:
    """Virtual servos in this process. Reading takes virtual time on the wire but leaves the injected clock where it is.

    So one tick may hold several requests, each with its full time to be answered, and nothing ever waits.
    """

    def __init__(self, chain: VirtualChain, clock: Clock) -> None:
        self._chain = chain
        self._clock = clock
        self._replies: list[Reply] = []
        self._unread = b""
        self._wire_ns = clock.now_ns()
        self._written_ns = self._ahead_ns = 0

    def write(self, data: bytes | bytearray) -> None:
        now_ns = self._clock.now_ns()
        self._wire_ns = max(self._wire_ns, now_ns)
        self._written_ns, self._ahead_ns = now_ns, self._wire_ns - now_ns
        self._replies = [r for r in self._replies if r.ready_ns > self._wire_ns]
        self._replies += self._chain.feed(data, self._wire_ns)
        self._unread = b""

    def read(self, n: int, deadline_ns: int) -> bytes:
        """Up to n bytes of what is ready by the deadline, which counts from the wire's time of the last write."""
        now_ns = self._clock.now_ns()
        ahead_ns = self._ahead_ns if now_ns == self._written_ns else self._wire_ns - now_ns
        ready = self._take(max(deadline_ns + ahead_ns, self._wire_ns), n)
        self._unread = ready[n:]
        return ready[:n]

    def drain(self) -> int:
        return len(self._take(max(self._wire_ns, self._clock.now_ns()) + QUIET_NS, sys.maxsize))

    def close(self) -> None:
        self._replies = []

    def _take(self, until_ns: int, wanted: int) -> bytes:
        """What is ready by then; the wire's time goes on to the last byte, or to the end when too few came."""
        taken = [r for r in self._replies if r.ready_ns <= until_ns]
        self._replies = [r for r in self._replies if r.ready_ns > until_ns]
        ready = self._unread + b"".join([r.data for r in taken])
        self._unread = b""
        reached_ns = taken[-1].ready_ns if taken and len(ready) >= wanted else until_ns
        self._wire_ns = max(self._wire_ns, reached_ns)
        return ready


def _open(port: str, baud: int) -> serial.Serial:
    try:
        return serial.Serial(port, baud, timeout=0, write_timeout=0, exclusive=True)
    except (serial.SerialException, OSError, ValueError, termios.error) as error:
        raise BusError(_explain(port, baud, error)) from None


def _explain(port: str, baud: int, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.ENOENT or not os.path.exists(port):
        return f"{port}: no such port: plug the arm in, or give the right one (ls /dev/serial/by-id)"
    if number in (errno.EACCES, errno.EPERM):
        return f"{port}: no permission: add yourself to its group (sudo usermod -aG dialout $USER) and log in again"
    if number in (errno.EBUSY, errno.EAGAIN) or "lock" in str(error).lower():
        return f"{port}: busy: another program holds it; stop that one first (fuser -v {port} names it)"
    if isinstance(error, ValueError):
        return f"{port}: cannot run at {baud} baud: {error}"
    return f"{port}: cannot be opened as a serial port: {error}"
