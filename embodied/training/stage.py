"""A config's worlds, with what a policy and a reward model see of them: the same for training and for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
from omegaconf import DictConfig

from embodied.building.build import build
from embodied.building.worlds import SEEN, env_maker, policy_cameras, reward_cameras, things_of
from embodied.envs.vector import WorldVecEnv
from embodied.errors import UserError
from embodied.scoring import Layout
from embodied.training.collector import Collector
from embodied.training.labeller import Labeller
from embodied.training.perception import Perception
from embodied.training.places import FOLDER, place_reader
from embodied.training.worth import OwnReward, Rewards
from rewards.core import Encoder, Scorer


class Stage:
    """Makes the worlds of a config.

    Args:
        config: a verb's, with env, encoder and reward.
        scorer: the reward model; None: the task's own reward is learned from.

    Attributes:
        perception: what every collector of the stage perceives with, once one was made; None where nothing is rendered.

    Raises:
        UserError: an observation that the encoder cannot give.
    """

    def __init__(self, config: DictConfig, scorer: Scorer | None) -> None:
        self._config, self.scorer = config, scorer
        self.form = str(config.env.get("obs", "state"))
        self.perception: Perception | None = None
        self._encoder: Encoder | None = scorer.encoder if scorer is not None else None
        if self.form in SEEN and self._encoder is None:
            self._encoder = build(config.encoder)

    @property
    def observation(self) -> str:
        """What the policy sees, as every report says it."""
        if self.form not in ("state", "mixed"):
            return self.form
        env = self.env()
        try:
            world = env.unwrapped
            own = bool(getattr(world, "state_is_own", False))
            told = bool(getattr(world, "tells_own", True))
        finally:
            env.close()
        if self.form == "mixed":
            return "mixed" if told else "pixels and simulator state"
        return "own readings" if own else "simulator state"

    def maker(self) -> Callable[[], gymnasium.Env]:
        """Makes one world, in any process; a subclass may wrap it."""
        return env_maker(self._config)

    def worlds(self, num_worlds: int, *, seed: int, workers: int = 0) -> WorldVecEnv:
        """Worlds that render what is perceived, or nothing."""
        return WorldVecEnv(
            self.maker(),
            num_worlds,
            workers=workers,
            seed=seed,
            frame_size=None if self._encoder is None else int(self._encoder.image_size[0]),
            cameras=reward_cameras(self._config),
            policy_cameras=policy_cameras(self._config),
            depth=self.scorer is not None and self.scorer.frames_read != "none",
        )

    def collector(self, num_worlds: int, *, seed: int, workers: int = 0, **encoding: Any) -> Collector:
        """Fresh worlds and what steps them; `encoding` as `Collector` takes it."""
        worlds = self.worlds(num_worlds, seed=seed, workers=workers)
        try:
            return Collector(
                worlds,
                None if self._encoder is None else self._perceive,
                frames_read="none" if self.scorer is None else self.scorer.frames_read,
                **encoding,
            )
        except BaseException:
            worlds.close()
            raise

    def _perceive(self, layout: Layout) -> Perception:
        assert self._encoder is not None
        if self.perception is None or self.perception.layout != layout:
            things = things_of(self._config, self._encoder) if self.form == "points" else ()
            places = place_reader(self._config, self._encoder, layout.views) if self.form == "places" else None
            try:
                self.perception = Perception(self._encoder, layout, self.form, things, places)
            except ValueError as error:
                raise UserError(str(error)) from error
        return self.perception

    def keep(self, folder: Path) -> None:
        """Write what was learned to see into a run's folder, whence `take_kept` takes it."""
        if self.perception is not None and self.perception.places is not None:
            self.perception.places.policy.save(folder / FOLDER)

    def rewards(self, collector: Collector, *, watches: bool = True) -> Rewards:
        """What gives the rollouts of a fresh collector their rewards."""
        count = collector.worlds.num_envs
        if self.scorer is None:
            return OwnReward(count)
        weight = float(self._config.get("env_weight", 0.0))
        return Labeller(self.scorer, collector.layout, count, env_weight=weight, watches=watches)

    def env(self) -> gymnasium.Env:
        """One world by itself, for films."""
        return self.maker()()
