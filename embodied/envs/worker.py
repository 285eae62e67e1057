"""Worlds stepped one after another in one process: the inside of `embodied.envs.vector`.

A worker imports this module, so it stays clear of torch: a process costs tens of megabytes, not hundreds.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from embodied.envs.interventions import INTERVENE_ACTION, IS_INTERVENTION, executed
from embodied.envs.pictures import RENDER, renders, view
from embodied.envs.spaces import Actions, array, number, told_success, world_name
from embodied.errors import UserError, nearest

Specs = dict[str, tuple[tuple[int, ...], np.dtype]]  # array name -> shape, dtype


class WorldError(RuntimeError):
    """A world failed; the text names it."""


@dataclass(frozen=True)
class Look:
    """What is rendered at each step, for a reward model.

    Attributes:
        size: height and width of a frame, pixels.
        cameras: one frame each; empty: the world's own camera.
        depth: whether to measure it too, at resets, where a world can.
        policy_cameras: one frame more of each that is not among the cameras.
    """

    size: int
    cameras: Sequence[str] = ()
    depth: bool = False
    policy_cameras: Sequence[str] = ()


class Worlds:
    """The worlds of one process, each answer a list with one item a world.

    Actions are translated and observations checked (see `embodied.envs.spaces`), whoever made the world.

    Args:
        make: makes one.
        part: numbers of these worlds among all.
        look: what is rendered; None: nothing is.

    Raises:
        UserError: a world has nothing to render.
    """

    def __init__(self, make: Callable[[], gymnasium.Env], part: list[int], look: Look | None) -> None:
        self._part, self._look = part, look
        self._envs: list[gymnasium.Env] = []
        self._returns, self._lengths = [0.0] * len(part), [0] * len(part)
        self._interventions = [0] * len(part)  # steps of the running episode in which a person acted
        for index in part:
            with _naming(index, "being made"):
                self._envs.append(make())
        env = self._envs[0]
        self._actions = [Actions(each.action_space, world_name(each)) for each in self._envs]
        _check_learnable(env, self._actions[0].space)
        self._has_signals = env.has_wrapper_attr("signals")
        if look is not None:
            if not renders(env):
                raise UserError(f"{world_name(env)} has no frame() to score, and does not render pictures. {RENDER}")
            self._own = own_view(env)
            self._views = view_names(env, look.cameras, look.policy_cameras)
            self._depth = look.depth and env.has_wrapper_attr("depth")

    def attach(self, arrays: dict[str, np.ndarray]) -> list[None]:
        self._arrays = arrays
        return [None] * len(self._part)

    def describe(self) -> list[tuple[spaces.Space, spaces.Space, tuple[str, ...], bool]]:
        """Both spaces, the names of the views, and whether depth is measured."""
        views, depth = ((), False) if self._look is None else (self._views, self._depth)
        return [
            (env.observation_space, actions.space, views, depth)
            for env, actions in zip(self._envs, self._actions, strict=True)
        ]

    def reset(self, seeds: list[int | None]) -> list[dict]:
        return [self._reset(k, seed) for k, seed in enumerate(seeds)]

    def _reset(self, k: int, seed: int | None = None) -> dict:
        with _naming(self._part[k], "reset"):
            obs, info = self._envs[k].reset(seed=seed)
            self._returns[k], self._lengths[k], self._interventions[k] = 0.0, 0, 0
            self._write("obs", k, obs)
            self._draw("reset_frames", k, obs)
            if self._look is not None and self._depth:
                for v, camera in enumerate(self._views):
                    depth = self._envs[k].get_wrapper_attr("depth")(camera=camera, image_size=self._look.size)
                    self._arrays["reset_depth"][self._part[k], v] = depth
            return self._small(k, info)

    def step(self, actions: np.ndarray) -> list[tuple[float, bool, bool, dict, dict]]:
        return [self._step(k, action) for k, action in enumerate(actions)]

    def _step(self, k: int, action: Any) -> tuple[float, bool, bool, dict, dict]:
        """Reward, terminated, truncated, info, and the info of the reset where the episode ended."""
        with _naming(self._part[k], "step"):
            obs, reward, terminated, truncated, info = self._envs[k].step(self._actions[k](action))
            reward = number(reward, f"{world_name(self._envs[k])}: a reward")
            terminated, truncated = bool(terminated), bool(truncated) and not terminated
            done = terminated or truncated
            self._returns[k] += reward
            self._lengths[k] += 1
            self._draw("frames", k, obs)
            small = self._small(k, info) | self._executed(k, action, info)
            self._interventions[k] += small[IS_INTERVENTION]
            self._write("last" if done else "obs", k, obs)
        if not done:
            return reward, False, False, small, {}
        small["env_episode"] = (self._returns[k], self._lengths[k])
        small["env_interventions"] = self._interventions[k]
        return reward, terminated, truncated, small, self._reset(k)

    def _executed(self, k: int, action: Any, info: dict) -> dict[str, Any]:
        """What was executed, of the agent's space, where it is not what the agent sent; and whether a person acted."""
        done, person = executed(info, self._actions[k], action)
        return {IS_INTERVENTION: person} | ({} if done is None else {INTERVENE_ACTION: done})

    def _write(self, kind: str, k: int, obs: Any) -> None:
        space, what = self._envs[k].observation_space, f"{world_name(self._envs[k])}: an observation"
        if isinstance(space, spaces.Dict):
            if not isinstance(obs, dict) or set(obs) != set(space.spaces):
                raise UserError(f"{what} must be a dict of {', '.join(space.spaces)}; got {obs!r}.")
            for key, leaf in space.spaces.items():
                self._arrays[f"{kind}/{key}"][self._part[k]] = array(obs[key], leaf, f"{what}[{key!r}]")
        else:
            self._arrays[kind][self._part[k]] = array(obs, space, what)

    def _draw(self, name: str, k: int, obs: Any) -> None:
        """Every view of world k; a pixel observation of that size is one, and is not rendered twice."""
        if self._look is None:
            return
        pixels = obs.get("pixels") if isinstance(obs, dict) else obs
        shape = (self._look.size, self._look.size, 3)
        seen = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape == shape
        for v, camera in enumerate(self._views):
            if camera == self._own:
                picture = pixels if seen else view(self._envs[k], self._look.size)
            else:
                picture = view(self._envs[k], self._look.size, camera=camera)
            self._arrays[name][self._part[k], v] = picture

    def _small(self, k: int, info: dict) -> dict:
        """What of an info crosses to the learner's process: numbers, flags and words; success where it is told."""
        small: dict[str, Any] = {
            key: value for key, value in info.items() if isinstance(value, (bool, int, float, str, np.generic))
        }
        small.pop("is_success", None)  # unknown is not no
        if (success := told_success(info)) is not None:
            small["is_success"] = success
        if self._has_signals:
            small["signals"] = dict(self._envs[k].get_wrapper_attr("signals")())
        return small

    def get_states(self) -> list[dict[str, Any]]:
        return [
            {
                "world": saved_world(env),
                "random": env.unwrapped.np_random.bit_generator.state,
                "elapsed": [layer._elapsed_steps for layer in _layers(env) if hasattr(layer, "_elapsed_steps")],  # pyright: ignore
                "wrappers": wrapper_states(env),
                "return": self._returns[k],
                "length": self._lengths[k],
                "interventions": self._interventions[k],
            }
            for k, env in enumerate(self._envs)
        ]

    def set_states(self, states: list[dict[str, Any]]) -> list[None]:
        for k, (env, state) in enumerate(zip(self._envs, states, strict=True)):
            with _naming(self._part[k], "set_state"):
                env.unwrapped.np_random.bit_generator.state = state["random"]
                env.unwrapped.set_state(state["world"])  # pyright: ignore[reportAttributeAccessIssue]
                timed = [layer for layer in _layers(env) if hasattr(layer, "_elapsed_steps")]
                for layer, elapsed in zip(timed, state["elapsed"], strict=True):
                    layer._elapsed_steps = elapsed  # pyright: ignore[reportAttributeAccessIssue]
                set_wrapper_states(env, state["wrappers"])
                self._returns[k], self._lengths[k] = state["return"], state["length"]
                self._interventions[k] = state["interventions"]
        return [None] * len(states)

    def get_attr(self, name: str) -> list[Any]:
        return [env.get_wrapper_attr(name) for env in self._envs]

    def env_method(self, name: str, args: tuple, kwargs: dict) -> list[Any]:
        return [env.get_wrapper_attr(name)(*args, **kwargs) for env in self._envs]

    def close(self) -> None:
        self._arrays = {}
        for env in self._envs:
            env.close()


