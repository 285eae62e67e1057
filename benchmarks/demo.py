"""`make demo`: from a sentence to a policy that opens the drawer, and the evidence.

Trains on the sentence alone, judges the policy over 50 episodes it never saw, and fails below 90 % success.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

BAR = 0.9
EPISODES = 50


def main() -> int:
    """Train, evaluate, tell."""
    start = time.monotonic()
    run = Path("runs/demo") / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    print('==> Learning to make "the drawer is open" true, from that sentence alone', flush=True)
    for words in (
        ["train", "experiment=demo", f"run={run}", *sys.argv[1:]],
        ["evaluate", f"run={run}", f"episodes={EPISODES}"],
    ):
        print(f"==> embodied {' '.join(words)}", flush=True)
        if status := subprocess.run([sys.executable, "-m", "embodied.cli", *words]).returncode:
            return status
    result = json.loads((run / "evaluation.json").read_text("utf-8"))
    rate, low, high = result["success_rate"], result["ci_low"], result["ci_high"]
    print(f"==> Success: {rate:.0%} of {result['episodes']} episodes (95 % interval {low:.0%} to {high:.0%})")
    print(f"==> Took {(time.monotonic() - start) / 60:.1f} min. Look at {run / 'report.html'}")
    if rate < BAR:
        print(f"==> Below the {BAR:.0%} this demo promises.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
