"""Scripted experts: they read privileged state, for demonstrations and judging.

Those of the desk's tasks and the town's driver (`embodied.envs.drivers`) are ours; Meta-World's are its own, which its
package ships.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

import gymnasium
import numpy as np

from embodied.envs.bridge import Bridged
from embodied.envs.desk import Desk
from embodied.envs.desk_scene import HALF, OPENING, START, STEP
from embodied.envs.drive import Drive
from embodied.envs.drivers import CarDriver
from embodied.envs.world import World

Script = Iterator[np.ndarray]
Parts = Iterator[Script]  # a task's phases in order: get there, take hold, bring, let go
SHUT, WIDE, GRIP = 0.0, 0.072, 0.005  # openings sent, m; GRIP is narrower than a cube
LEFT, UP = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
OVER = 0.09 * UP


def has_expert(world: object) -> bool:
    """Whether `expert` knows a world, unwrapped."""
    return isinstance(world, Desk | Drive) or (isinstance(world, Bridged) and world.script is not None)


def done(world: object) -> bool:
    """Whether a world that has an expert, unwrapped, is solved now, by its own test.

    Args:
        world: any; one that does not tell is not solved.
    """
    return world.success() if isinstance(world, World) else isinstance(world, Bridged) and world.solved


def expert(
    world: gymnasium.Env, *, noise: float = 0.0, rng: np.random.Generator | None = None, leave: bool = False
) -> Callable[[Any], np.ndarray]:
    """The scripted expert of a world, unwrapped and just reset: a function from that world to an action.

    Arguments are `Expert`'s, which it is on the desk; in the town it is a `CarDriver`, elsewhere a `SuiteExpert`.

    Args:
        noise: standard deviation on each entry of an action in [-1, 1].
        rng: of the noise; needed where there is some.

    Raises:
        ValueError: a world without one, or another than the desk's that is asked to leave.
    """
    if isinstance(world, Desk):
        return Expert(world, noise=noise, rng=rng, leave=leave)
    if isinstance(world, Drive) and not leave:
        return CarDriver(world, noise=noise, rng=rng)
    if not isinstance(world, Bridged) or leave:
        raise ValueError(
            f"expert: world must be one of the desk's, or the town or a suite's (and leave false); got {world}."
        )
    return SuiteExpert(world, noise=noise, rng=rng)


class SuiteExpert:
    """A suite's own script, as `Expert` is used.

    Args:
        world: of a suite that ships one, just reset.
        noise: see `Expert`.
        rng: see `Expert`.

    Raises:
        ValueError: the suite ships none for this world, or noise without `rng`.
    """

    def __init__(self, world: Bridged, *, noise: float = 0.0, rng: np.random.Generator | None = None) -> None:
        if world.script is None:
            raise ValueError(f"expert: world must have a script of its suite; got {world.world_id}.")
        _check_noise(noise, rng)
        self._world, self._script, self._noise, self._rng = world, world.script(), noise, rng

    def __call__(self, current: Bridged) -> np.ndarray:
        """(A,) float32, in the world's units."""
        if current is not self._world:
            raise ValueError("expert: act must get the world that the expert was made for. Make one for each world.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Meta-World warns that an answer may be too much; it is clipped here
            action = np.asarray(self._script(current.flat.astype(np.float64)), np.float64)
        if self._noise and self._rng is not None:
            action = action + self._noise * self._rng.normal(size=action.shape)
        space = current.action_space
        return np.clip(action, space.low, space.high).astype(np.float32)  # pyright: ignore[reportAttributeAccessIssue]


def _check_noise(noise: float, rng: np.random.Generator | None) -> None:
    if noise and rng is None:
        raise ValueError(f"expert: rng must be given when noise is not 0; got noise={noise}.")


class Expert:
    """A function from the desk, as it is now, to the next action; make a new one after every reset.

    Args:
        world: the world that will be acted in, just reset.
        noise: standard deviation of Gaussian noise on every entry of the action, in [-1, 1] units.
        rng: where the noise comes from; needed when `noise` is not zero.
        leave: whether the arm opens its gripper and goes back to its start once all is done.

    Attributes:
        phase: how many of the task's phases (each a `yield` of its script below) are done; 0 again when a task that
            came undone is started again.
    """

    def __init__(
        self, world: Desk, *, noise: float = 0.0, rng: np.random.Generator | None = None, leave: bool = False
    ) -> None:
        _check_noise(noise, rng)
        self.phase = 0
        self._world, self._noise, self._rng, self._leave = world, noise, rng, leave
        self._script = self._forever()

    def __call__(self, current: Desk) -> np.ndarray:
        """(A,) float32, in [-1, 1]."""
        if current is not self._world:
            raise ValueError("expert: act must get the world that the expert was made for. Make one for each world.")
        action = next(self._script)
        if self._noise and self._rng is not None:
            action = action + self._noise * self._rng.normal(size=action.shape)
        return np.clip(action, -1, 1).astype(np.float32)

    def _forever(self) -> Script:
        """The script, then rest, with the gripper as it last was; a task that comes undone is started again."""
        world = self._world
        action = _action(world, world.site("tip"), SHUT)
        while True:
            for self.phase, part in enumerate(_SCRIPTS[world.task](world)):
                for action in part:
                    yield action
            self.phase += 1
            for action in _chain(_release(world), _go(world, lambda: START, WIDE)) if self._leave else ():
                yield action
            place, opening = world.sent.copy(), (action[-1] + 1) * OPENING / 2
            yield _action(world, place, opening)
            while world.success():
                yield _action(world, place, opening)


def _action(world: Desk, goal: np.ndarray, opening: float) -> np.ndarray:
    """(A,) at most one step towards a tip position, m, the gripper's direction kept."""
    move = (goal - world.sent) / STEP
    move /= max(1.0, float(np.abs(move).max()))
    return np.concatenate([move, np.zeros(world.action_dim - 4), [2 * opening / OPENING - 1]])


def _go(
    world: Desk, goal: Callable[[], np.ndarray], opening: float, *, within: float = 0.012, steps: int = 30
) -> Script:
    """Move the tip to a place, which may itself move, until it is `within` m of it or `steps` have passed."""
    for _ in range(steps):
        yield _action(world, goal(), opening)
        if np.linalg.norm(goal() - world.site("tip")) < within:
            return


def _up(world: Desk, opening: float, height: float = 0.12) -> Script:
    at = world.site("tip").copy()
    at[2] = max(at[2], height)
    yield from _go(world, lambda: at, opening)


def _pick(world: Desk, cube: str) -> Script:
    """Until the cube is between the fingers, on the desk or wherever it lies."""
    while not world.held(cube):
        if world.site("tip")[2] < world.cube(cube)[2] + 0.06:
            yield from _up(world, WIDE, world.cube(cube)[2] + 0.08)
        yield from _go(world, lambda: world.cube(cube) + OVER, WIDE)
        yield from _go(world, lambda: world.cube(cube) - 0.004 * UP, WIDE, within=0.008, steps=10)
        for _ in range(6):
            yield _action(world, world.sent, GRIP)
            if world.held(cube):
                break


def _carry(world: Desk, cube: str, goal: Callable[[], np.ndarray], *, within: float = 0.012) -> Script:
    """Bring a held cube's centre to a place; stops early when it is dropped."""
    for action in _go(world, lambda: world.site("tip") + goal() - world.cube(cube), GRIP, within=within, steps=40):
        if not world.held(cube):
            return
        yield action


def _release(world: Desk) -> Script:
    for _ in range(3):
        yield _action(world, world.sent, WIDE)
    yield from _up(world, WIDE)


def _chain(*parts: Script) -> Script:
    for part in parts:
        yield from part


def _reach(world: Desk) -> Parts:
    yield _go(world, lambda: world.cube(world.target) + OVER, SHUT)
    yield _go(world, lambda: world.cube(world.target) + HALF * UP, SHUT, within=0.006)


def _push(world: Desk) -> Parts:
    """Slide the cube over the desk between the fingers."""
    yield _pick(world, world.target)
    yield _carry(world, world.target, lambda: world.site("mark") + HALF * UP)
    yield _release(world)


def _press(world: Desk) -> Parts:
    yield _go(world, lambda: world.site("button") + 0.04 * UP, SHUT)
    yield _go(world, lambda: world.site("button") - 0.04 * UP, SHUT, steps=8)


def _drawer(world: Desk) -> Parts:
    """One finger behind the handle, one before it; shut them and pull."""
    bar = -0.039 * LEFT
    yield _chain(
        _go(world, lambda: world.site("handle") + bar + OVER, 0.045),
        _go(world, lambda: world.site("handle") + bar, 0.045, within=0.008, steps=10),
    )
    yield _chain((_action(world, world.sent, 0.012) for _ in range(3)), _pull(world))


def _pull(world: Desk) -> Script:
    for _ in range(20):
        if world.drawer > 0.12:
            return
        yield _action(world, world.sent - STEP * LEFT, 0.012)


def _close(world: Desk) -> Parts:
    before = -0.09 * LEFT
    yield _chain(
        _go(world, lambda: world.site("handle") + before + OVER, SHUT),
        _go(world, lambda: world.site("handle") + before, SHUT),
    )
    yield _shut(world)


def _shut(world: Desk) -> Script:
    for _ in range(20):
        if world.drawer < 0.004:
            return
        yield _action(world, world.sent + STEP * LEFT, SHUT)


def _lift(world: Desk) -> Parts:
    yield _pick(world, world.target)
    yield _up(world, GRIP, 0.16)


def _place(world: Desk) -> Parts:
    yield _pick(world, world.target)
    yield _chain(
        _up(world, GRIP, 0.1),
        _carry(world, world.target, lambda: world.site("tray") + (HALF + 0.06) * UP, within=0.02),
    )
    yield _chain(
        _carry(world, world.target, lambda: world.site("tray") + (HALF + 0.004) * UP),
        _release(world),
    )


def _stack(world: Desk) -> Parts:
    below = world.target
    yield _pick(world, "red")
    yield _chain(
        _up(world, GRIP, 0.11),
        _carry(world, "red", lambda: world.cube(below) + (2 * HALF + 0.05) * UP, within=0.01),
    )
    yield _chain(
        _carry(world, "red", lambda: world.cube(below) + (2 * HALF + 0.002) * UP, within=0.006),
        _release(world),
    )


_SCRIPTS: Final[dict[str, Callable[[Desk], Parts]]] = {
    "reach": _reach, "push": _push, "press": _press, "drawer": _drawer, "close": _close, "lift": _lift,
    "place": _place, "stack": _stack,
}  # fmt: skip
