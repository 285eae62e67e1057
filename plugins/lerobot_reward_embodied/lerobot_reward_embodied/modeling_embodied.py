"""A scorer of embodied-rewards behind LeRobot's reward model.

Shape letters: B rows, T time, D feature width; H, W picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.rewards import RewardModelConfig
from lerobot.rewards.pretrained import PreTrainedRewardModel
from torch import Tensor

from embodied.building.build import build
from embodied.building.scorers import scorer_of
from embodied.config import compose
from lerobot_reward_embodied.configuration_embodied import EmbodiedConfig
from rewards.core import Features, Scorer

IMAGES, TASK = "observation.images.", "task"
ELSEWHERE = ("remote", "true")  # rewards that are asked of a server, or of a task
KEPT = 64  # scorers of so many tasks


class EmbodiedRewardModel(PreTrainedRewardModel):
    """See `EmbodiedConfig`. It is not trained here: `embodied fit` makes the folder that `model` names.

    Args:
        config: which reward.

    Raises:
        UserError: no such reward, or one that needs more than a goal or a fitted head; says what.
    """

    config: EmbodiedConfig
    config_class = EmbodiedConfig
    name = "embodied"

    def __init__(self, config: EmbodiedConfig, **_: Any) -> None:
        super().__init__(config)
        self._scorers = lru_cache(KEPT)(self._scorer)
        reward = "" if config.reward in ELSEWHERE else config.reward  # the command line then names those there are
        self._composed = compose("serve", [f"reward={reward}", f"encoder={config.encoder}"])
        self._encoder = build(self._encoder_config())
        if config.goal is not None:
            self._scorers(config.goal)  # a wrong setting is told now

    def _encoder_config(self) -> dict[str, Any]:
        values = _plain(self._composed.encoder) | {"device": self.config.device or "auto"}
        return values if self.config.encoder_model is None else values | {"model": self.config.encoder_model}

    def _scorer(self, goal: str | None) -> Scorer:
        """The scorer of one goal; texts stay texts all the way."""
        reward = _plain(self._composed.reward)
        if self.config.model is not None:
            reward["model"] = self.config.model
        return scorer_of(reward, self._encoder, self._composed, goal=goal, views=self._names() or None)

    def _names(self) -> list[str]:
        return [key.removeprefix(IMAGES) for key in self.config.image_keys]

    @torch.no_grad()
    def compute_reward(self, batch: Mapping[str, Any]) -> Tensor:
        """The potential of each row's last picture.

        Args:
            batch: `observation.images.NAME`: (B, 3, H, W), or (B, T, 3, H, W) of T steps up to now, float in [0, 1] or
                uint8, as the cameras gave them, not normalised. `task`: a text, or B of them; not read where the config
                has a goal.

        Returns:
            (B,) float32, in the reward's own unit; higher is better.

        Raises:
            KeyError: a camera, or the task, is not in the batch.
            ValueError: pictures of another shape, or texts that are not one a row.
        """
        keys = self.config.image_keys or sorted(key for key in batch if key.startswith(IMAGES))
        for key in keys or [f"{IMAGES}NAME"]:
            if key not in batch:
                raise KeyError(
                    f"EmbodiedRewardModel: the batch must have {key!r}; it has {', '.join(map(str, batch))}."
                )
        frames = {key.removeprefix(IMAGES): _frames(batch[key], key) for key in keys}
        count = len(next(iter(frames.values())))
        goals = [self.config.goal] * count if self.config.goal is not None else _tasks(batch, count)
        found = torch.zeros(count)
        for goal in dict.fromkeys(goals):
            rows = [row for row, each in enumerate(goals) if each == goal]
            found[rows] = self._scored(self._scorers(goal), {name: each[rows] for name, each in frames.items()})
        return found.to(self.config.device or "cpu")

    def _scored(self, scorer: Scorer, frames: Mapping[str, Tensor]) -> Tensor:
        """(B, T, H, W, 3) uint8 of each view -> the potential of the last of them, (B,)."""
        read = {"none": 0, "first": 1}.get(scorer.frames_read)
        features = Features(
            views={
                name: scorer.encode(each.flatten(0, 1)).cpu().unflatten(0, each.shape[:2])
                for name, each in frames.items()
            },
            frames={} if read == 0 else {name: each[:, :read] for name, each in frames.items()},
        )
        return scorer.combined(scorer.potentials(features), features)[:, -1].float()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Its config is all there is to it."""
        self.config._save_pretrained(save_directory)

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: RewardModelConfig | None = None, **options: Any
    ) -> EmbodiedRewardModel:
        """What was saved, or published, under a folder or a hub id: the config, and the model made of it.

        Raises:
            TypeError: the config is another reward model's.
        """
        for key in ("strict", "dataset_stats", "dataset_meta"):
            options.pop(key, None)
        config = config or RewardModelConfig.from_pretrained(pretrained_name_or_path, **options)
        if not isinstance(config, EmbodiedConfig):
            raise TypeError(f"EmbodiedRewardModel: config must be an EmbodiedConfig; got {type(config).__name__}.")
        return cls(config).eval()


def _plain(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=True)  # pyright: ignore[reportReturnType]


def _tasks(batch: Mapping[str, Any], count: int) -> list[str]:
    if TASK not in batch:
        raise KeyError(
            f"EmbodiedRewardModel: without a goal the batch must have {TASK!r}; it has {', '.join(map(str, batch))}."
        )
    told = batch[TASK]
    texts: Sequence[str] = [told] * count if isinstance(told, str) else list(told)
    if len(texts) != count or not all(isinstance(each, str) for each in texts):
        raise ValueError(f"EmbodiedRewardModel: task must be a text, or {count}; got {len(texts)}: {texts!r:.200}")
    return list(texts)


def _frames(pictures: Tensor, key: str) -> Tensor:
    """LeRobot's pictures as frames, (B, T, H, W, 3) uint8."""
    if not isinstance(pictures, Tensor) or pictures.ndim not in (4, 5) or pictures.shape[-3] != 3:
        got = tuple(pictures.shape) if isinstance(pictures, Tensor) else type(pictures).__name__
        raise ValueError(f"EmbodiedRewardModel: {key} must be (B, 3, H, W) or (B, T, 3, H, W); got {got}.")
    if pictures.is_floating_point():
        low, high = float(pictures.min()), float(pictures.max())
        if low < -0.01 or high > 1.01:
            raise ValueError(
                f"EmbodiedRewardModel: {key} must be in [0, 1], or uint8, not normalised; got {low:.2f} to {high:.2f}."
            )
        pictures = (255 * pictures).round().clamp(0, 255).to(torch.uint8)
    elif pictures.dtype != torch.uint8:
        raise ValueError(f"EmbodiedRewardModel: {key} must be float in [0, 1] or uint8; got {pictures.dtype}.")
    several = pictures if pictures.ndim == 5 else pictures[:, None]
    return several.permute(0, 1, 3, 4, 2).contiguous().cpu()
