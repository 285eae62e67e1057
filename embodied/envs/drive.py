"""A car in a small town: follow the route through traffic, past a walker, without a collision (after VLM-RL's task)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces

from embodied.envs import drive_random
from embodied.envs.drive_facts import FACTS, degrees
from embodied.envs.drive_scene import AWAY, OTHERS, PARKED, build
from embodied.envs.roads import RoadWay
from embodied.envs.tasks import DRIVE
from embodied.envs.traffic import HALF, Traffic, gaps, turned, walker_gap
from embodied.envs.world import World

# VLM-RL's numbers (arXiv 2412.15544; zihaosheng/VLM-RL config.py, carla_env/rewards.py), km/h, m and degrees.
MIN_SPEED, TARGET_SPEED, MAX_SPEED = 20.0, 25.0, 35.0
MAX_DISTANCE, MAX_ANGLE, MAX_STD, PENALTY = 3.0, 90.0, 0.4, -10.0
HISTORY = 20  # readings behind the spread of the distance from the lane: 2 s, as there
STANDING, STALL_S = 1.0, 10.0  # km/h below which a car stands; seconds of standing that are a stall (there 90)

ROUTE = 120.0  # metres
WHEELS = 2.7  # metres between the axles
MAX_STEER, LAG = 0.6, 0.65  # rad at steering 1; share of the former steering kept in an action (there .75 at 15 Hz)
POWER, BRAKES, DRAG = 3.0, 7.0, 0.015  # m/s² at full throttle and at full brake; 1/m
CLEAR = 2.5  # metres around a car that was put back
LOOKED_AHEAD = (5.0, 10.0, 15.0)  # metres along the route, of the navigator's readings
NEARBY = 4  # cars in the simulator's state


class Drive(World):
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

    scene = "drive"
    cameras = ("bird", "front")
    facts = FACTS
    ctrl_dt = 0.1
    sim_dt = 0.02
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

    def _load(self, path: Path) -> mujoco.MjModel:
        return build(path)

    def _action_space(self) -> spaces.Space:
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def _setup(self) -> None:
        names = ["car", *(f"other_{k}" for k in range(OTHERS)), *(f"parked_{k}" for k in range(PARKED)), "walker"]
        self._bodies = np.array([int(self.model.body(name).mocapid[0]) for name in names])

    def place(
        self,
        way: RoadWay,
        others: Traffic,
        *,
        at: float = 0.0,
        aside: float = 0.0,
        tilt: float = 0.0,
        speed: float = 0.0,
    ) -> None:
        """Begin anew: the car `at` m along a way, m to the left of it, turned to the left by so many rad, with m/s."""
        self.way, self.others = way, others
        place, heading = way.spot(at)
        self.pose = np.array([*(place + turned(np.array([0.0, aside]), heading)), heading + tilt])
        self.speed, self.steer, self.pedal, self.at, self.farthest = speed, 0.0, 0.0, at, at
        self.history = np.full(HISTORY, abs(aside))
        self.stood = 0  # actions
        self.collided = self.strayed = self.stalled = False  # with the last action
        self.counts = np.zeros(3, np.int64)  # collisions, lane departures, stalls
        self.solved = False

    # Readings -------------------------------------------------------------------------------------------

    @property
    def center(self) -> float:
        """Metres to the left of the lane's middle."""
        place, heading = self.way.spot(self.at)
        x, y = self.pose[:2] - place
        return float(y * math.cos(heading) - x * math.sin(heading))

    @property
    def angle(self) -> float:
        """Degrees, in (-180, 180], turned to the left of the lane."""
        return math.degrees(math.remainder(float(self.pose[2] - self.way.spot(self.at)[1]), 2 * math.pi))

    @property
    def kmh(self) -> float:
        return 3.6 * self.speed

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

    # Moving ---------------------------------------------------------------------------------------------

    def _act(self, action: np.ndarray) -> None:
        if self.collided or self.strayed:
            self._put_back()
        steering, self.pedal = (float(each) for each in np.clip(np.asarray(action, np.float64), -1, 1))
        self.steer = LAG * self.steer + (1 - LAG) * steering
        for _ in range(self._steps_per_action):
            self._roll(self.sim_dt)
            if self._touches():
                break
        self.others.step(self.ctrl_dt, self.pose, self.speed, self.way, self.at)
        self.collided = self._touches()
        if self.collided:
            self.speed = 0.0
        self.data.time += self.ctrl_dt
        self._note()
        self._refresh()

    def _roll(self, seconds: float) -> None:
        """The car as a bicycle whose wheels do not slip."""
        push = POWER * max(self.pedal, 0.0) - BRAKES * max(-self.pedal, 0.0) - DRAG * self.speed**2
        self.speed = max(self.speed + push * seconds, 0.0)
        bend = math.tan(MAX_STEER * self.steer)
        slip = math.atan(bend / 2)
        heading = self.pose[2] + slip
        self.pose[:2] += self.speed * seconds * np.array([math.cos(heading), math.sin(heading)])
        self.pose[2] += self.speed * seconds * math.cos(slip) * bend / WHEELS

    def _touches(self) -> bool:
        cars = np.concatenate([self.others.poses, self.others.parked])
        cars = cars[((cars[:, :2] - self.pose[:2]) ** 2).sum(-1) < (2 * HALF[0] + 1) ** 2]
        walker = self.others.walker
        if len(cars) and (gaps(self.pose, cars) <= 0).any():
            return True
        return walker is not None and walker_gap(self.pose, walker) <= 0

    def _note(self) -> None:
        """What the last action led to."""
        self.at = self.way.nearest(self.pose[:2], self.at)
        self.history = np.append(self.history[1:], abs(self.center))
        self.strayed = abs(self.center) > MAX_DISTANCE
        self.stood = self.stood + 1 if self.kmh < STANDING else 0
        self.stalled = self.stood >= round(STALL_S / self.ctrl_dt)
        if self.stalled:
            self.stood = 0
        self.counts += [self.collided, self.strayed, self.stalled]
        self.farthest = max(self.farthest, self.at)
        self.solved = self.solved or (self.farthest >= ROUTE and not self.counts[0])

    def _put_back(self) -> None:
        """Into the middle of the lane, at rest, at the nearest place that is free, rather behind than ahead."""
        for away in sorted(np.arange(-40.0, 40.0), key=lambda each: (abs(each), each)):
            place, heading = self.way.spot(self.at + float(away))
            self.pose = np.array([*place, heading])
            if self._has_room():
                self.at += float(away)
                break
        self.speed = self.steer = 0.0
        self.history[:] = 0.0

    def _has_room(self) -> bool:
        """Whether nobody is near: those who move farther off than those who are parked."""
        others, walker = self.others, self.others.walker
        cars = (
            gaps(self.pose, others.poses).min(initial=math.inf),
            5 * gaps(self.pose, others.parked).min(initial=math.inf),
        )
        return bool(min(*cars, math.inf if walker is None else walker_gap(self.pose, walker)) > CLEAR)

    def _refresh(self) -> None:
        """Put the bodies where everybody is."""
        cars, parked, walker = self.others.poses, self.others.parked, self.others.walker
        poses = np.zeros((len(self._bodies), 4))
        poses[:, 2] = AWAY
        poses[0] = *self.pose[:2], 0.0, self.pose[2]
        poses[1 : 1 + len(cars)] = np.insert(cars, 2, 0.0, axis=1)
        poses[1 + OTHERS : 1 + OTHERS + len(parked)] = np.insert(parked, 2, 0.0, axis=1)
        if walker is not None:
            poses[-1] = *walker, 0.0, 0.0
        self.data.mocap_pos[self._bodies] = poses[:, :3]
        self.data.mocap_quat[self._bodies] = np.stack(
            [np.cos(poses[:, 3] / 2), *np.zeros((2, len(poses))), np.sin(poses[:, 3] / 2)], -1
        )
        super()._refresh()

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

    def restore_look(self) -> None:
        super().restore_look()
        self._refresh()

    # Resume ---------------------------------------------------------------------------------------------

    def _task_state(self) -> dict[str, np.ndarray]:
        state = {f"traffic/{name}": value for name, value in self.others.state().items()}
        state |= {"pose": self.pose.copy(), "history": self.history.copy(), "counts": self.counts.copy()}
        state |= {"way": np.array([self.way.lane, self.way.begin]), "turns": self.way.turns.copy()}
        return state | {name: np.array(getattr(self, name)) for name in _NUMBERS}

    def _set_task_state(self, state: dict[str, np.ndarray]) -> None:
        lane, begin = state["way"].tolist()
        self.way = RoadWay(int(lane), begin, state["turns"].copy())
        mark = "traffic/"
        self.others = Traffic.load({k.removeprefix(mark): v for k, v in state.items() if k.startswith(mark)})
        self.pose, self.history, self.counts = (state[name].copy() for name in ("pose", "history", "counts"))
        for name in _NUMBERS:
            setattr(self, name, state[name].item())


_NUMBERS = (
    "speed", "steer", "pedal", "at", "farthest", "stood", "collided", "strayed", "stalled", "solved",
)  # fmt: skip
