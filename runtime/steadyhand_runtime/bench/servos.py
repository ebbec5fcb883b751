"""A chain of virtual servos in a process of its own, and its faults and hand movements from outside."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

START_S = 60.0  # a loaded machine needs seconds to import NumPy
ANSWER_S = 20.0
SPIN_S = 0.001  # a wire needs no time to wake up: what is measured is the client, not this machine's scheduler
_RUN = "import sys; from steadyhand_models.cli import main; sys.exit(main(['sim', 'servos', *sys.argv[1:]]))"


class ServosError(Exception):
    """The virtual servos did not start or refused what they were told."""


class Servos:
    """`steadyhand sim servos` in a folder of its own, without delay between goal and motion; a context manager."""

    def __init__(self, folder: Path, baud: int, gap_s: float) -> None:
        """Raises ServosError when the port does not appear."""
        self.control = folder / "control"
        options = ["--link", str(folder / "arm"), "--control", str(self.control), "--baud", str(baud)]
        options += ["--gap-s", str(gap_s), "--motion-delay-s", "0", "--spin-s", str(SPIN_S)]
        options += ["--compensate", "true"]
        self._process = subprocess.Popen([sys.executable, "-c", _RUN, *options], stdout=subprocess.PIPE, text=True)
        self.port = self._first_line()
        if not self.port:
            self.close()
            raise ServosError(f"`steadyhand sim servos {' '.join(options)}` did not start")

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Servos:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _first_line(self) -> str:
        out = self._process.stdout
        if out is None or not select.select([out], [], [], START_S)[0]:
            return ""
        return out.readline().strip()


class Control:
    """A client of the servos' control socket: JSON objects, a line each, and a line in answer to each."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_S)
        self._socket.connect(path)
        self._answers = self._socket.makefile("r", encoding="utf-8")

    def tell(self, *commands: dict[str, Any]) -> None:
        """Carry out commands in order; returns when they hold. Raises ServosError when one was refused."""
        self._socket.sendall("".join(json.dumps(c) + "\n" for c in commands).encode())
        for command in commands:
            answer = json.loads(self._answers.readline() or "{}")
            if answer.get("ok") is not True:
                raise ServosError(f"{command}: {answer.get('error', 'no answer')}")

    def close(self) -> None:
        self._answers.close()
        self._socket.close()
