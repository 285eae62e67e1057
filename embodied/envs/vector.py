"""Many worlds as one stable-baselines3 vector environment, with the frames a reward model reads.

The frame of a step is rendered where the world lives, after the step and before the auto-reset, so the last frame of
an episode shows its end and not the next episode's start. Observations and frames lie in shared memory; only small
dictionaries cross process borders.

Shape letters: E worlds; V views; H, W image.
"""

from __future__ import annotations

import multiprocessing
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from embodied.envs.worker import Look, Specs, WorldError, Worlds, block_size, views, work
from embodied.errors import UserError

STOP_S = 5.0  # how long a worker may take to close before it is killed


class WorldVecEnv(VecEnv):
    """E worlds that reset themselves, stepped in this process or spread over worker processes.

    `info` of a step holds `env_reward` (float), `is_success` (where the world tells), `TimeLimit.truncated`,
    `signals` (where the world has them) and, at the end of an episode, `terminal_observation` and `env_episode`
    (the return and length under the task's own reward).

    Args:
        make: makes one world; picklable when `workers` > 0.
        num_worlds: E.
        workers: processes to spread the worlds over; 0 steps them in this process.
        seed: world i starts from `seed + i`.
        frame_size: height and width of `frames`, pixels; None renders nothing, and `step` returns the task's own
            reward.
        env_weight: with frames, `step` returns this times the task's own reward: zeros, unless a learner shall have
            it beside a reward model's.
        cameras: the views of `frames`, by name; none: one view, from the world's own camera.
        depth: whether `reset_depth` is wanted; only some worlds measure it.

    Raises:
        UserError: a world that cannot be had, or spaces that no learner reads right; see `embodied.envs.spaces`.
        WorldError: a world fails; every worker is stopped first.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        num_worlds: int,
        *,
        workers: int = 0,
        seed: int = 0,
        frame_size: int | None = None,
        env_weight: float = 0.0,
        cameras: Sequence[str] = (),
        depth: bool = False,
    ) -> None:
        if num_worlds < 1:
            raise ValueError(f"WorldVecEnv: num_worlds must be at least 1; got {num_worlds}.")
        if not 0 <= workers <= num_worlds:
            raise ValueError(f"WorldVecEnv: workers must be from 0 to num_worlds ({num_worlds}); got {workers}.")
        self.frame_size, self.env_weight = frame_size, env_weight
        parts = np.array_split(np.arange(num_worlds), max(workers, 1))
        self._memory: SharedMemory | None = None
        self._groups: list[_Local | _Remote] = []
        self._closed = False
        try:
            group = _Remote if workers else _Local
            look = None if frame_size is None else Look(frame_size, tuple(cameras), depth)
            self._groups = [group(make, part.tolist(), look) for part in parts]
            observation_space, action_space, self.views, measured = self._gather("describe")[0]
            specs = _specs(observation_space, num_worlds, look, len(self.views), measured)
            if workers:
                self._memory = SharedMemory(create=True, size=block_size(specs))
                self._arrays = views(self._memory.buf, specs)
            else:
                self._arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in specs.items()}
            for each in self._groups:
                each.attach(self._arrays, self._memory.name if self._memory else "", specs)
            self._collect()
        except BaseException:
            self.close()
            raise
        processes = [group.process for group in self._groups if isinstance(group, _Remote)]
        self._finalizer = weakref.finalize(self, _release, processes, self._memory)
        self._start_s = time.monotonic()
        super().__init__(num_worlds, observation_space, action_space)
        self.seed(seed)

    # Stepping -------------------------------------------------------------------------------------------

    @property
    def frames(self) -> np.ndarray:
        """(E, V, H, W, 3) uint8: what each world looked like after its last step; overwritten by the next step."""
        return self._arrays["frames"]

    @property
    def reset_frames(self) -> np.ndarray:
        """(E, V, H, W, 3) uint8: the first frames of the episode each world is in; overwritten by its next reset."""
        return self._arrays["reset_frames"]

    @property
    def reset_depth(self) -> np.ndarray | None:
        """(E, V, H, W) float32, metres in the first frames; None where the worlds do not measure it."""
        return self._arrays.get("reset_depth")

    def reset(self) -> Any:
        seeds, options = self._seeds, self._options
        self.reset_infos = self._gather("reset", lambda part: ([seeds[i] for i in part], [options[i] for i in part]))
        self._reset_seeds()
        self._reset_options()
        return self._obs()

    def step_async(self, actions: np.ndarray) -> None:
        self._send("step", lambda part: (actions[part],))

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict]]:
        infos, dones = [], np.zeros(self.num_envs, dtype=bool)
        rewards = np.zeros(self.num_envs, dtype=np.float32)  # a fresh one: SB3 writes into it
        for i, (done, info, reset_info) in enumerate(self._collect()):
            dones[i] = done
            if done:
                info["terminal_observation"] = self._obs(i, "last")
                self.reset_infos[i] = reset_info
            rewards[i] = info["env_reward"] * (1 if self.frame_size is None else self.env_weight)
            if self.frame_size is None and done:
                total, length = info["env_episode"]
                info["episode"] = {"r": total, "l": length, "t": round(time.monotonic() - self._start_s, 3)}
            infos.append(info)
        return self._obs(), rewards, dones, infos

    def _obs(self, world: int | None = None, kind: str = "obs") -> Any:
        """A copy of all observations, or of one world's."""
        pick = slice(None) if world is None else world
        if isinstance(self.observation_space, spaces.Dict):
            return {key: self._arrays[f"{kind}/{key}"][pick].copy() for key in self.observation_space.spaces}
        return self._arrays[kind][pick].copy()

    # Resume ---------------------------------------------------------------------------------------------

    def get_states(self) -> list[dict[str, Any]]:
        """One dictionary a world: arrays under "world" (None where it cannot tell), numbers and lists elsewhere."""
        return self._gather("get_states")

    def set_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on exactly where `get_states` was called; the worlds must have been reset once."""
        self._gather("set_states", lambda part: ([states[i] for i in part],))

    # Messages -------------------------------------------------------------------------------------------

    def _send(self, command: str, args: Callable[[list[int]], tuple] = lambda part: ()) -> None:
        if self._closed:
            raise WorldError("WorldVecEnv: the worlds are closed.")
        for group in self._groups:
            self._guard(group.send, command, args(group.part))

    def _collect(self) -> list[Any]:
        """The answers of all worlds, in order; groups answer with one item a world."""
        return [item for group in self._groups for item in self._guard(group.receive)]

    def _gather(self, command: str, args: Callable[[list[int]], tuple] = lambda part: ()) -> list[Any]:
        self._send(command, args)
        return self._collect()

    def _guard(self, call: Callable, *args: Any) -> Any:
        """Stop every world when one fails or the user interrupts: answers would be out of step."""
        try:
            return call(*args)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the worlds and free the shared memory; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._arrays = {}
        for group in self._groups:
            group.close()
        if hasattr(self, "_finalizer"):
            self._finalizer()
        else:
            _release([group.process for group in self._groups if isinstance(group, _Remote)], self._memory)

    # The rest of the interface --------------------------------------------------------------------------

    def _chosen(self, indices: int | Iterable[int] | None) -> list[int]:
        return list(self._get_indices(indices))

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        values = self._gather("get_attr", lambda part: (attr_name,))
        return [values[i] for i in self._chosen(indices)] if indices is not None else values

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        chosen = self._chosen(indices)
        self._gather("set_attr", lambda part: ([i for i in part if i in chosen], attr_name, value))

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        chosen = self._chosen(indices)
        values = self._gather(
            "env_method", lambda part: ([i for i in part if i in chosen], method_name, method_args, method_kwargs)
        )
        return [values[i] for i in chosen]

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper], indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        values = self._gather("is_wrapped", lambda part: (wrapper_class,))
        return [values[i] for i in self._chosen(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        return self.env_method("render")


class _Local:
    """A group of worlds in this process."""

    def __init__(self, make: Callable[[], gymnasium.Env], part: list[int], look: Look | None) -> None:
        self.part = part
        self._worlds = Worlds(make, part, look)
        self._answer: list[Any] = []

    def attach(self, arrays: dict[str, np.ndarray], name: str, specs: Specs) -> None:
        self._answer = self._worlds.attach(arrays)

    def send(self, command: str, args: tuple) -> None:
        self._answer = getattr(self._worlds, command)(*args)

    def receive(self) -> list[Any]:
        return self._answer

    def close(self) -> None:
        self._worlds.close()


class _Remote:
    """A group of worlds in a process of its own."""

    def __init__(self, make: Callable[[], gymnasium.Env], part: list[int], look: Look | None) -> None:
        self.part = part
        context = multiprocessing.get_context("spawn")  # fork copies locks and OpenGL contexts in unknown states
        self._pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=work, args=(theirs, make, part, look), daemon=True, name=f"worlds {part[0]}-{part[-1]}"
        )
        self.process.start()
        theirs.close()

    def attach(self, arrays: dict[str, np.ndarray], name: str, specs: Specs) -> None:
        self.send("attach", (name, specs))

    def send(self, command: str, args: tuple) -> None:
        try:
            self._pipe.send((command, args))
        except (BrokenPipeError, ConnectionResetError):
            raise self._gone() from None

    def receive(self) -> list[Any]:
        try:
            fine, answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._gone() from None
        if not fine:
            raise _failure(fine, answer)
        return answer

    def _gone(self) -> WorldError | UserError:
        """The error for a process that ended without a word, or with one still in the pipe."""
        if self._pipe.poll():
            with suppress(EOFError, ConnectionResetError):  # nothing to read: the exit code is all there is
                fine, answer = self._pipe.recv()
                if not fine:
                    return _failure(fine, answer)
        self.process.join(STOP_S)
        worlds = f"world {self.part[0]}" if len(self.part) == 1 else f"worlds {self.part[0]} to {self.part[-1]}"
        return WorldError(f"{worlds}: their process ended with exit code {self.process.exitcode}.")

    def close(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it is gone already
            self._pipe.send(("close", ()))
        self._pipe.close()


def _failure(kind: bool | None, told: tuple[str, str]) -> WorldError | UserError:
    """What a worker tells in place of an answer: False a failure, None a person's mistake; and where it came from."""
    error = UserError(told[0]) if kind is None else WorldError(told[0])
    error.add_note(told[1])
    return error


