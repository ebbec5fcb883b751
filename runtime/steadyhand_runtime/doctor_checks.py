"""What the doctor judges: facts about a host, and the pure verdict on each with how to mend what it finds."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

GIB = 1 << 30
FREE_FAIL_BYTES = GIB // 2
FREE_WARN_BYTES = 20 * GIB  # a day of raw steps at 10 Hz is about 24 GB where no trainer takes them
WRITE_WARN_BYTES_S = 20e6  # ten times what a robot records with two 128 px cameras
RESOLUTION_WARN_S = 1e-6
TIMER_SLACK_DEFAULT_NS = 50_000  # what Linux gives; the processes lower it to 1 ns themselves
RATE_SHARE = 0.8  # of the rate that a camera was asked for
LIMITS = "/etc/security/limits.d/steadyhand.conf"


class Grade(str, enum.Enum):
    """How a finding matters: FAIL keeps the robot from working, WARN makes it work worse."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found, how it matters, and how to mend it."""

    grade: Grade
    found: str
    fix: str = ""


def ok(found: str) -> Verdict:
    return Verdict(Grade.OK, found)


def warn(found: str, fix: str) -> Verdict:
    return Verdict(Grade.WARN, found, fix)


def fail(found: str, fix: str) -> Verdict:
    return Verdict(Grade.FAIL, found, fix)


@dataclass(frozen=True, slots=True)
class PythonFacts:
    version: tuple[int, int]
    bits: int


def python(facts: PythonFacts) -> Verdict:
    found = f"{facts.version[0]}.{facts.version[1]}, {facts.bits} bit"
    if not (3, 10) <= facts.version < (3, 14) or facts.bits != 64:
        return fail(found, "install a 64 bit Python 3.10 to 3.13 and make the environment anew with it")
    return ok(found)


@dataclass(frozen=True, slots=True)
class InferenceFacts:
    """Installed onnxruntime distributions as "name version", what it claims, and what a session really got."""

    distributions: tuple[str, ...]
    claimed: tuple[str, ...]
    obtained: tuple[str, ...]
    gpus: int
    problem: str = ""


def onnxruntime(facts: InferenceFacts) -> Verdict:
    if not facts.distributions:
        return fail("not installed", "pip install 'steadyhand[edge]'; on a Jetson NVIDIA's own onnxruntime wheel")
    found = ", ".join(facts.distributions)
    if len(facts.distributions) > 1:
        return fail(
            f"{found} overwrite each other",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them again",
        )
    if facts.problem:
        return fail(f"{found}: {facts.problem}", "install it again; on a Jetson use NVIDIA's own wheel")
    return ok(found)


def providers(facts: InferenceFacts) -> Verdict:
    found = ", ".join(p.removesuffix("ExecutionProvider") for p in facts.obtained) or "none"
    gpu = [p for p in facts.obtained if p != "CPUExecutionProvider"]
    if not facts.obtained:
        return fail("no session could be made", "see the finding on onnxruntime")
    if facts.gpus and not gpu:
        return warn(
            f"{facts.gpus} GPU, but a session got only {found}",
            "install onnxruntime-gpu with the CUDA and cuDNN that it names; on a Jetson NVIDIA's own wheel",
        )
    return ok(found if gpu else f"{found} (no GPU here)")


@dataclass(frozen=True, slots=True)
class RealtimeFacts:
    """What this user was granted; `problem` is the system's word where it was not."""

    fifo: bool
    locked: bool
    problem: str
    user: str


def realtime(facts: RealtimeFacts) -> Verdict:
    missing = [name for name, got in (("SCHED_FIFO", facts.fifo), ("locked memory", facts.locked)) if not got]
    if not missing:
        return ok("SCHED_FIFO and locked memory")
    return warn(
        f"no {' and no '.join(missing)} ({facts.problem})",
        f"put `{facts.user} - rtprio 80` and `{facts.user} - memlock unlimited` into {LIMITS} and log in again; "
        "for a service LimitRTPRIO=80 and LimitMEMLOCK=infinity, as `steadyhand runtime --print-systemd-unit` writes",
    )


@dataclass(frozen=True, slots=True)
class KernelFacts:
    version: str
    preemption: str  # as the kernel's version line names it


def kernel(facts: KernelFacts) -> Verdict:
    found = f"{facts.version}, {facts.preemption or 'no preemption named'}"
    if facts.preemption in ("PREEMPT", "PREEMPT_RT", "PREEMPT_DYNAMIC"):
        return ok(found)
    return warn(found, "a kernel with PREEMPT_DYNAMIC or PREEMPT_RT wakes the loops more punctually")


@dataclass(frozen=True, slots=True)
class CpuFacts:
    cores: int
    governors: tuple[str, ...]  # of the cores that have one


def cpu(facts: CpuFacts) -> Verdict:
    kinds = sorted(set(facts.governors))
    found = f"{facts.cores} cores, governor {', '.join(kinds) or 'not settable'}"
    if facts.cores < 2:
        return warn(found, "the bus, the control loop and the cameras want two cores or more")
    if any(kind in ("powersave", "ondemand", "conservative") for kind in kinds):
        return warn(
            found,
            "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor (or `jetson_clocks`)",
        )
    return ok(found)


@dataclass(frozen=True, slots=True)
class TimerFacts:
    resolution_s: float
    slack_ns: int | None


