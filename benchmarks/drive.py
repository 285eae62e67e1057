"""The town's scripted driver on routes that nobody looked at, beside drivers who should fail, in half and full traffic.

`blind` is the same driver in a town that he believes is empty; `still` never moves, so he never collides of himself.

    python -m benchmarks.drive
    python -m benchmarks.drive episodes=5
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.common import read_options, record
from embodied.envs.bridge import make
from embodied.envs.drive import Drive
from embodied.envs.drivers import CRUISE, CarDriver
from embodied.envs.traffic import bend_speed
from rewards.metrics import wilson_interval
from rewards.progress import tqdm

FIRST_SEED = 1000
TRAFFIC = (0.5, 1.0)
Act = Callable[[Drive], np.ndarray]


class Blind(CarDriver):
    """Follows the route and sees nobody."""

    def __call__(self, current: Drive) -> np.ndarray:
        steering, _ = super().__call__(current)
        wanted = min(CRUISE, bend_speed(current.way, current.at))
        return np.array([steering, np.clip(wanted - current.speed, -1, 1)], np.float32)


def still(world: Drive) -> Act:
    """One who never starts."""
    return lambda current: np.array([0.0, -1.0], np.float32)


DRIVERS: dict[str, Callable[[Drive], Act]] = {"expert": CarDriver, "blind": Blind, "still": still}


def played(name: str, traffic: float, episodes: int) -> tuple[int, dict[str, float]]:
    """Routes that were completed without a collision, and the means of what the town tells for judging."""
    env = make("drive-town", traffic=traffic)
    world = env.unwrapped
    assert isinstance(world, Drive)
    solved, told = 0, []
    for seed in tqdm(range(FIRST_SEED, FIRST_SEED + episodes), desc=f"{name}, traffic {traffic}", unit="episode"):
        env.reset(seed=seed)
        act, over, info = DRIVERS[name](world), False, {}
        while not over:
            *_, over, info = env.step(act(world))
        solved += info["is_success"]
        told.append({key.removeprefix("judge/"): value for key, value in info.items() if key.startswith("judge/")})
    env.close()
    return solved, {key: float(np.mean([each[key] for each in told])) for key in told[0]}


def main() -> None:
    """Measure and record."""
    episodes = read_options({"episodes": 50})["episodes"]
    rows = []
    for traffic in TRAFFIC:
        for name in DRIVERS:
            solved, means = played(name, traffic, episodes)
            share = solved / episodes
            bar = {"bar": ">= 0.95", "met": share >= 0.95} if name == "expert" and traffic == TRAFFIC[0] else {}
            row = {
                "claim": f"drive-town, traffic {traffic}: routes that the {name} driver completes without a collision",
                "value": share,
                "unit": "share of episodes",
                "n": episodes,
                "interval": list(wilson_interval(solved, episodes)),
            }
            rows.append(row | bar | means)
            print(f"{row['claim']}: {share:.2f}; {means}")
    print(record("drive", rows))


if __name__ == "__main__":
    main()
