"""Signs of life: a process beats once a turn through a pipe that its supervisor gave it, which counts the silence."""

from __future__ import annotations

import os

BEAT_VARIABLE = "STEADYHAND_BEAT_FD"
LIFE_VARIABLE = "STEADYHAND_RESTARTS"
FIRST_BEAT_S = 180.0  # imports, the compiler's first run and the first GL context of a busy machine
LOOK_MAX_S = 0.5  # a supervisor that was itself held up must not take its own absence for the others' silence
READ_BYTES = 1 << 16


class Beat:
    """The writing end, found in the environment; without a supervisor it does nothing. Never blocks or fails."""

    def __init__(self) -> None:
        text = os.environ.get(BEAT_VARIABLE, "")
        self._fd = int(text) if text.isdecimal() else -1

    def __call__(self) -> None:
        if self._fd < 0:
            return
        try:
            os.write(self._fd, b".")
        except BlockingIOError:
            pass  # the supervisor is held up; what it finds in the full pipe is sign enough
        except OSError:
            self._fd = -1


def restarts() -> int:
    """How often the supervisor has started this process before."""
    text = os.environ.get(LIFE_VARIABLE, "")
    return int(text) if text.isdecimal() else 0


class Pulse:
    """The reading end: `beats` so far, and for how long none came although somebody looked."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self.beats = 0
        self.silent_s = 0.0
        self._looked_s: float | None = None

    @property
    def inherited(self) -> tuple[int, ...]:
        """What the child must inherit."""
        return (self._write_fd,)

    def environment(self, restarts: int) -> dict[str, str]:
        """What the child must be told."""
        return {BEAT_VARIABLE: str(self._write_fd), LIFE_VARIABLE: str(restarts)}

    def started(self) -> None:
        """The child has its own copy of the writing end now."""
        os.close(self._write_fd)

    def look(self, now_s: float) -> None:
        """Count what has come since the last look."""
        since_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        came = 0
        while chunk := self._read():
            came += len(chunk)
        self.beats += came
        self.silent_s = 0.0 if came else self.silent_s + min(since_s, LOOK_MAX_S)

    def overdue(self, silence_s: float) -> bool:
        """Whether the child has been silent for too long; its first beat may take FIRST_BEAT_S."""
        return self.silent_s > (silence_s if self.beats else max(silence_s, FIRST_BEAT_S))

    def close(self) -> None:
        os.close(self._read_fd)

    def _read(self) -> bytes:
        try:
            return os.read(self._read_fd, READ_BYTES)
        except BlockingIOError:
            return b""
