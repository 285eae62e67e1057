"""RoboFuME's loop: does practice without resets make a policy better, with a vision model's word as its only reward?

`embodied practise` with its defaults (open the drawer and close it again by turns; success models fitted to labelled
episodes; RLPD and 40 demonstrations of each task) but for the number of steps. Before is the policy that
was trained on the demonstrations alone. Judged by the simulator's truth, which nothing learns from: 20 resets of seeds
that practice does not use, the same before and after, the forward task from each, the backward one from where that led.
Runs of before 1 December 2026 were judged on other resets before than after; their rows say so. During practice a
person comes when attempts fail in a row, now and then by plan, and after stops; how often is recorded.

    python -m benchmarks.practise                    # five seeds, two at a time; goes on where it was interrupted
    python -m benchmarks.practise steps=500 seeds=[0] record=false
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import evaluations_of, read_options, record, train

OPTIONS: dict[str, Any] = {"steps": 4000, "seeds": [10, 11, 12, 13, 14], "jobs": 2, "record": True}
BAR = 0.95  # success after practice, on average
ROOT = Path("runs", "benchmarks", "practise")


def run(seed: int, steps: int) -> dict[str, Any]:
    """One run's evaluations, first and last, and what happened between."""
    folder = ROOT / f"steps{steps}-s{seed}"
    train(folder, [f"seed={seed}", f"steps={steps}"], verb="practise")
    evaluations = evaluations_of(folder)
    attempts = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    tally = json.loads((folder / "run.json").read_text())["tally"]
    return {"seed": seed, "before": evaluations[0], "after": evaluations[-1], "attempts": attempts, "tally": tally}


def rows(done: Sequence[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """Success before and after, per task; the model's wrong yeses; how often a person came."""
    done = sorted(done, key=lambda each: each["seed"])
    seeds = [each["seed"] for each in done]
    table: list[dict[str, Any]] = []
    starts = [{each[when].get("seed") for when in ("before", "after")} for each in done]
    other = "" if all(len(each) == 1 and None not in each for each in starts) else ", other starts"
    for name in ("forward", "backward"):
        rates = [[each[when][name]["success_rate"] for when in ("before", "after")] for each in done]
        known = [each for each in rates if None not in each]  # the backward task is tried where forward succeeded
        if known:
            before, after = np.mean(known, axis=0)
            table.append(
                {
                    "claim": f"{name} from a reset, success after {steps:,} steps of practice"
                    if name == "forward"
                    else f"{name} from where forward led, success after {steps:,} steps of practice",
                    "value": float(after),
                    "unit": "share",
                    "bar": f">= {BAR}, no seed below its start ({before:.2f} on average{other})",
                    "met": bool(after >= BAR and all(later >= first for first, later in known)),
                    "n": sum(each["after"][name]["episodes"] for each in done),
                    "seeds": seeds,
                    "by_seed": rates,
                }
            )
    said = sum(each["tally"]["said_success"] for each in done)
    wrong = sum(each["tally"]["env_said_wrongly"] for each in done)
    attempts = sum(each["tally"]["attempts"] for each in done)
    came = {kind: sum(each["tally"][f"{kind}_resets"] for each in done) for kind in ("stuck", "planned", "stop")}
    table.append(
        {
            "claim": "attempts that ended by the model's yes and were not done",
            "value": wrong / max(said, 1),
            "unit": "share",
            "n": said,
            "seeds": seeds,
        }
    )
    table.append(
        {
            "claim": "attempts between two visits of a person",
            "value": attempts / max(sum(came.values()), 1),
            "unit": "attempts",
            "n": attempts,
            "seeds": seeds,
            "visits": came,
        }
    )
    return table


def main() -> None:
    """Run what is missing, some at a time, recording after every run."""
    options = read_options(OPTIONS)
    done: list[dict[str, Any]] = []
    # The first alone: it collects the demonstrations that the others share.
    first, *others = options["seeds"]
    done.append(run(first, options["steps"]))
    with ThreadPoolExecutor(options["jobs"]) as pool:
        futures = [pool.submit(run, seed, options["steps"]) for seed in others]
        for each in [None, *as_completed(futures)]:
            if each is not None:
                done.append(each.result())
            for row in (table := rows(done, options["steps"])):
                print(f"{row['claim']}: {row['value']:.3f} {row['unit']} (bar {row.get('bar')})", flush=True)
            if options["record"]:
                record("practise", table)


if __name__ == "__main__":
    main()
