"""One servo at a time: answers, retries, alarms and damaged bytes, in virtual time."""

from __future__ import annotations

import pytest
from setup_rig import setup_rig

from steadyhand_runtime.bus import protocol
from steadyhand_runtime.bus.client import NoAnswer
from steadyhand_runtime.bus.protocol import Alarm

LATE_NS = 65_000_000


def test_a_ping_finds_who_is_there_and_nobody_else() -> None:
    rig = setup_rig()
    assert rig.client.ping(3) is not None
    assert rig.client.ping(7) is None


def test_registers_are_read_with_their_sign() -> None:
    rig = setup_rig()
    rig.chain.servos[1].eprom.burn("homing_offset", -1234)
    assert rig.client.read(2, "homing_offset") == -1234
    assert rig.client.read(2, "model_number") == 777


def test_a_write_arrives_and_is_acknowledged_once() -> None:
    rig = setup_rig()
    rig.client.write(4, "torque_limit", 321)
    assert rig.chain.servos[3].word(48) == 321
    assert len(rig.heard) == 1


def test_a_value_that_does_not_fit_is_refused_before_anything_is_sent() -> None:
    rig = setup_rig()
    with pytest.raises(ValueError, match=r"homing_offset: 2048 is outside -2047\.\.2047"):
        rig.client.write(1, "homing_offset", 2048)
    assert rig.heard == []


def test_an_alarm_is_reported_and_is_no_refusal() -> None:
    rig = setup_rig()
    rig.chain.servos[2].trip_overload()
    answer = rig.client.ping(3)
    assert answer is not None and answer.alarms == Alarm.OVERLOAD
    rig.client.write(3, "torque_limit", 100)
    assert rig.chain.servos[2].word(48) == 100


def test_a_silent_servo_is_named_with_the_next_step() -> None:
    rig = setup_rig()
    rig.chain.servos[4].silent = True
    with pytest.raises(NoAnswer, match=r"no answer from servo 5: .*steadyhand bus scan") as error:
        rig.client.read(5, "model_number")
    assert error.value.servo_id == 5


@pytest.mark.parametrize("damaged", [1, 2])
def test_damaged_answers_are_asked_for_again(damaged: int) -> None:
    rig = setup_rig()
    rig.chain.servos[0].corrupt_replies = damaged
    assert rig.client.read(1, "model_number") == 777
    rig.chain.servos[0].corrupt_replies = damaged
    rig.client.write(1, "torque_limit", 5)
    assert rig.chain.servos[0].word(48) == 5


def test_a_servo_that_acknowledges_nothing_is_read_back_instead() -> None:
    rig = setup_rig()
    rig.chain.servos[5].eprom.burn("status_level", 0)
    rig.client.write(6, "torque_limit", 77)
    assert rig.chain.servos[5].word(48) == 77


def test_a_late_answer_is_never_taken_for_the_answer_to_a_retry() -> None:
    rig = setup_rig()
    servo = rig.chain.servos[0]
    servo.late_ns, servo.late_replies = LATE_NS, 1
    servo.eprom.burn("position_p", 11)
    asked = []
    feed = rig.chain.feed

    def change_between_tries(data: bytes, now_ns: int) -> list:
        replies = feed(data, now_ns)
        asked.append(data)
        servo.eprom.burn("position_p", 22)
        return replies

    rig.chain.feed = change_between_tries  # type: ignore[method-assign, assignment]
    assert rig.client.read(1, "position_p") == 22
    assert asked == [protocol.read(1, 21, 1), protocol.read(1, 21, 2)]


def test_a_good_servo_answers_every_round_soundly_and_two_of_one_id_do_not() -> None:
    rig = setup_rig(ids=(1, 2, 2))
    rig.chain.place(1, 1000)
    rig.chain.place(2, 3000)
    good, bad = rig.client.quality(1), rig.client.quality(2)
    assert (good.noisy, good.garbled) == (0, False)
    assert bad.garbled
    assert not rig.client.quality(9).garbled


def test_another_baud_rate_reaches_the_servos_that_are_set_to_it() -> None:
    rig = setup_rig(mixed_bauds=True)
    rig.chain.servos[2].eprom.burn("baud_rate", 1)
    assert rig.client.ping(3) is None
    rig.client.use_baud(500_000)
    assert rig.client.ping(3) is not None
    assert rig.client.ping(1) is None
