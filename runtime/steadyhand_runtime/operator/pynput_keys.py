"""Keys from the desktop, whatever window has the focus: true key-downs and key-ups (X11, macOS, Windows)."""

from __future__ import annotations

import importlib
import os
import queue
from types import TracebackType
from typing import Any

from steadyhand_models.cli import UserError

_INSTEAD = "use --keys terminal, which works in any terminal and over SSH"


def key_name(key: Any) -> str:
    """Our name of a pynput key: its lower-case character, or its name (`space`, `enter`, `up`, ...)."""
    character = getattr(key, "char", None)
    return str(character).lower() if character else str(getattr(key, "name", "") or "")


def _keyboard() -> Any:
    """pynput's keyboard module. Raises UserError where it could hear nothing, naming the way out."""
    if os.environ.get("XDG_SESSION_TYPE") == "wayland":
        raise UserError(f"Wayland lets no program hear keys outside its own window; {_INSTEAD}")
    try:
        return importlib.import_module("pynput.keyboard")
    except ModuleNotFoundError:
        raise UserError(
            f"pynput is not installed: `pip install 'steadyhand[console]'` brings it; or {_INSTEAD}"
        ) from None
    except ImportError as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"pynput finds no display to hear keys from ({reason}); {_INSTEAD}") from None


class PynputKeys:
    """Hears every key of the desktop in pynput's own thread and hands them over in order."""

    def __init__(self, keyboard: Any = None) -> None:
        self._queue: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
        self._listener = (keyboard or _keyboard()).Listener(
            on_press=lambda key: self._queue.put((key_name(key), True)),
            on_release=lambda key: self._queue.put((key_name(key), False)),
        )

    def __enter__(self) -> PynputKeys:
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.stop()

    def read(self, timeout_s: float) -> list[tuple[str, bool]]:
        """Keys that went down (true) or up within timeout_s; empty when none did."""
        found = []
        try:
            found.append(self._queue.get(timeout=timeout_s))
            while True:
                found.append(self._queue.get_nowait())
        except queue.Empty:
            return found
