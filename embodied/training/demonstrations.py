"""Recorded episodes as what a learner is shown: seen as its own worlds are, and paid by the same reward.

Shape letters: T actions of an episode, V views; H, W image.
"""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from omegaconf import DictConfig

from embodied import scoring
from embodied.collecting.opening import open_demonstrations
from embodied.datasets import Dataset, Recording
from embodied.errors import UserError
from embodied.scoring import Track
from embodied.training.collector import Collector, to_unit
from embodied.training.perception import Perception
from embodied.training.stage import Stage
from policies.replay import Replay
from policies.shown import Shown
from rewards.core import Scorer
from rewards.progress import tqdm


def demonstrations(config: DictConfig, stage: Stage, collector: Collector) -> Shown | None:
    """What `demos` asks for: a number of expert episodes of the world, or a dataset; None where it asks for nothing.

    An episode is imitated unless it is recorded as failed. Row t of a dataset is what was there before action t, so its
    last action, whose outcome nobody recorded, is left out.

    Raises:
        UserError: observations that are pictures; no expert for a number of episodes; a dataset without the cameras,
            readings or actions of the worlds.
    """
    if not config.get("demos"):
        return None
    if stage.form in ("pixels", "mixed"):
        raise UserError(f"demos cannot be seen as env.obs={stage.form} yet. Use env.obs=points or features.")
    dataset, chosen = open_demonstrations(config, collector.layout.views)
    _check(dataset, collector)
    space, frames = collector.worlds.action_space, sum(dataset.length(i) for i in chosen)
    replay = Shown(collector.observation_space, space, capacity=max(frames, 1), seed=int(config.seed) + 1)
    for i in tqdm(chosen, desc="demonstrations", unit="episode", leave=False, delay=2):
        recording = dataset.recording(i, cameras=collector.layout.views if stage.perception else ())
        add_recording(replay, recording, _state(dataset, i, stage), stage.perception, stage.scorer, space)
    return replay


def add_recording(
    replay: Replay,
    recording: Recording,
    state: np.ndarray | None,
    perception: Perception | None,
    scorer: Scorer | None,
    space: spaces.Space,
) -> None:
    """Show one episode.

    Args:
        replay: where to.
        recording: with the frames of the perception's views.
        state: (T + 1, S) the worlds' own observations, where the policy reads those.
        perception: what the policy and the scorer read.
        scorer: gives the rewards; None: the recorded ones, which must be there.
        space: of the actions.

    Raises:
        UserError: no rewards at all.
    """
    count = len(recording) - 1
    obs, rows = state, None
    if perception is not None:
        obs, rows = seen(recording, perception, state)
    own = None if recording.env_rewards is None else recording.env_rewards[:count]
    terminated = recording.terminated[:count].tolist()
    if scorer is not None:
        assert perception is not None
        assert rows is not None
        read = {"none": 0, "first": 1, "all": count + 1}[scorer.frames_read]
        images = np.stack([recording.frames[view] for view in perception.layout.views], axis=1)
        track = Track(list(rows), terminated, frames=list(images[:read]))
        reward = scoring.label(scorer, [track], perception.layout)[0].rewards
    elif own is not None:
        reward = own
    else:
        raise UserError("demos must hold next.reward where the task's own reward is learned from; they do not.")
    failed = recording.success is not None and not recording.success.any()
    replay.add_episode(
        obs, to_unit(space, recording.actions[:count]), reward, terminated=bool(terminated[-1]), imitate=not failed,
        env_reward=own, rows=rows,
    )  # fmt: skip


def seen(recording: Recording, perception: Perception, state: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The policy's observations (T + 1, …) of a recorded episode, and its rows, as live ones would have been."""
    layout = perception.layout
    frames = np.stack([recording.frames[view] for view in layout.views], axis=1)
    signals = [{name: float(recording.signals[name][t]) for name in layout.signals} for t in range(len(frames))]
    found = perception.see(frames, signals)
    if not perception.makes_observations:
        assert state is not None
        return state, found.rows
    memory, obs = perception.remember(), []
    for t in range(len(frames)):
        obs.append(perception.observe(found.take(np.array([t])), np.array([t == 0]), memory)[0])
    return np.stack(obs), found.rows


def _state(dataset: Dataset, i: int, stage: Stage) -> np.ndarray | None:
    if stage.perception is not None and stage.perception.makes_observations:
        return None
    name = "observation.environment_state"
    if name not in dataset.features:
        raise UserError(
            f"demos: {dataset.root} must hold {name} for env.obs={stage.form}; it does not. "
            "Use env.obs=points or env.obs=features."
        )
    (values,) = dataset.columns(i, [name]).values()
    return values.reshape(len(values), -1).astype(np.float32)


def _check(dataset: Dataset, collector: Collector) -> None:
    space, readings = collector.worlds.action_space, collector.layout.signals
    shape = tuple(dataset.features.get("action", {"shape": ()})["shape"])
    wanted = space.shape if isinstance(space, spaces.Box) else (1,)
    if shape != wanted:
        raise UserError(f"demos must have the worlds' actions, {wanted}; {dataset.root} has {shape}.")
    names = (dataset.features.get("observation.state") or {}).get("names") or []
    if missing := [name for name in readings if name not in names]:
        raise UserError(f"demos: {dataset.root}: observation.state must tell {', '.join(missing)}, as the worlds do.")
