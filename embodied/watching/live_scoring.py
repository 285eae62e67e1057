"""Who scores a stream's moments: a reward on this machine, or one behind a server. Both can be given another goal.

Shape letters: V views, D feature width; H, W image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from embodied import scoring
from embodied.building.build import build
from embodied.building.goals import fitted_model, told_goals
from embodied.cameras.camera import Frame
from embodied.errors import UserError
from embodied.scoring import Layout
from embodied.scoring.streaming import EpisodeStream, Reading
from embodied.serving.peer import ServerLostError, ServerRefusedError
from rewards.chat import VLMError
from rewards.core import Scorer

if TYPE_CHECKING:
    from embodied.serving.client import RemoteStream

MAX_GOAL = 1000  # characters of a goal's text


class UnscorableError(Exception):
    """A moment that has no reading; the text says why. The next may have one.

    Attributes:
        kind: "nan" (a number that is none), "model" (a chat model did not answer) or "server" (it is away): what is
            the same for a row of such moments, though their texts differ.
    """

    def __init__(self, reason: str, *, kind: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Scored(NamedTuple):
    """A moment's reading, and the seconds each stage of it took."""

    reading: Reading
    stages_s: dict[str, float]


@runtime_checkable
class LiveScoring(Protocol):
    """What a pipeline asks of whoever scores.

    Attributes:
        goal: the goal's text, for people; None where the reward has none.
    """

    goal: str | None

    def score(self, frames: Mapping[str, Frame]) -> Scored:
        """One more moment; UnscorableError where it has no reading."""
        ...

    def restart(self) -> None:
        """The next moment begins a new episode."""
        ...

    def change_goal(self, goal: str) -> int:
        """Go on with another goal; how many past moments now count by it. UserError or ValueError: it cannot be."""
        ...

    def close(self) -> None: ...


def check_goal(goal: Any) -> str:
    """A goal's text without the space around it.

    Raises:
        UserError: no text, an empty one, or one longer than `MAX_GOAL`.
    """
    if not isinstance(goal, str):
        raise UserError(f"goal must be a text; got {type(goal).__name__}.")
    text = goal.strip()
    if len(text) > MAX_GOAL:
        raise UserError(f"goal must be at most {MAX_GOAL} characters; got {len(text)}. Say it shorter.")
    if not text or not text.isprintable():
        raise UserError(f"goal must be a line of text; got {text[:60]!r}.")
    return text


