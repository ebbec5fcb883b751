"""Telemetry: log lines of the form `event key=value`, rate-limited, and small JSON files of a process's figures."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO


@dataclass
class _Seen:
    """When an event was last written, and how many were held back since."""

    at_s: float
    held: int = 0


class Log:
    """Writes one line per event to `out` (stderr unless given); safe to use from several threads.

    With `every_s`, an event that repeats sooner is counted and not written; the next line says `repeated=N`.
    """

    def __init__(self, out: TextIO | None = None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._now_s = now_s
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.Lock()

    def info(self, event: str, every_s: float = 0.0, **fields: Any) -> None:
        self._write("INFO", event, every_s, fields)

    def warn(self, event: str, every_s: float = 0.0, **fields: Any) -> None:
        self._write("WARN", event, every_s, fields)

    def error(self, event: str, every_s: float = 0.0, **fields: Any) -> None:
        self._write("ERROR", event, every_s, fields)

    def _write(self, level: str, event: str, every_s: float, fields: Mapping[str, Any]) -> None:
        with self._lock:
            held = self._held(event, every_s)
            if held is None:
                return
            more = {**fields, "repeated": held} if held else fields
            text = "".join(f" {key}={format_value(value)}" for key, value in more.items())
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
            out = self._out or sys.stderr
            try:
                out.write(f"{stamp}Z {level} {event}{text}\n")
                out.flush()
            except (OSError, ValueError):
                pass  # a full disk or a closed terminal must not stop a loop

    def _held(self, event: str, every_s: float) -> int | None:
        """How many were held back before this one, or None to hold this one back too."""
        now_s = self._now_s()
        seen = self._seen.get(event)
        if seen is not None and now_s - seen.at_s < every_s:
            seen.held += 1
            return None
        self._seen[event] = _Seen(now_s)
        return seen.held if seen else 0


def format_value(value: Any) -> str:
    """One value of a log line: short floats, quotes only where a reader would lose the boundary."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(getattr(value, "value", value))
    return json.dumps(text, ensure_ascii=False) if not text or any(c.isspace() or c in '"=' for c in text) else text


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step, so that a reader never sees half of it. Raises OSError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(figures, indent=1, default=_plain) + "\n", encoding="utf-8")
    aside.replace(path)


def _plain(value: Any) -> Any:
    """JSON's idea of an enum, an array, a NumPy number or a path."""
    for convert in ("tolist", "item"):
        if hasattr(value, convert):
            return getattr(value, convert)()
    return getattr(value, "value", None) or str(value)


class StatFile:
    """A process's figures, written at most every `period_s`; a disk that refuses is reported, never fatal."""

    def __init__(self, path: Path, period_s: float, log: Log) -> None:
        self._path = path
        self._period_ns = round(period_s * 1e9)
        self._next_ns = 0
        self._log = log

    def due(self, now_ns: int) -> bool:
        return now_ns >= self._next_ns

    def write(self, figures: Mapping[str, Any], now_ns: int) -> None:
        self._next_ns = now_ns + self._period_ns
        try:
            write_json(self._path, figures)
        except OSError as error:
            self._log.warn("stat.unwritable", every_s=60.0, path=self._path, reason=error.strerror)
