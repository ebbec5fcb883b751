"""The wire refuses whatever is not exactly a message, and returns whatever is."""

import dataclasses

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand_models import messages as m
from steadyhand_models import topics, wire


def make_step(**changes: object) -> m.Step:
    step = m.Step(
        run="run",
        episode=3,
        seq=7,
        tick=99,
        stamp_ns=123_456_789,
        contract="0123456789abcdef",
        frames=np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3),
        state=np.linspace(-1, 1, 18, dtype=np.float32),
        proposed=np.zeros(4, np.float32),
        executed=None,
        source=m.Source.TAKEOVER,
        reasons=("stale",),
        classifier=np.array([0.1, 0.9], np.float32),
        policy_version=4,
        classifier_version=2,
        frame_age_s=0.01,
        state_age_s=0.002,
        end=m.EndReason.TIMEOUT,
    )
    return dataclasses.replace(step, **changes)


def assert_same(a: object, b: object) -> None:
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        else:
            assert left == right


def test_a_step_survives_the_wire():
    step = make_step()
    assert_same(step, wire.decode(wire.encode(step), m.Step))


def test_nested_messages_survive_the_wire():
    records = m.Records((m.Record(1, b"a"), m.Record(2, b"bc")))
    assert wire.decode(wire.encode(records), m.Ack, m.Records) == records


def test_a_message_of_another_kind_is_named():
    with pytest.raises(wire.WireError, match="expected Ack, got 'Credit'"):
        wire.decode(wire.encode(m.Credit(5)), m.Ack)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        (1, "7", "Ack.number: expected a 64-bit integer"),
        (1, True, "Ack.number: expected a 64-bit integer"),
        (1, 2**63, "Ack.number: expected a 64-bit integer"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(field, value, says):
    items = msgpack.unpackb(wire.encode(m.Ack(1)))
    items[field] = value
    with pytest.raises(wire.WireError, match=says):
        wire.decode(msgpack.packb(items), m.Ack)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_on_the_wire_are_finite(bad):
    data = msgpack.packb(["Hello", "e", "b", "r", "h", bad])
    with pytest.raises(wire.WireError):
        wire.decode(data, m.Hello)
    with pytest.raises(wire.WireError, match=r"Step\.frame_age_s"):
        wire.decode(wire.encode(make_step(frame_age_s=bad)), m.Step)


def test_an_array_must_fill_the_shape_it_claims():
    items = msgpack.unpackb(wire.encode(make_step()), raw=False)
    items[8][0] = [1_000_000]
    with pytest.raises(wire.WireError, match=r"Step\.state: shape"):
        wire.decode(msgpack.packb(items), m.Step)
    items[8][0] = [17]
    with pytest.raises(wire.WireError, match="do not fill"):
        wire.decode(msgpack.packb(items), m.Step)


def test_an_array_of_the_wrong_shape_is_refused_at_its_source():
    goal = m.Goal(1, 2, 3, np.zeros(5))
    with pytest.raises(wire.WireError, match="shape"):
        wire.encode(goal)


def test_an_oversized_message_is_refused_before_it_is_parsed():
    with pytest.raises(wire.WireError, match="over the limit"):
        wire.decode(b"\x00" * (wire.MAX_MESSAGE_BYTES + 1), m.Ack)


@given(cut=st.integers(min_value=0, max_value=500))
def test_every_truncated_message_is_refused(cut):
    data = wire.encode(make_step())
    with pytest.raises(wire.WireError):
        wire.decode(data[: min(cut, len(data) - 1)], m.Step)


@given(st.binary(max_size=200))
def test_noise_is_refused_and_never_crashes(data):
    with pytest.raises(wire.WireError):
        wire.decode(data, *[t.message for t in topics.TOPICS.values()])


@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_yields_a_well_formed_step(position, value):
    data = bytearray(wire.encode(make_step()))
    data[position % len(data)] = value
    try:
        step = wire.decode(bytes(data), m.Step)
    except wire.WireError:
        return
    assert isinstance(step.source, m.Source)
    assert step.frames.dtype == np.uint8


def test_every_topic_names_a_message_that_the_wire_can_carry():
    for topic in topics.TOPICS.values():
        assert wire._codec(topic.message).name == topic.message.__name__
        assert topic.bound > 0
        assert (topic.drop is topics.Drop.NEVER) == (topic.rate_hz is None)


def test_records_from_before_a_field_with_a_default_are_still_readable():
    label = m.Label("e1", m.LabelKind.FAILURE, 5, "ann", "keys", 0.3, "run", 2, 1, "e0", (3, 4), "edge", 1.5)
    items = msgpack.unpackb(wire.encode(label))
    assert wire.decode(msgpack.packb(items), m.Label) == label
    older = wire.decode(msgpack.packb(items[:-3]), m.Label)
    assert older == dataclasses.replace(label, steps=(), about="", said_unix_s=0.0)
    required = [f for f in dataclasses.fields(m.Label) if f.default is dataclasses.MISSING]
    for count in (len(required), len(items) + 1):
        with pytest.raises(wire.WireError, match="expected 13 fields"):
            wire.decode(msgpack.packb([*items, 0][:count]), m.Label)
