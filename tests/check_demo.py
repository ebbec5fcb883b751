"""Check the outcome of a short demo from its summary: `python tests/check_demo.py RUN/summary.json`."""

import json
import sys
from pathlib import Path
from typing import Any


def findings(summary: dict[str, Any]) -> dict[str, bool]:
    """What a short demo must have shown, each by name."""
    steps, records, swaps = summary["steps"], summary["records"], summary["swaps"]
    swapped = [s for s in swaps if s["outcome"] == "swapped"]
    policies = [s["version"] for s in swapped if s["channel"] == "policy"]
    classifiers = [s["version"] for s in swapped if s["channel"] == "classifier"]
    evaluation = summary["evaluation"]
    return {
        "every step that the robot recorded is in the journal": steps["recorded"] == steps["journal"] > 300,
        "and every other record": records["recorded"] == records["journal"],
        "nothing is there twice, nothing is unreadable": records["duplicates"] == records["unreadable"] == 0,
        "at least five policies were swapped in, each newer than the last": len(policies) >= 5
        and policies == sorted(set(policies)),
        "a corrected classifier was swapped in": len(classifiers) >= 2 and classifiers == sorted(set(classifiers)),
        "no control tick was missed on account of a swap": all(s["missed_ticks"] == 0 for s in swapped),
        "the operator demonstrated, took over and flagged": {"demonstration", "policy"}
        <= {e["kind"] for e in summary["episodes"]}
        and any(e["takeover_steps"] for e in summary["episodes"])
        and summary["labels"]["flags"] > 0,
        "the learned policy lifts the cube": evaluation["final"]["success_rate"] > 0,
        "cloning was evaluated beside it": 0 <= evaluation["behaviour_cloning"]["success_rate"] < 1,
    }


def main() -> int:
    path = Path(sys.argv[1])
    summary = json.loads(path.read_text(encoding="utf-8"))
    report = path.with_name("report.html")
    found = findings(summary) | {"the report was written": report.is_file() and report.stat().st_size > 50_000}
    for name, true in found.items():
        print(f"{'ok  ' if true else 'FAIL'}  {name}")
    for name in ("final", "behaviour_cloning"):
        print(f"{name}: success {summary['evaluation'][name]['success_rate']:.2f}")
    print(f"{sum(found.values())} passed, {len(found) - sum(found.values())} failed")
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
