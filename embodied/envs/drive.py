"""A car in a small town: follow the route through traffic, past a walker, without a collision (after VLM-RL's task)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from embodied.envs import drive_random
from embodied.envs.drive_facts import FACTS, degrees
from embodied.envs.roads import RoadWay
from embodied.envs.tasks import DRIVE
from embodied.envs.town import LOOKED_AHEAD, MAX_DISTANCE, ROUTE, Town
from embodied.envs.traffic import Traffic, turned

# VLM-RL's numbers (arXiv 2412.15544; zihaosheng/VLM-RL config.py, carla_env/rewards.py), km/h, m and degrees.
MIN_SPEED, TARGET_SPEED, MAX_SPEED = 20.0, 25.0, 35.0
MAX_ANGLE, MAX_STD, PENALTY = 90.0, 0.4, -10.0
NEARBY = 4  # cars in the simulator's state


class Drive(Town):
    """Drive 120 m through the town along a route that changes with every episode, and on; the true reward is VLM-RL's.

    Actions (2) in [-1, 1]: steering (1 left), and throttle above 0 or brake below. `state`: own readings, the other
    cars that are nearest (4 × 5: position and heading in the car's own axes, speed) and the walker (3). `agent_pos`:
    own readings alone.

    The true reward is that of VLM-RL's code, `reward_fn5`: r_speed · f_center · f_angle · f_std, and -10 at a
    violation: a collision, more than 3 m from the lane's middle, faster than 35 km/h, a stall. There a violation ends
    the episode. Here, where episodes have one length, a car that collided or left its lane is put back in the middle of
    its lane, at rest, with the next action. Success: the route was completed before any collision. `info` counts for
    judging alone: `judge/collisions`, `judge/lane_departures`, `judge/stalls`, `judge/route` (share of the route done,
    in [0, 1]) and `judge/routes` (VLM-RL's measure: how many lengths of 120 m).

    Args:
        task: town.
        traffic: how full the town is, in [0, 1]: of 12 cars that drive, 10 that are parked, and a walker.
        ends: whether a violation ends the episode (terminated), as in VLM-RL.
        **kwargs: those of `World`.
        obs, camera, image_size, looks, render_mode: as of `World`.

    Attributes:
        synthesis: what `reward=synthesis` takes of the world's own readings; see `rewards.combine.Synthesis`.
        pose: (3,) x, y (m), heading (rad) of the car's middle.
        way: the route, and on.
        at: metres along it.
        others: the traffic.

    Raises:
        ValueError: an unknown task, or a traffic that is no number in [0, 1].
    """

    facts = FACTS
    synthesis: ClassVar[Mapping[str, Any]] = {
        "speed": "speed",
        "speed_max": TARGET_SPEED,
        "limits": {"center": MAX_DISTANCE, "angle": MAX_ANGLE, "std": MAX_STD},
        "penalty": "penalty",
    }

    def __init__(
        self,
        *,
        task: str = "town",
        traffic: float | int = 0.5,
        ends: bool = False,
        obs: str = "state",
        camera: str | None = None,
        image_size: int = 96,
        looks: int | Sequence[int] = 0,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if task not in DRIVE:
            raise ValueError(f"Drive: task must be one of {', '.join(DRIVE)}; got {task!r}.")
        if isinstance(traffic, bool) or not isinstance(traffic, int | float) or not 0 <= traffic <= 1:
            raise ValueError(f"Drive: traffic must be a number from 0 (nobody) to 1; got {traffic!r}.")
        self.task, self.instruction, self.traffic, self.ends = task, DRIVE[task].instruction, float(traffic), ends
        self.place(RoadWay(0, 0.0, [0]), Traffic(np.zeros(0, int), np.zeros(0), np.zeros((0, 1), int), np.zeros(0)))
        super().__init__(obs=obs, camera=camera, image_size=image_size, looks=looks, render_mode=render_mode)

    # Readings -------------------------------------------------------------------------------------------

    @property
    def violation(self) -> bool:
        """Whether the last action broke one of VLM-RL's rules; the car's bumper, speedometer and lane keeper tell."""
        return self.collided or self.strayed or self.stalled or self.kmh > MAX_SPEED

    def signals(self) -> dict[str, float]:
        """The car's own readings: km/h; degrees from the lane's direction, metres from its middle and their spread over
        the last 2 s (m); the steering and the pedal as they are; -10 at a violation, else 0; and, of its navigator,
        how far to the left the route leads 5, 10 and 15 m ahead (m)."""
        own = {"speed": self.kmh, "angle": self.angle, "center": self.center, "std": float(self.history.std())}
        own |= {"steer": self.steer, "pedal": self.pedal, "penalty": PENALTY if self.violation else 0.0}
        places, _ = self.way.at(self.at + np.array(LOOKED_AHEAD))
        lefts = turned(places - self.pose[:2], -self.pose[2])[:, 1]
        return own | {f"ahead_{d:.0f}": float(left) for d, left in zip(LOOKED_AHEAD, lefts, strict=True)}

    def _proprio(self) -> np.ndarray:
        scale = {"speed": TARGET_SPEED, "angle": MAX_ANGLE, "center": MAX_DISTANCE, "std": MAX_STD, "penalty": 10.0}
        ahead = dict.fromkeys((f"ahead_{d:.0f}" for d in LOOKED_AHEAD), 10.0)
        return np.array([v / (scale | ahead).get(k, 1.0) for k, v in self.signals().items()], np.float32)

    def _state(self) -> np.ndarray:
        others = np.concatenate([self.others.poses, self.others.parked])
        speeds = np.concatenate([self.others.speed, np.zeros(len(self.others.parked))])
        seen = np.tile([4.0, 0.0, 1.0, 0.0, 0.0], (NEARBY, 1))
        order = np.linalg.norm(others[:, :2] - self.pose[:2], axis=-1).argsort()[:NEARBY]
        local = turned(others[order, :2] - self.pose[:2], -self.pose[2]) / 10
        heading = others[order, 2] - self.pose[2]
        found = np.concatenate([local, np.stack([np.cos(heading), np.sin(heading), speeds[order] / 7], -1)], -1)
        seen[: len(found)] = found
        walker = np.array([4.0, 0.0, 0.0])
        if (here := self.others.walker) is not None:
            walker = np.array([*turned(here - self.pose[:2], -self.pose[2]) / 10, float(self.others.walker_on_road)])
        return np.concatenate([self._proprio(), seen.ravel(), walker]).astype(np.float32)

    # Judging --------------------------------------------------------------------------------------------

    def degrees(self) -> dict[str, float]:
        return degrees(self)

    def env_reward(self) -> float:
        if self.violation:
            return PENALTY
        speed = min(self.kmh / MIN_SPEED, 1.0, 1 - (self.kmh - TARGET_SPEED) / (MAX_SPEED - TARGET_SPEED))
        parts = abs(self.center) / MAX_DISTANCE, abs(self.angle) / MAX_ANGLE, float(self.history.std()) / MAX_STD
        return speed * math.prod(max(1 - part, 0.0) for part in parts)

    def success(self) -> bool:
        return self.solved

    def _info(self) -> dict[str, Any]:
        names = ("judge/collisions", "judge/lane_departures", "judge/stalls")
        routes = self.farthest / ROUTE
        counted = dict(zip(names, self.counts.tolist(), strict=True))
        return super()._info() | counted | {"judge/route": min(routes, 1.0), "judge/routes": routes}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, _, _, info = super().step(action)
        return obs, reward, self.ends and self.violation, False, info

    # States and looks -----------------------------------------------------------------------------------

    def _start(self) -> None:
        drive_random.start(self, self.np_random)
        self._refresh()

    def sample_state(self, rng: np.random.Generator) -> None:
        drive_random.sample_state(self, rng)
        self._refresh()

    def randomize_look(self, rng: np.random.Generator) -> None:
        self.restore_look()
        drive_random.randomize_look(self.model, rng)
        self._refresh()
