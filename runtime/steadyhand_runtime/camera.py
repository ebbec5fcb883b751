"""Real cameras: one thread per device decodes, prepares and publishes pictures, and reopens a device that is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq

from steadyhand_models import contract, frames, task, wire
from steadyhand_models.cli import UserError
from steadyhand_models.messages import Frame
from steadyhand_models.settings import SettingsError
from steadyhand_models.topics import endpoint
from steadyhand_runtime import config
from steadyhand_runtime.config import CameraDevice
from steadyhand_runtime.liveness import Beat
from steadyhand_runtime.telemetry import Log, StatFile

U8 = npt.NDArray[np.uint8]
Pictures = Callable[[CameraDevice, contract.Camera], Iterator[U8]]

OPEN_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 2.0
REOPEN_S = 1.0
FROZEN_S = 2.0  # sensors are noisy: the same picture for this long is a camera that hangs
STUCK_S = 15.0  # a thread that neither delivers nor fails hangs in the driver; only a new process helps


class CameraError(Exception):
    """A device that gives no usable pictures; the message says why."""


def decoded(device: CameraDevice, camera: contract.Camera) -> Iterator[U8]:
    """RGB pictures (H, W, 3) of a device or file as they are decoded; a file plays at its own pace, once.

    Raises CameraError.
    """
    import av

    width, height = camera.native_px
    options = {"video_size": f"{width}x{height}", "framerate": f"{device.rate_hz:g}"} if device.format else {}
    paced = os.path.isfile(device.device)
    try:
        with av.open(
            device.device, format=device.format or None, options=options, timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S)
        ) as container:
            if not container.streams.video:
                raise CameraError("there is no video in it")
            start_s = time.monotonic()
            for picture in container.decode(video=0):
                if paced:
                    time.sleep(max(0.0, start_s + (picture.time or 0.0) - time.monotonic()))
                yield picture.to_ndarray(format="rgb24")
    except (OSError, ValueError) as error:  # what av raises are subclasses of these
        raise CameraError(str(error)) from None


class CameraThread:
    """Keeps one camera's newest prepared picture published, whatever happens to the device."""

    def __init__(
        self,
        device: CameraDevice,
        camera: contract.Camera,
        socket: zmq.Socket[bytes],
        log: Log,
        pictures: Pictures = decoded,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.camera = camera
        self.published = 0
        self.reopened = 0
        self.alive_ns = now_ns()  # when the device last delivered or failed
        self._device, self._socket, self._log = device, socket, log
        self._pictures, self._now_ns = pictures, now_ns
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera-{camera.name}", daemon=True)
        self._last: U8 | None = None
        self._changed_ns = now_ns()

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ask the thread to end; false when it hangs in the driver."""
        self._stop.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._changed_ns = self._now_ns()
                for picture in self._pictures(self._device, self.camera):
                    if self._stop.is_set():
                        return
                    self.take(picture)
                raise CameraError("the stream ended")
            except (CameraError, ValueError) as error:  # ValueError: a picture that is not what the task says
                self._failed(error)
            self._stop.wait(REOPEN_S)

    def take(self, picture: U8) -> None:
        """Prepare and publish one picture. Raises CameraError on a frozen device, ValueError on a wrong size."""
        now_ns = self._now_ns()
        pixels = frames.prepare(picture, self.camera)
        if self._last is None or not np.array_equal(picture, self._last):
            self._changed_ns = now_ns
        elif now_ns - self._changed_ns > FROZEN_S * 1e9:
            raise CameraError(f"frozen: the same picture for {FROZEN_S:g} s")
        self._last = picture
        self.alive_ns = now_ns
        self._socket.send(wire.encode(Frame(self.camera.name, self.published, now_ns, pixels)), zmq.NOBLOCK)
        self.published += 1

    def _failed(self, error: Exception) -> None:
        self.alive_ns = self._now_ns()
        self.reopened += 1
        self._log.warn(
            f"camera.lost.{self.camera.name}",
            every_s=10.0,
            device=self._device.device,
            reason=error,
            next="reopened until it comes back",
        )


def matched(settings: config.RuntimeSettings) -> list[tuple[CameraDevice, contract.Camera]]:
    """Each camera of the task with its device. Raises SettingsError when they are not the same cameras."""
    wanted = {c.name: c for c in task.load(settings.task).contract().cameras}
    given = {d.name: d for d in settings.cameras}
    if wanted.keys() != given.keys() or len(given) != len(settings.cameras):
        raise SettingsError(
            f"cameras: task {settings.task} sees through {', '.join(wanted)}, but the settings name "
            f"{', '.join(d.name for d in settings.cameras) or 'none'}; give every camera of the task one device"
        )
    return [(given[name], camera) for name, camera in wanted.items()]


def serve(settings: config.RuntimeSettings, log: Log, stop: threading.Event) -> int:
    """Publish every camera until `stop`; 1 when a device hangs so that only a new process can help."""
    folder = config.private_folder(settings.socket_folder)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets = []
    threads = []
    for device, camera in matched(settings):
        socket = context.socket(zmq.PUB)
        socket.setsockopt(zmq.SNDHWM, 2)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(endpoint(folder, "camera.frame", camera.name))
        sockets.append(socket)
        threads.append(CameraThread(device, camera, socket, log))
    for thread in threads:
        thread.start()
    stats = StatFile(settings.paths.edge / "camera.json", 2.0, log)
    stuck = False
    beat = Beat()
    while not stuck and not stop.wait(0.2):
        beat()
        now_ns = time.monotonic_ns()
        if stats.due(now_ns):
            stats.write({t.camera.name: {"published": t.published, "reopened": t.reopened} for t in threads}, now_ns)
        for thread in threads:
            if now_ns - thread.alive_ns > STUCK_S * 1e9:
                log.error("camera.stuck", camera=thread.camera.name, for_s=STUCK_S, next="the process starts over")
                stuck = True
    hanging = [thread for thread in threads if not thread.stop(READ_TIMEOUT_S + REOPEN_S)]
    if hanging:
        return 1  # a socket in use by a hanging thread must not be closed
    for socket in sockets:
        socket.close()
    context.term()
    return int(stuck)


def main(argv: Sequence[str]) -> int:
    """The camera process."""
    settings = config.from_child_arguments(argv, "steadyhand_runtime.camera")
    stop = threading.Event()

    def on_signal(*_: Any) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    Path(settings.paths.edge).mkdir(parents=True, exist_ok=True)
    return serve(settings, Log(), stop)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (UserError, SettingsError) as error:
        sys.exit(f"camera: {error}")
