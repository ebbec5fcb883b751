"""One virtual STS3215: what its instructions do, what it measures, how it protects itself, and its faults."""

from __future__ import annotations

import math
import struct

from steadyhand_firmware.calibration import MID_TICKS, RAD_PER_TICK, TICKS_PER_TURN
from steadyhand_firmware.control_table import ControlTable
from steadyhand_runtime.bus.protocol import (
    HEADER,
    Alarm,
    Frame,
    decode_sign_magnitude,
    encode_sign_magnitude,
)
from steadyhand_runtime.sim.servo_memory import ServoMemory

# Register 6, Feetech memory table v220328.
BAUDS = (1_000_000, 500_000, 250_000, 128_000, 115_200, 76_800, 57_600, 38_400)
STALL_CURRENT_COUNTS = 415  # 2.7 A at 6.5 mA a count
STALL_HEAT_C = 40.0  # ours: lasting stall brings a servo from 30 to its limit of 70 degrees
HEAT_TIME_CONSTANT_NS = 120_000_000_000  # ours: a servo warms up and cools down within minutes
HEAT_STEP_NS = 50_000_000
PROTECTION_UNIT_NS = 10_000_000
ACCELERATION_UNIT_RAD_S2 = 100 * RAD_PER_TICK

# Plain integers: enum arithmetic costs a microsecond each.
VOLTAGE = int(Alarm.VOLTAGE)
OVER_TEMPERATURE = int(Alarm.OVER_TEMPERATURE)
OVER_CURRENT = int(Alarm.OVER_CURRENT)
OVERLOAD = int(Alarm.OVERLOAD)
FULL_ANGLE = 0x10  # bit 4 of the phase register
MAKE_MIDDLE = 128
FEEDBACK = struct.Struct("<HHHBBBBBHH")  # registers 56..70 of the memory table


