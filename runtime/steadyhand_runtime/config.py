"""Settings of the processes beside the arm, and where a run keeps its files and sockets."""

from __future__ import annotations

import argparse
import enum
import hashlib
import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from steadyhand_models import settings
from steadyhand_models.cli import UserError
from steadyhand_models.reward import RewardSource
from steadyhand_runtime.engine import Provider

MAX_SOCKET_FOLDER_CHARS = 79  # a socket's path is limited to 107 bytes, and topic names take up to 28


@dataclass(frozen=True)
class BusSettings:
    """The servo bus."""

    port: str = "/dev/ttyACM0"  # serial port of the arm; a simulated one prints its name
    baud: Annotated[int, Field(ge=38_400, le=1_000_000)] = 1_000_000
    rate_hz: Annotated[float, Field(gt=0, le=500)] = 100.0  # refused at the start when the wire cannot carry it
    torque: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of each joint's cap; less for an arm not trusted yet
    slow_every: Annotated[int, Field(ge=2, le=1000)] = 20  # cycles from one look at temperature and current to the next
    calibration: Path | None = None  # a calibration file in LeRobot's format; without one, mid-travel is 0 rad
    realtime_priority: Annotated[int, Field(ge=1, le=99)] = 50


@dataclass(frozen=True)
class ControlSettings:
    """The control loop; its rate is the task's."""

    exploration: Annotated[float, Field(ge=0, le=2)] = 1.0  # scales the policy's own noise; 0 is its mean action
    reward_source: RewardSource = RewardSource.HYBRID  # who may end an episode as a success
    terminate_on_success: bool = True  # false: a success that the classifier sees ends nothing; as the trainer's reward
    # 0 commits at once: a window costs every true success its steps, and a flag after the end corrects just as well.
    veto_window_s: Annotated[float, Field(ge=0, le=10)] = 0.0  # in which a person may deny a declared success
    collect_hold_steps: Annotated[int, Field(ge=0, le=200)] = 30  # recorded after a demonstration's success key
    seed: Annotated[int, Field(ge=0)] = 0
    realtime_priority: Annotated[int, Field(ge=1, le=99)] = 40
    providers: tuple[Provider, ...] = (Provider.AUTO,)  # or those to try, best first: ["cuda", "cpu"]
    encoder_providers: tuple[Provider, ...] = (Provider.AUTO,)  # of a frozen encoder; it may have "tensorrt" as well
    threads: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = "auto"  # of inference; auto: 1 or 2, as measured
    shadow_calls: Annotated[int, Field(ge=0, le=1000)] = 10  # that a new model answers beside the present one; 0: none
    shadow_far: Annotated[float, Field(ge=0, le=2)] = (
        1.5  # mean difference of actions, of 2, that is absurd in every call
    )
    probation_calls: Annotated[int, Field(ge=0, le=10_000)] = (
        30  # first calls in which being slow costs a model its place
    )


@dataclass(frozen=True)
class LinkSettings:
    """The way to the trainer."""

    address: str = "tcp://127.0.0.1:5570"  # where the trainer listens
    edge: Annotated[str, Field(min_length=1, max_length=64)] = "edge"  # this robot's name at the trainer
    drain_s: Annotated[float, Field(ge=0, le=600)] = 5.0  # how long a stop waits for the trainer's last acknowledgement
    keep_models: Annotated[int, Field(ge=2)] = 32  # versions per channel kept on this machine
    trusted_keys: tuple[str, ...] = ()  # public keys (`steadyhand keys show`) whose artifacts are used; empty: any


@dataclass(frozen=True)
class CameraDevice:
    """One camera of the task and what to open for it: a V4L2 device, or any address or file that FFmpeg reads."""

    name: str
    device: str
    format: str = "v4l2"  # FFmpeg's input format; empty to detect it
    rate_hz: Annotated[float, Field(gt=0, le=240)] = 30.0


