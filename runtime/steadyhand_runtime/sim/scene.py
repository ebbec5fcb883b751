"""The simulated table: SO-101, cube, cameras, lamp and shadow as MJCF text, built from primitives."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from steadyhand_runtime.kinematics import JOINT_FRAMES, JOINT_NAMES, LIMITS_RAD, TIP_FRAME, Frame
from steadyhand_runtime.sim.light import Light


class SimError(RuntimeError):
    """The simulation cannot run here; the message says what to install or change."""


Vec3 = tuple[float, float, float]

CAMERA_NAMES = ("front", "wrist")
# A shadow is two dark panes one above the other: the edge that only one of them covers looks soft.
SHADOW_PANES = ("shadow_edge", "shadow_core")
# The jaw angle at which the jaws are parallel, and their distance then.
JAW_PARALLEL_RAD = 0.46
JAW_PARALLEL_GAP_M = 0.040
# Inner face of the fixed jaw and end of both fingers, in the gripper link's frame (x closes, -z is the approach).
FIXED_JAW_X_M = -0.0204
FINGER_END_Z_M = -0.1031


@dataclass(frozen=True, slots=True)
class FrontCamera:
    """Where the fixed camera stands, the point that it looks at, and its vertical field of view."""

    position_m: Vec3 = (0.52, 0.0, 0.11)
    target_m: Vec3 = (0.20, 0.0, 0.045)
    fov_deg: float = 36.0


@dataclass(frozen=True, slots=True)
class SceneSettings:
    """What the scene is made of. Lengths in metres, angles in rad, time in seconds."""

    cube_side_m: float = 0.025
    cube_mass_kg: float = 0.020
    cube_colour: Vec3 = (0.92, 0.10, 0.08)
    table_colour: Vec3 = (0.50, 0.55, 0.60)
    wall_colour: Vec3 = (0.62, 0.60, 0.52)
    tape_colour: Vec3 = (0.95, 0.95, 0.90)
    cube_area_centre_m: tuple[float, float] = (0.21, 0.0)
    cube_area_m: tuple[float, float] = (0.10, 0.14)
    cube_yaw_rad: float = 0.25
    lift_m: float = 0.045
    image_px: tuple[int, int] = (128, 128)
    timestep_s: float = 0.005
    servo_delay_s: float = 0.03
    light: Light = field(default_factory=Light)
    front: FrontCamera = field(default_factory=FrontCamera)


# Stall torque of the STS3215 as MuJoCo Menagerie's robotstudio_so101 gives it (N m), and its position loop.
STALL_TORQUE_NM = 2.94
SERVO_KP = 998.22
SERVO_KV = 2.731


@dataclass(frozen=True, slots=True)
class _Link:
    """One moving link: its mass, centre of mass and diagonal inertia (public URDF), and its MJCF geometry."""

    name: str
    mass_kg: float
    com_m: Vec3
    inertia: Vec3
    geoms: str


def _num(values: object) -> str:
    return " ".join(f"{v:.9g}" for v in np.ravel(np.asarray(values, np.float64)))


def _inertial(mass_kg: float, com_m: Vec3, inertia: Vec3) -> str:
    return f'<inertial mass="{mass_kg}" pos="{_num(com_m)}" diaginertia="{_num(inertia)}"/>'


def _placed(frame: Frame) -> str:
    return f'pos="{_num(frame.xyz_m)}" euler="{_num(frame.rpy_rad)}"'


def _finger_x(inner_x_m: float, outwards: int) -> tuple[float, float]:
    """Centre of a finger's two layers, pad and back, given its inner face and the side it grows to."""
    return inner_x_m + outwards * 0.002, inner_x_m + outwards * 0.007


def _fixed_jaw() -> str:
    pad, back = _finger_x(FIXED_JAW_X_M, -1)
    top, end = -0.045, FINGER_END_Z_M
    middle, half = 0.5 * (top + end), 0.5 * (top - end)
    return f"""
      <geom class="pad" type="box" pos="{pad} 0 {middle}" size=".002 .010 {half}" name="fixed_pad"/>
      <geom class="finger" type="box" pos="{back} 0 {middle}" size=".003 .010 {half}"/>
      <geom class="plastic" type="box" pos="-.008 0 -.038" size=".0225 .012 .010"/>
      <geom class="servo" type="box" pos=".008 .006 -.018" size=".0226 .0124 .0170"/>"""


