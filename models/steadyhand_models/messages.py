"""Every message that crosses a process, as frozen dataclasses; `*_ns` are monotonic stamps of the edge's clock."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import numpy.typing as npt

from steadyhand_models.wire import Array

JOINTS = 6
F6 = Annotated[npt.NDArray[np.float64], Array("<f8", (JOINTS,))]
Bool6 = Annotated[npt.NDArray[np.bool_], Array("|b1", (JOINTS,))]
Int6 = Annotated[npt.NDArray[np.int64], Array("<i8", (JOINTS,))]
Vector = Annotated[npt.NDArray[np.float32], Array("<f4", (None,))]
Pixels = Annotated[npt.NDArray[np.uint8], Array("|u1", (None, None, 3))]
Frames = Annotated[npt.NDArray[np.uint8], Array("|u1", (None, None, None, 3))]


class Mode(str, enum.Enum):
    """What the control loop is doing."""

    IDLE = "idle"
    HOLD = "hold"
    POLICY = "policy"
    TAKEOVER = "takeover"
    RESET = "reset"
    FAULT = "fault"
    ESTOP = "estop"


class Source(str, enum.Enum):
    """Who chose a step's action; the last step of an episode has none."""

    POLICY = "policy"
    TAKEOVER = "takeover"
    DEMONSTRATION = "demonstration"
    NONE = "none"


class EndReason(str, enum.Enum):
    """Why an episode ended. Only SUCCESS and FAILURE are terminal; the others are bootstrapped."""

    SUCCESS = "success"
    FAILURE = "failure"
    TIMEOUT = "timeout"
    OPERATOR = "operator"
    FAULT = "fault"


class EventKind(str, enum.Enum):
    """What an operator can press. SUCCESS and FAILURE end an episode, or give the verdict on the one just ended."""

    TAKEOVER_BEGIN = "takeover_begin"
    TAKEOVER_END = "takeover_end"
    SUCCESS = "success"
    FAILURE = "failure"
    FALSE_POSITIVE = "false_positive"
    FALSE_NEGATIVE = "false_negative"
    ABORT = "abort"
    SCENE_READY = "scene_ready"
    ACCEPT_CLASSIFIER = "accept_classifier"  # with reward source manual: let the classifier end episodes too
    UNDO = "undo"


class LabelKind(str, enum.Enum):
    """A human's word. SUCCESS and FAILURE are about frames near the stamp, verdicts about a whole episode, reviews
    about the very frames that they name.
    """

    SUCCESS = "success"
    FAILURE = "failure"
    FALSE_POSITIVE = "false_positive"
    FALSE_NEGATIVE = "false_negative"
    VERDICT_SUCCESS = "verdict_success"
    VERDICT_FAILURE = "verdict_failure"
    UNDO = "undo"
    REVIEW_SUCCESS = "review_success"
    REVIEW_NONE = "review_none"


class BusAction(str, enum.Enum):
    """Acknowledged commands to the bus."""

    ARM = "arm"
    DISARM = "disarm"
    ESTOP = "estop"
    CLEAR = "clear"


class Channel(str, enum.Enum):
    """The kinds of artifact that are pushed to a robot. A frozen encoder comes with the models that name it."""

    POLICY = "policy"
    CLASSIFIER = "classifier"
    ENCODER = "encoder"


class SwapOutcome(str, enum.Enum):
    """What became of an artifact on the robot."""

    SWAPPED = "swapped"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True)
class BusState:
    """What the bus knows after one tick. Invalid joints hold their last good value, `age_s` old."""

    tick: int
    stamp_ns: int
    position_rad: F6
    velocity_rad_s: F6
    load: F6  # -1..1 of full duty
    valid: Bool6
    age_s: F6
    alarms: Int6  # status bits of the servo's last reply
    goal_rad: F6  # what was last sent to the servos
    armed: bool
    estopped: bool
    fault: str
    refusals: tuple[str, ...]  # reasons of this tick's guard, if any
    missed_ticks: int
    lateness_s: float
    late_p50_s: float
    late_p99_s: float
    temperature_c: F6
    voltage_v: F6
    current_a: F6
    goal_stamp_ns: int = 0  # of the newest goal that went to the servos, 0 before the first
    goal_written_ns: int = 0  # when it went to them


@dataclass(frozen=True)
class Goal:
    """Where the joints should go; the guard refuses it after `expires_ns`. `final` joint targets, not a step."""

    seq: int
    stamp_ns: int
    expires_ns: int
    position_rad: F6


@dataclass(frozen=True)
class BusCommand:
    command_id: int
    action: BusAction


@dataclass(frozen=True)
class CommandReply:
    command_id: int
    ok: bool
    reason: str


@dataclass(frozen=True)
class Frame:
    """One prepared picture of one camera."""

    camera: str
    seq: int
    stamp_ns: int
    pixels: Pixels


@dataclass(frozen=True)
class Drive:
    """An action of the contract's action space from whoever has the arm: operator, leader arm, script."""

    stamp_ns: int
    action: Vector
    neutral: bool  # true while the operator's input device is at rest


