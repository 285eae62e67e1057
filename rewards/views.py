"""Heads on several cameras: fitted with a model for each view, where one that is missing counts as no progress; or
made for one view, and asked about each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.core import Episode, Features, Head

Model = TypeVar("Model")
VIEWS = ("first", "mean")  # which views a head on one view is asked about
NEAR, RESTING = 0.25, 2  # share of a distance; rows


class MeanOfViews:
    """A pointwise head that reads the first view, asked about every view: the mean of what it says.

    What looks right from one camera often looks wrong from another: a gripper in the line of sight touches a thing
    that is a hand's breadth behind it.

    Args:
        head: whose potential of a step reads that step alone.
    """

    pointwise = True

    def __init__(self, head: Head) -> None:
        self.name, self.head = head.name, head

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """The mean over the views, in the head's own units."""
        each = [self.head.score(replace(features, views={name: view})) for name, view in features.views.items()]
        return torch.stack(each).mean(0)


def mean_over_views(
    where: str,
    features: Features,
    models: Mapping[str, Model],
    potential: Callable[[Model, Float[Tensor, "B T D"]], Float[Tensor, "B T"]],
) -> Float[Tensor, "B T"]:
    """The mean potential of the views that were fitted, each in [0, 1]; one that is missing gives 0, so that losing a
    camera never raises the mean. Views that were not fitted are ignored. One view of another name serves a head that
    was fitted on one.

    Args:
        where: begins errors.
        features: of B episodes.
        models: view -> what was fitted on it.
        potential: of a model, on one view's features.

    Raises:
        ValueError: none of the fitted views is there.
    """
    seen = {name: features.views[name] for name in models if name in features.views}
    if not seen and len(models) == len(features.views) == 1:
        seen = {next(iter(models)): features.main}
    if not seen:
        raise ValueError(
            f"{where}: features must hold one of the views it was fitted on, {', '.join(models)}; "
            f"got {', '.join(features.views)}. Name the camera so, or fit it again on this one."
        )
    total = torch.stack([potential(models[name], view) for name, view in seen.items()]).sum(0)
    return (total / len(models)).to(features.main.dtype)


def shared_views(where: str, demos: Sequence[Episode], success_only: bool = True) -> list[dict[str, Tensor]]:
    """Per demonstration, view -> (T, D) float64, of the views that all of them have, without the rest at its end.

    Args:
        where: begins errors.
        demos: encoded.
        success_only: whether failures are left out.

    Raises:
        ValueError: no demonstration, one that failed, one of several episodes at once, or no view in common.
    """
    if not demos:
        raise ValueError(
            f"{where}: demos must hold at least one demonstration; got none. Give demos or a fitted model."
        )
    if failed := [k for k, demo in enumerate(demos) if demo.success is False and success_only]:
        raise ValueError(f"{where}: demos must have succeeded; those at {failed} failed. Leave them out.")
    if wrong := [k for k, demo in enumerate(demos) if demo.features.main.shape[0] != 1]:
        raise ValueError(f"{where}: demos must be single episodes (B = 1); those at {wrong} are not.")
    names = [name for name in demos[0].features.views if all(name in demo.features.views for demo in demos)]
    if not names:
        raise ValueError(f"{where}: demos must have a view in common; got none. Record them with one camera name.")
    return [trimmed({name: demo.features.views[name][0].double() for name in names}) for demo in demos]


def trimmed(rows: Mapping[str, Float[Tensor, "T D"]]) -> dict[str, Float[Tensor, "N D"]]:
    """A demonstration without the rest at its end: the rows that all stay near the last one, all but `RESTING` of them.

    Recordings run on after the task is done. Rows that look alike have no order to learn, and where half of a
    recording rests, half of its progress would be rest. Near is within `NEAR` of the largest distance from the last.
    """
    away = torch.stack([torch.linalg.vector_norm(each - each[-1], dim=-1) for each in rows.values()]).sum(0)
    moving = (away > NEAR * away.max()).nonzero()
    keep = int(moving[-1]) + 1 + RESTING if len(moving) else len(away)
    return {name: each[:keep] for name, each in rows.items()}
