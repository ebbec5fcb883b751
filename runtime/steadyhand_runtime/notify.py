"""The service manager's protocol: READY, WATCHDOG and STOPPING as datagrams on the socket that systemd names."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

from steadyhand_runtime.telemetry import Log

PETS_PER_PERIOD = 3  # sd_watchdog_enabled(3) asks for at most half of the period


class ServiceManager:
    """Tells systemd how the service is (sd_notify(3)); does nothing where nobody has asked.

    The watchdog is petted only when every counter has advanced since it was petted last, so that one process that
    stands still lets systemd start everything anew.
    """

    def __init__(self, environment: Mapping[str, str], log: Log) -> None:
        self._log = log
        address = environment.get("NOTIFY_SOCKET", "")
        # An @ stands for the zero byte of an abstract address.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        if self._socket is not None:
            self._socket.setblocking(False)
        self._pet_every_s = _watchdog_s(environment) / PETS_PER_PERIOD
        self._petted_s = 0.0
        self._counted: tuple[int, ...] = ()
        self._ready = False

    def alive(self, counters: Sequence[int], now_s: float) -> None:
        """Report READY when every counter has begun to count, then pet the watchdog while all of them advance."""
        if self._socket is None:
            return
        if not self._ready:
            if all(counters):
                self._ready = True
                self._petted_s, self._counted = now_s, tuple(counters)
                self._send("READY=1\nSTATUS=every process is running")
            return
        if not self._pet_every_s or now_s - self._petted_s < self._pet_every_s:
            return
        # A restarted process counts from zero: any other number than before is an advance, but zero.
        if all(new and new != old for new, old in zip(counters, self._counted)):
            self._petted_s, self._counted = now_s, tuple(counters)
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError as error:
            self._log.warn("notify.unsent", every_s=60.0, what=text.splitlines()[0], reason=error.strerror)


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """The watchdog's period, 0 without one or when it is meant for another process."""
    owner, period_us = environment.get("WATCHDOG_PID", ""), environment.get("WATCHDOG_USEC", "")
    if not period_us.isdecimal() or (owner and owner != str(os.getpid())):
        return 0.0
    return int(period_us) / 1e6
