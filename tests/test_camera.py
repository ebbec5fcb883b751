"""Cameras publish the newest prepared picture, and a lost or frozen one comes back by itself."""

import io
import itertools
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq

from steadyhand_models import messages as m
from steadyhand_models import settings, task, topics, wire
from steadyhand_models.settings import SettingsError
from steadyhand_runtime import camera as camera_module
from steadyhand_runtime import config
from steadyhand_runtime.camera import CameraError, CameraThread, decoded, matched, serve
from steadyhand_runtime.config import CameraDevice, RuntimeSettings
from steadyhand_runtime.telemetry import Log

DEADLINE_S = 15.0
FRONT = task.load("lift").contract().cameras[0]
DEVICE = CameraDevice("front", "/dev/video-test")
WIDTH, HEIGHT = FRONT.native_px


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


class Wire:
    """What a camera thread publishes, decoded."""

    def __init__(self):
        self.frames: list[m.Frame] = []

    def send(self, data, _flags):
        self.frames.append(wire.decode(data, m.Frame))


def until(condition):
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.005)


def record(path, size=(WIDTH, HEIGHT), frames=12, rate=20):
    """A small video whose frame k is one flat shade of red, brighter with k."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for k in range(frames):
            flat = np.zeros((size[1], size[0], 3), np.uint8)
            flat[..., 0] = 60 + 12 * k
            for packet in stream.encode(av.VideoFrame.from_ndarray(flat, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)


def test_a_picture_is_prepared_stamped_and_numbered():
    sink, now = Wire(), [5]
    thread = CameraThread(DEVICE, FRONT, sink, Log(io.StringIO()), now_ns=lambda: now[0])
    thread.take(picture(1))
    now[0] = 9
    thread.take(picture(2))
    first, second = sink.frames
    assert (first.camera, first.seq, first.stamp_ns, second.seq, second.stamp_ns) == ("front", 0, 5, 1, 9)
    assert first.pixels.shape == (FRONT.size_px[1], FRONT.size_px[0], 3)


def test_a_picture_of_another_size_than_the_task_says_is_refused():
    thread = CameraThread(DEVICE, FRONT, Wire(), Log(io.StringIO()))
    with pytest.raises(ValueError, match="camera front: expected uint8"):
        thread.take(np.zeros((480, 640, 3), np.uint8))


def test_a_device_that_repeats_itself_counts_as_frozen():
    now = [0]
    thread = CameraThread(DEVICE, FRONT, Wire(), Log(io.StringIO()), now_ns=lambda: now[0])
    for now_s, seed in ((0.0, 1), (1.9, 1), (2.0, 2), (3.9, 2)):
        now[0] = int(now_s * 1e9)
        thread.take(picture(seed))
    now[0] = int(4.1e9)
    with pytest.raises(CameraError, match="frozen"):
        thread.take(picture(2))


def test_a_lost_camera_is_logged_and_reopened_until_it_comes_back(monkeypatch):
    monkeypatch.setattr(camera_module, "REOPEN_S", 0.01)
    attempts = itertools.count()

    def pictures(_device, _camera):
        attempt = next(attempts)
        if attempt in (1, 2):
            raise CameraError("no such device")
        if attempt == 3:
            yield np.zeros((10, 10, 3), np.uint8)
        for k in range(3):
            yield picture(10 * attempt + k)
        if attempt == 4:
            assert waiting.wait(DEADLINE_S)

    out, sink, waiting = io.StringIO(), Wire(), threading.Event()
    thread = CameraThread(DEVICE, FRONT, sink, Log(out), pictures)
    thread.start()
    until(lambda: len(sink.frames) == 6)
    waiting.set()
    assert thread.stop(DEADLINE_S)
    assert [f.seq for f in sink.frames[:6]] == list(range(6))
    assert thread.reopened >= 4
    assert 'camera.lost.front device=/dev/video-test reason="the stream ended"' in out.getvalue()


def test_a_video_file_plays_in_colour_at_its_own_pace(tmp_path):
    record(tmp_path / "clip.mkv", frames=6, rate=50)
    start_s = time.monotonic()
    shown = list(decoded(CameraDevice("front", str(tmp_path / "clip.mkv"), format=""), FRONT))
    assert time.monotonic() - start_s >= 5 / 50
    reds = [int(p[..., 0].mean()) for p in shown]
    assert len(shown) == 6 and reds == sorted(reds) and reds[-1] - reds[0] > 40
    assert all(p[..., 2].mean() < 30 for p in shown)


@pytest.mark.parametrize("content", [None, b"this is no video" * 100, b""])
def test_a_missing_or_foreign_file_is_a_camera_error(tmp_path, content):
    path = tmp_path / "clip.mkv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CameraError):
        list(decoded(CameraDevice("front", str(path), format=""), FRONT))


def test_a_missing_video_device_is_a_camera_error():
    with pytest.raises(CameraError):
        list(decoded(CameraDevice("front", "/dev/no-camera-here"), FRONT))


def test_devices_must_be_those_of_the_task():
    front, wrist = CameraDevice("front", "a"), CameraDevice("wrist", "b")
    assert [d.device for d, _ in matched(RuntimeSettings(cameras=(wrist, front)))] == ["a", "b"]
    for wrong in ((front,), (front, front), (front, replace(wrist, name="top"))):
        with pytest.raises(SettingsError, match="every camera of the task one device"):
            matched(RuntimeSettings(cameras=wrong))


def test_a_camera_that_hangs_in_its_driver_makes_the_process_start_over(tmp_path, monkeypatch):
    monkeypatch.setattr(camera_module, "STUCK_S", 0.05)
    monkeypatch.setattr(camera_module, "READ_TIMEOUT_S", 0.05)
    monkeypatch.setattr(camera_module, "REOPEN_S", 0.05)
    released = threading.Event()

    class Hanging(CameraThread):
        def __init__(self, device, camera, socket, log):
            def hang(_device, _camera):
                released.wait(DEADLINE_S)
                yield from ()

            super().__init__(device, camera, socket, log, hang)

    monkeypatch.setattr(camera_module, "CameraThread", Hanging)
    clips = tuple(CameraDevice(name, "none") for name in ("front", "wrist"))
    chosen = RuntimeSettings(run=tmp_path, sockets=str(tmp_path / "s"), cameras=clips)
    chosen.paths.prepare()
    out = io.StringIO()
    assert serve(chosen, Log(out), threading.Event()) == 1
    assert "camera.stuck" in out.getvalue()
    released.set()


def test_the_process_publishes_every_camera_over_its_socket(tmp_path):
    clip = tmp_path / "clip.mkv"
    record(clip, frames=12)
    chosen = RuntimeSettings(
        run=tmp_path / "run",
        sockets=str(tmp_path / "s"),
        cameras=tuple(CameraDevice(name, str(clip), format="") for name in ("front", "wrist")),
    )
    chosen.paths.prepare()
    path = tmp_path / "runtime.toml"
    path.write_text(settings.to_toml(chosen))
    process = subprocess.Popen(
        [sys.executable, "-m", "steadyhand_runtime.camera", "--config", str(path)], stderr=subprocess.PIPE, text=True
    )
    context = zmq.Context()
    try:
        for name in ("front", "wrist"):
            socket = context.socket(zmq.SUB)
            socket.linger = 0
            socket.conflate = 1
            socket.subscribe(b"")
            socket.connect(
                topics.endpoint(Path(config.socket_folder(chosen.sockets, chosen.run)), "camera.frame", name)
            )
            assert socket.poll(DEADLINE_S * 1000)
            frame = wire.decode(socket.recv(), m.Frame)
            assert frame.camera == name and frame.pixels[..., 0].mean() > 40
            socket.close()
        process.terminate()
        _, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0 and "Traceback" not in err
    finally:
        process.kill()
        context.term()
