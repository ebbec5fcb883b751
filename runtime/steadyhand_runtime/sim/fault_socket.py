"""The virtual servos' control socket: one JSON request a line, one JSON answer a line, on a private Unix socket."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import socketserver
import stat
import threading
from pathlib import Path
from typing import Any

from steadyhand_runtime.clock import Clock, MonotonicClock
from steadyhand_runtime.sim import faults
from steadyhand_runtime.sim.faults import MAX_REQUEST_BYTES, ChainAction, ChainFault, Fault, FaultError
from steadyhand_runtime.sim.pty_port import PtyPort

ANSWER_S = 5.0
MAX_ANSWER_BYTES = 1 << 20
POLL_S = 0.2


class FaultSocket:
    """Lets faults happen to the servos of a port. Use as a context manager.

    Only the owner may connect. A bad request is answered with its error and changes nothing.
    """

    def __init__(self, port: PtyPort, path: Path, clock: Clock | None = None) -> None:
        """Raises FaultError when the path cannot become a socket."""
        self._port = port
        self._path = path
        self._clock = clock or MonotonicClock()
        _make_way(path)
        try:
            before = os.umask(0o177)
            try:
                self._server = _Server(str(path), self._answer)
            finally:
                os.umask(before)
        except OSError as error:
            raise FaultError(f"{path}: cannot become a socket ({error}): choose a shorter path in /tmp") from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="servo-faults", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> FaultSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, line: bytes) -> bytes:
        try:
            answer: dict[str, Any] = {"ok": True, **self._carry_out(faults.parse(line))}
        except FaultError as error:
            answer = {"ok": False, "error": str(error)}
        return json.dumps(answer).encode() + b"\n"

    def _carry_out(self, fault: Fault) -> dict[str, Any]:
        """Do it; returns what the answer tells beyond success."""
        if isinstance(fault, ChainFault) and fault.chain in (ChainAction.PLUG, ChainAction.UNPLUG):
            try:
                self._port.plug(fault.chain is ChainAction.PLUG)
            except OSError as error:
                raise FaultError(f"{fault.chain.value}: {error}: start the servos again") from None
            return {"port": self._port.path}
        with self._port.between_requests() as chain:
            now_ns = self._clock.now_ns()
            if not isinstance(fault, ChainFault):
                faults.strike(chain, fault, now_ns)
            elif fault.chain is ChainAction.STATE:
                return {"servos": [dataclasses.asdict(s) for s in faults.states(chain, now_ns)]}
            elif fault.chain is ChainAction.POWER_CYCLE:
                chain.power_cycle()
            elif fault.value is not None:
                chain.after_silent = fault.value
        return {}


def ask(path: Path, request: str) -> str:
    """The answer to one request, both a line of JSON. Raises FaultError when nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_S)
        try:
            connection.connect(str(path))
            connection.sendall(request.encode() + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline(MAX_ANSWER_BYTES)
        except OSError as error:
            raise FaultError(
                f"{path}: no virtual servos listen here ({error}): start `steadyhand sim servos --control {path}` first"
            ) from None
    return line.decode().strip()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str, answer: Any) -> None:
        self.answer = answer
        super().__init__(path, _Connection)


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        try:
            while line := self.rfile.readline(MAX_REQUEST_BYTES + 1):
                self.wfile.write(self.server.answer(line))
                if not line.endswith(b"\n"):
                    return  # what follows an endless line is no request
        except OSError:
            return  # the client left


def _make_way(path: Path) -> None:
    """Remove a socket that nobody listens on any more; anything else stays and is an error."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise FaultError(f"{path}: exists and is no socket: choose another path for --control")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise FaultError(f"{path}: other virtual servos listen here: choose another path for --control")
