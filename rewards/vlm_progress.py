"""Progress read by a chat VLM without training: TOPReward and GVL; and what the configs name, the GRM included.

All read images (`frames_read = "all"`), ask at every `stride`-th row and hold the answer until the next. A refusal or
an answer that cannot be read is missing: progress keeps its last value. Shape letters: B, T, K rows asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rewards.chat.grm import GenerativeGRM
from rewards.chat.messages import IMAGE, ChatModel, Message, filled
from rewards.chat.numbers import parse_percentages
from rewards.chat.reading import Questions, asked_rows, check_reading, fill, images, questions, thinned, toward
from rewards.compose import as_scorer
from rewards.core import Encoder, Features, Scorer
from rewards.pictures import rgb

TOP_PROMPT = """These images, in order of time, show a robot that was told: {instruction}
{frames}
The robot has completed this instruction by the last image. True or False? Answer with that one word."""

GVL_PROMPT = """A robot was told: {instruction}
Before it began, at 0 % of the task: {start}
The following images of it are in random order. Say of each how much of the task is done in it, an integer percentage
from 0 to 100, where 100 is the finished task.
{frames}
Answer with one line an image and nothing else, in this form: Frame 1: 0%"""


class TOPReward:
    """Like TOPReward, in our words: how likely a VLM holds that the instruction is done, by its answer "True".

        ℓ_t = log P("True" | frames to t, question),   φ_t = clip((ℓ_t − low) / (high − low), 0, 1)

    Causal: φ_t reads the prefix to t and a calibration fixed beforehand.

    Args:
        instruction: the task.
        ask: the model, counted and bounded; it must give log-probabilities.
        view: the camera to show; None: the first.
        calibration: (low, high), the ℓ that are 0 and 1; `calibrated` takes them from demonstrations' first and last
            rows. The default spans e⁻¹⁰ to certainty and is no model's own.
        normalize: "fixed", or "episode" for the source's min-max over the whole trajectory, which reads the future and
            is for offline use alone.
        max_frames: of a prefix, evenly spread, the first and t among them.
        stride, between: see `GenerativeGRM`.

    Raises:
        ValueError: no instruction, or a setting out of range; (score) frames missing.
    Source: arXiv 2602.19313 (TOPReward), as published in `rewards.chat.published`. Departs: a chat template is used;
        images in place of a film; the calibration; the wording.
    """

    name = "topreward_chat"
    frames_read = "all"

    def __init__(
        self,
        instruction: str,
        *,
        ask: Questions,
        view: str | None = None,
        calibration: Sequence[float] = (-10.0, 0.0),
        normalize: str = "fixed",
        max_frames: int = 16,
        stride: int = 5,
        between: str = "hold",
    ) -> None:
        check_reading("TOPReward", instruction, stride, between, max_frames)
        if len(calibration) != 2 or not calibration[0] < calibration[1]:
            raise ValueError(f"TOPReward: calibration must be [low, high] with low < high; got {list(calibration)}.")
        if normalize not in ("fixed", "episode"):
            raise ValueError(f"TOPReward: normalize must be fixed or episode (offline only); got {normalize!r}.")
        self.ask, self.view, self.stride, self.between = ask, view, stride, between
        self.calibration, self.normalize, self.max_frames = tuple(calibration), normalize, max_frames
        self._instruction = instruction

    def toward(self, goal: str) -> TOPReward:
        """The same model, judging another task."""
        return toward(self, goal)

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """φ of each row, in [0, 1]."""
        rows = features.main.shape[1]
        at = asked_rows(rows, self.stride)
        return torch.stack(
            [fill(self._scaled(each).tolist(), at, rows, self.between) for each in self.logprobs(features)]
        ).to(features.main.device)

    def logprobs(self, features: Features) -> Float[np.ndarray, "B K"]:
        """ℓ at the rows asked, NaN where missing: what a calibration is made of."""
        at = asked_rows(features.main.shape[1], self.stride)
        return np.array(
            [
                [self._ask([film[row] for row in thinned(at[: k + 1], self.max_frames)]) for k in range(len(at))]
                for film in _one_view(features, self.name, self.view)
            ]
        )

    def _ask(self, frames: Sequence[np.ndarray]) -> float:
        text = filled(TOP_PROMPT, instruction=self._instruction, frames=len(frames))
        return self.ask.logprob([Message("user", text, frames)], "True", ["False"])[0]

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        low, high = self.calibration
        if self.normalize == "episode":
            known = values[~np.isnan(values)]
            if not len(known) or known.min() == known.max():
                return np.where(np.isnan(values), np.nan, 0.0)  # a constant is no progress
            low, high = known.min(), known.max()
        return ((values - low) / (high - low)).clip(0, 1)


def calibrated(first: Sequence[float], last: Sequence[float]) -> tuple[float, float]:
    """(low, high) for `TOPReward`: medians of ℓ at the first and at the last rows of successful demonstrations.

    Raises:
        ValueError: the last are no likelier than the first: this model cannot read this task.
    """
    low, high = float(np.nanmedian(first)), float(np.nanmedian(last))
    if not low < high:
        raise ValueError(
            f"calibrated: log-probabilities must be higher at the end of demonstrations than at their start; "
            f"got {high:.3g} and {low:.3g}. Try a larger model or another wording of the instruction."
        )
    return low, high


class GVL:
    """Like GVL, in our words: a VLM says how much of the task is done in each of several shuffled frames.

    The first frame is shown as 0 %, the others in a seeded random order, so that order alone tells nothing. Causal: for
    each row asked, a question on the prefix to it, of which that row's own percentage is kept.

    Args:
        instruction: the task.
        ask: the model, counted and bounded.
        view: the camera to show; None: the first.
        causal: False asks once per episode, about `max_frames` frames of all of it: fewer calls, for offline use alone.
        max_frames: of a question, the anchor included, evenly spread; the first and the row asked are among them.
        seed: of the shuffles; the order depends on it and on the number of frames.
        stride, between: see `GenerativeGRM`.

    Raises:
        ValueError: no instruction, or a setting out of range; (score) frames missing.
    Source: arXiv 2411.04549 (GVL), without its few-shot examples; budzianowski/opengvl. Departs from the latter: values
        are kept as they are (it makes a list with decimals sum to 100), and a list that lacks a frame, or says two
        things of one, is missing. Causal prefixes and the wording are ours.
    """

    name = "gvl_chat"
    frames_read = "all"

    def __init__(
        self,
        instruction: str,
        *,
        ask: Questions,
        view: str | None = None,
        causal: bool = True,
        max_frames: int = 16,
        seed: int = 0,
        stride: int = 5,
        between: str = "hold",
    ) -> None:
        check_reading("GVL", instruction, stride, between, max_frames)
        self.ask, self.view, self.stride, self.between = ask, view, stride, between
        self.causal, self.max_frames, self.seed = causal, max_frames, seed
        self._instruction = instruction

    def toward(self, goal: str) -> GVL:
        """The same model, judging another task."""
        return toward(self, goal)

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """Progress of each row, in [0, 1]; 0 at the reset."""
        rows = features.main.shape[1]
        at = asked_rows(rows, self.stride)
        scored = []
        for film in _one_view(features, self.name, self.view):
            if self.causal:
                prefixes = [thinned(at[: k + 1], self.max_frames) for k in range(1, len(at))]
                values, where = [0.0, *(self._ask(film, prefix)[-1] for prefix in prefixes)], at
            else:
                where = thinned(at, self.max_frames)
                values = [0.0, *(self._ask(film, where) if len(where) > 1 else [])]
            scored.append(fill(values, where, rows, self.between))
        return torch.stack(scored).to(features.main.device)

    def _ask(self, film: Sequence[np.ndarray], rows: Sequence[int]) -> list[float]:
        """Progress at all of these rows but the first, in their order; NaN where the answer is missing."""
        count = len(rows) - 1
        order = np.random.default_rng([self.seed, count]).permutation(count)  # place k shows row order[k]
        template = GVL_PROMPT.replace("{frames}", "\n".join(f"Frame {k + 1}: {IMAGE}" for k in range(count)))
        text = filled(template, instruction=self._instruction, start=1)
        shown = [film[rows[0]], *(film[rows[1 + k]] for k in order)]
        said = self.ask.numbers([Message("user", text, shown)], lambda answer: parse_percentages(answer, count), "gvl")
        if len(said) != count or math.isnan(said[0]):
            return [math.nan] * count
        values = np.empty(count)
        values[order] = said
        return values.tolist()


# What the configs name: each makes a scorer -----------------------------------------------------------------


def grm_vlm_scorer(
    *,
    encoder: Encoder,
    goal: str,
    vlm: Mapping[str, Any] | ChatModel,
    asking: Mapping[str, Any] | None = None,
    goal_image: str | Mapping[str, str] | None = None,
    views: Sequence[str] | None = None,
    shaping: Mapping[str, Any] | None = None,
    **head: Any,
) -> Scorer:
    """`GenerativeGRM` as a scorer; other arguments are the head's.

    Args:
        encoder: for the other heads of a composition; this one reads images.
        goal: the instruction.
        vlm: see `rewards.chat.asking.chat_model`.
        asking: arguments of `rewards.chat.reading.Questions`.
        goal_image: a picture of the finished task, of another episode: a file, or {camera: file}. A single file is the
            first view's, and needs `views`.
        views: see `GenerativeGRM`.
        shaping: arguments of `PotentialShaping`.

    Raises:
        FileNotFoundError: no such picture.
        ValueError: one file and no views.
    """
    if isinstance(goal_image, str):
        if not views:
            raise ValueError("grm_vlm_scorer: goal_image must be {camera: file} where views is null; got one file.")
        goal_image = {views[0]: goal_image}
    pictures = {name: picture(path) for name, path in (goal_image or {}).items()}
    made = GenerativeGRM(goal, ask=questions(vlm, asking), goal=pictures, views=views, **head)
    return as_scorer(encoder, {made.name: made}, shaping)


def topreward_scorer(
    *,
    encoder: Encoder,
    goal: str,
    vlm: Mapping[str, Any] | ChatModel,
    asking: Mapping[str, Any] | None = None,
    shaping: Mapping[str, Any] | None = None,
    **head: Any,
) -> Scorer:
    """`TOPReward` as a scorer; arguments as of `grm_vlm_scorer`, others are the head's.

    Args:
        encoder, goal, vlm, asking, shaping: as of `grm_vlm_scorer`.
    """
    made = TOPReward(goal, ask=questions(vlm, asking), **head)
    return as_scorer(encoder, {made.name: made}, shaping)


def gvl_scorer(
    *,
    encoder: Encoder,
    goal: str,
    vlm: Mapping[str, Any] | ChatModel,
    asking: Mapping[str, Any] | None = None,
    shaping: Mapping[str, Any] | None = None,
    **head: Any,
) -> Scorer:
    """`GVL` as a scorer; arguments as of `grm_vlm_scorer`, others are the head's.

    Args:
        encoder, goal, vlm, asking, shaping: as of `grm_vlm_scorer`.
    """
    made = GVL(goal, ask=questions(vlm, asking), **head)
    return as_scorer(encoder, {made.name: made}, shaping)


def _one_view(features: Features, head: str, view: str | None) -> list[list[np.ndarray]]:
    found = images(features, head, None if view is None else [view])
    return next(iter(found.values()))


def picture(path: str) -> np.ndarray:
    """A goal's picture, (H, W, 3) uint8; FileNotFoundError where there is none.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: there is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"grm_vlm_scorer: goal_image must be a picture; got {path}, which is not there.")
    with Image.open(path) as picture:
        return rgb(picture)
