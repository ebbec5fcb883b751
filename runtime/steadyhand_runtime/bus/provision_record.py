"""The record of what was written into an arm's servos: a JSON file with every register before and after."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steadyhand_firmware.arm import Arm
from steadyhand_firmware.control_table import Access, sts3215
from steadyhand_models.cli import UserError
from steadyhand_runtime.bus.provision import Difference, Snapshot


def state_folder() -> Path:
    """Where this user's arms are remembered."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "steadyhand"


class Record:
    """One provisioning. It is on disk before the first register is written. Raises UserError where it cannot be."""

    def __init__(
        self, folder: Path, arm: Arm, port: str, before: Sequence[Snapshot], found: Sequence[Difference]
    ) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.path = folder / f"{arm.name}-{stamp}-{os.getpid()}.json"
        self._content: dict[str, Any] = {
            "arm": arm.name,
            "voltage": arm.voltage.value,
            "port": port,
            "started_utc": stamp,
            "outcome": "interrupted",
            "changes": [_change(d) for d in found],
            "before": [_servo(s) for s in before],
            "after": [],
        }
        self._save()

    def finish(self, after: Sequence[Snapshot], outcome: str) -> None:
        """Add what the servos hold now."""
        self._content |= {"outcome": outcome, "after": [_servo(s) for s in after]}
        self._save()

    def _save(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self._content, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{self.path.parent}: cannot hold a record ({error.strerror}): choose another folder with --record"
            ) from None


def _change(difference: Difference) -> dict[str, Any]:
    register = difference.declared.register
    return {
        "joint": difference.joint.name,
        "id": difference.joint.id,
        "register": register.name,
        "address": register.address,
        "before": difference.present,
        "after": difference.wanted,
    }


def _servo(snapshot: Snapshot) -> dict[str, Any]:
    kept = [r for r in sts3215() if r.access is not Access.READ]
    return {
        "joint": snapshot.joint.name,
        "id": snapshot.joint.id,
        "firmware": snapshot.firmware,
        "alarms": snapshot.alarms,
        "registers": {r.name: snapshot.value(r) for r in kept},
    }
