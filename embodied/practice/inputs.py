"""What a policy that practises sees, live and in demonstrations: the same inputs from both.

Shape letters: T actions of an episode, S the policy's inputs, A action, D feature width; H, W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from embodied.datasets import Dataset
from embodied.datasets.encoding import encode
from embodied.envs.worker import view_names
from embodied.errors import UserError
from embodied.training.collector import to_unit
from policies.shown import Shown
from rewards.calibration import Decision, Latch
from rewards.core import Encoder, Episode, Features

TASKS = ("forward", "backward")
FAR = 5.0  # standard deviations of the demonstrations' inputs, at which inputs are cut


@runtime_checkable
class SuccessHead(Protocol):
    """A success model: `rewards.success.SuccessClassifier` or `SuccessVLM`."""

    @property
    def decision(self) -> Decision: ...

    def verdicts(self, features: Features) -> Tensor: ...


@dataclass(frozen=True)
class Moment:
    """What is seen at one time.

    Attributes:
        inputs: (S,) float32, before standardising.
        features: of this one row, for success models.
    """

    inputs: np.ndarray
    features: Features


class Senses:
    """What the policy and the success models see of a world; every frame is encoded once, for both.

    Args:
        env: has `frame(camera=…, image_size=…)`, as our worlds and `RobotEnv`; with `signals`, also `signals()`.
        encoder: frames to features.
        cameras: views by name; none: the world's own.
        signals: own readings that the policy gets, in order; None: it gets the world's own flat observation, and
            neither readings nor features.
    """

    def __init__(
        self, env: gymnasium.Env, encoder: Encoder, *, cameras: Sequence[str] = (), signals: Sequence[str] | None
    ) -> None:
        self.views = view_names(env, cameras)
        self.signals = None if signals is None else tuple(signals)
        self._env, self._encoder, self._named = env, encoder, bool(cameras)

    def on(self, env: gymnasium.Env) -> Senses:
        """The same senses of another world."""
        return Senses(env, self._encoder, cameras=self.views if self._named else (), signals=self.signals)

    @torch.inference_mode()
    def look(self, obs: Any) -> Moment:
        """This moment, given what the world returned of it."""
        frames = np.stack([self._frame(view) for view in self.views])
        images = torch.from_numpy(frames)
        rows = self._encoder.encode_images(images).float().cpu()
        features = Features(
            views={view: rows[v][None, None] for v, view in enumerate(self.views)},
            frames={view: images[v][None, None] for v, view in enumerate(self.views)},
        )
        if self.signals is None:
            return Moment(np.asarray(obs, np.float32), features)
        told = self._env.get_wrapper_attr("signals")() if self.signals else {}
        own = np.array([told[name] for name in self.signals], np.float32)
        return Moment(np.concatenate([own, rows.flatten().numpy()]), features)

    def _frame(self, view: str) -> np.ndarray:
        named = {"camera": view} if self._named else {}
        return self._env.get_wrapper_attr("frame")(image_size=int(self._encoder.image_size[0]), **named)


# Demonstrations -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo:
    """One episode of one task, cut where its success model says it is done.

    Attributes:
        task: index into `TASKS`.
        inputs: (T + 1, S) float32.
        actions: (T, A) float32, in the world's units.
        done: whether the last action did it.
    """

    task: int
    inputs: np.ndarray
    actions: np.ndarray
    done: bool


def demonstrations(
    dataset: Dataset,
    task: int,
    head: SuccessHead,
    encoder: Encoder,
    *,
    views: Sequence[str],
    signals: Sequence[str] | None,
    count: int = 0,
) -> list[Demo]:
    """The episodes of a dataset as `Senses` would have seen them.

    The success model's word ends a demonstration; of one that succeeded by its label and that the model never says
    yes to, the last row does.

    Args:
        dataset: of one task.
        task: index into `TASKS`.
        head: its success model.
        encoder: that of the senses.
        views: those of the senses.
        signals: those of the senses; None: `observation.environment_state` is the observation.
        count: the first so many episodes; 0: all.

    Raises:
        UserError: a reading or camera that the dataset lacks, no actions, or no episodes.
    """
    chosen = range(min(count or len(dataset), len(dataset)))
    reads = getattr(head, "frames_read", "none")
    demos = []
    for i, episode in zip(
        chosen, encode(dataset, encoder, cameras=views, indices=chosen, frames_read=reads), strict=True
    ):
        recording = dataset.recording(i, cameras=())
        if signals is None:
            (inputs,) = dataset.columns(i, ["observation.environment_state"]).values()
            inputs = inputs.reshape(len(inputs), -1)
        else:
            if missing := [name for name in signals if name not in recording.signals]:
                raise UserError(f"{dataset.root}: observation.state must tell {', '.join(missing)}, as the robot does.")
            columns = [recording.signals[name][:, None] for name in signals]
            inputs = np.concatenate([*columns, *(episode.features.views[v][0].numpy() for v in views)], axis=1)
        latch, verdicts = Latch(head.decision.hold), head.verdicts(episode.features)
        said = [bool(latch.step(verdicts[:, t])) for t in range(len(recording))]
        last = said.index(True, 1) if any(said[1:]) else len(recording) - 1
        done = any(said[1:]) or bool(episode.success)
        demos.append(Demo(task, inputs[: last + 1].astype(np.float32), recording.actions[:last], done))
    if not demos or not demos[0].actions.size:
        raise UserError(f"{dataset.root}: must hold demonstrations with actions; it holds none.")
    return demos


def mirrored(episodes: Sequence[Episode]) -> list[Episode]:
    """Episodes that ended in success, shown backwards: they end with the other task done, which they undid.

    So the success model of a task learns from the other's recordings too, and does not take the pose in which its own
    ended for a sign of success.
    """
    return [
        Episode(features=_flipped(episode.features), instruction=episode.instruction, success=True)
        for episode in episodes
        if episode.success
    ]


def _flipped(features: Features) -> Features:
    def back(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.flip(1) for name, value in values.items()}

    return Features(views=back(features.views), signals=back(features.signals), frames=back(features.frames))


@dataclass(frozen=True)
class Standard:
    """Inputs to observations: in units of the demonstrations' spread, and which task is asked for.

    Attributes:
        mean, scale: (S,) float32.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, demos: Sequence[Demo]) -> Standard:
        """That of demonstrations; what hardly varies in them is not blown up."""
        inputs = np.concatenate([demo.inputs for demo in demos])
        spread = inputs.std(0)
        return cls(inputs.mean(0), np.maximum(spread, max(0.1 * float(np.median(spread)), 1e-6)))

    def __call__(self, inputs: np.ndarray, task: int) -> np.ndarray:
        """(…, S) -> (…, S + 2) float32."""
        which = np.broadcast_to(np.eye(len(TASKS), dtype=np.float32)[task], (*inputs.shape[:-1], len(TASKS)))
        scaled = np.clip((inputs - self.mean) / self.scale, -FAR, FAR)
        return np.concatenate([scaled, which], axis=-1).astype(np.float32)


def shown(demos: Sequence[Demo], standard: Standard, actions: spaces.Box, *, seed: int) -> Shown:
    """Demonstrations as a learner is shown them; those that did it are imitated."""
    space = spaces.Box(-np.inf, np.inf, (demos[0].inputs.shape[1] + len(TASKS),), np.float32)
    count = sum(len(demo.actions) for demo in demos)
    replay = Shown(space, actions, capacity=count, seed=seed)
    for demo in demos:
        reward = np.append(np.zeros(len(demo.actions) - 1, np.float32), np.float32(demo.done))
        obs, scaled = standard(demo.inputs, demo.task), to_unit(actions, demo.actions)
        replay.add_episode(obs, scaled, reward, terminated=demo.done, imitate=demo.done)
    return replay
