"""Chunks over a bad network: does an action outlive its time limit, or a command break a robot's limits?

Episodes in a time of their own, so nothing depends on how busy a machine is. Answers come after exponential delays,
each with its own, so they overtake each other; a fifth is lost, a fifth comes twice; chunks are wild. What is done goes
through the robot's limits (`embodied.robots.limits.allowed`), and is checked by arithmetic that shares nothing with
them.
Control: the same answers without rules, one after another as they come, and without limits.

    python -m benchmarks.policy_faults                # 1,000 episodes
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from benchmarks.common import read_options, record
from embodied.robots.limits import allowed
from embodied.robots.simulated import LIMITS
from policies.vla.queue import ChunkQueue

OPTIONS: dict[str, Any] = {"episodes": 1000, "steps": 60, "seed": 0, "record": True}
FPS, HORIZON, LIMIT_S, DELAY_S = 20.0, 8, 0.35, 0.12
NAMES = tuple(LIMITS.command)


def episode(random: np.random.Generator, *, rules: bool, steps: int) -> Counter[str]:
    """One episode; counts of what was done, and of what should not have been.

    Returns:
        `actions` done, those that were `late` (beyond their limit, or not of their moment), `commands`, and those
        beyond a range, a speed or an acceleration (`limits`); and `answers` that came.
    """
    queue = ChunkQueue(HORIZON, len(NAMES), fps=FPS, refill=6, patience_s=0.25, longest_s=LIMIT_S)
    wire: list[tuple[float, int]] = []
    asked: dict[int, float] = {}
    waiting: list[np.ndarray] = []  # without rules
    found: Counter[str] = Counter()
    bounds = LIMITS.arrays(NAMES)
    sent, speed = bounds[:2].mean(0), np.zeros(len(NAMES))
    for step in range(steps):
        now = (step + random.uniform(0, 0.3)) / FPS
        request = queue.ask(now)
        if request is not None:
            asked[request] = now
            copies = random.choice([0, 1, 1, 1, 2])
            wire += [(now + random.exponential(DELAY_S), request) for _ in range(copies)]
        for came, request in sorted(each for each in wire if each[0] <= now):
            found["answers"] += 1
            chunk = random.normal(size=(HORIZON, len(NAMES))) * 10.0 ** random.integers(0, 7)
            chunk[:, 0] = asked[request] + np.arange(HORIZON) / FPS  # an action says which moment it is for,
            chunk[:, 1] = asked[request]  # and when its pictures were taken
            queue.answer(request, chunk, came)
            waiting += list(chunk)
        wire = [each for each in wire if each[0] > now]
        action = queue.act(now)
        if not rules:
            action = waiting.pop(0) if waiting else None
        if action is not None:
            found["actions"] += 1
            found["late"] += bool(abs(action[0] - now) > 0.5 / FPS + 1e-3 or now - action[1] > LIMIT_S + 1e-3)
        wanted = sent if action is None else np.asarray(action, np.float64)
        command = allowed(bounds, wanted, sent, speed, 1 / FPS) if rules else wanted
        found["commands"] += 1
        found["limits"] += broken(bounds, command, sent, speed)
        speed, sent = (command - sent) * FPS, command
    return found


def broken(bounds: np.ndarray, command: np.ndarray, sent: np.ndarray, speed: np.ndarray) -> bool:
    """Whether a command breaks a range, a speed or an acceleration."""
    low, high, fastest, sharpest = bounds
    now = (command - sent) * FPS
    outside = (command < low - 1e-9) | (command > high + 1e-9) | (np.abs(now) > fastest * (1 + 1e-6))
    return bool((outside | (np.abs(now - speed) > sharpest / FPS * (1 + 1e-6) + 1e-9)).any())


def main() -> None:
    """Run the episodes and record what was found."""
    options = read_options(OPTIONS)
    totals = {}
    for rules in (True, False):
        totals[rules] = Counter()
        for k in range(options["episodes"]):
            totals[rules] += episode(np.random.default_rng([options["seed"], k]), rules=rules, steps=options["steps"])
    kept, without = totals[True], totals[False]
    told = f"{options['episodes']} episodes over a network that delays, loses, doubles and reorders"
    rows = [
        {"claim": f"{told}: actions done beyond their time limit", "value": kept["late"],
         "unit": f"of {kept['actions']} actions", "bar": "= 0", "met": kept["late"] == 0},
        {"claim": f"{told}, wild chunks: commands beyond the robot's limits", "value": kept["limits"],
         "unit": f"of {kept['commands']} commands", "bar": "= 0", "met": kept["limits"] == 0},
        {"claim": "control: the same without rules, actions beyond their time limit", "value": without["late"],
         "unit": f"of {without['actions']} actions", "bar": "> 0", "met": without["late"] > 0},
        {"claim": "control: the same without limits, commands beyond them", "value": without["limits"],
         "unit": f"of {without['commands']} commands", "bar": "> 0", "met": without["limits"] > 0},
        {"claim": "moments of those episodes that had an action in its time", "unit": "share",
         "value": round(kept["actions"] / kept["commands"], 4)},
    ]  # fmt: skip
    for row in rows:
        row |= {"n": options["episodes"], "seeds": [options["seed"]]}
        print(f"{row['claim']}: {row['value']} {row['unit']}")
    if options["record"]:
        record("policy_faults", rows)


if __name__ == "__main__":
    main()
