"""The trainer's end of the link as a process of its own: real ingest, journal and registry, without a learner.

Usage: python trainer_end.py FOLDER LISTEN. Announces whatever its registry holds, every second, until it is killed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from steadyhand_models import task
from steadyhand_models.messages import Channel
from steadyhand_models.registry import Registry
from steadyhand_training.ingest import Ingest


def main(folder: Path, listen: str) -> None:
    registry = Registry(folder / "registry")
    ingest = Ingest(task.load("lift").contract(), folder / "journal.sqlite", registry, listen)
    ingest.start()
    print("listening", flush=True)
    announced: set[int] = set()
    while True:
        for version in set(registry.versions(Channel.POLICY)) - announced:
            announced.add(version)
            ingest.announce(Channel.POLICY, version)
        time.sleep(0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
