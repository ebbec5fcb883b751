"""What each cycle reads, how long it takes, and which rates are refused."""

from __future__ import annotations

import pytest

from steadyhand_runtime.bus import protocol, schedule
from steadyhand_runtime.bus.schedule import Block, achievable_hz, block_of, require_rate
from steadyhand_runtime.bus.transport import BusError


def test_the_slow_block_comes_every_nth_cycle_and_the_audit_half_way_between() -> None:
    blocks = [block_of(cycle, 20) for cycle in range(1, 41)]
    assert [c for c, b in enumerate(blocks, 1) if b is Block.SLOW] == [20, 40]
    assert [c for c, b in enumerate(blocks, 1) if b is Block.AUDIT] == [10, 30]
    assert {block_of(cycle, 0) for cycle in range(100)} == {Block.FAST}


def test_every_block_holds_position_velocity_and_load() -> None:
    for block in Block:
        assert block.address <= 56 and block.address + block.size >= 62
    assert (Block.FAST.size, Block.SLOW.size) == (6, 15)


@pytest.mark.parametrize(("size", "bytes_"), [(2, 62), (6, 86), (8, 98), (15, 140)])
def test_a_sync_read_of_six_takes_the_bytes_of_the_manual(size: int, bytes_: int) -> None:
    ids = (1, 2, 3, 4, 5, 6)
    built = len(protocol.sync_read(ids, 56, size)) + sum(len(protocol.status(i, 0, bytes(size))) for i in ids)
    assert schedule.sync_read_bytes(6, size) == built == bytes_
    assert schedule.goal_bytes(6) == len(protocol.sync_write(42, [(i, b"\0\0") for i in ids])) == 26


def test_a_byte_takes_ten_bits() -> None:
    assert schedule.byte_ns(1_000_000) == 10_000
    assert schedule.byte_ns(500_000) == 20_000


def test_the_achievable_rate_is_the_median_read_and_the_goals_on_the_wire() -> None:
    times_ns = [1_740_000, 1_740_000, 90_000_000]
    assert achievable_hz(times_ns, 6, 1_000_000) == pytest.approx(0.95 * 500)
    assert achievable_hz(times_ns, 6, 500_000) < achievable_hz(times_ns, 6, 1_000_000)


def test_a_rate_beyond_the_wire_is_refused_with_the_one_that_works() -> None:
    require_rate(100.0, 400.0)
    with pytest.raises(BusError, match=r"bus.rate_hz = 500 is more .*\(475 Hz.*set bus.rate_hz to 475 or less"):
        require_rate(500.0, 475.9 - 0.5)
