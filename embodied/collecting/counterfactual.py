"""Episodes in which the robot and the outcome part ways: whether a reward pays for the pose or for what was achieved.

All kinds of one start are made of the scripted expert's episode from it. Some are played by physics (`expert`, `left`,
`wrong_object`); the others are puppets: the robot's joints of one moment shown with the objects of another, so that
what is seen of either is exactly as in the success.

    kind          robot                                   objects                          the goal
    expert        as the expert                           as they follow                   reached
    still         at its start                            at their start                   missed
    mimed         as the expert                           at their start                   missed
    reached       as the expert until something moves     as they follow until then        missed
    wrong_object  does the same to another object         as they follow                   missed
    left          as the expert, then back to its start   as they follow                   reached
    other_way     at its start                            as with the expert               reached
    solved        at its start                            as at the expert's end           reached

Shape letters: T actions of an episode, Q joint positions of the world, A action.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import gymnasium
import numpy as np

from embodied.datasets.kinds import RIGHT, STILL, WRONG
from embodied.envs.desk import Desk
from embodied.envs.desk_scene import CUBES
from embodied.envs.experts import expert
from embodied.envs.tasks import DESK
from embodied.errors import UserError

KINDS = ("expert", STILL, *WRONG, *RIGHT)
HELD = ("press", "lift")  # tasks that are undone when the robot leaves: they have no kinds of `RIGHT`
TRIES = 25  # starts drawn until one gives every kind
MOVED_M = {"joint": 0.003, "cube": 0.01}  # from its start; a cube is turned and shifted a little when it is gripped


@dataclass(frozen=True)
class Path:
    """An episode to be shown.

    Attributes:
        rows: (T + 1, Q) float64, the world before each action and after the last.
        actions: (T, A) float32, of whoever moved the robot; zeros where it rests.
    """

    rows: np.ndarray
    actions: np.ndarray


def kinds_of(task: str) -> tuple[str, ...]:
    """The kinds that one of the desk's tasks has."""
    if task == "reach":  # the pose is its outcome
        return ("expert", STILL, "wrong_object")
    return KINDS[: -len(RIGHT)] if task in HELD else KINDS


def counterfactuals(env: gymnasium.Env, seed: int) -> dict[str, Path] | None:
    """Kind -> its episode from one start; None where this start does not give every kind.

    Args:
        env: a desk.
        seed: of the reset.
    """
    world = env.unwrapped
    assert isinstance(world, Desk)
    done = _played(env, seed)
    length, robot = len(done.actions), world.robot_qpos
    rest = np.zeros_like(done.actions)
    rest[:, -1] = done.actions[0, -1]
    start = np.repeat(done.rows[:1], length + 1, 0)
    reached = _until(done, max(_first_move(world, done.rows) - 1, 0))
    made = {
        "expert": done,
        STILL: Path(start, rest),
        "mimed": Path(_joined(done.rows, start, robot), done.actions),
        "reached": reached,
        "wrong_object": _played(env, seed, other=True),
    }
    if world.task not in HELD:
        ended = np.repeat(done.rows[-1:], length + 1, 0)
        made |= {
            "left": _played(env, seed, leave=True),
            "other_way": Path(_joined(start, done.rows, robot), rest),
            "solved": Path(_joined(start, ended, robot), rest),
        }
    wanted = kinds_of(world.task)
    return {kind: made[kind] for kind in wanted} if all(_right(world, kind, made[kind]) for kind in wanted) else None


class CounterfactualStarts:
    """The episodes of every start of a desk; those of the last one are kept, as its kinds are asked for in turn.

    Args:
        env: a desk.
        seed: what starts are drawn from, with their number.
    """

    def __init__(self, env: gymnasium.Env, seed: int) -> None:
        self._env, self._seed = env, seed
        self._kept: tuple[int, int, dict[str, Path]] | None = None

    def path(self, start: int, kind: str) -> tuple[int, Path]:
        """The seed of a start and its episode of a kind.

        Raises:
            UserError: no seed gives all kinds.
        """
        if self._kept is None or self._kept[0] != start:
            self._kept = (start, *self._drawn(start))
        return self._kept[1], self._kept[2][kind]

    def _drawn(self, start: int) -> tuple[int, dict[str, Path]]:
        for attempt in range(TRIES):
            seed = int(
                np.random.default_rng((self._seed, zlib.crc32(b"counterfactual"), start, attempt)).integers(2**31)
            )
            if (found := counterfactuals(self._env, seed)) is not None:
                return seed, found
        raise UserError(f"collect: {TRIES} starts gave no counterfactual episodes of every kind.")


def put(world: Desk, row: np.ndarray) -> None:
    """Show a row of a path: the world at rest in it."""
    world.put_qpos(row)
    world.settle()


def _right(world: Desk, kind: str, path: Path) -> bool:
    """Whether an episode ends as its kind says."""
    put(world, path.rows[-1])
    return world.success() == (kind in ("expert", *RIGHT))


def _played(env: gymnasium.Env, seed: int, *, leave: bool = False, other: bool = False) -> Path:
    """The expert by physics, to the environment's end; with `other`, of another task from the same start."""
    world = env.unwrapped
    assert isinstance(world, Desk)
    env.reset(seed=seed)
    with _other_task(world) if other else nullcontext():
        act, rows, actions, over = expert(world, leave=leave), [world.data.qpos.copy()], [], False
        while not over:
            actions.append(act(world))
            *_, terminated, truncated, _ = env.step(actions[-1])
            rows.append(world.data.qpos.copy())
            over = terminated or truncated
    return Path(np.array(rows), np.array(actions, np.float32))


def _joined(robot_rows: np.ndarray, object_rows: np.ndarray, robot: np.ndarray) -> np.ndarray:
    """The robot of one path with the objects of another."""
    rows = object_rows.copy()
    rows[:, robot] = robot_rows[:, robot]
    return rows


def _until(path: Path, row: int) -> Path:
    """As far as a row, and rest there."""
    rows, actions = path.rows.copy(), path.actions.copy()
    rows[row:] = rows[row]
    actions[row:, :-1] = 0
    return Path(rows, actions)


def _first_move(world: Desk, rows: np.ndarray) -> int:
    """The first row in which a cube, the drawer or the button is off its start."""
    moved = np.zeros(len(rows), bool)
    for name in ("drawer", "button"):
        at = rows[:, world.joint_address(name)]
        moved |= np.abs(at - at[0]) > MOVED_M["joint"]
    for cube in CUBES:
        at = rows[:, world.joint_address(cube) : world.joint_address(cube) + 3]
        moved |= np.linalg.norm(at - at[0], axis=1) > MOVED_M["cube"]
    return int(moved.argmax()) if moved.any() else len(rows) - 1


@contextmanager
def _other_task(world: Desk) -> Iterator[None]:
    """For a while the world's task is to do the like to another object."""
    task, target, fact = world.task, world.target, world.fact
    if task in ("drawer", "close", "press"):
        world.task = "drawer" if task == "press" else "press"
    else:
        world.target = next(cube for cube in ("green", "blue") if cube != target)
    _, world.fact = DESK[world.task].told(world.target)
    try:
        yield
    finally:
        world.task, world.target, world.fact = task, target, fact
