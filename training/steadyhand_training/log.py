"""Log lines of the workstation's processes: the event first, then key=value, rate-limited where they could repeat."""

from __future__ import annotations

import logging
import sys

_LOG = logging.getLogger("steadyhand")


def configure(level: int = logging.INFO) -> None:
    """Send this process's log to stderr, one line per event."""
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s", force=True)


def line(event: str, **fields: object) -> str:
    """`event key=value ...`; floats with four digits, text with blanks quoted."""
    return " ".join([event, *(f"{key}={_text(value)}" for key, value in fields.items())])


def info(event: str, **fields: object) -> None:
    _LOG.info(line(event, **fields))


def warn(event: str, **fields: object) -> None:
    _LOG.warning(line(event, **fields))


class Throttle:
    """Lets one line per event and interval through; the next one says how many were held back."""

    def __init__(self, interval_s: float = 1.0) -> None:
        self.interval_s = interval_s
        self._due_s: dict[str, float] = {}
        self._held: dict[str, int] = {}

    def warn(self, now_s: float, event: str, **fields: object) -> None:
        if now_s < self._due_s.get(event, float("-inf")):
            self._held[event] = self._held.get(event, 0) + 1
            return
        self._due_s[event] = now_s + self.interval_s
        held = self._held.pop(event, 0)
        warn(event, **fields, **({"held_back": held} if held else {}))


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value).replace("\n", "; ")
    return f'"{text}"' if " " in text else text