class Affinity(str, enum.Enum):
    """Which cores the loops run on."""

    OFF = "off"
    AUTO = "auto"  # the bus has one of its own where there are three or more


@dataclass(frozen=True)
class RealtimeSettings:
    """How the loops share the machine."""

    affinity: Affinity = Affinity.OFF  # measured on two cores: a core of its own did not help beside SCHED_FIFO


@dataclass(frozen=True)
class MetricsSettings:
    """The Prometheus endpoint of the daemon, on the loopback only."""

    port: Annotated[int, Field(ge=0, le=65_535)] = 0  # 0: none


@dataclass(frozen=True)
class RuntimeSettings:
    """What `steadyhand runtime` needs to know. `cameras` stays empty where a simulation publishes the pictures."""

    run: Path = Path("runs/latest")  # folder of everything that this run writes
    sockets: str = ""  # folder of the socket files; empty: derived from the run folder
    task: str = "lift"  # one that ships, or a .toml file
    bus: BusSettings = field(default_factory=BusSettings)
    control: ControlSettings = field(default_factory=ControlSettings)
    link: LinkSettings = field(default_factory=LinkSettings)
    realtime: RealtimeSettings = field(default_factory=RealtimeSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    cameras: tuple[CameraDevice, ...] = ()

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.run)

    @property
    def run_id(self) -> str:
        """The run's name in every record: its folder's."""
        return self.run.resolve().name

    @property
    def socket_folder(self) -> Path:
        return socket_folder(self.sockets, self.run)


@dataclass(frozen=True)
class RunPaths:
    """Where a run keeps what the edge writes."""

    root: Path

    @property
    def settings(self) -> Path:
        return self.root / "settings"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def edge(self) -> Path:
        return self.root / "edge"

    @property
    def spool(self) -> Path:
        return self.edge / "spool.sqlite"

    @property
    def faults(self) -> Path:
        """The bus's traffic before each fault."""
        return self.edge / "faults"

    @property
    def models(self) -> Path:
        return self.edge / "models"

    @property
    def truth(self) -> Path:
        return self.root / "truth.csv"

    def prepare(self) -> None:
        """Make the folders. Raises UserError when the run folder cannot be written."""
        try:
            for folder in (self.settings, self.logs, self.models):
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.edge):
                pass
        except OSError as error:
            raise UserError(
                f"{self.root}: the run folder cannot be written ({error.strerror}): "
                f"choose another one with --run, or make it yours"
            ) from None


def socket_folder(chosen: str, run: Path) -> Path:
    """The folder of the socket files: the chosen one, else one that every process of this run derives alike.

    Raises SettingsError when the chosen one is too long for a socket's address.
    """
    if chosen:
        folder = Path(chosen)
        if len(str(folder)) > MAX_SOCKET_FOLDER_CHARS:
            limit = MAX_SOCKET_FOLDER_CHARS
            raise settings.SettingsError(
                f"sockets: {folder} is longer than {limit} characters; choose a shorter folder"
            )
        return folder
    digest = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"steadyhand-{os.getuid()}-{digest}"


def private_folder(folder: Path) -> Path:
    """Make a folder that only this user may enter. Raises UserError when somebody else's stands there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise UserError(f"{folder}: belongs to somebody else; choose another folder with --sockets")
        folder.chmod(0o700)
    except OSError as error:
        raise UserError(f"{folder}: cannot hold sockets ({error.strerror}); choose another with --sockets") from None
    return folder


def from_child_arguments(argv: Sequence[str], prog: str) -> RuntimeSettings:
    """Settings of one of the daemon's processes, which are all started with `--config FILE`. Raises SettingsError."""
    parser = argparse.ArgumentParser(prog=prog, description="One process of `steadyhand runtime`.")
    parser.add_argument("--config", type=Path, required=True, help="the same runtime.toml for every process")
    return settings.load(RuntimeSettings, parser.parse_args(list(argv)).config)
