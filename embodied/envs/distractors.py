"""What should not matter, made to move: backgrounds behind a scene, its light, where its cameras stand; idle readings.

Shape letters: T steps; H, W image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from embodied.envs.pictures import resized
from embodied.envs.rendering import averaged, times_finer
from embodied.envs.world import World
from embodied.errors import UserError, nearest

GENERATED = ("moving", "still")
FILMS = (".mp4", ".avi", ".mov", ".mkv", ".webm")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FILM_FRAMES, FILM_SIZE = 240, 128  # of a film, at most; pixels, before it is brought to the frame's size
BLOBS = 6


@dataclass(frozen=True, kw_only=True)
class Distractors:
    """What distracts; config `env.distractors`.

    Attributes:
        background: in place of floor, walls and sky: "moving" (generated, other each episode), "still" (one moment of
            that), or a folder of films and pictures, of which each episode shows one; None: the world's own.
        light: factor of every light's brightness, ≥ 0.
        camera: radians by which fixed cameras are led round what they look at.
        readings: so many numbers that swing by themselves, beside an observation that is a vector (`env.obs=state`).
    """

    background: str | None = None
    light: float = 1.0
    camera: float = 0.0
    readings: int = 0

    @classmethod
    def read(cls, value: Any) -> Distractors | None:
        """From a config: null or "none" for nothing, a background alone, or a mapping of the attributes.

        Raises:
            UserError: something else, an unknown key, a wrong number, or a folder without films and pictures.
        """
        if value is None or value == "none":
            return None
        given: Any = {"background": value} if isinstance(value, str) else value
        names = [each.name for each in fields(cls)]
        if not isinstance(given, Mapping):
            raise UserError(f"env.distractors must be a background or a mapping of {', '.join(names)}; got {value!r}.")
        if unknown := next((str(key) for key in given if key not in names), None):
            raise UserError(f"env.distractors: no {unknown!r} here. {nearest(unknown, names)}")
        for name in ("light", "camera"):
            number = given.get(name, 0.0)
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise UserError(f"env.distractors: {name} must be a number; got {number!r}.")
        readings = given.get("readings", 0)
        if isinstance(readings, bool) or not isinstance(readings, int) or readings < 0:
            raise UserError(f"env.distractors: readings must be a number of them, at least 0; got {readings!r}.")
        if given.get("light", 1.0) < 0:
            raise UserError(f"env.distractors: light must be at least 0; got {given['light']}.")
        background = given.get("background")
        if background is not None and background not in GENERATED and not _files(str(background)):
            raise UserError(
                f"env.distractors: background must be {', '.join(GENERATED)}, or a folder of films and pictures; "
                f"got {background!r}, which holds none ({', '.join((*FILMS, *PICTURES))})."
            )
        return cls(**given)


class Distracted(gymnasium.Wrapper):
    """A world of ours with other backgrounds, light and cameras, or idle readings beside its own; physics, rewards and
    start states stay as they are.

    Pixels that show anything but floor, walls or sky are those of the world itself. What an episode shows depends on
    the seed of the first reset and on how many episodes there were before.

    Args:
        env: a `World`.
        distractors: what to show.

    Raises:
        UserError: not a world of ours, or idle readings where observations are no vectors.
    """

    def __init__(self, env: gymnasium.Env, distractors: Distractors) -> None:
        if not isinstance(env.unwrapped, World):
            raise UserError("env.distractors must be null here: only our own worlds can tell what stands before what.")
        super().__init__(env)
        self._world, self._background = env.unwrapped, distractors.background
        self._seed, self._episode, self._moment = 0, -1, 0
        self._readings = distractors.readings
        if self._readings:
            if self._world.obs_form != "state":
                raise UserError(
                    f"env.distractors: readings must be 0 unless env.obs=state; got {self._readings} beside "
                    f"env.obs={self._world.obs_form}."
                )
            count = int(np.prod(env.observation_space.shape or ())) + self._readings
            self.observation_space = spaces.Box(-np.inf, np.inf, (count,), np.float32)
        self._light, self._camera = distractors.light, distractors.camera
        headlight = self._world.model.vis.headlight  # is of no look, so once is for ever
        for part in (headlight.diffuse, headlight.ambient, headlight.specular):
            part[:] *= self._light
        self._alter(self._world.model)
        self._world.alter = self._alter  # each look that an episode draws undoes it

    def _alter(self, model: mujoco.MjModel) -> None:
        """Other light and cameras, on top of a look."""
        _relight(model, self._light)
        _turn_cameras(model, self._camera)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._seed, self._episode = seed, -1
        self._episode, self._moment = self._episode + 1, 0
        return self._obs(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._moment += 1
        return self._obs(obs), reward, terminated, truncated, info

    def _obs(self, obs: Any) -> Any:
        if self._readings:
            return np.concatenate([obs, self._swinging()])
        if self._background is None or self._world.obs_form == "state":
            return obs
        pixels = obs["pixels"] if isinstance(obs, dict) else obs
        # One that was averaged is taken again, as below; the others are rendered already.
        shown = self._shown(pixels, None) if times_finer(*pixels.shape[:2]) == 1 else self.frame()
        return obs | {"pixels": shown} if isinstance(obs, dict) else shown

    def frame(self, camera: str | None = None, image_size: int | None = None) -> np.ndarray:
        """What the reward model sees now: (H, W, 3) uint8 RGB, contiguous."""
        size = image_size or self._world.image_size
        times = times_finer(size, size)  # a background goes in before pixels are averaged, so that edges mix with it
        finer = self.env.get_wrapper_attr("frame")(camera=camera, image_size=times * size)
        return averaged(self._shown(finer, camera), times)

    def render(self) -> Any:
        picture = self.env.render()
        return picture if picture is None else self._shown(picture, None)  # pyright: ignore[reportArgumentType]

    def _shown(self, frame: np.ndarray, camera: str | None) -> np.ndarray:
        if self._background is None:
            return frame
        behind = self._world.backdrop(camera, len(frame))
        return np.where(behind[..., None], self.background(len(frame)), frame)

    def background(self, size: int) -> np.ndarray:
        """(size, size, 3) uint8: what moves behind the scene, now."""
        rng = np.random.default_rng([self._seed, self._episode])
        if self._background in GENERATED:
            return generated(rng, self._moment if self._background == "moving" else 0, size)
        files = _files(str(self._background))
        film = _film(files[rng.integers(len(files))])
        at, last = int(rng.integers(len(film))) + self._moment, len(film) - 1
        return resized(film[last - abs(at % (2 * last) - last) if last else 0], size)  # there and back

    def _swinging(self) -> np.ndarray:
        """(readings,) float32, each a sine of variance 1 with a rate and a phase of its own in each episode."""
        rng = np.random.default_rng([self._seed, self._episode, 1])
        rates, phases = rng.uniform(0.1, 0.8, self._readings), rng.uniform(0, 2 * math.pi, self._readings)
        return (math.sqrt(2) * np.sin(rates * self._moment + phases)).astype(np.float32)

    def wrapper_state(self) -> dict[str, int]:
        """What `set_wrapper_state` needs to go on from here."""
        return {"seed": self._seed, "episode": self._episode, "moment": self._moment}

    def set_wrapper_state(self, state: Mapping[str, int]) -> None:
        """Undo of `wrapper_state`."""
        self._seed, self._episode, self._moment = state["seed"], state["episode"], state["moment"]


def generated(rng: np.random.Generator, moment: int, size: int) -> np.ndarray:
    """Soft coloured discs that bounce about over drifting stripes.

    Args:
        rng: at its beginning; the same draws give the same film.
        moment: t ≥ 0, steps since the film began.
        size: pixels.

    Returns:
        (size, size, 3) uint8.
    """
    colours = rng.uniform(0, 1, (BLOBS + 2, 3))
    turn, speed, waves = rng.uniform(0, 2 * math.pi), rng.uniform(-0.6, 0.6), rng.uniform(1, 3)
    starts, radii = rng.uniform(0, 2, (BLOBS, 2)), rng.uniform(0.08, 0.25, BLOBS)
    velocities = rng.uniform(0.02, 0.08, (BLOBS, 2)) * rng.choice([-1, 1], (BLOBS, 2))
    y, x = np.mgrid[:size, :size] / size
    phase = 2 * math.pi * waves * (x * math.cos(turn) + y * math.sin(turn)) + speed * moment
    picture = colours[0] + (0.5 + 0.5 * np.sin(phase))[..., None] * (colours[1] - colours[0])
    for (u, v), radius, colour in zip(
        1 - np.abs((starts + velocities * moment) % 2 - 1), radii, colours[2:], strict=True
    ):
        weight = np.exp(-(np.square(x - u) + np.square(y - v)) / (2 * radius**2))[..., None]
        picture = picture + weight * (colour - picture)
    return np.rint(255 * picture).astype(np.uint8)


def _files(folder: str) -> list[Path]:
    """The films and pictures of a folder, by name."""
    path = Path(folder)
    if not path.is_dir():
        return []
    return sorted(file for file in path.iterdir() if file.suffix.lower() in (*FILMS, *PICTURES))


@lru_cache(maxsize=8)
def _film(path: Path) -> list[np.ndarray]:
    """The frames of a film, or the one of a picture, small."""
    from embodied.cameras.recorded import images, video

    frames = []
    for shot in images(path, 1.0) if path.suffix.lower() in PICTURES else video(str(path)):
        if shot.image is None:
            raise UserError(f"env.distractors: {path} must be readable: {shot.problem}")
        frames.append(resized(shot.image, FILM_SIZE))
        if len(frames) == FILM_FRAMES:
            break
    return frames


def _relight(model: mujoco.MjModel, factor: float) -> None:
    """Every light that stands somewhere by a factor."""
    for part in (model.light_diffuse, model.light_ambient, model.light_specular):
        part *= factor


def _turn_cameras(model: mujoco.MjModel, angle: float) -> None:
    """Lead every camera that stands still round the vertical through what it looks at."""
    about = np.array([math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)])
    for camera in np.flatnonzero(model.cam_bodyid == 0):
        place, turned, matrix = model.cam_pos[camera], np.empty(4), np.empty(9)
        mujoco.mju_quat2Mat(matrix, model.cam_quat[camera])
        ahead = -matrix.reshape(3, 3)[:, 2]
        target = place + ahead * max(float(ahead @ (model.stat.center - place)), 0.0)
        mujoco.mju_rotVecQuat(turned[:3], place - target, about)
        model.cam_pos[camera] = target + turned[:3]
        mujoco.mju_mulQuat(turned, about, model.cam_quat[camera])
        model.cam_quat[camera] = turned
