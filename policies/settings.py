"""Settings of learners: taken from a config, checked in one place, and made into a learner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gymnasium import spaces

from policies.networks import choose_device

T = TypeVar("T")


def check(
    settings: Any, *, counts: Sequence[str] = (), shares: Sequence[str] = (), positive: Sequence[str] = (),
    least_zero: Sequence[str] = (),
) -> None:  # fmt: skip
    """Refuse numbers out of range.

    Args:
        settings: whose module's name is the learner's.
        counts: of its fields, those that must be at least 1.
        shares: in [0, 1].
        positive: > 0.
        least_zero: ≥ 0.

    Raises:
        ValueError: one that is not, NaN among them.
    """
    rules: tuple[tuple[Sequence[str], Callable[[Any], bool], str], ...] = (
        (counts, lambda value: value >= 1, "at least 1"),
        (shares, lambda value: 0 <= value <= 1, "in [0, 1]"),
        (positive, lambda value: value > 0, "> 0"),
        (least_zero, lambda value: value >= 0, "at least 0"),
    )
    for names, fine, expected in rules:
        for name in names:
            if not fine(value := getattr(settings, name)):
                who = type(settings).__module__.rpartition(".")[2]
                raise ValueError(f"{who}: {name} must be {expected}; got {value}.")


def settings_of(kind: type[T], settings: dict[str, Any]) -> T:
    """Settings from a config's values, whose lists are tuples here.

    Args:
        kind: the dataclass.
        settings: its values by name.

    Raises:
        TypeError: one that there is not.
        ValueError: one out of range.
    """
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})


def maker(learner: Callable[..., T], kind: type, *, scheduled: bool = False) -> Callable[..., T]:
    """How configs make a learner for continuous actions: with its settings as keywords.

    Args:
        learner: takes the spaces, a seed, a device and its settings.
        kind: of the settings.
        scheduled: whether it takes the run's `total_steps` too.

    Returns:
        A function of `observation_space` (as the learner wants it), `action_space` (a Box), `num_worlds` (which changes
        nothing), `total_steps` (which changes schedules), `seed` of everything random, `device` ("auto", "cuda", "mps"
        or "cpu"), and the settings. It raises TypeError for a setting that there is not, and ValueError for one out of
        range and for spaces that do not fit.
    """

    def make(
        observation_space: spaces.Space, action_space: spaces.Space, *, num_worlds: int, total_steps: int, seed: int,
        device: str = "auto", **settings: Any,
    ) -> T:  # fmt: skip
        made = settings_of(kind, settings)
        more = {"total_steps": total_steps} if scheduled else {}
        return learner(observation_space, action_space, seed=seed, device=choose_device(device), settings=made, **more)

    return make