def _release(processes: list[BaseProcess], memory: SharedMemory | None) -> None:
    """End workers that do not end by themselves, then give the memory back; also runs at interpreter exit."""
    deadline = time.monotonic() + STOP_S
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0.0))
        if process.is_alive():
            process.kill()
            process.join()
    if memory is not None:
        memory.unlink()
        with suppress(BufferError):  # someone still looks at a frame; the pages go when they stop
            memory.close()


def _specs(space: spaces.Space, num_worlds: int, look: Look | None, num_views: int, depth: bool) -> Specs:
    leaves = {f"/{key}": leaf for key, leaf in space.spaces.items()} if isinstance(space, spaces.Dict) else {"": space}
    specs: Specs = {}
    for suffix, leaf in leaves.items():
        if leaf.shape is None or leaf.dtype is None:
            raise TypeError(f"WorldVecEnv: observations must be arrays or dicts of arrays; got {space}.")
        for kind in ("obs", "last"):  # the running episode's, and the last of an ended one
            specs[kind + suffix] = ((num_worlds, *leaf.shape), np.dtype(leaf.dtype))
    if look is not None:
        shape = (num_worlds, num_views, look.size, look.size)
        for name in ("frames", "reset_frames"):
            specs[name] = ((*shape, 3), np.dtype(np.uint8))
        if depth:
            specs["reset_depth"] = (shape, np.dtype(np.float32))
    return specs
