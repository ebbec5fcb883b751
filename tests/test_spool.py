"""The spool keeps what was appended, in order, whatever dies."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from steadyhand_runtime import spool as spool_module
from steadyhand_runtime.spool import Spool, SpoolError

APPENDER = """
import sys
from pathlib import Path
from steadyhand_runtime.spool import Spool
spool = Spool(Path(sys.argv[1]))
while True:
    print(spool.append([b"x" * 2000, b"y" * 2000]), flush=True)
"""


def test_records_are_numbered_from_one_and_read_in_order(tmp_path):
    spool = Spool(tmp_path / "spool.sqlite")
    assert spool.last_number == 0
    assert spool.append([b"a", b"b"]) == 2
    assert spool.append([b"c"]) == 3
    assert [(r.number, r.payload) for r in spool.read_after(1, 10)] == [(2, b"b"), (3, b"c")]
    assert [r.number for r in spool.read_after(0, 2)] == [1, 2]
    assert spool.append([]) == 3


def test_trimming_forgets_records_and_never_reuses_their_numbers(tmp_path):
    spool = Spool(tmp_path / "spool.sqlite")
    spool.append([b"a", b"b", b"c"])
    spool.trim(2)
    assert [r.number for r in spool.read_after(0, 10)] == [3]
    assert spool.trimmed == 2
    spool.trim(3)
    spool.close()
    again = Spool(tmp_path / "spool.sqlite")
    assert (again.pending, again.trimmed, again.last_number) == (0, 3, 3)
    assert again.append([b"d"]) == 4


def test_a_reopened_spool_has_the_same_identity_and_a_new_one_another(tmp_path):
    first, second = Spool(tmp_path / "a.sqlite"), Spool(tmp_path / "b.sqlite")
    assert Spool(tmp_path / "a.sqlite").identity == first.identity != second.identity


def test_a_reader_sees_what_another_connection_appends_and_trims_beside_it(tmp_path):
    writer, reader = Spool(tmp_path / "spool.sqlite"), Spool(tmp_path / "spool.sqlite")

    def write():
        for i in range(200):
            writer.append([b"%d" % i])

    thread = threading.Thread(target=write)
    thread.start()
    seen = []
    while len(seen) < 200:
        records = reader.read_after(len(seen), 64)
        seen += [r.payload for r in records]
        reader.trim(len(seen))
    thread.join()
    assert seen == [b"%d" % i for i in range(200)]
    assert writer.pending == 0


def test_two_processes_may_open_a_new_spool_at_once(tmp_path):
    names: list[str] = []
    start = threading.Barrier(4)

    def open_it():
        start.wait()
        names.append(Spool(tmp_path / "spool.sqlite").identity)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 4 and len(set(names)) == 1


def test_a_killed_writer_loses_nothing_that_append_returned(tmp_path):
    path = tmp_path / "spool.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", APPENDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(50)][-1]
    os.kill(writer.pid, signal.SIGKILL)
    rest = writer.stdout.read().splitlines()
    writer.wait()
    acknowledged = max([acknowledged, *(int(line) for line in rest if line)])
    spool = Spool(path)
    numbers = [r.number for r in spool.read_after(0, 1_000_000)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= acknowledged
    assert len(numbers) % 2 == 0, "a batch is whole or absent"
    assert spool.append([b"next"]) == len(numbers) + 1


def test_a_full_disk_is_a_clear_error_and_what_was_recorded_stays(tmp_path):
    spool = Spool(tmp_path / "spool.sqlite")
    spool.append([b"first"])
    pages = spool._db.execute("PRAGMA page_count").fetchone()[0]
    spool._db.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(SpoolError, match=r"disk is full: free some space"):
        for _ in range(100):
            spool.append([b"z" * 4000])
    kept = spool.last_number
    spool._db.execute("PRAGMA max_page_count=100000")
    assert spool.append([b"after"]) == kept + 1
    assert spool.read_after(0, 1)[0].payload == b"first"


def test_a_foreign_file_is_a_clear_error(tmp_path):
    path = tmp_path / "spool.sqlite"
    path.write_bytes(b"this is not a database, it is a text of some length" * 100)
    with pytest.raises(SpoolError, match="damaged: move it away"):
        Spool(path)


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "edge").write_text("in the way")
    with pytest.raises(SpoolError):
        Spool(tmp_path / "edge" / "spool.sqlite")


def test_syncing_reaches_the_log_of_another_connection(tmp_path, monkeypatch):
    writer, reader = Spool(tmp_path / "spool.sqlite"), Spool(tmp_path / "spool.sqlite")
    writer.append([b"a"])
    synced: list[str] = []
    monkeypatch.setattr(spool_module.os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    reader.sync()
    assert synced == [f"{tmp_path}/spool.sqlite-wal"]
    Spool(tmp_path / "spool.sqlite", durable=False).sync()
    assert len(synced) == 1