def work(pipe: Connection, make: Callable[[], gymnasium.Env], part: list[int], look: Look | None) -> None:
    """A worker's whole life: make the worlds, answer commands until told to close or the parent is gone.

    Args:
        pipe: commands come and answers go by it.
        make, part, look: as of `Worlds`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes us
    worlds: Worlds | None = None
    memory: SharedMemory | None = None
    try:
        worlds = Worlds(make, part, look)
        while True:
            command, args = pipe.recv()
            if command == "close":
                return
            if command == "attach":
                name, specs = args
                memory = SharedMemory(name)
                args = (views(memory.buf, specs),)
            pipe.send((True, getattr(worlds, command)(*args)))
            del args
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
    except UserError as error:
        pipe.send((None, (str(error), traceback.format_exc())))
    except BaseException as error:
        text = str(error) if isinstance(error, WorldError) else f"world {part[0]}: {error!r}"
        pipe.send((False, (text, traceback.format_exc())))
    finally:
        if worlds is not None:
            worlds.close()
        if memory is not None:
            memory.close()
        pipe.close()


def _check_learnable(env: gymnasium.Env, actions: spaces.Space) -> None:
    """Refuse what learners misread.

    Only a `Box`, or a `Dict` of them, can lie in shared memory as it is; and learners scale actions by their bounds.
    """
    space = env.observation_space
    leaves = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if bad := next((leaf for leaf in leaves if not isinstance(leaf, spaces.Box)), None):
        raise UserError(
            f"{world_name(env)}: observations must be arrays or dicts of arrays (Box); got {bad}. "
            "Make the world with embodied.envs.bridge.make, which turns them into numbers."
        )
    if isinstance(actions, spaces.Box) and not actions.is_bounded():
        own = getattr(env.unwrapped, "inner", env).action_space  # before a bridge translated it
        raise UserError(
            f"{world_name(env)}: actions must have finite bounds to be learned; got {own}. "
            "Give the world's action space bounds."
        )


def own_view(env: gymnasium.Env) -> str:
    """The name of the view that a world's `frame()` shows: its camera's; "free" or "main" where that has none.

    Args:
        env: one world.
    """
    if not env.has_wrapper_attr("camera"):
        return "main"
    camera = env.get_wrapper_attr("camera")
    return camera if isinstance(camera, str) else "free"


def view_names(env: gymnasium.Env, cameras: Sequence[str], policy_cameras: Sequence[str] = ()) -> tuple[str, ...]:
    """The views a reward model gets, `cameras` or the world's own; after them those that the policy alone sees.

    Args:
        env: one world.
        cameras: by name; none: the world's own.
        policy_cameras: likewise; what is among the cameras already is not seen twice.

    Raises:
        WorldError: a camera that the world lacks, or one twice.
    """
    if not (cameras or policy_cameras):
        return (own_view(env),)
    known = env.get_wrapper_attr("cameras") if env.has_wrapper_attr("cameras") else (own_view(env),)
    for camera in (*cameras, *policy_cameras):
        if camera not in known:
            raise WorldError(f"cameras must be of this world; got {camera!r}. {nearest(str(camera), known)}")
    if len(set(cameras)) < len(cameras):
        raise WorldError(f"cameras must differ; got {', '.join(cameras)}.")
    seen = tuple(cameras) or (own_view(env),)
    return (*seen, *(camera for camera in dict.fromkeys(policy_cameras) if camera not in seen))


def frames_of(env: gymnasium.Env, views: Sequence[str], size: int, *, kind: str = "frame") -> np.ndarray:
    """(V, H, W, 3) uint8, what a world looks like now in some of its views; its depth (V, H, W) as `kind="depth"`.

    Args:
        env: one world.
        size: side in pixels.
    """
    own, pictures_of = own_view(env), []
    for each in views:
        named = {} if each == own else {"camera": each}
        whole = kind == "frame"  # a world without `frame()` is looked at by what it renders
        pictures_of.append(view(env, size, **named) if whole else env.get_wrapper_attr(kind)(image_size=size, **named))
    return np.stack(pictures_of)


def saved_world(env: gymnasium.Env) -> dict[str, np.ndarray] | None:
    """The world's own state, without its random generator, or None where it cannot tell it.

    Args:
        env: one world, wrapped or not.
    """
    if not hasattr(env.unwrapped, "get_state"):
        return None
    try:
        return env.unwrapped.get_state()  # pyright: ignore[reportAttributeAccessIssue]
    except UserError:  # a suite that hides its state
        return None


def wrapper_states(env: gymnasium.Env) -> list[Any]:
    """What the wrappers round a world keep beside it, JSON, from the outermost in.

    Args:
        env: one world with its wrappers.
    """
    return [layer.wrapper_state() for layer in _layers(env) if hasattr(layer, "wrapper_state")]  # pyright: ignore


def set_wrapper_states(env: gymnasium.Env, states: Sequence[Any]) -> None:
    """Undo of `wrapper_states`.

    Args:
        env: a world with the same wrappers.
        states: of them.
    """
    kept = [layer for layer in _layers(env) if hasattr(layer, "set_wrapper_state")]
    for layer, state in zip(kept, states, strict=True):
        layer.set_wrapper_state(state)  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def _naming(index: int, what: str) -> Iterator[None]:
    """Name the world in what goes wrong; a person's mistake is told as it is where all worlds share it."""
    try:
        yield
    except WorldError:
        raise
    except UserError as error:
        if what == "being made":
            raise
        raise WorldError(f"world {index} failed in {what}: {error}") from error
    except Exception as error:
        ours = isinstance(error, UserError) or (isinstance(error, ValueError) and ": " in str(error))  # says all itself
        told = str(error) if ours else f"{type(error).__name__}: {error}"
        raise WorldError(f"world {index} failed in {what}: {told}") from error


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    """The wrappers from the outermost in, and the world itself."""
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env
    yield env


def _offsets(specs: Specs) -> Iterator[tuple[str, int, int]]:
    """Name, start and end of each array in one block, 64-byte aligned."""
    start = 0
    for name, (shape, dtype) in specs.items():
        end = start + int(np.prod(shape)) * dtype.itemsize
        yield name, start, end
        start = -(-end // 64) * 64


def block_size(specs: Specs) -> int:
    """Bytes that `views` needs.

    Args:
        specs: name -> shape and type of each array.
    """
    return max(end for _, _, end in _offsets(specs))


def views(buffer: Any, specs: Specs) -> dict[str, np.ndarray]:
    """The arrays that lie in one block of memory.

    Args:
        buffer: the block.
        specs: name -> shape and type of each array.
    """
    return {
        name: np.ndarray(specs[name][0], specs[name][1], buffer=buffer, offset=start)
        for name, start, _ in _offsets(specs)
    }