def timers(facts: TimerFacts) -> Verdict:
    slack = "unknown" if facts.slack_ns is None else f"{facts.slack_ns / 1e3:g} us"
    found = f"monotonic resolution {facts.resolution_s * 1e9:g} ns, timer slack {slack}"
    if facts.resolution_s > RESOLUTION_WARN_S:
        return warn(found, "boot with a fine clock source (tsc, arch_sys_counter) and CONFIG_HIGH_RES_TIMERS")
    if facts.slack_ns is not None and facts.slack_ns > TIMER_SLACK_DEFAULT_NS:
        return warn(found, "something raised the timer slack of this session; the processes lower their own")
    return ok(found)


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """Whether the kernel's clock is disciplined; None where that cannot be known."""

    synchronised: bool | None
    error_s: float = 0.0


def clock(facts: ClockFacts) -> Verdict:
    if facts.synchronised is None:
        return ok("not known on this system")
    if not facts.synchronised:
        return warn(
            "not synchronised",
            "sudo timedatectl set-ntp true, or chrony: logs of two machines can then be compared; no loop needs it",
        )
    return ok(f"synchronised, within {facts.error_s * 1e3:.0f} ms")


@dataclass(frozen=True, slots=True)
class SerialPortFacts:
    name: str
    writable: bool
    group: str


@dataclass(frozen=True, slots=True)
class SerialFacts:
    ports: tuple[SerialPortFacts, ...]
    by_id: bool  # whether there are names that outlast replugging
    user: str


def serial(facts: SerialFacts) -> Verdict:
    if not facts.ports:
        return warn("no serial port", "plug the arm's adapter in and switch its power on; a simulated arm needs none")
    shut = [p for p in facts.ports if not p.writable]
    names = ", ".join(p.name for p in facts.ports)
    if shut:
        return fail(
            f"{', '.join(p.name for p in shut)}: not yours to open",
            f"sudo usermod -aG {shut[0].group} {facts.user}, then log in again; or a udev rule: "
            'SUBSYSTEM=="tty", ATTRS{idVendor}=="1a86", TAG+="uaccess" in /etc/udev/rules.d/60-so101.rules',
        )
    if not facts.by_id:
        return warn(f"{names}, without names that last", "give the port by its /dev/serial/by-id name; udev makes them")
    return ok(names)


@dataclass(frozen=True, slots=True)
class CameraFacts:
    """One device: the rate that was measured and asked for, or what went wrong."""

    name: str
    device: str
    rate_hz: float
    wanted_hz: float
    problem: str = ""


def cameras(facts: Sequence[CameraFacts]) -> Verdict:
    if not facts:
        return warn("no camera", "plug the cameras in, name them under [[cameras]]; a simulated robot brings its own")
    broken = [c for c in facts if c.problem]
    if broken:
        said = "; ".join(f"{c.name} {c.device}: {c.problem}" for c in broken)
        return fail(
            said,
            "check cable, format, size (v4l2-ctl --list-formats-ext), the video group, who else has it open",
        )
    found = ", ".join(f"{c.name} {c.device} {c.rate_hz:.0f} Hz" for c in facts)
    slow = [c for c in facts if c.rate_hz < RATE_SHARE * c.wanted_hz]
    if slow:
        wanted = ", ".join(f"{c.name} {c.wanted_hz:.0f} Hz" for c in slow)
        return warn(
            f"{found}; asked for {wanted}", "use MJPEG, one USB bus for each camera, more light or a shorter exposure"
        )
    return ok(found)


@dataclass(frozen=True, slots=True)
class DiskFacts:
    folder: str
    free_bytes: int
    write_bytes_s: float
    problem: str = ""


def disk(facts: DiskFacts) -> Verdict:
    if facts.problem:
        return fail(f"{facts.folder}: {facts.problem}", "choose another folder with --run, or make it yours")
    found = f"{facts.folder}: {facts.free_bytes / GIB:.1f} GiB free, writes {facts.write_bytes_s / 1e6:.0f} MB/s"
    if facts.free_bytes < FREE_FAIL_BYTES:
        return fail(found, "free some space, or choose another disk with --run")
    if facts.free_bytes < FREE_WARN_BYTES:
        return warn(found, "without a trainer a robot records about 1 GB an hour for each MB of a second's frames")
    if facts.write_bytes_s < WRITE_WARN_BYTES_S:
        return warn(found, "put the run folder on another disk: SD cards and network folders stall for seconds")
    return ok(found)


@dataclass(frozen=True, slots=True)
class PortFacts:
    """One address that the runtime wants to listen on."""

    what: str
    address: str
    free: bool


def addresses(facts: Sequence[PortFacts]) -> Verdict:
    taken = [f"{p.address} ({p.what})" for p in facts if not p.free]
    if taken:
        return fail(f"in use: {', '.join(taken)}", "stop what listens there, or choose another port in the settings")
    return ok(", ".join(f"{p.what} {p.address}" for p in facts) + " free" if facts else "none wanted")


@dataclass(frozen=True, slots=True)
class GraphicsFacts:
    """What the simulation would draw with; `problem` says why it cannot."""

    name: str
    problem: str = ""


def graphics(facts: GraphicsFacts) -> Verdict:
    if facts.problem:
        return warn(f"none for the simulation: {facts.problem}", "only the simulation needs it; a real robot does not")
    return ok(facts.name)
