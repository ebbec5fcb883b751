"""Check the outcome of a short experiment from its results: `python tests/check_lab.py OUT/results.json`."""

import json
import sys
from pathlib import Path

LEAST_SUCCESS = 0.6  # after 1,500 steps; cloning alone stays about a half, the whole experiment reaches over 95%


def main() -> int:
    results = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    learned = results["lines"]["rlpd_sac"]["trials"][0]["points"][-1]
    success = learned["successes"] / learned["episodes"]
    print(f"RLPD-SAC after {learned['steps']} steps: success {success:.2f}, wanted {LEAST_SUCCESS:.2f}")
    return 0 if success >= LEAST_SUCCESS and not results["missing"] else 1


if __name__ == "__main__":
    sys.exit(main())
