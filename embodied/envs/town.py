"""A car in a small town with traffic and a walker: what is there and how it moves.

The task is `embodied.envs.drive`.
"""

from __future__ import annotations

import math
from pathlib import Path

import mujoco
import numpy as np
from gymnasium import spaces

from embodied.envs.drive_scene import AWAY, OTHERS, PARKED, build
from embodied.envs.roads import RoadWay
from embodied.envs.traffic import HALF, Traffic, gaps, turned, walker_gap
from embodied.envs.world import World

MAX_DISTANCE = 3.0  # metres from the lane's middle, beyond which a car has left it: VLM-RL's number
HISTORY = 20  # readings behind the spread of the distance from the lane: 2 s, as there
STANDING, STALL_S = 1.0, 10.0  # km/h below which a car stands; seconds of standing that are a stall (there 90)

ROUTE = 120.0  # metres
WHEELS = 2.7  # metres between the axles
MAX_STEER, LAG = 0.6, 0.65  # rad at steering 1; share of the former steering kept in an action (there .75 at 15 Hz)
POWER, BRAKES, DRAG = 3.0, 7.0, 0.015  # m/s² at full throttle and at full brake; 1/m
CLEAR = 2.5  # metres around a car that was put back
LOOKED_AHEAD = (5.0, 10.0, 15.0)  # metres along the route, of the navigator's readings


class Town(World):
    """The driven car, the others and the walker, without a task.

    Attributes:
        traffic: how full the town is, in [0, 1].
        pose: (3,) x, y (m), heading (rad) of the car's middle.
        way: the route, and on.
        at: metres along it.
        others: the traffic.
    """

    scene = "drive"
    cameras = ("bird", "front")
    ctrl_dt = 0.1
    sim_dt = 0.02
    traffic: float

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

    # Where it is -----------------------------------------------------------------------------------------

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