@dataclass(frozen=True)
class OperatorEvent:
    """A key press, acknowledged by `EventReply` and never dropped."""

    event_id: str
    kind: EventKind
    stamp_ns: int
    who: str
    device: str
    reaction_s: float  # this person's measured reaction time
    undo_of: str = ""


@dataclass(frozen=True)
class EventReply:
    event_id: str
    accepted: bool
    reason: str


@dataclass(frozen=True)
class Heartbeat:
    stamp_ns: int
    who: str


@dataclass(frozen=True)
class Step:
    """One control tick, written when its outcome is known. The last of an episode has `end` and no action.

    `frames` and `state` are what was observed before the action; `classifier` holds each head's probability on these
    frames. There is no reward and no label: those are computed, and change.
    """

    run: str
    episode: int
    seq: int
    tick: int
    stamp_ns: int
    contract: str
    frames: Frames
    state: Vector
    proposed: Vector | None
    executed: Vector | None
    source: Source
    reasons: tuple[str, ...]
    classifier: Vector | None
    policy_version: int
    classifier_version: int
    frame_age_s: float
    state_age_s: float
    end: EndReason | None


@dataclass(frozen=True)
class Label:
    """A human's word on an episode, as a record of its own on the stream of steps."""

    event_id: str
    kind: LabelKind
    stamp_ns: int
    who: str
    device: str
    reaction_s: float
    run: str
    episode: int
    contradicts: int  # classifier version in force
    undo_of: str = ""
    steps: tuple[int, ...] = ()  # places in the episode of the frames a review is about, or that fired
    about: str = ""  # the edge whose episode it is about, where another one sends it
    said_unix_s: float = 0.0  # when it was said, where `stamp_ns` is the frame's


@dataclass(frozen=True)
class Swap:
    """What became of an artifact on the robot, recorded with the steps: `tick` is its first control tick."""

    channel: Channel
    version: int
    previous: int
    outcome: SwapOutcome
    reason: str
    tick: int
    stamp_ns: int
    build_s: float
    missed_ticks: int  # control ticks missed between staging and the first tick after the swap
    lateness_s: float  # of that first tick
    found_ns: int = 0  # when this robot had it whole and began to check it, by the machine's monotonic clock
    staged_ns: int = 0  # when it was checked, built and tried, and waited for its boundary


@dataclass(frozen=True)
class Record:
    """One numbered entry of the spool: the encoded Step, Label or Swap."""

    number: int
    payload: bytes


@dataclass(frozen=True)
class Hello:
    """The first message of an edge; `boot` identifies its monotonic clock."""

    edge: str
    boot: str
    run: str
    contract_hash: str
    contract_json: str


@dataclass(frozen=True)
class Welcome:
    """The trainer accepts: it has committed every record up to `acked`."""

    run: str
    acked: int


@dataclass(frozen=True)
class Refused:
    """The trainer cannot work with this edge; `reason` includes the contract's difference."""

    reason: str


@dataclass(frozen=True)
class Records:
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Ack:
    """Everything up to `number` is in the journal, durably."""

    number: int


@dataclass(frozen=True)
class Credit:
    """Lockstep only: the simulated robot may take steps until its total reaches `steps`."""

    steps: int


@dataclass(frozen=True)
class ModelNotice:
    """An artifact is available; `size` and `sha256` are those of its packed bundle."""

    channel: Channel
    version: int
    size: int
    sha256: str


@dataclass(frozen=True)
class ModelRequest:
    channel: Channel
    version: int
    offset: int


@dataclass(frozen=True)
class ModelChunk:
    channel: Channel
    version: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class ControlStatus:
    """The control loop's telemetry, once a tick; may be dropped."""

    tick: int
    stamp_ns: int
    mode: Mode
    episode: int
    seq: int
    probability: float
    policy_version: int
    classifier_version: int
    policy_age_s: float
    classifier_threshold: float
    missed_ticks: int
    late_p50_s: float
    late_p99_s: float
    late_max_s: float
    inference_s: float
    records: int  # written to the spool so far
    last_end: str
    message: str
    engine: str = ""  # what computes the models, and why nothing faster does
    veto_left_s: float = 0.0  # until silence commits the success that the classifier has declared; 0: none is pending
    reward_source: str = ""  # who may end an episode as a success at present


@dataclass(frozen=True)
class Truth:
    """The simulation's ground truth: heard by the scripted operator and the experiment's recorder, by nothing else."""

    stamp_ns: int
    cube_xyz_m: Vector
    tip_xyz_m: Vector
    jaw_rad: float
    lifted_m: float
    grasped: bool
    success: bool


@dataclass(frozen=True)
class TrainerStatus:
    """The trainer's telemetry, about once a second; may be dropped."""

    stamp_ns: int
    phase: str
    steps: int
    episodes: int
    demonstrations: int
    takeover_steps: int
    updates: int
    updates_per_s: float
    utd_ratio: float
    policy_version: int
    classifier_version: int
    labels: int
    flags: int
    promotions: int
    rejections: int
    critic_q: float
    q_bound: float
    message: str
    metrics: tuple[str, ...] = field(default=())  # "name=value" pairs for display


@dataclass(frozen=True)
class SceneRequest:
    """Simulation only: put the cube anew, at a place that `seed` draws."""

    seed: int


@dataclass(frozen=True)
class SceneReply:
    ok: bool
