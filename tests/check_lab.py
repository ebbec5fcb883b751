"""Check the outcome of a short experiment from its results: `python tests/check_lab.py OUT/results.json`."""

import json
import sys
from pathlib import Path
from typing import Any

LEAST_SUCCESS = 0.6  # after 1,500 steps; cloning alone stays about a half, the whole experiment reaches over 95%
LEAST_CORRECTED, MOST_FIXED = 0.7, 0.2  # after 2,500 steps with a changed light, each with its deployed classifier


def learned(lines: dict[str, Any]) -> bool:
    """`steadyhand lab learn --short`: the policy has learned."""
    last = lines["rlpd_sac"]["trials"][0]["points"][-1]
    success = last["successes"] / last["episodes"]
    print(f"RLPD-SAC after {last['steps']} steps: success {success:.2f}, wanted {LEAST_SUCCESS:.2f}")
    return success >= LEAST_SUCCESS


def withstood(lines: dict[str, Any]) -> bool:
    """`steadyhand lab drift --short`: correction carries learning through a change of light, and nothing else does."""
    corrected, fixed = (lines[name]["trials"][0]["success_deployed"] for name in ("corrected", "fixed"))
    print(f"corrected classifier: success {corrected:.2f}, wanted at least {LEAST_CORRECTED:.2f}")
    print(f"fixed classifier: success {fixed:.2f}, wanted at most {MOST_FIXED:.2f}")
    return bool(corrected >= LEAST_CORRECTED and fixed <= MOST_FIXED)


def main() -> int:
    results = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for problem in results["missing"]:
        print(problem)
    shown = learned(results["lines"]) if "rlpd_sac" in results["lines"] else withstood(results["lines"])
    return 0 if shown and not results["missing"] else 1


if __name__ == "__main__":
    sys.exit(main())
