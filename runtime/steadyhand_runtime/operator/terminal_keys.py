"""Keys from a terminal: works over SSH and without a display; there are no key-ups, only characters."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from types import TracebackType
from typing import Any

from steadyhand_models.cli import UserError

_NAMES = {
    b" ": "space",
    b"\r": "enter",
    b"\n": "enter",
    b"\x7f": "backspace",
    b"\x08": "backspace",
    b"\x1b": "esc",
}
# Cursor keys as terminals send them in normal and in application mode (ECMA-48 CSI, xterm SS3).
_CURSOR = {b"A": "up", b"B": "down", b"C": "right", b"D": "left"}


def parse(data: bytes) -> list[str]:
    """Names of the keys in one read from a terminal. A lone escape is `esc`; unknown sequences are dropped whole."""
    keys = []
    at = 0
    while at < len(data):
        if data[at : at + 1] == b"\x1b" and data[at + 1 : at + 2] in (b"[", b"O"):
            end = at + 2
            while end < len(data) and not 0x40 <= data[end] <= 0x7E:
                end += 1
            name = _CURSOR.get(data[end : end + 1])
            if name:
                keys.append(name)
            at = end + 1
            continue
        one = data[at : at + 1]
        at += 1
        if one in _NAMES:
            keys.append(_NAMES[one])
        elif one.isalnum():
            keys.append(one.decode("ascii").lower())
    return keys


class TerminalKeys:
    """Reads keys in cbreak mode and gives the terminal back as it was. Raises UserError without a terminal."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = sys.stdin.fileno() if fd is None else fd
        if not os.isatty(self.fd):
            raise UserError("keys come from the terminal, and standard input is none; start this in a terminal")
        self._before: list[Any] | None = None

    def __enter__(self) -> TerminalKeys:
        self._before = termios.tcgetattr(self.fd)
        tty.setcbreak(self.fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._before)
            self._before = None

    def read(self, timeout_s: float) -> list[tuple[str, bool]]:
        """Keys pressed within timeout_s, as (name, down); down is always true. Empty when none came."""
        ready, _, _ = select.select([self.fd], [], [], timeout_s)
        return [(key, True) for key in parse(os.read(self.fd, 1024))] if ready else []
