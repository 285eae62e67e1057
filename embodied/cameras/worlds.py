"""Our worlds as cameras: their expert or random actions, seen by one of their cameras, recorded or at the world's pace.

H, W: height and width of an image, pixels.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from embodied.cameras.live import Grab
from embodied.cameras.recorded import Shot, Shots
from embodied.envs.bridge import make
from embodied.envs.experts import expert, has_expert
from embodied.envs.world import World
from embodied.errors import UserError, nearest

POLICIES = ("expert", "random")


@dataclass(frozen=True, kw_only=True)
class Show:
    """What happens in the world, and how it is seen.

    Args:
        world: a short name (desk-drawer) or any Gymnasium id.
        camera: of the world; None: its own.
        policy: "expert", "random"; None: the expert where there is one.
        seed: of the first episode; the next has the next.
        image_size: H and W of an image.

    Raises:
        UserError: a policy that is none of these, or a size below 1.
    """

    world: str
    camera: str | None = None
    policy: str | None = None
    seed: int = 0
    image_size: int = 224

    def __post_init__(self) -> None:
        if self.policy is not None and self.policy not in POLICIES:
            raise UserError(f"policy must be one of {', '.join(POLICIES)}; got {self.policy!r}.")
        if self.image_size < 1:
            raise UserError(f"image_size must be at least 1; got {self.image_size}.")

    def frames(self, episodes: int | None = None) -> Generator[tuple[np.ndarray, float], None, None]:
        """Images (H, W, 3) uint8 and the seconds that one takes, from each reset to its end; None: for ever.

        The world lives, draws and is closed in the thread that iterates.
        """
        env = make(self.world)
        try:
            world: Any = env.unwrapped
            if self.policy == "expert" and not has_expert(world):
                raise UserError(f"{self.world}: has no scripted expert. Use policy=random.")
            known = env.get_wrapper_attr("cameras") if env.has_wrapper_attr("cameras") else ()
            if self.camera is not None and self.camera not in known:
                raise UserError(f"{self.world}: no camera {self.camera!r}. {nearest(self.camera, known)}")
            look, step_s = env.get_wrapper_attr("frame"), _step_s(env)
            env.action_space.seed(self.seed)
            episode = 0
            while episodes is None or episode < episodes:
                env.reset(seed=self.seed + episode)
                act = expert(world) if has_expert(world) and self.policy != "random" else None
                ended = False
                yield look(camera=self.camera, image_size=self.image_size), step_s
                while not ended:
                    _, _, terminated, truncated, _ = env.step(act(world) if act else env.action_space.sample())
                    ended = terminated or truncated
                    yield look(camera=self.camera, image_size=self.image_size), step_s
                episode += 1
        finally:
            env.close()


def _step_s(env: gymnasium.Env) -> float:
    world = env.unwrapped
    return world.action_s if isinstance(world, World) else 1 / float(world.metadata.get("render_fps") or 20)


def fps(show: Show) -> float:
    """Images a second that the world's own pace gives."""
    env = make(show.world)
    try:
        return round(1 / _step_s(env), 6)
    finally:
        env.close()


def shots(show: Show, episodes: int) -> Shots:
    """The same images each time, as a record."""
    time_s = 0.0
    frames = show.frames(episodes)
    try:
        for image, step_s in frames:
            yield Shot(image, time_s)
            time_s += step_s
    finally:
        frames.close()


class WorldDriver:
    """A world that goes on at its own pace, whoever looks, episode after episode.

    Attributes:
        name: of the world and its camera.
        fps: of the world.
    """

    def __init__(self, show: Show) -> None:
        self.name = f"env:{show.world}" + (f"/{show.camera}" if show.camera else "")
        self.fps: float | None = None
        self._show = show
        self._frames: Generator[tuple[np.ndarray, float], None, None] | None = None
        self._due_s = 0.0

    def open(self) -> None:
        """Begin an episode."""
        self._frames = self._show.frames()
        self._due_s = time.monotonic()

    def grab(self) -> Grab:
        """The next image, when its time has come."""
        assert self._frames is not None
        image, step_s = next(self._frames)
        self.fps = 1 / step_s
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        captured_s = time.monotonic()
        self._due_s = max(self._due_s + step_s, captured_s)
        return Grab(image, captured_s)

    def close(self) -> None:
        """End the world."""
        if self._frames is not None:
            self._frames.close()
            self._frames = None
