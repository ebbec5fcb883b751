"""How the doctor looks at a host: one thin probe for each kind of facts, none of which changes anything."""

from __future__ import annotations

import ctypes
import getpass
import glob
import grp
import os
import platform
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from steadyhand_models import task
from steadyhand_runtime import camera, clock
from steadyhand_runtime import doctor_checks as facts
from steadyhand_runtime.config import CameraDevice, RuntimeSettings

WRITE_BYTES = 32 << 20
CAMERA_S = 2.0
PR_GET_TIMERSLACK = 30  # linux/prctl.h
STA_UNSYNC = 0x40  # linux/timex.h
MCL_CURRENT = 1  # sys/mman.h
SUBPROCESS_S = 60.0
# y = x, one float: the smallest model that makes a session.
IDENTITY = bytes.fromhex(
    "080a12003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a001011"
)
SESSION = """
import sys, onnxruntime as ort
claimed = ort.get_available_providers()
wanted = [p for p in claimed if p in ("CUDAExecutionProvider", "CPUExecutionProvider")]
session = ort.InferenceSession(bytes.fromhex(sys.argv[1]), providers=wanted)
print(" ".join(claimed), "|", " ".join(session.get_providers()))
"""


def python(_: RuntimeSettings) -> facts.PythonFacts:
    return facts.PythonFacts(sys.version_info[:2], struct.calcsize("P") * 8)


def inference(_: RuntimeSettings) -> facts.InferenceFacts:
    """A session in a process of its own: a broken driver may end it."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    gpus = len(glob.glob("/dev/nvidia[0-9]*")) + os.path.exists("/dev/nvhost-gpu")
    if not found:
        return facts.InferenceFacts((), (), (), gpus)
    command = [sys.executable, "-c", SESSION, IDENTITY.hex()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SUBPROCESS_S)
    except subprocess.TimeoutExpired:
        return facts.InferenceFacts(tuple(found), (), (), gpus, "no session within a minute")
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no word"]
        return facts.InferenceFacts(tuple(found), (), (), gpus, said[-1][:200])
    claimed, obtained = done.stdout.strip().splitlines()[-1].split("|")
    return facts.InferenceFacts(tuple(found), tuple(claimed.split()), tuple(obtained.split()), gpus)


def realtime(chosen: RuntimeSettings) -> facts.RealtimeFacts:
    """Tried in a thread that ends, so that nothing of it stays."""
    said: list[str] = []
    fifo: list[bool] = []

    def ask_for_priority() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(chosen.bus.realtime_priority))
            fifo.append(True)
        except (AttributeError, OSError, ValueError) as error:
            said.append(f"SCHED_FIFO {chosen.bus.realtime_priority}: {error}")

    thread = threading.Thread(target=ask_for_priority)
    thread.start()
    thread.join()
    locked = False
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None, use_errno=True)
        locked = libc.mlockall(MCL_CURRENT) == 0
        if locked:
            libc.munlockall()
        else:
            said.append(f"mlockall: {os.strerror(ctypes.get_errno())}")
    return facts.RealtimeFacts(bool(fifo), locked, "; ".join(said), getpass.getuser())


def kernel(_: RuntimeSettings) -> facts.KernelFacts:
    named = re.search(r"PREEMPT(_RT|_DYNAMIC)?", platform.version())
    return facts.KernelFacts(f"{platform.system()} {platform.release()}", named.group() if named else "")


def cpu(_: RuntimeSettings) -> facts.CpuFacts:
    files = glob.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    return facts.CpuFacts(clock.available_cores(), tuple(Path(f).read_text().strip() for f in files))


def timers(_: RuntimeSettings) -> facts.TimerFacts:
    slack = ctypes.CDLL(None).prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0) if sys.platform.startswith("linux") else None
    return facts.TimerFacts(time.get_clock_info("monotonic").resolution, slack)


class _Timex(ctypes.Structure):
    """struct timex up to `status`, with room for the rest (adjtimex(2))."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    ]


def wall_clock(_: RuntimeSettings) -> facts.ClockFacts:
    if not sys.platform.startswith("linux"):
        return facts.ClockFacts(None)
    now = _Timex()
    if ctypes.CDLL(None).adjtimex(ctypes.byref(now)) < 0:
        return facts.ClockFacts(None)
    return facts.ClockFacts(not now.status & STA_UNSYNC, now.maxerror / 1e6)


def serial(chosen: RuntimeSettings) -> facts.SerialFacts:
    names = {*glob.glob("/dev/ttyACM*"), *glob.glob("/dev/ttyUSB*")}
    if os.path.exists(chosen.bus.port):
        names.add(chosen.bus.port)
    ports = [facts.SerialPortFacts(n, os.access(n, os.R_OK | os.W_OK), _group(n)) for n in sorted(names)]
    by_id = bool(glob.glob("/dev/serial/by-id/*"))
    return facts.SerialFacts(tuple(ports), by_id or not any(n.startswith("/dev/tty") for n in names), getpass.getuser())


def _group(path: str) -> str:
    try:
        return grp.getgrgid(os.stat(path).st_gid).gr_name
    except (KeyError, OSError):
        return "dialout"


def cameras(chosen: RuntimeSettings) -> list[facts.CameraFacts]:
    """The settings' cameras, or every V4L2 device where they name none; each is watched for a moment."""
    if chosen.cameras:
        return [_watched(device, native) for device, native in camera.matched(chosen)]
    some = task.load(chosen.task).contract().cameras[0]
    devices = [CameraDevice(Path(path).name, path) for path in sorted(glob.glob("/dev/video*"))]
    return [_watched(device, some) for device in devices]


def _watched(device: CameraDevice, native: camera.contract.Camera) -> facts.CameraFacts:
    count, start_s = 0, time.monotonic()
    try:
        for _ in camera.decoded(device, native):
            start_s = time.monotonic() if not count else start_s
            count += 1
            if time.monotonic() - start_s > CAMERA_S:
                break
    except (camera.CameraError, ImportError) as error:
        return facts.CameraFacts(device.name, device.device, 0.0, device.rate_hz, str(error))
    if count < 2:
        return facts.CameraFacts(device.name, device.device, 0.0, device.rate_hz, "no pictures came")
    rate_hz = (count - 1) / (time.monotonic() - start_s)
    return facts.CameraFacts(device.name, device.device, rate_hz, device.rate_hz)


def disk(chosen: RuntimeSettings) -> facts.DiskFacts:
    """Writes and syncs a file in the nearest folder that exists, and removes it."""
    folder = chosen.run.absolute()
    while not folder.exists():
        folder = folder.parent
    block = os.urandom(1 << 20)
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            start_s = time.monotonic()
            for _ in range(min(WRITE_BYTES, free // 4) // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            written, took_s = file.tell(), max(time.monotonic() - start_s, 1e-6)
    except OSError as error:
        return facts.DiskFacts(str(folder), 0, 0.0, error.strerror or str(error))
    return facts.DiskFacts(str(folder), free, written / took_s)


def addresses(chosen: RuntimeSettings) -> list[facts.PortFacts]:
    if not chosen.metrics.port:
        return []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", chosen.metrics.port))
            free = True
        except OSError:
            free = False
    return [facts.PortFacts("metrics.port", f"127.0.0.1:{chosen.metrics.port}", free)]


def graphics(_: RuntimeSettings) -> facts.GraphicsFacts:
    from steadyhand_runtime.sim import eye
    from steadyhand_runtime.sim.scene import SimError

    try:
        eye.import_mujoco()
        return facts.GraphicsFacts(eye.gl_name())
    except SimError as error:
        return facts.GraphicsFacts("", str(error))