class LocalScoring:
    """A scorer of this process: encodes each moment once, keeps the rows of the episode.

    Args:
        scorer: frames to rewards.
        views: names of the V cameras, the main one first.
        called: what the reward calls them; None: the same.
        reward: the config it was made from, a plain mapping, for other goals; None: its goal stays.
        max_rows: see `EpisodeStream`.
        max_pixels: of the images that heads are shown again at each moment; the moment after begins a new episode.
            None: as many as there are rows.
    """

    def __init__(
        self,
        scorer: Scorer,
        views: tuple[str, ...] = ("main",),
        *,
        called: tuple[str, ...] | None = None,
        reward: Mapping[str, Any] | None = None,
        max_rows: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.stream = EpisodeStream(scorer, Layout(called or views), max_rows=max_rows)
        self._views = views
        self._max_pixels, self._kept = max_pixels, (0, 0)  # an episode, and the pixels of its images
        self._reward = reward
        self.goal: str | None = "; ".join(told_goals(reward or {})) or None
        self._first: tuple[int, Callable[[Mapping[str, list[np.ndarray]]], object]] | None = None
        self._images: dict[str, list[np.ndarray]] = {}

    @property
    def heads(self) -> list[str]:
        """Names of the heads that score."""
        return list(self.stream.scorer.heads)

    def show_first(self, count: int, see: Callable[[Mapping[str, list[np.ndarray]]], object]) -> None:
        """Show somebody the images of the first moments, once they are there, or of those there were in the end.

        Args:
            count: of moments.
            see: is given view -> its images, (H, W, 3) uint8 RGB.
        """
        self._first = (count, see)

    def _keep_first(self, frames: Mapping[str, Frame]) -> None:
        if self._first is None:
            return
        for view in self._views:
            self._images.setdefault(view, []).append(frames[view].image.copy())
        if len(self._images[self._views[0]]) == self._first[0]:
            self._end_first()

    def _end_first(self) -> None:
        first, self._first = self._first, None
        images, self._images = self._images, {}
        if first is not None and images:
            first[1](images)

    def warm_up(self) -> None:
        """One encode, so that what a model does once only does not count as the first frame's latency."""
        scoring.encode(self.stream.scorer, np.zeros((1, *self.stream.scorer.encoder.image_size, 3), np.uint8))

    def score(self, frames: Mapping[str, Frame]) -> Scored:
        images = [frames[view].image for view in self._views]
        alike = len({image.shape for image in images}) == 1
        reads = self.stream.scorer.frames_read != "none"
        if reads and not alike:
            sizes = ", ".join(
                f"{view} {frame.image.shape[1]} x {frame.image.shape[0]}" for view, frame in frames.items()
            )
            raise UserError(f"the reward reads whole images, so cameras must be of one size; got {sizes}. Add resize=…")
        start = time.monotonic()
        batches = [np.stack(images)] if alike else [image[None] for image in images]
        try:
            features = np.concatenate([scoring.encode(self.stream.scorer, batch) for batch in batches])
            row = self.stream.layout.rows(features, [{}])[0]
            encoded = time.monotonic()
            self._keep(sum(image.size // 3 for image in images))
            reading = self.stream.push(row, batches[0] if reads else None)
        except FloatingPointError as error:
            raise UnscorableError(str(error), kind="nan") from error
        except VLMError as error:
            raise UnscorableError(str(error), kind="model") from error
        except ServerLostError as error:  # of an encoder or heads that are at a server
            raise UnscorableError(str(error), kind="server") from error
        scored = Scored(reading, {"encode": encoded - start, "score": time.monotonic() - encoded})
        self._keep_first(frames)
        return scored

    def _keep(self, pixels: int) -> None:
        """Count a moment's images where heads are shown them again, which are then kept until the episode ends."""
        scorer, most = self.stream.scorer, self._max_pixels
        if most is None or scorer.frames_read != "all" or scorer.advances:
            return
        kept = pixels + (self._kept[1] if self._kept[0] == self.stream.episode else 0)
        if kept > most:
            self.stream.restart()
        self._kept = (self.stream.episode, pixels if kept > most else kept)

    def restart(self) -> None:
        self.stream.restart()

    def change_goal(self, goal: str) -> int:
        goal = check_goal(goal)
        scorer, reward = toward(self.stream.scorer, self._reward or {}, goal)
        past = self.stream.rescored(scorer)
        self._reward, self.goal = reward, "; ".join(told_goals(reward))
        return len(past)

    def close(self) -> None:
        self._end_first()


class RemoteScoring:
    """A session of a reward server, which encodes and scores there. While it is away moments have no reading.

    Args:
        stream: the session.
        goal: what it was opened with; None: the server's own.
    """

    def __init__(self, stream: RemoteStream, goal: str | None = None) -> None:
        self.stream, self.goal = stream, goal

    @property
    def heads(self) -> list[str]:
        """Names of the heads that score there."""
        return [str(name) for name in self.stream.about["heads"]]

    def score(self, frames: Mapping[str, Frame]) -> Scored:
        start = time.monotonic()
        try:
            reading = self._push({view: frame.image for view, frame in frames.items()})
        except FloatingPointError as error:
            raise UnscorableError(str(error), kind="nan") from error
        except ServerLostError as error:
            raise UnscorableError(str(error), kind="server") from error
        served = self.stream.latency_ms / 1000
        return Scored(reading, {"server": served, "network": max(time.monotonic() - start - served, 0.0)})

    def _push(self, images: Mapping[str, np.ndarray]) -> Reading:
        """One moment's reading; of a new episode where the old one holds as many images as the server keeps."""
        try:
            return self.stream.push(images)
        except ServerRefusedError as error:
            if error.code != "too_large":
                raise
            self.stream.restart()
            return self.stream.push(images)

    def restart(self) -> None:
        self.stream.restart()

    def change_goal(self, goal: str) -> int:
        goal = check_goal(goal)
        past = self.stream.set_goal(goal)
        self.goal = goal
        return len(next(iter(past.values()), ()))

    def close(self) -> None:
        self.stream.close()


def toward(scorer: Scorer, reward: Mapping[str, Any], goal: str) -> tuple[Scorer, dict[str, Any]]:
    """The same reward with another goal, on the same encoder; of a composition, every part that has a goal.

    What was fitted to demonstrations stays what it is, except where its head can judge another task by itself
    (`toward`, as a process model has).

    Args:
        scorer: made from `reward`.
        reward: its config, a plain mapping.
        goal: checked.

    Returns:
        The scorer and its config; the ones given are not changed.

    Raises:
        UserError: nothing in it follows a goal that changes.
        ValueError: the encoder refuses the text.
    """
    parts = reward.get("parts")
    if not parts:
        return _toward(scorer, reward, goal)
    made: dict[str, Scorer] = {}
    configs: dict[str, Any] = {}
    refused: list[str] = []
    for name, part in parts.items():
        whole: Scorer = scorer.heads[name].scorer  # pyright: ignore[reportAttributeAccessIssue]  of compose.Part
        try:
            made[name], configs[name] = _toward(whole, part, goal)
        except UserError as error:
            made[name], configs[name] = whole, part
            refused.append(str(error))
    if len(refused) == len(parts):
        raise UserError(" ".join(refused))
    rest = {key: value for key, value in reward.items() if key != "parts"}
    return build(rest, encoder=scorer.encoder, parts=made), {**reward, "parts": configs}


@torch.inference_mode()
def _toward(scorer: Scorer, reward: Mapping[str, Any], goal: str) -> tuple[Scorer, dict[str, Any]]:
    config = {**reward, "goal": goal, **({"goals": None} if "goals" in reward else {})}
    if all(hasattr(head, "toward") for head in scorer.heads.values()):
        heads: dict[str, Any] = {name: head.toward(goal) for name, head in scorer.heads.items()}  # pyright: ignore[reportAttributeAccessIssue]
        return replace(scorer, heads=heads), config
    fitted = fitted_model(reward) is not None or reward.get("demos") is not None
    if "goal" not in reward or fitted:
        why = "was fitted to demonstrations" if fitted else "has none"
        name = str(reward.get("_target_") or "reward").rpartition(".")[2].removesuffix("_scorer")
        raise UserError(f"goal of {name} must stay: it {why}. Start again with another reward.")
    return build(config, encoder=scorer.encoder), config
