"""Real-time priority of single threads that work beside a real-time loop."""

from __future__ import annotations

import os
import sys


def fifo(priority: int) -> bool:
    """Give the calling thread SCHED_FIFO at this priority; whether that was granted."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, ValueError):
        return False
    return True
