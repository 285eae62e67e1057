"""A robot of one's own behind `RobotEnv`: limits that no policy can pass, watchdogs, reward and success from a model.

    python examples/own_robot_driver.py

The driver here is a slide in this process whose camera is drawn. Yours talks to hardware: it has the same methods, and
it must hold still at once in `stop`, whoever calls it and whatever it was doing.
"""

import numpy as np

from embodied.cameras.camera import Frame
from embodied.robots.driver import Clock, DriverError, Observation
from embodied.robots.env import RobotEnv
from embodied.robots.judge import Success, Task
from embodied.robots.limits import Bound, Limits
from embodied.robots.watchdog import MaxAge
from rewards.clip_goal import clip_scorer
from rewards.encoders import embedded_encoder


class Slide:
    """One axis, in metres; `x` is both what is commanded and what is measured."""

    action_names, observation_names, cameras = ("x",), ("x",), ("front",)

    def __init__(self) -> None:
        self.clock, self._x, self._stopped, self._frames = Clock(), 0.0, True, 0

    def connect(self) -> None:
        """Nothing to reach; it does not move."""

    def observe(self) -> Observation:
        """Where it is, and what its camera sees."""
        now = self.clock.now()
        image = np.full((96, 96, 3), 200, np.uint8)
        place = round(42 + 300 * self._x)
        image[48:60, place : place + 12] = 90
        frame = Frame(image=image, captured_s=now, index=self._frames)
        self._frames += 1
        stopped = "held still" if self._stopped else None
        proprio = np.array([self._x], np.float32)
        return Observation(proprio=proprio, images={"front": frame}, measured_s=now, stopped=stopped)

    def act(self, command: np.ndarray) -> np.ndarray:
        """Go there; a real robot moves on its own and may clip what it was sent."""
        if self._stopped:
            raise DriverError("Slide: it is held still. Release it first.")
        self._x = float(command[0])
        return command

    def stop(self) -> None:
        """Hold still, at once, from any thread."""
        self._stopped = True

    def release(self) -> None:
        """Take commands again."""
        self._stopped = False

    def disconnect(self) -> None:
        """Stop and let go."""
        self.stop()


def main() -> None:
    """Ten control periods of a policy that always wants to go right, faster than it may."""
    scorer = clip_scorer(encoder=embedded_encoder(), goal="the tip of the arm touches the red ball")
    task = Task(scorer=scorer, success=Success(threshold=0.99))  # in the head's own units: judge it on your episodes
    limits = Limits(command={"x": Bound(-0.1, 0.1, speed=0.2)}, state={"x": (-0.12, 0.12)})
    # These ages are for a busy machine. On a robot keep the defaults, or less.
    ages = MaxAge(camera_s=5.0, observation_s=5.0, policy_s=5.0, frozen_s=None)
    env = RobotEnv(Slide(), limits, task=task, ctrl_hz=20.0, obs="state", max_age=ages, max_steps=10)
    try:
        env.reset()
        ended = False
        while not ended:
            obs, reward, terminated, truncated, info = env.step(np.array([5.0], np.float32))
            ended = terminated or truncated
            print(f"x = {obs[0]:.3f} m, reward {reward:.4f}, clamped {info['clamped']}, stopped {info['stopped']}")
    finally:
        env.close()


if __name__ == "__main__":
    main()
