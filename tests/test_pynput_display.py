"""pynput's keys on a real X display: downs and ups as a person's fingers make them."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.skipif(
    not (shutil.which("Xvfb") and shutil.which("xdotool") and importlib.util.find_spec("pynput")),
    reason="needs Xvfb, xdotool and pynput",
)
LISTENER = """
import sys
from steadyhand_runtime.operator.pynput_keys import PynputKeys
with PynputKeys() as keys:
    keys._listener.wait()
    print("ready", flush=True)
    while True:
        for name, down in keys.read(1.0):
            print(name, "down" if down else "up", flush=True)
"""


@pytest.fixture
def display() -> Iterator[str]:
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "64x64x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    with os.fdopen(reading) as answer:
        number = answer.readline().strip()
    assert number, "Xvfb did not start"
    yield f":{number}"
    server.terminate()
    server.wait(10)


def test_held_and_released_keys_are_heard_in_order(display: str) -> None:
    env = {k: v for k, v in os.environ.items() if k != "XDG_SESSION_TYPE"} | {"DISPLAY": display}
    listener = subprocess.Popen([sys.executable, "-c", LISTENER], env=env, stdout=subprocess.PIPE, text=True)
    assert listener.stdout is not None
    try:
        assert listener.stdout.readline() == "ready\n"
        subprocess.run(["xdotool", "keydown", "w", "keydown", "Up", "keyup", "w", "keyup", "Up"], env=env, check=True)
        subprocess.run(["xdotool", "key", "space", "1"], env=env, check=True)
        heard = [listener.stdout.readline().strip() for _ in range(8)]
    finally:
        listener.kill()
        listener.wait()
    assert heard == ["w down", "up down", "w up", "up up", "space down", "space up", "1 down", "1 up"]
