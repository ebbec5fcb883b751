"""Keys: their meanings, held keys with and without key-ups, the two readers, and the console's messages."""

from __future__ import annotations

import os
import pty
import termios
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand_models.cli import UserError
from steadyhand_models.messages import (
    BusAction,
    CommandReply,
    ControlStatus,
    Drive,
    EventKind,
    EventReply,
    Mode,
    OperatorEvent,
)
from steadyhand_runtime.operator import pynput_keys
from steadyhand_runtime.operator.command import Console, ConsoleSettings, KeySource
from steadyhand_runtime.operator.keys import BINDINGS, HELP, KeyState, Repeat, Special, event_of
from steadyhand_runtime.operator.terminal_keys import TerminalKeys, parse

MS = 1_000_000


def test_every_event_and_bus_command_has_a_key() -> None:
    meant = set(BINDINGS.values())
    assert set(BusAction) <= meant
    begin_end = {EventKind.TAKEOVER_BEGIN, EventKind.TAKEOVER_END}
    assert set(EventKind) - begin_end <= meant and Special.TAKEOVER in meant


def test_the_help_names_every_key() -> None:
    words = HELP.lower()
    shown = {"up": "arrows", "down": "arrows", "left": "arrows", "right": "arrows"}
    assert all(shown.get(key, key) in words for key in BINDINGS)


def test_the_takeover_key_begins_and_ends() -> None:
    assert event_of(Special.TAKEOVER, Mode.POLICY) is EventKind.TAKEOVER_BEGIN
    assert event_of(Special.TAKEOVER, Mode.TAKEOVER) is EventKind.TAKEOVER_END
    assert event_of(BINDINGS["up"], Mode.TAKEOVER) is None


def test_true_key_ups_end_the_motion_at_once() -> None:
    keys = KeyState(4, repeat=None)
    keys.press("up", 0)
    keys.press("w", 0)
    assert keys.drive(10_000 * MS).action.tolist() == [1.0, 0.0, 1.0, -1.0]
    keys.release("up")
    assert keys.drive(10_001 * MS).action.tolist() == [0.0, 0.0, 1.0, -1.0]
    keys.release("w")
    assert keys.drive(10_002 * MS).neutral


def test_opposite_keys_cancel() -> None:
    keys = KeyState(4, repeat=None)
    keys.press("left", 0)
    keys.press("right", 0)
    drive = keys.drive(0)
    assert drive.action[1] == 0.0 and not drive.neutral


def test_the_jaw_stays_where_it_was_sent() -> None:
    keys = KeyState(4, repeat=None)
    keys.press("p", 0)
    keys.release("p")
    assert keys.drive(0).action[3] == 1.0 and keys.drive(0).neutral
    keys.press("o", 0)
    assert keys.drive(0).action[3] == -1.0


def test_a_key_held_in_a_terminal_never_reads_as_a_hand_at_rest_before_auto_repeat_begins() -> None:
    keys = KeyState(4, Repeat())
    keys.press("up", 0)
    instants = range(0, 660, 20)
    assert not any(keys.drive(t * MS).neutral for t in instants)
    for t in range(660, 1500, 33):
        assert keys.press("up", t * MS) is None
        assert keys.drive(t * MS).action[0] == 1.0
    assert keys.drive(1500 * MS + 200 * MS).neutral


def test_a_tap_in_a_terminal_moves_only_a_little() -> None:
    keys = KeyState(4, Repeat())
    keys.press("up", 0)
    assert keys.drive(100 * MS).action[0] == 1.0
    assert keys.drive(200 * MS).action[0] == 0.0
    assert keys.drive(800 * MS).neutral


def test_auto_repeat_of_an_event_key_is_one_press() -> None:
    keys = KeyState(4, Repeat())
    assert keys.press("enter", 0) is EventKind.SUCCESS
    assert keys.press("enter", 500 * MS) is None
    assert keys.press("enter", 533 * MS) is None
    assert keys.press("enter", 2000 * MS) is EventKind.SUCCESS


@given(st.lists(st.tuples(st.sampled_from([*BINDINGS, "z", ""]), st.booleans(), st.integers(0, 300)), max_size=60))
def test_any_typing_gives_an_action_in_range(typed: list[tuple[str, bool, int]]) -> None:
    keys, now_ns = KeyState(4, Repeat()), 0
    for key, down, gap_ms in typed:
        now_ns += gap_ms * MS
        if down:
            keys.press(key, now_ns)
        else:
            keys.release(key)
        drive = keys.drive(now_ns)
        assert (np.abs(drive.action) <= 1.0).all() and drive.action.shape == (4,)


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"\x1b[A\x1b[D", ["up", "left"]),
        (b"\x1bOC", ["right"]),
        (b"\x1b", ["esc"]),
        (b"W \r\x7f1", ["w", "space", "enter", "backspace", "1"]),
        (b"\x1b[1;5A", ["up"]),
        (b"\x1b[15~u", ["u"]),
        (b"\x1b[", []),
        (b"\xc3\xa9", []),
    ],
)
def test_terminal_bytes_are_keys(data: bytes, keys: list[str]) -> None:
    assert parse(data) == keys


@given(st.binary(max_size=40))
def test_any_terminal_bytes_are_survived(data: bytes) -> None:
    assert all(isinstance(key, str) for key in parse(data))


def test_the_terminal_is_given_back_as_it_was() -> None:
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        with pytest.raises(KeyboardInterrupt), TerminalKeys(slave) as keys:
            os.write(master, b"\x1b[A")
            assert keys.read(5.0) == [("up", True)]
            assert not termios.tcgetattr(slave)[3] & termios.ICANON
            raise KeyboardInterrupt
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


