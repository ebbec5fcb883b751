"""Teach and supervise the arm from a keyboard."""

from __future__ import annotations

import contextlib
import enum
import getpass
import shutil
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import zmq
from pydantic import Field

from steadyhand_models import settings, task, wire
from steadyhand_models.messages import (
    BusAction,
    CommandReply,
    ControlStatus,
    EventKind,
    EventReply,
    Mode,
    OperatorEvent,
)
from steadyhand_runtime.clock import NS_PER_S, MonotonicClock
from steadyhand_runtime.config import socket_folder
from steadyhand_runtime.operator.channel import OperatorClient, subscribe
from steadyhand_runtime.operator.keys import BINDINGS, HELP, KeyState, Meaning, Repeat, event_of
from steadyhand_runtime.operator.pynput_keys import PynputKeys
from steadyhand_runtime.operator.terminal_keys import TerminalKeys

PERIOD_S = 0.05
SILENT_S = 1.0
LISTEN_KEY = "f12"
_DESCRIPTION = """Teach and supervise the arm from a keyboard.

Example: steadyhand operator --run runs/latest --keys terminal"""


class KeySource(str, enum.Enum):
    """Where keys come from."""

    TERMINAL = "terminal"  # works over SSH; key-ups are guessed from auto-repeat
    PYNPUT = "pynput"  # the whole desktop, with true key-ups


@dataclass(frozen=True)
class ConsoleSettings:
    """The keyboard operator."""

    run: Path = Path("runs/latest")
    sockets: str = ""  # folder of the runtime's socket files; empty: derived from the run folder
    task: str = "lift"
    keys: KeySource = KeySource.TERMINAL
    who: str = ""  # name on the labels; empty: the login name
    reaction_s: Annotated[float, Field(ge=0, le=5)] = 0.4


class Keys(Protocol):
    """A keyboard that is being read."""

    def read(self, timeout_s: float) -> list[tuple[str, bool]]: ...


class Console:
    """One person at one keyboard: key meanings to messages, replies and status to one line of text."""

    def __init__(self, chosen: ConsoleSettings, client: OperatorClient, state: KeyState) -> None:
        self._chosen = chosen
        self._client = client
        self._state = state
        self._who = chosen.who or getpass.getuser()
        self._last_event = ""
        # Keys of the whole desktop mean nothing until they are turned on.
        self.listening = chosen.keys is not KeySource.PYNPUT
        self.status: ControlStatus | None = None
        self.note = ""

    def key(self, name: str, down: bool, now_ns: int) -> None:
        """One key went down or up."""
        if not down:
            self._state.release(name)
            return
        if name == LISTEN_KEY and self._chosen.keys is KeySource.PYNPUT:
            self.listening = not self.listening
            self._state.release_all()
            return
        if not self.listening and BINDINGS.get(name) is not BusAction.ESTOP:
            return
        meaning = self._state.press(name, now_ns)
        if meaning is not None:
            self._mean(meaning, now_ns)

    def _mean(self, meaning: Meaning, now_ns: int) -> None:
        if isinstance(meaning, BusAction):
            self._client.command(meaning, now_ns)
            return
        kind = event_of(meaning, self.status.mode if self.status else Mode.IDLE)
        if kind is None:
            return
        undo_of = self._last_event if kind is EventKind.UNDO else ""
        if kind is EventKind.UNDO and not undo_of:
            self.note = "nothing to undo"
            return
        event = OperatorEvent(
            uuid.uuid4().hex, kind, now_ns, self._who, self._chosen.keys.value, self._chosen.reaction_s, undo_of
        )
        self._client.send(event)
        self._last_event = "" if kind is EventKind.UNDO else event.event_id if _is_word(kind) else self._last_event
        self.note = kind.value

    def pump(self, now_ns: int) -> None:
        """Drive while a takeover runs, beat, and note what was refused."""
        if self.status is not None and self.status.mode is Mode.TAKEOVER:
            self._client.drive(self._state.drive(now_ns))
        for reply in self._client.pump(now_ns):
            self._answer(reply)

    def line(self, now_ns: int) -> str:
        """Status in one line."""
        status = self.status
        if status is None or now_ns - status.stamp_ns > SILENT_S * NS_PER_S:
            return f"waiting for the runtime ...  {self.note}"
        keys = "" if self.listening else f"[keys off, {LISTEN_KEY}]  "
        last = f"last: {status.last_end}" if status.last_end else ""
        if status.veto_left_s > 0:
            last = f"SUCCESS in {status.veto_left_s:.1f} s unless denied (1)"
        note = f"{last}  {status.message}  {keys}{self.note}"
        return (
            f"{status.mode.value:<9} episode {status.episode} step {status.seq}  policy v{status.policy_version}  "
            f"classifier v{status.classifier_version} p={status.probability:.2f}  {note}"
        )

    def _answer(self, reply: EventReply | CommandReply) -> None:
        accepted = reply.accepted if isinstance(reply, EventReply) else reply.ok
        if not accepted:
            self.note = f"refused: {reply.reason}"


def _is_word(kind: EventKind) -> bool:
    """Whether an event is a label that can be undone."""
    return kind in (EventKind.SUCCESS, EventKind.FAILURE, EventKind.FALSE_POSITIVE, EventKind.FALSE_NEGATIVE)


def _open_keys(source: KeySource) -> TerminalKeys | PynputKeys:
    return TerminalKeys() if source is KeySource.TERMINAL else PynputKeys()


def _newest(socket: zmq.Socket[bytes]) -> ControlStatus | None:
    with contextlib.suppress(zmq.Again, wire.WireError):
        return wire.decode(socket.recv(zmq.DONTWAIT), ControlStatus)
    return None


def _show(text: str) -> None:
    width = shutil.get_terminal_size().columns - 1
    sys.stdout.write("\r" + text[:width].ljust(width))
    sys.stdout.flush()


def _serve(console: Console, keys: Keys, status: zmq.Socket[bytes]) -> None:
    clock = MonotonicClock()
    while True:
        pressed = keys.read(PERIOD_S)
        now_ns = clock.now_ns()
        for name, down in pressed:
            console.key(name, down, now_ns)
        console.status = _newest(status) or console.status
        console.pump(now_ns)
        _show(console.line(now_ns))


def main(argv: Sequence[str]) -> int:
    """`steadyhand operator`: until Ctrl-C."""
    chosen = settings.parse_command_line(ConsoleSettings, argv, "steadyhand operator", _DESCRIPTION)
    size = len(task.load(chosen.task).contract().action)
    folder = socket_folder(chosen.sockets, chosen.run)
    keys = _open_keys(chosen.keys)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    client = OperatorClient(folder, chosen.who or getpass.getuser(), context)
    status = subscribe(context, folder, "control.status")
    console = Console(chosen, client, KeyState(size, Repeat() if chosen.keys is KeySource.TERMINAL else None))
    print(HELP)
    if not console.listening:
        print(f"{LISTEN_KEY} turns the keys on and off, so that typing elsewhere drives nothing; ESC always stops")
    print("Ctrl-C leaves; during a takeover the arm then holds still.", flush=True)
    try:
        with keys:
            _serve(console, keys, status)
    except KeyboardInterrupt:
        print()
    finally:
        client.close()
        status.close()
        context.term()
    return 0
