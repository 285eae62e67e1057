"""`make demo`: from a sentence to a policy that opens the drawer, and the evidence.

Trains on the sentence alone, judges the policy over 50 episodes it never saw, and fails below 90 % success. With
`fresh` it times the whole of it as a stranger has it, installs included and without pip's cache, in a new clone of the
last commit, and records the figures.

    python -m benchmarks.demo          # what `make demo` runs
    python -m benchmarks.demo fresh
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

BAR = 0.9
EPISODES = 50


def fresh() -> int:
    """Clone the last commit into a temporary folder, `make demo` there, record minutes and success."""
    from benchmarks.common import record  # the demo itself needs none of it

    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "embodied")
        subprocess.run(["git", "clone", "--quiet", str(here), str(clone)], check=True)
        stranger = os.environ | {"PIP_NO_CACHE_DIR": "1"}
        start, load = time.monotonic(), os.getloadavg()[0]
        if status := subprocess.run(["make", "demo"], cwd=clone, env=stranger).returncode:
            return status
        minutes = (time.monotonic() - start) / 60
        (judged,) = clone.glob("runs/demo/*/evaluation.json")
        result = json.loads(judged.read_text("utf-8"))
    rate = result["success_rate"]
    record(
        "demo",
        [
            {
                "claim": "fresh clone, `make demo`: everything from nothing, installs included",
                "value": round(minutes, 2),
                "unit": "min",
                "bar": "<= 15",
                "met": minutes <= 15,
                "n": 1,
                "load_before": load,
            },
            {
                "claim": "`make demo`: success at opening the drawer, learned from the sentence alone",
                "value": rate,
                "unit": "share",
                "bar": f">= {BAR}",
                "met": rate >= BAR,
                "n": result["episodes"],
                "seeds": [0],
                "interval": [result["ci_low"], result["ci_high"]],
            },
        ],
    )
    return 0


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
    raise SystemExit(fresh() if sys.argv[1:] == ["fresh"] else main())
