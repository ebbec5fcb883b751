"""What an experiment leaves behind: results.json for programs, a page and a picture for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadyhand_models.cli import UserError
from steadyhand_training.run_folder import write_whole


@dataclass(frozen=True)
class LabReport:
    """`name` is that of page and picture; `figures` go into results.json beside the command and the machine."""

    name: str
    command: str
    figures: Mapping[str, Any]
    page: str
    picture: bytes

    def write(self, out: Path, copy: Path | None) -> str:
        """Write into the folder `out`, results.json also to `copy`; says where. Raises UserError."""
        machine = f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}"
        text = json.dumps({"command": self.command, "machine": machine, **self.figures}, indent=1) + "\n"
        results, page, picture = out / "results.json", out / f"{self.name}.md", out / f"{self.name}.png"
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_whole(results, text)
            write_whole(page, self.page)
            picture.write_bytes(self.picture)
            if copy is not None:
                copy.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be written ({error.strerror}); choose another --out") from None
        return f"results: {results}, {picture}, {page}"
