"""Many worlds stepped together, with the frames a reward model and a policy read.

The frame of a step is rendered where the world lives, after the step and before the auto-reset, so the last frame of
an episode shows its end and not the next episode's start. Observations and frames lie in shared memory; only small
dictionaries cross process borders.

Shape letters: E worlds; V views; H, W image.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from embodied.envs.worker import Look, Specs, WorldError, Worlds, block_size, views, work
from embodied.errors import UserError

STOP_S = 5.0  # how long a worker may take to close before it is killed


class WorldVecEnv:
    """E worlds that reset themselves, stepped in this process or spread over worker processes.

    `info` of a step holds `is_success` (where the world tells), `signals` (where the world has them), `is_intervention`
    and, where another action than the agent's was executed, `intervene_action`, of `action_space` (see
    `embodied.envs.interventions`). At the end of an episode it holds `env_episode` (the return and length under the
    task's own reward) and `env_interventions` (the steps in which a person acted).

    Attributes:
        num_envs: E.
        observation_space, action_space: of one world.
        views: names of the V views of `frames`.
        policy_views: those of them that rewards do not read.
        reset_infos: E infos of the resets that began the running episodes, `signals` among them.

    Args:
        make: makes one world; picklable when `workers` > 0.
        num_worlds: E.
        workers: processes to spread the worlds over; 0 steps them in this process.
        seed: world i starts from `seed + i`.
        frame_size: height and width of `frames`, pixels; None renders nothing.
        cameras: the views of `frames`, by name; none: one view, from the world's own camera.
        policy_cameras: further views, for the policy alone.
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
        cameras: Sequence[str] = (),
        policy_cameras: Sequence[str] = (),
        depth: bool = False,
    ) -> None:
        if num_worlds < 1:
            raise ValueError(f"WorldVecEnv: num_worlds must be at least 1; got {num_worlds}.")
        if not 0 <= workers <= num_worlds:
            raise ValueError(f"WorldVecEnv: workers must be from 0 to num_worlds ({num_worlds}); got {workers}.")
        self.num_envs, self.frame_size = num_worlds, frame_size
        parts = np.array_split(np.arange(num_worlds), max(workers, 1))
        self._memory: SharedMemory | None = None
        self._groups: list[_Local | _Remote] = []
        self._closed = False
        try:
            group = _Remote if workers else _Local
            look = None if frame_size is None else Look(frame_size, tuple(cameras), depth, tuple(policy_cameras))
            self._groups = [group(make, part.tolist(), look) for part in parts]
            self.observation_space, self.action_space, self.views, measured = self._gather("describe")[0]
            self.policy_views = tuple(self.views[len(cameras) or 1 :])
            specs = _specs(self.observation_space, num_worlds, look, len(self.views), measured)
            if workers:
                self._memory = _shared(block_size(specs))
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
        self.reset_infos: list[dict[str, Any]] = []
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

    def seed(self, seed: int) -> None:
        """World i starts from `seed + i` at the next reset; later resets go on with its own generator."""
        self._seeds: list[int | None] = [seed + i for i in range(self.num_envs)]

    def reset(self) -> Any:
        """Begin an episode everywhere; returns the observations (E, …)."""
        seeds: list[int | None] = self._seeds
        self._seeds = [None for _ in seeds]
        self.reset_infos = self._gather("reset", lambda part: ([seeds[i] for i in part],))
        return self._obs("obs")

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """One step of every world; those whose episode ended are reset.

        Args:
            actions: (E, …) in the units of `action_space`.

        Returns:
            Observations (E, …), of new episodes where one ended; the task's own rewards (E,) float32; terminated (E,)
            and truncated (E,) bool, never both; infos.
        """
        infos, rewards = [], np.zeros(self.num_envs, dtype=np.float32)
        terminated, truncated = np.zeros((2, self.num_envs), dtype=bool)
        answers = self._gather("step", lambda part: (actions[part],))
        for i, (reward, is_terminated, is_truncated, info, reset_info) in enumerate(answers):
            rewards[i], terminated[i], truncated[i] = reward, is_terminated, is_truncated
            if is_terminated or is_truncated:
                self.reset_infos[i] = reset_info
            infos.append(info)
        return self._obs("obs"), rewards, terminated, truncated, infos

    def last_obs(self) -> Any:
        """(E, …) the last observations of the episodes that ended last, before the reset; of no use elsewhere."""
        return self._obs("last")

    def _obs(self, kind: str) -> Any:
        """A copy of all observations of a kind."""
        if isinstance(self.observation_space, spaces.Dict):
            return {key: self._arrays[f"{kind}/{key}"].copy() for key in self.observation_space.spaces}
        return self._arrays[kind].copy()

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

    # Single worlds --------------------------------------------------------------------------------------

    def get_attr(self, name: str) -> list[Any]:
        """An attribute of each world."""
        return self._gather("get_attr", lambda part: (name,))

    def env_method(self, name: str, *args: Any, **kwargs: Any) -> list[Any]:
        """What a method of each world returns."""
        return self._gather("env_method", lambda part: (name, args, kwargs))


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


def _shared(size: int) -> SharedMemory:
    """Memory that is there for certain: without room for it a write would end the process, with no word.

    Args:
        size: bytes.

    Raises:
        UserError: there is no room, as in a container, which has 64 MB of it unless told otherwise.
    """
    memory: SharedMemory | None = None
    try:
        memory = SharedMemory(create=True, size=size)
        file = Path("/dev/shm", memory.name)
        if file.is_file():  # Linux; others reserve it at once
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, size)
    except OSError as error:
        if memory is not None:
            memory.close()
            memory.unlink()
        raise UserError(
            f"workers: shared memory (/dev/shm) must take {size / 1e6:.1f} MB of what worlds see: {error.strerror}. "
            "Give it more room (docker run --shm-size=1g), or step the worlds in this process: workers=0."
        ) from error
    return memory


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
