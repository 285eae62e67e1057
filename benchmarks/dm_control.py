"""A curve that others have published: dm_control's tasks from simulator state, 100,000 frames, two frames an action.

RLPD without demonstrations, which is soft actor-critic with layer-normed critics, beside SB3's soft actor-critic: the
same frames, discount and updates, without which no bar is decided. The bars are what the field's learners reach in
as many frames; a row says of how many seeds it is. What is finished is not run again.

    python -m benchmarks.dm_control                          # all: 10 to 30 minutes a run
    python -m benchmarks.dm_control tasks=reacher-easy ways=rlpd
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common import evaluations_of, read_options, record_part, train

ROOT = Path("runs", "benchmarks", "dm_control")
REPEAT, FRAMES, EPISODES = 2, 100_000, 16
BARS = {"cartpole-swingup": 800, "reacher-easy": 900, "walker-walk": 900}  # return of an episode of 1,000 frames
WAYS = {"rlpd": "RLPD", "sac": "SB3's SAC"}


def settings(task: str, way: str, seed: int) -> list[str]:
    """Of `embodied train`."""
    world = ["env=gym", f"env.id=dm_control/{task}-v0", "env.obs=state", f"env.action_repeat={REPEAT}"]
    learner = [f"policy={way}", "policy.gamma=0.99", f"steps={FRAMES // REPEAT}", f"seed={seed}", "reward=true"]
    return [*world, *learner, "eval_every=10000", "eval_episodes=8", f"final_episodes={EPISODES}", "videos=1"]


def row(task: str, way: str, done: dict[int, dict[str, Any]], *, compared: bool) -> dict[str, Any]:
    """The mean return of one learner on one task, with the curve of every seed; `compared`: the other one ran too."""
    returns = [done[seed]["mean_env_reward"] for seed in sorted(done)]
    value = sum(returns) / len(returns)
    bar: dict[str, Any] = {}
    if way == "rlpd":
        bar = {"bar": f">= {BARS[task]}", "met": value >= BARS[task] if compared else None}
    return {
        "claim": f"{task}, {WAYS[way]}, {FRAMES:,} frames, observation simulator state: return of an episode",
        "value": value,
        "unit": "of 1000",
        "n": EPISODES * len(returns),
        "seeds": sorted(done),
        "by_seed": returns,
        "curves": [done[seed]["curve"] for seed in sorted(done)],
        **bar,
    }


def told(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The last evaluation of a run, with its curve by frames."""
    lines = evaluations_of(folder)
    return result | {"curve": [[line["steps"] * REPEAT, line["mean_env_reward"]] for line in lines]}


def main() -> None:
    """Run what is missing, recording after every run."""
    options = read_options({"tasks": ",".join(BARS), "ways": ",".join(WAYS), "seeds": [0], "record": True})
    results: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for seed in options["seeds"]:
        for task in options["tasks"].split(","):
            for way in options["ways"].split(","):
                folder = ROOT / task / f"{way}-s{seed}"
                result = told(folder, train(folder, settings(task, way, seed)))
                results.setdefault((task, way), {})[seed] = result
                print(f"{task} {way} seed {seed}: {result['mean_env_reward']:.0f}", flush=True)
                if options["record"]:
                    rows = [row(*key, done, compared=(key[0], "sac") in results) for key, done in results.items()]
                    record_part("dm_control", rows)


if __name__ == "__main__":
    main()