class VirtualServo:
    """One servo's memory, protection and faults.

    Faults are attributes: `silent` answers and obeys nothing, `corrupt_replies` damages that many next checksums,
    `late_ns` delays the next `late_replies` replies (-1: all), `forced_alarms` are bits reported on top of its own.
    `voltage_v` is its supply, `temperature_c` what it measures before it warms up by its own load. `memory` is the
    register file. Only mode 0 moves: in another one, register 33 is kept and the joint holds where it is.
    """

    def __init__(self, servo_id: int, table: ControlTable) -> None:
        self.silent = False
        self.corrupt_replies = 0
        self.late_ns = 0
        self.late_replies = -1
        self.forced_alarms = 0
        self.voltage_v = 7.4
        self.temperature_c: float = 30
        self.mount_ticks = 0
        self.held: Frame | None = None
        self.ramp_written = False
        self.eprom = ServoMemory(table, servo_id)
        self.memory = self.eprom.registers
        self._absolute_ticks = MID_TICKS
        self._lost_ticks = 0  # whole turns that were forgotten with the power
        self._latched = 0
        self._alarms = 0
        self._unload_changed = False
        self._overloaded_since_ns = -1
        self._over_current_since_ns = -1
        self._heat_c = 0.0
        self._heat_ns = 0

    @property
    def id(self) -> int:
        return self.memory[5]

    @property
    def baud(self) -> int:
        return BAUDS[self.memory[6] & 7]

    @property
    def torque_on(self) -> bool:
        return self.memory[40] == 1

    @property
    def alarms(self) -> int:
        return self.memory[65]

    @property
    def answers_writes(self) -> bool:
        return self.memory[8] != 0

    def word(self, address: int) -> int:
        return self.memory[address] | self.memory[address + 1] << 8

    @property
    def is_multi_turn(self) -> bool:
        return not any(self.memory[9:13])

    @property
    def raw_ticks(self) -> int:
        """The joint's angle as it was measured last, before the homing offset; whole turns count."""
        return self._absolute_ticks

    @property
    def present_ticks(self) -> int:
        """Register 56, decoded."""
        return decode_sign_magnitude(self.word(56), 15)

    def offset_ticks(self) -> int:
        return decode_sign_magnitude(self.word(31), 11)

    def goal_ticks(self) -> int:
        """The goal within the servo's own position limits; both limits 0 means none."""
        memory = self.memory
        goal = memory[42] | memory[43] << 8
        if goal & 0x8000:
            goal = 0x8000 - goal
        low, high = memory[9] | memory[10] << 8, memory[11] | memory[12] << 8
        return goal if low <= goal <= high or low == high == 0 else low if goal < low else high

    def goal_rad(self) -> float:
        """The joint's angle that the servo drives to: its goal seen from the turn in which it is."""
        here = self._absolute_ticks
        if self.memory[33] != 0:
            ticks = here
        elif self.is_multi_turn:
            ticks = self.goal_ticks() + self.offset_ticks() + self._lost_ticks
        else:
            ticks = self.goal_ticks() + here - self._wrapped(here)
        return (ticks - self.mount_ticks - MID_TICKS) * RAD_PER_TICK

    def ramp(self) -> tuple[float, float]:
        """Speed in rad/s and acceleration in rad/s^2 that registers 46 and 41 allow; infinite where they are 0."""
        speed, acceleration = self.word(46) & 0x7FFF, self.memory[41]
        return (
            speed * RAD_PER_TICK if speed else math.inf,
            acceleration * ACCELERATION_UNIT_RAD_S2 if acceleration else math.inf,
        )

    def torque_share(self) -> float:
        """Live torque limit in 0..1. Alarms of the unload mask take it away, an overload most of it."""
        share = min(self.word(48), 1000) / 1000.0
        unload = self._alarms & self.memory[19]
        if unload & ~OVERLOAD:
            return 0.0
        return share * self.memory[34] / 100.0 if unload else share

    def power_cycle(self) -> None:
        """Lose what is not in EPROM, the latched alarms and the count of whole turns."""
        self.eprom.power_cycle()
        self.held = None
        self.ramp_written = True
        self._lost_ticks = self._absolute_ticks // TICKS_PER_TURN * TICKS_PER_TURN
        self.release()

    def factory_reset(self) -> None:
        """RESET: defaults with the id kept and the offset cleared."""
        self.eprom.reset(self.id)
        self.ramp_written = True
        self.release()

    def trip_overload(self) -> None:
        """Latch the overload alarm, as after `protection_time` at `overload_torque`."""
        self._latch(OVERLOAD)

    def release(self) -> None:
        """Let go of latched alarms, as switching the torque off does."""
        self._alarms &= ~self._latched
        self.memory[65] &= ~self._latched & 0xFF
        self._latched = 0
        self._unload_changed = True
        self._overloaded_since_ns = self._over_current_since_ns = -1

    def write(self, address: int, data: bytes, now_ns: int) -> None:
        """What a WRITE does; bytes that may not be written are ignored, and nothing is ever refused."""
        if address == 42 and len(data) == 2:
            self.memory[42:44] = data
            self.memory[40] = 1
            return
        self.eprom.write(address, data, now_ns)
        end = address + len(data)
        if address <= 43 and end > 42:
            self.memory[40] = 1
        elif address <= 40 < end:
            self._torque_written(data[40 - address], now_ns)
        self.ramp_written |= address <= 47 and end > 41

    def sense(self, joint_ticks: int, speed: int, load: int, now_ns: int) -> bool:
        """Bring registers 56..70 up to date; True when the torque that is left has changed.

        `joint_ticks` counts from the joint's own zero, `load` is in 0.1 % of stall torque.
        """
        memory = self.memory
        self._absolute_ticks = absolute = joint_ticks + self.mount_ticks
        current = 0
        if load:
            most = int(1000.0 * self.torque_share())
            load = most if load > most else -most if load < -most else load
            current = abs(load) * STALL_CURRENT_COUNTS // 1000
            self._watch(abs(load), current, now_ns)
        else:
            self._overloaded_since_ns = self._over_current_since_ns = -1
        if now_ns - self._heat_ns >= HEAT_STEP_NS:
            self._warm_up(load, now_ns)
        position = self._wrapped(absolute)
        celsius = min(int(self.temperature_c + self._heat_c + 0.5), 255)
        decivolts = min(int(self.voltage_v * 10 + 0.5), 255)
        alarms = self._latched
        if not memory[15] <= decivolts <= memory[14]:
            alarms |= VOLTAGE
        if celsius > memory[13]:
            alarms |= OVER_TEMPERATURE
        changed = self._unload_changed or alarms != self._alarms
        self._unload_changed = False
        self._alarms = alarms
        FEEDBACK.pack_into(
            memory,
            56,
            position if position >= 0 else -position | 0x8000,
            speed if speed >= 0 else -speed | 0x8000,
            load if load >= 0 else -load | 0x400,
            decivolts,
            celsius,
            memory[64],
            alarms | self.forced_alarms,
            speed > memory[80] or -speed > memory[80],
            memory[42] | memory[43] << 8,
            current if load >= 0 else current | 0x8000,
        )
        return changed

    def take_lateness(self) -> int:
        """How much later than the wire allows this reply comes, in ns."""
        late_ns = self.late_ns
        if self.late_replies > 0:
            self.late_replies -= 1
        if self.late_replies == 0:
            self.late_ns, self.late_replies = 0, -1
        return late_ns

    def reply(self, data: bytes) -> bytes:
        """A status packet with the present alarms, damaged when told to."""
        memory = self.memory
        servo_id, length, alarms = memory[5], len(data) + 2, memory[65] | self.forced_alarms
        check = ~(servo_id + length + alarms + sum(data)) & 0xFF
        if self.corrupt_replies:
            self.corrupt_replies -= 1
            check ^= 0x55
        return b"%b%c%c%c%b%c" % (HEADER, servo_id, length, alarms, data, check)

    def _wrapped(self, absolute_ticks: int) -> int:
        """What register 56 shows there: one turn only, unless bit 4 of the phase lets it run on."""
        memory = self.memory
        position = absolute_ticks - self._lost_ticks
        if memory[31] or memory[32]:
            position -= self.offset_ticks()
        if memory[18] & FULL_ANGLE:
            return max(-32767, min(32767, position))
        return position % TICKS_PER_TURN

    def _warm_up(self, load: int, now_ns: int) -> None:
        """First order: load squared heats towards `STALL_HEAT_C` above the surroundings."""
        passed_ns = now_ns - self._heat_ns if self._heat_ns else 0
        self._heat_ns = now_ns
        share = -math.expm1(-passed_ns / HEAT_TIME_CONSTANT_NS)
        self._heat_c += share * (STALL_HEAT_C * (load / 1000.0) ** 2 - self._heat_c)

    def _watch(self, load: int, current: int, now_ns: int) -> None:
        """Latch an overload after `protection_time` at `overload_torque`, and likewise an over-current."""
        memory = self.memory
        if memory[40] != 1 or load < memory[36] * 10:
            self._overloaded_since_ns = -1
        elif self._overloaded_since_ns < 0:
            self._overloaded_since_ns = now_ns
        elif now_ns - self._overloaded_since_ns >= memory[35] * PROTECTION_UNIT_NS:
            self._latch(OVERLOAD)
        if memory[40] != 1 or not current or current <= (memory[28] | memory[29] << 8):
            self._over_current_since_ns = -1
        elif self._over_current_since_ns < 0:
            self._over_current_since_ns = now_ns
        elif now_ns - self._over_current_since_ns >= memory[38] * PROTECTION_UNIT_NS:
            self._latch(OVER_CURRENT)

    def _latch(self, alarm: int) -> None:
        self._latched |= alarm
        self._alarms |= alarm
        self.memory[65] |= alarm
        self._unload_changed = True

    def _torque_written(self, value: int, now_ns: int) -> None:
        if value == 0:
            self.release()
        elif value == MAKE_MIDDLE:
            offset = (self._absolute_ticks - self._lost_ticks) % TICKS_PER_TURN - MID_TICKS
            raw = encode_sign_magnitude(max(offset, -2047), 11)
            self.eprom.write(31, raw.to_bytes(2, "little"), now_ns)
            self.memory[40] = 0