def _moving_jaw() -> str:
    """The moving jaw in its joint's frame (y along the gripper link's z): straight down when the jaws are parallel."""
    inner = FIXED_JAW_X_M + JAW_PARALLEL_GAP_M - JOINT_FRAMES[5].xyz_m[0]
    pad, back = _finger_x(inner, 1)
    z = JOINT_FRAMES[5].xyz_m[1]
    top, end = -0.022, FINGER_END_Z_M - JOINT_FRAMES[5].xyz_m[2]
    middle, half = 0.5 * (top + end), 0.5 * (top - end)
    # The body turns by -parallel so that plain boxes describe it.
    return f"""
      <body name="jaw_finger" euler="0 0 {-JAW_PARALLEL_RAD}">
        <geom class="pad" type="box" pos="{pad} {middle} {z}" size=".002 {half} .010" name="moving_pad"/>
        <geom class="finger" type="box" pos="{back} {middle} {z}" size=".003 {half} .010"/>
        <geom class="plastic" type="box" pos="{inner + 0.005} -.012 {z}" size=".007 .014 .012"/>
      </body>"""


def _links() -> tuple[_Link, ...]:
    elbow, wrist, roll = (JOINT_FRAMES[j].xyz_m for j in (2, 3, 4))
    return (
        _Link(
            "shoulder",
            0.100,
            (-0.0308, 0.0, -0.0253),
            (8.38e-5, 8.10e-5, 2.40e-5),
            """
      <geom class="plastic" type="box" pos="-.030 0 -.030" size=".022 .024 .030"/>
      <geom class="servo" type="box" pos="-.030 -.002 -.050" size=".0227 .020 .0124"/>""",
        ),
        _Link(
            "upper_arm",
            0.103,
            (-0.0898, -0.0084, 0.0184),
            (4.08e-5, 1.47e-4, 1.42e-4),
            f"""
      <geom class="plastic" type="capsule" fromto="0 0 .018 {elbow[0]} {elbow[1]} .018" size=".016"/>
      <geom class="servo" type="box" pos="{elbow[0]} {elbow[1]} .018" size=".0227 .0198 .0124"/>""",
        ),
        _Link(
            "lower_arm",
            0.104,
            (-0.0981, 0.0032, 0.0183),
            (2.87e-5, 1.60e-4, 1.45e-4),
            f"""
      <geom class="plastic" type="capsule" fromto="0 0 .018 {wrist[0]} {wrist[1]} .018" size=".014"/>
      <geom class="servo" type="box" pos="{wrist[0]} {wrist[1]} .018" size=".0198 .0198 .0124"/>""",
        ),
        _Link(
            "wrist",
            0.079,
            (-0.0001, -0.0386, 0.0281),
            (3.68e-5, 2.54e-5, 2.10e-5),
            f"""
      <geom class="plastic" type="box" pos="0 -.028 {roll[2]}" size=".014 .022 .014"/>
      <geom class="servo" type="box" pos="0 -.046 {roll[2]}" size=".0124 .014 .0198"/>""",
        ),
        _Link("gripper", 0.087, (0.0002, 0.0002, -0.0252), (2.75e-5, 4.34e-5, 3.45e-5), _fixed_jaw()),
        _Link("jaw", 0.012, (-0.0016, -0.0300, 0.0193), (6.6e-6, 1.9e-6, 5.3e-6), _moving_jaw()),
    )


def _arm() -> str:
    """The chain of bodies, innermost last; the gripper link also carries tip and wrist camera."""
    opened, closed = "", ""
    for j, link in enumerate(_links()):
        opened += f'<body name="{link.name}" {_placed(JOINT_FRAMES[j])}>'
        opened += f'<joint class="servo" name="{JOINT_NAMES[j]}" range="{_num(LIMITS_RAD[j])}"/>'
        opened += _inertial(link.mass_kg, link.com_m, link.inertia) + link.geoms
        if link.name == "gripper":
            # Camera mount of MuJoCo Menagerie's robotstudio_so101, with a wider lens (there 48.5 degrees).
            opened += f'<site name="tip" {_placed(TIP_FRAME)} group="5"/>'
            opened += '<camera name="wrist" pos="0 .055 -.045" euler="-.57 0 0" fovy="62"/>'
        closed += "</body>"
    return opened + closed


def _front_camera(camera: FrontCamera) -> str:
    back = np.subtract(camera.position_m, camera.target_m)
    back /= np.linalg.norm(back)
    right = np.cross((0.0, 0.0, 1.0), back)
    right /= np.linalg.norm(right)
    axes = _num([right, np.cross(back, right)])
    return f'<camera name="front" pos="{_num(camera.position_m)}" xyaxes="{axes}" fovy="{camera.fov_deg}"/>'


