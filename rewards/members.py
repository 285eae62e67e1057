"""K small networks on encoder features, run and fitted together: what ensembles of discriminators and rewards share.

Shape letters: K members, B batch, T time, D feature width, H hidden width, N rows, V views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rewards.core import Episode, Features
from rewards.phrases import plain


class Members(nn.Module):
    """Per view K networks of one hidden layer; their outputs are averaged over views.

        out_k(s) = mean_v max(w2_kv·leaky(W1_kv·(s_v − m_v)/σ_v + b1_kv) + b2_kv, floor_kv)

    A view that is missing counts as its floor, the least it gave in fitting (see `set_floors`), so that it never
    raises an output.

    Args:
        views: camera -> (N, D) rows whose mean and scale (one number) the inputs are standardised by.
        count: K.
        extra: further inputs E, such as a latent user, after the features.
        hidden: H.
        seed: of the initial weights.
    """

    def __init__(
        self, views: Mapping[str, Float[Tensor, "N D"]], *, count: int, extra: int = 0, hidden: int = 32, seed: int = 0
    ) -> None:
        super().__init__()
        self.cameras, self.extra = list(views), extra
        rng = torch.Generator().manual_seed(seed)
        for i, rows in enumerate(views.values()):
            width = rows.shape[1] + extra
            middle = rows.mean(0)
            self.register_buffer(f"middle{i}", middle)
            self.register_buffer(f"scale{i}", (rows - middle).square().mean().sqrt().clamp(min=1e-6))
            self.register_buffer(f"floor{i}", torch.full((count,), -torch.inf))
            for name, shape, fan_in in (
                ("w1_", (count, width, hidden), width), ("b1_", (count, 1, hidden), width),
                ("w2_", (count, hidden, 1), hidden), ("b2_", (count, 1, 1), hidden),
            ):  # fmt: skip
                start = (torch.rand(shape, generator=rng) * 2 - 1) / fan_in**0.5  # torch.nn.Linear's own
                self.register_parameter(f"{name}{i}", nn.Parameter(start))

    def view(
        self, i: int, rows: Float[Tensor, "N D"], extra: Float[Tensor, "N E"] | None = None
    ) -> Float[Tensor, "K N"]:
        """What the networks of the i-th view say of rows, without a floor."""
        x = (rows - getattr(self, f"middle{i}")) / getattr(self, f"scale{i}")
        if extra is not None:
            x = torch.cat([x, extra], 1)
        hidden = nn.functional.leaky_relu(x @ getattr(self, f"w1_{i}") + getattr(self, f"b1_{i}"), 0.1)
        return (hidden @ getattr(self, f"w2_{i}") + getattr(self, f"b2_{i}")).squeeze(-1)

    def forward(
        self, views: Mapping[str, Float[Tensor, "N D"]], extra: Float[Tensor, "N E"] | None = None
    ) -> Float[Tensor, "K N"]:
        """Outputs of rows of some or all of the views; at least one."""
        count = len(next(iter(views.values())))
        said = []
        for i, camera in enumerate(self.cameras):
            floor = getattr(self, f"floor{i}")[:, None]
            known = camera in views
            said.append(self.view(i, views[camera], extra).maximum(floor) if known else floor.expand(-1, count))
        return torch.stack(said).mean(0)

    @torch.no_grad()
    def set_floors(self, views: Mapping[str, Float[Tensor, "N D"]]) -> None:
        """Take each view's least output over rows as its floor; to be called once fitted."""
        for i, camera in enumerate(self.cameras):
            getattr(self, f"floor{i}").copy_(self.view(i, views[camera]).amin(1))

    @classmethod
    def restore(cls, cameras: Sequence[str], tensors: Mapping[str, Tensor]) -> Members:
        """The networks whose `state_dict` this is."""
        count, width, hidden = tensors["w1_0"].shape
        blank = {camera: torch.zeros(2, width) for camera in cameras}
        members = cls(blank, count=count, hidden=hidden)
        members.load_state_dict(dict(tensors))
        return members


def descend(
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    count: int,
    *,
    steps: int,
    batch: int = 256,
    learning_rate: float = 3e-3,
    seed: int = 0,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Fit by AdamW on random batches, whole passes in a fresh order each.

    Args:
        module: whose parameters are fitted, in place.
        loss: indices of rows, (n,) int64 -> scalar.
        count: how many rows there are.
        steps: at most.
        batch: rows a step, at most.
        learning_rate: AdamW's.
        seed: of the order.
        stop: asked after each pass.
    """
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=1e-3)
    taken = 0
    with torch.enable_grad():
        while taken < steps:
            for rows in torch.randperm(count, generator=rng).split(batch):
                optimizer.zero_grad()
                loss(rows).backward()
                optimizer.step()
                taken += 1
                if taken == steps:
                    break
            if stop is not None and stop():
                break


def flat(views: Mapping[str, Float[Tensor, "B T D"]], module: nn.Module) -> dict[str, Float[Tensor, "N D"]]:
    """Every view with batch and time in one dimension, float32, where the module's weights are.

    Args:
        views: name -> features.
        module: tells device.
    """
    device = next(module.parameters()).device
    return {camera: view.float().to(device).flatten(0, 1) for camera, view in views.items()}


def fitted_views(features: Features, cameras: Sequence[str], kind: str) -> dict[str, Float[Tensor, "B T D"]]:
    """The views a head was fitted on that the features have; a lone view is itself, whatever it is called.

    Args:
        features: of B episodes.
        cameras: that the head was fitted on.
        kind: of the head, for errors.

    Raises:
        ValueError: none of them is there.
    """
    if len(cameras) == len(features.views) == 1:
        return {cameras[0]: features.main}
    views = {camera: features.views[camera] for camera in cameras if camera in features.views}
    if not views:
        raise ValueError(
            f"{kind}: views must hold one of {', '.join(cameras)}, which it was fitted on; "
            f"got {', '.join(features.views)}. Fit it on these cameras, or name them alike."
        )
    return views


def check_episodes(episodes: Any, kind: str) -> None:
    """Refuse what is no sequence of episodes of the same cameras, or none at all.

    Args:
        episodes: what came.
        kind: of the head, for errors.

    Raises:
        TypeError: not recorded episodes.
        ValueError: none, or episodes of different cameras.
    """
    if not isinstance(episodes, Sequence) or not all(isinstance(episode, Episode) for episode in episodes):
        raise TypeError(
            f"{kind}: demos must be recorded episodes (rewards.core.Episode); got {episodes!r}. "
            "In a config they are a number of episodes or a dataset, which the command records and encodes."
        )
    if not episodes:
        raise ValueError(
            f"{kind}: demos must hold episodes to fit on, or model a folder of a fitted head; got neither."
        )
    if len({tuple(episode.features.views) for episode in episodes}) > 1:
        raise ValueError(f"{kind}: demos must all have the same cameras; they differ.")


def of_goal(episodes: Any, goal: str | None) -> Any:
    """Those whose instruction the goal is, for episodes of other tasks end well with something else done; all of them
    where none says so. See `rewards.phrases.plain`.

    Args:
        episodes: what came; what is no episode is left for `check_episodes` to tell.
        goal: in words.
    """
    listed = episodes if isinstance(episodes, Sequence) and goal else ()
    wanted = plain(goal or "")
    return [each for each in listed if isinstance(each, Episode) and plain(each.instruction) == wanted] or episodes
