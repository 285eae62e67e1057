"""What an agent sends and what a world gets, what a world tells and what an agent reads: the same, or a refusal.

Learners know few kinds of action: numbers from a `Box` of float32, a choice from 0 to n - 1, several choices, several
bits. Worlds have more: choices that begin at 1, whole numbers, single numbers without a shape, grids of switches. An
action is translated where it can be without loss, and the world is refused by the name of its space where it cannot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from embodied.errors import UserError

EXACT = 2**24  # whole numbers up to here are told apart by float32, which learners send
ROUNDING = 2.0**-22  # of float32, relative
JUDGED = range(2_000_000, 3_000_000)  # seeds of the starts that judge a finished policy, and teach nothing


class Actions:
    """A world's actions as an agent sends them.

    | the world's | the agent's | the world gets |
    |---|---|---|
    | `Box` of floats | `Box` of float32; a single number has shape (1,) | its dtype and shape |
    | `Box` of whole numbers | the same, of float32 | the nearest whole number |
    | `Discrete(n, start)` | `Discrete(n)` | start + choice |
    | `MultiDiscrete(nvec, start)` | `MultiDiscrete`, flat, from 0 | start + choices, in its shape |
    | `MultiBinary(shape)` | `MultiBinary`, flat | the bits in its shape |

    Args:
        space: the world's.
        where: the world, for errors.

    Attributes:
        space: the agent's.

    Raises:
        UserError: another kind of space, or whole numbers beyond what float32 tells apart.
    """

    def __init__(self, space: spaces.Space, where: str) -> None:
        self._theirs, self._where = space, where
        self.space = self._agents(space)

    def _agents(self, space: spaces.Space) -> spaces.Space:
        if isinstance(space, spaces.Discrete):
            return space if not space.start else spaces.Discrete(int(space.n))
        if isinstance(space, spaces.MultiDiscrete):
            plain = space.nvec.ndim == 1 and not np.any(space.start)
            return space if plain else spaces.MultiDiscrete(space.nvec.flatten())
        if isinstance(space, spaces.MultiBinary):
            return space if isinstance(space.n, int) else spaces.MultiBinary(math.prod(space.shape))
        if not isinstance(space, spaces.Box) or np.dtype(space.dtype).kind not in "fiu":
            raise UserError(
                f"{self._where}: actions must be Box, Discrete, MultiDiscrete or MultiBinary; got {space}. "
                "Wrap the world so that its actions are one of these."
            )
        if not math.prod(space.shape):
            raise UserError(f"{self._where}: actions must hold at least one number; got {space}.")
        if space.shape and space.dtype == np.float32:
            return space
        low, high = (np.atleast_1d(bound).astype(np.float64) for bound in (space.low, space.high))
        if np.dtype(space.dtype).kind in "iu" and max(np.abs(low).max(), np.abs(high).max()) > EXACT:
            raise UserError(
                f"{self._where}: whole-number actions must be within ±{EXACT}, for float32; got {space}. "
                "Give the world's action space closer bounds."
            )
        with np.errstate(over="ignore"):
            return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def __call__(self, action: Any) -> Any:
        """The action as the world takes it.

        Raises:
            UserError: none of the agent's space: not finite, of another size, a choice that is not there.
        """
        theirs, values = self._theirs, np.asarray(action)
        if values.dtype.kind not in "fiub":
            raise self._refused(action)
        if not np.isfinite(values).all():
            raise UserError(f"{self._where}: an action must be finite; got {action}. The policy may have diverged.")
        if isinstance(theirs, spaces.Discrete):
            if values.size != 1 or not 0 <= values.item() < theirs.n or values.item() != int(values.item()):
                raise self._refused(action)
            return theirs.dtype.type(int(theirs.start) + int(values.item()))
        assert theirs.shape is not None
        if values.size != math.prod(theirs.shape):
            raise self._refused(action)
        values = values.reshape(theirs.shape)
        if isinstance(theirs, spaces.MultiDiscrete):
            if (values < 0).any() or (values >= theirs.nvec).any() or (values != np.floor(values)).any():
                raise self._refused(action)
            return theirs.start + values.astype(theirs.dtype)
        if isinstance(theirs, spaces.MultiBinary):
            if not np.isin(values, (0, 1)).all():
                raise self._refused(action)
            return values.astype(theirs.dtype)
        assert isinstance(theirs, spaces.Box)
        return self._numbers(theirs, values, action)

    def _numbers(self, theirs: spaces.Box, values: np.ndarray, action: Any) -> np.ndarray:
        dtype: np.dtype = np.dtype(theirs.dtype)
        if dtype.kind in "iu":
            values = np.rint(values)
            if (values < theirs.low).any() or (values > theirs.high).any():
                raise self._refused(action)  # cast, it would come out at the other end
        elif dtype != np.float32:  # bounds that float32 has rounded outwards
            inside = np.clip(values.astype(np.float64), theirs.low, theirs.high)
            values = np.where(np.abs(values - inside) <= ROUNDING * np.abs(inside), inside, values)
        return np.asarray(values, dtype)  # NumPy makes scalars of arrays without a shape

    def agents(self, executed: Any) -> np.ndarray:
        """An action of the world's as an agent would have sent it: the inverse of a call.

        Args:
            executed: in the world's own units and shape, or the agent's shape.

        Returns:
            Of the agent's space, as its dtype.

        Raises:
            UserError: another shape, not finite, or out of the world's range by more than float32 rounds.
        """
        theirs, values = self._theirs, np.asarray(executed)
        wanted = {theirs.shape or (), self.space.shape or ()}
        if values.dtype.kind not in "fiub" or values.shape not in wanted:
            shapes = " or ".join(map(str, sorted(wanted, key=str, reverse=True)))
            got = f"{values.dtype} {values.shape}" if values.dtype.kind in "fiub" else repr(executed)
            raise UserError(f"{self._where}: an executed action must be numbers of shape {shapes}; got {got}.")
        if not np.isfinite(values).all():
            raise UserError(f"{self._where}: an executed action must be finite; got {values.tolist()}.")
        if isinstance(theirs, spaces.Box):
            low, high = (bound.astype(np.float64) for bound in (theirs.low, theirs.high))
            given = values.reshape(theirs.shape).astype(np.float64)
            inside = np.clip(given, low, high)
            if (np.abs(given - inside) > ROUNDING * np.maximum(np.abs(inside), 1)).any():
                raise self._beyond(values)
        else:
            start = 0 if isinstance(theirs, spaces.MultiBinary) else theirs.start  # pyright: ignore[reportAttributeAccessIssue]
            inside = values.reshape(theirs.shape) - start
            if (inside != np.floor(inside)).any() or not theirs.contains((inside + start).astype(theirs.dtype)):
                raise self._beyond(values)
        return np.array(inside, self.space.dtype).reshape(self.space.shape or ())

    def _beyond(self, executed: np.ndarray) -> UserError:
        return UserError(f"{self._where}: an executed action must be of {self._theirs}; got {executed.tolist()}.")

    def _refused(self, action: Any) -> UserError:
        return UserError(
            f"{self._where}: an action must be of {self.space} (the world's own: {self._theirs}); got {action!r}."
        )


class FlatObservations:
    """A world's observations as one row of numbers, float32: dictionaries and tuples in order, choices one-hot.

    Args:
        space: the world's.
        where: the world, for errors.

    Attributes:
        space: of the rows, (S,).

    Raises:
        UserError: a space of no fixed number of numbers.
    """

    def __init__(self, space: spaces.Space, where: str) -> None:
        self._theirs, self._where = space, where
        bounds = list(self._bounds(space)) if space.is_np_flattenable else []
        if not sum(low.size for low, _ in bounds):
            raise UserError(f"{where}: observations must be numbers of a fixed count; got {space}.")
        with np.errstate(over="ignore"):
            low, high = (np.concatenate([b[k] for b in bounds]).astype(np.float32) for k in (0, 1))
        self.space = spaces.Box(low, high, dtype=np.float32)

    def _bounds(self, space: spaces.Space) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if isinstance(space, spaces.Dict | spaces.Tuple):
            for inner in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
                yield from self._bounds(inner)
        else:
            flat = spaces.flatten_space(space)
            assert isinstance(flat, spaces.Box)
            yield flat.low.astype(np.float64), flat.high.astype(np.float64)

    def __call__(self, value: Any) -> np.ndarray:
        """The row, (S,) float32.

        Raises:
            UserError: it is not of the world's space, or not finite; names the place.
        """
        with np.errstate(over="ignore"):
            row = np.concatenate([np.ravel(part).astype(np.float32) for part in self._parts(self._theirs, value, "")])
        check_finite(row, f"{self._where}: an observation")
        return row

    def _parts(self, space: spaces.Space, value: Any, at: str) -> Iterator[np.ndarray]:
        if isinstance(space, spaces.Dict | spaces.Tuple):
            named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
            for key, inner in named:
                try:
                    part = value[key]
                except (KeyError, IndexError, TypeError):
                    raise self._refused(space, value, at) from None
                yield from self._parts(inner, part, f"{at}[{key!r}]")
        elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            counts = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)
            chosen = np.ravel(np.asarray(value)) - np.ravel(space.start)
            if chosen.shape != counts.shape or (chosen < 0).any() or (chosen >= counts).any():
                raise self._refused(space, value, at)
            for count, choice in zip(counts, chosen, strict=True):
                yield np.arange(count) == choice
        elif isinstance(space, spaces.Box | spaces.MultiBinary):
            numbers = np.asarray(value)
            if numbers.dtype.kind not in "fiub" or numbers.size != math.prod(space.shape):
                raise self._refused(space, value, at)
            yield numbers
        elif space.contains(value):
            yield np.asarray(spaces.flatten(space, value))
        else:
            raise self._refused(space, value, at)

    def _refused(self, space: spaces.Space, value: Any, at: str) -> UserError:
        return UserError(f"{self._where}: an observation{at} must be of {space}; got {value!r}.")


def check_finite(values: np.ndarray, what: str) -> None:
    """Refuse NaN and infinity, which a learner would take for numbers.

    Args:
        values: of any dtype.
        what: the world and the thing, as the error begins.

    Raises:
        UserError: there are some; tells the first place.
    """
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    bad = np.argwhere(~np.isfinite(values))
    place = ", ".join(map(str, bad[0]))
    raise UserError(
        f"{what} must be finite; got {values[tuple(bad[0])]} at [{place}], {len(bad)} of {values.size} numbers. "
        "The world's physics may have diverged."
    )


def array(value: Any, space: spaces.Space, what: str) -> np.ndarray:
    """One observation of a `Box`, checked against it.

    Args:
        value: what the world told.
        space: what it had said it would tell.
        what: as for `check_finite`.

    Raises:
        UserError: another shape, numbers that its dtype cannot hold, or not finite.
    """
    values, dtype = np.asarray(value), np.dtype(space.dtype)
    if values.shape != space.shape or values.dtype.kind not in "fiub":
        raise UserError(f"{what} must be {dtype} {space.shape}; got {values.dtype} {values.shape}.")
    with np.errstate(invalid="ignore"):
        if values.dtype != dtype and dtype.kind != "f" and (values.astype(dtype) != values).any():
            raise UserError(f"{what} must be {dtype}; got {values.dtype} with numbers that it cannot hold.")
    check_finite(values, what)
    return values


def number(value: Any, what: str) -> float:
    """A reward: one finite number, however it is packed.

    Args:
        value: what came.
        what: its name, for the error.

    Raises:
        UserError: it is not.
    """
    values = np.asarray(value)
    if values.size != 1 or values.dtype.kind not in "fiub" or not np.isfinite(values).all():
        raise UserError(f"{what} must be one finite number; got {value!r}.")
    return float(values.item())


def world_name(env: gymnasium.Env) -> str:
    """What a person calls a world: its id, else its class.

    Args:
        env: any.
    """
    if env.spec is not None:
        return env.spec.id
    return str(getattr(env.unwrapped, "world_id", type(env.unwrapped).__name__))


def told_success(info: dict[str, Any]) -> bool | None:
    """Whether the task is solved, by a world's `is_success` or `success`; None where it does not say.

    Unknown is not no: a missing key, None and NaN are all unknown.

    Args:
        info: of a step.
    """
    for key in ("is_success", "success"):
        value = info.get(key)
        if value is not None and np.size(value) == 1 and np.asarray(value).dtype.kind in "fiub":
            found = np.asarray(value).item()
            return None if math.isnan(found) else bool(found)
    return None
