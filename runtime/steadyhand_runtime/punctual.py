"""ZeroMQ contexts whose I/O threads keep pace with the loop that uses them."""

from __future__ import annotations

import os
import threading

import zmq

Context = zmq.Context[zmq.Socket[bytes]]


def punctual_context(priority: int) -> Context:
    """A context whose I/O threads have this real-time priority where it is granted; 0 asks for none.

    Without it a message of a punctual loop waits for a core in its I/O thread: measured on two busy cores, one goal in
    three missed the bus's next tick.
    """
    context: Context = zmq.Context()
    if priority and is_granted(priority):
        # Set before the first socket. Where the system refuses, libzmq ends the process, hence the question before.
        context.set(zmq.THREAD_PRIORITY, priority)
        context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_FIFO)
    return context


def is_granted(priority: int) -> bool:
    """Whether this process may use SCHED_FIFO at a priority, tried in a thread that ends."""
    granted: list[bool] = []

    def ask() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
            granted.append(True)
        except (AttributeError, OSError, ValueError):
            return

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return bool(granted)