def _tape(settings: SceneSettings) -> str:
    """Strips on the table around the cube's area: they show both cameras how high things are."""
    (cx, cy), (lx, ly) = settings.cube_area_centre_m, settings.cube_area_m
    x, y, wide = lx / 2 + 0.03, ly / 2 + 0.03, 0.004
    boxes = (
        (cx - x, cy, wide, y),
        (cx + x, cy, wide, y),
        (cx, cy - y, x, wide),
        (cx, cy + y, x, wide),
        (cx, cy, x, wide),
    )
    return "".join(
        f'<geom type="box" pos="{px} {py} 0" size="{sx} {sy} .0004" rgba="{_num(settings.tape_colour)} 1"/>'
        for px, py, sx, sy in boxes
    )


def _shadow() -> str:
    """The shadow's panes, just above table and tape; whoever draws gives them their size and darkness."""
    return "".join(
        f'<geom name="{name}" type="box" pos="0 0 {0.0006 + 0.0002 * i:.4f}" size=".01 .01 .0001" rgba="0 0 0 0"/>'
        for i, name in enumerate(SHADOW_PANES)
    )


_DEFAULTS = """
  <default>
    <geom contype="0" conaffinity="0" density="0"/>
    <default class="plastic"><geom rgba=".86 .87 .88 1"/></default>
    <default class="servo">
      <geom rgba=".16 .16 .18 1"/>
      <joint axis="0 0 1" damping=".60" frictionloss=".052" armature=".028"/>
    </default>
    <default class="finger"><geom contype="1" conaffinity="1" friction="1 .005 .0001" rgba=".20 .32 .62 1"/></default>
    <default class="pad">
      <geom contype="1" conaffinity="1" condim="6" priority="1" friction="1.2 .02 .001"
        solref=".01 1" solimp=".98 .995 .0005" rgba=".25 .38 .70 1"/>
    </default>
  </default>"""


def scene_xml(settings: SceneSettings) -> str:
    """MJCF of the whole scene.

    Masses and inertias are the URDF's, the servo's constants those of MuJoCo Menagerie's robotstudio_so101. No shadow
    map, no multisampling, coarse roundings, and a plane with a coarse render grid (its third size): each costs 2 to 50
    times otherwise.
    """
    half = settings.cube_side_m / 2
    actuators = "".join(
        f'<position name="{name}" joint="{name}" kp="{SERVO_KP}" kv="{SERVO_KV}" '
        f'forcerange="-{STALL_TORQUE_NM} {STALL_TORQUE_NM}" ctrlrange="{_num(LIMITS_RAD[j])}"/>'
        for j, name in enumerate(JOINT_NAMES)
    )
    return f"""<mujoco model="so101_lift">
  <compiler angle="radian" eulerseq="XYZ" autolimits="true"/>
  <option timestep="{settings.timestep_s}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <quality shadowsize="0" offsamples="0" numslices="10" numstacks="4" numquads="1"/>
    <headlight ambient="0 0 0" diffuse="0 0 0" specular="0 0 0"/>
    <map znear=".02" zfar="10"/>
    <global offwidth="{settings.image_px[0]}" offheight="{settings.image_px[1]}"/>
  </visual>{_DEFAULTS}
  <worldbody>
    <light name="lamp" castshadow="false" specular="0 0 0"/>
    <geom name="table" type="plane" size=".8 .8 1" contype="1" conaffinity="1" friction="1 .005 .0001"
      rgba="{_num(settings.table_colour)} 1"/>
    <geom type="box" pos="-.30 0 .3" size=".01 .8 .3" rgba="{_num(settings.wall_colour)} 1"/>
    {_tape(settings)}
    {_shadow()}
    {_front_camera(settings.front)}
    <body name="base">
      <geom class="plastic" type="box" pos="-.004 0 .022" size=".040 .030 .022"/>
      <geom class="servo" type="box" pos=".030 0 .040" size=".0227 .0124 .0198"/>
      {_arm()}
    </body>
    <body name="cube" pos="{settings.cube_area_centre_m[0]} {settings.cube_area_centre_m[1]} {half}">
      <freejoint name="cube"/>
      <geom name="cube" type="box" size="{half} {half} {half}" mass="{settings.cube_mass_kg}" contype="1"
        conaffinity="1" friction="1 .005 .0001" rgba="{_num(settings.cube_colour)} 1"/>
    </body>
  </worldbody>
  <actuator>{actuators}</actuator>
</mujoco>"""