def test_without_a_terminal_the_message_says_what_to_do(tmp_path: object) -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(UserError, match="start this in a terminal"):
            TerminalKeys(read)
    finally:
        os.close(read)
        os.close(write)


def test_wayland_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_SESSION_TYPE", "wayland")
    with pytest.raises(UserError, match="--keys terminal"):
        pynput_keys.PynputKeys()


@pytest.mark.parametrize("error", [ImportError("no X"), ModuleNotFoundError("No module named 'pynput'")])
def test_no_display_or_no_pynput_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, error: ImportError
) -> None:
    def fail(_: str) -> None:
        raise error

    monkeypatch.delenv("XDG_SESSION_TYPE", raising=False)
    monkeypatch.setattr(pynput_keys.importlib, "import_module", fail)
    with pytest.raises(UserError, match="--keys terminal"):
        pynput_keys.PynputKeys()


def test_desktop_keys_come_in_order_with_their_key_ups() -> None:
    heard: dict[str, object] = {}

    class Listener:
        def __init__(self, on_press: object, on_release: object) -> None:
            heard.update(press=on_press, release=on_release)

        def start(self) -> None: ...

        def stop(self) -> None:
            heard["stopped"] = True

    with pynput_keys.PynputKeys(SimpleNamespace(Listener=Listener)) as keys:
        heard["press"](SimpleNamespace(char="W"))  # type: ignore[operator]
        heard["press"](SimpleNamespace(char=None, name="up"))  # type: ignore[operator]
        heard["release"](SimpleNamespace(char="W"))  # type: ignore[operator]
        assert keys.read(5.0) == [("w", True), ("up", True), ("w", False)]
        assert keys.read(0.0) == []
    assert heard["stopped"]


class FakeClient:
    """What the console sent."""

    def __init__(self) -> None:
        self.events: list[OperatorEvent] = []
        self.commands: list[BusAction] = []
        self.drives: list[Drive] = []
        self.replies: list[EventReply | CommandReply] = []

    def send(self, event: OperatorEvent) -> None:
        self.events.append(event)

    def drive(self, drive: Drive) -> None:
        self.drives.append(drive)

    def command(self, action: BusAction, now_ns: int) -> int:
        self.commands.append(action)
        return 1

    def pump(self, now_ns: int) -> list[EventReply | CommandReply]:
        replies, self.replies = self.replies, []
        return replies


def console(source: KeySource = KeySource.TERMINAL) -> tuple[Console, FakeClient]:
    client = FakeClient()
    settings = ConsoleSettings(keys=source, who="eve")
    return Console(settings, client, KeyState(4, None)), client  # type: ignore[arg-type]


STATUS = ControlStatus(1, 0, Mode.POLICY, 7, 3, 0.5, 2, 1, 0.1, 0.5, 0, 0.0, 0.0, 0.0, 0.0, 9, "timeout", "")


def test_drive_is_sent_in_a_takeover_only() -> None:
    person, client = console()
    person.status = STATUS
    person.pump(0)
    assert not client.drives
    person.status = replace(STATUS, mode=Mode.TAKEOVER)
    person.pump(0)
    assert len(client.drives) == 1


def test_undo_names_the_last_word_once() -> None:
    person, client = console()
    person.status = STATUS
    person.key("u", True, 0)
    person.key("u", False, 0)
    assert not client.events and "nothing to undo" in person.line(0)
    for key in ("enter", "r", "u"):
        person.key(key, True, 0)
        person.key(key, False, 0)
    assert client.events[-1].undo_of == client.events[0].event_id
    person.key("u", True, 0)
    assert len(client.events) == 3


def test_a_refusal_is_shown_with_its_reason() -> None:
    person, client = console()
    person.status = STATUS
    client.replies = [EventReply("x", False, "no episode is running")]
    person.pump(0)
    assert "refused: no episode is running" in person.line(0)


def test_a_pending_success_is_shown_with_the_time_that_is_left_to_deny_it() -> None:
    person, client = console()
    person.status = replace(STATUS, veto_left_s=0.6)
    assert "SUCCESS in 0.6 s unless denied (1)" in person.line(0)
    person.key("1", True, 0)
    assert [e.kind for e in client.events] == [EventKind.FALSE_POSITIVE]


def test_h_accepts_an_offered_classifier_and_is_no_word_that_undo_takes_back() -> None:
    person, client = console()
    person.status = STATUS
    for key in ("h", "u"):
        person.key(key, True, 0)
        person.key(key, False, 0)
    assert [e.kind for e in client.events] == [EventKind.ACCEPT_CLASSIFIER]


def test_a_silent_runtime_is_said_to_be_silent() -> None:
    person, _ = console()
    assert "waiting for the runtime" in person.line(0)
    person.status = STATUS
    assert "episode 7" in person.line(0)
    assert "waiting for the runtime" in person.line(2_000 * MS)


def test_desktop_keys_mean_nothing_until_turned_on_but_the_stop_key_always_does() -> None:
    person, client = console(KeySource.PYNPUT)
    person.key("d", True, 0)
    person.key("enter", True, 0)
    assert not client.commands and not client.events
    person.key("esc", True, 0)
    assert client.commands == [BusAction.ESTOP]
    person.key("f12", True, 0)
    person.key("enter", True, 0)
    assert [e.kind for e in client.events] == [EventKind.SUCCESS]
