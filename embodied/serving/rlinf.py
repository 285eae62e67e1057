"""Our reward server as a reward model of RLinf: rewards of a batch of images from another process or machine.

RLinf makes reward models from a class with `compute_reward(observations)`. Register this one before its workers start:

    from rlinf.models.embodiment.reward import reward_model_registry
    from embodied.serving.rlinf import RemoteReward
    reward_model_registry["embodied"] = RemoteReward

and in its config, `reward.model: {model_type: embodied, url: "http://host:8000", goal: "the cup is upright"}`. It is a
module without parameters, so RLinf's placement has nothing to move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from embodied.errors import UserError
from embodied.serving.remote import remote_scorer
from rewards.core import Features

IMAGES = "main_images"  # where RLinf puts what the main camera sees


class RemoteReward(nn.Module):
    """RLinf's `BaseRewardModel` over a server of ours (`embodied serve`).

    The reward of an image is its potential. Only rewards that read single frames can be asked so: RLinf shows one
    moment of many worlds at a time, and does not say which episode it belongs to.

    Args:
        cfg: `url` of the server; `goal`, for rewards that leave it open; `reward_threshold`, below which a reward is
            0, as RLinf's own models have it.

    Raises:
        UserError: no such server, no `url`, or a reward that reads an episode's past.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__()
        url = cfg.get("url")
        if not url:
            raise UserError("reward.model.url must be the address of a reward server; got none.")
        self.cfg, self._threshold = cfg, cfg.get("reward_threshold")
        self._scorer = remote_scorer(url=str(url), goal=str(cfg.get("goal") or ""))
        if not self._scorer.pointwise or self._scorer.frames_read != "none":
            raise UserError(f"{url}: must serve a reward of single frames; it reads an episode's past, or its images.")

    def forward(self, input_data: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        """Not for training.

        Raises:
            UserError: always.
        """
        raise UserError("RemoteReward is asked, not trained: fit the reward with embodied fit, and serve that.")

    @torch.no_grad()
    def compute_reward(self, observations: Mapping[str, Any]) -> Float[Tensor, " B"]:
        """The reward of each image of `observations["main_images"]`, on its device.

        Args:
            observations: `main_images`, (B, H, W, 3) or (B, 3, H, W); uint8, or numbers in [0, 1].

        Raises:
            UserError: no such images, or of another shape or range.
        """
        images = observations.get(IMAGES)
        if images is None:
            raise UserError(f"observations must hold {IMAGES}; got {', '.join(map(str, observations)) or 'nothing'}.")
        frames = _frames(torch.from_numpy(images) if isinstance(images, np.ndarray) else images)
        features = Features(views={"main": self._scorer.encode(frames.cpu())[:, None]})
        rewards = self._scorer.combined(self._scorer.potentials(features), features)[:, 0].to(frames.device)
        if self._threshold is not None:
            rewards = torch.where(rewards > float(self._threshold), rewards, 0.0)
        return rewards


def _frames(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8."""
    if images.ndim == 4 and images.shape[-1] != 3 and images.shape[1] == 3:
        images = images.permute(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"{IMAGES} must be (B, H, W, 3) or (B, 3, H, W); got {tuple(images.shape)}.")
    if images.is_floating_point():
        if len(images) and not (float(images.min()) >= 0 and float(images.max()) <= 1):
            raise UserError(f"{IMAGES} must be in [0, 1] where they are no uint8; got up to {float(images.max()):g}.")
        images = (images.float() * 255).round().to(torch.uint8)
    if images.dtype != torch.uint8:
        raise UserError(f"{IMAGES} must be uint8 or floating point; got {images.dtype}.")
    return images.contiguous()
