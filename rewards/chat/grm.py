"""Progress by a VLM that writes how far one moment is ahead of another: Robo-Dopamine's generative GRM.

Shape letters: B episodes, T rows, K rows asked, V cameras.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rewards.chat.messages import IMAGE, Message, filled
from rewards.chat.numbers import parse_score
from rewards.chat.reading import Questions, asked_rows, check_reading, fill, images, toward
from rewards.core import Features
from rewards.hops import EPSILON, STRENGTH, fuse

GRM_PROMPT = """You judge how far a robot has come with a task, by comparing two moments.
Task: {instruction}
The start of an episode: {start}
{goal}BEFORE, from {views}: {before}
AFTER, from {views}: {after}
Say by how much AFTER is nearer to the finished task than BEFORE. A step forward is a percentage of what remained at
BEFORE, a step back a negative percentage of what had been done by then; 0 means no change. Look at the objects, not at
how much the robot moved.
Answer with one signed integer from -100 to 100 in this form: <score>+0</score>"""
GRM_GOAL = "The finished task: {goal}\n"
PLACES = ("{start}", "{before}", "{after}")  # of images, that every prompt must have
VIEWS = 3  # that a prompt with marks of its own shows, twice, after start and goal


class GenerativeGRM:
    """Robo-Dopamine with a generative model: hops between images, written in a `score` tag, fused to progress.

        2 + 2V images in this order: start, goal (both first view), V views BEFORE, V views AFTER
        hop = clip(score, ±100) / 100, then `rewards.hops.fuse` over the rows asked

    Asks up to three questions a row: from the row asked before, from the start, and from the goal. An answer without
    one readable tag is missing: Φ holds its last value (w = 0).

    Args:
        instruction: the task.
        ask: the model, counted and bounded.
        goal: camera name -> an image of the finished task from *another* episode, (H, W, 3) uint8; empty: no goal is
            shown and nothing is measured from it. The hop from the goal is asked on the views that have one.
        views: cameras to show, the first of them as the reference view; None: all.
        stride, between: which rows are asked, and how the others are filled; "linear" is for offline use alone.
        fusion, strength, epsilon: see `rewards.hops.fuse`.
        prompt: in place of `GRM_PROMPT`, for a model that was trained on its own: text with {instruction} or {task},
            {start}, {goal}, {before}, {after} and, if wanted, {views}; other braces stay as they are. Or with eight
            `<image>` marks, each after its own label: start and goal, three views BEFORE, three AFTER; then there must
            be a goal, which stands for every view that has none of its own, as the first view does for missing ones.

    Raises:
        ValueError: no instruction, a goal image of another form, or a setting out of range; (score) frames missing, or
            a fusion that needs the goal where no camera that it is of is shown.
    Source: arXiv 2512.23703 and FlagOpen/Robo-Dopamine, whose eight images are V = 3. Departs from that code: an
        unreadable answer is missing and no hop of 0 (there, success in backward mode); the goal is given and never the
        episode's own last frame; the hop from the goal shows each camera its own goal image, or leaves it out; any V.
        The wording is ours; theirs is `rewards.chat.published.GRM_PUBLISHED`.
    """

    name = "grm_vlm"
    frames_read = "all"

    def __init__(
        self,
        instruction: str,
        *,
        ask: Questions,
        goal: Mapping[str, np.ndarray] | None = None,
        views: Sequence[str] | None = None,
        stride: int = 5,
        between: str = "hold",
        fusion: str = "guarded",
        strength: float = STRENGTH,
        epsilon: float = EPSILON,
        prompt: str | None = None,
    ) -> None:
        check_reading("GenerativeGRM", instruction, stride, between)
        self.ask, self.views, self.stride, self.between = ask, views, stride, between
        self._instruction, self._prompt = instruction, prompt or GRM_PROMPT
        self._goal = dict(goal or {})
        marks = self._prompt.count(IMAGE)
        missing = [place for place in PLACES if place not in self._prompt]
        if missing and not marks:
            raise ValueError(f"GenerativeGRM: prompt must have a place {', '.join(missing)}; it has none.")
        if marks and (marks != 2 + 2 * VIEWS or not self._goal):
            raise ValueError(
                f"GenerativeGRM: prompt must mark {2 + 2 * VIEWS} images by {IMAGE}, with a goal to show; got {marks} "
                f"marks and {'a' if self._goal else 'no'} goal."
            )
        self._marked = bool(marks)
        Message("user", "", list(self._goal.values()))  # refuses images of another form, before the first episode
        self._fusion: dict[str, Any] = {"fusion": fusion, "strength": strength, "epsilon": epsilon}
        nothing = torch.zeros(1, 1)
        fuse(nothing, nothing, nothing if self._goal else None, **self._fusion)  # refuses a wrong fusion, likewise

    def toward(self, goal: str) -> GenerativeGRM:
        """The same model, judging another task."""
        return toward(self, goal)

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """Progress of each row, in [0, 1]; 0 at the reset, as in the source."""
        shown = images(features, self.name, self.views)
        rows = features.main.shape[1]
        at = asked_rows(rows, self.stride)
        scored = []
        for b in range(features.main.shape[0]):
            frames = {name: episodes[b] for name, episodes in shown.items()}
            phi = fuse(*self._hops(frames, at), **self._fusion)[0]
            scored.append(fill(phi.tolist(), at, rows, self.between))
        return torch.stack(scored).to(features.main.device)

    def _hops(self, frames: Mapping[str, list[np.ndarray]], at: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the fusion needs of h(t−1, t), h(start, t) and h(goal, t), each (1, K); NaN where missing."""
        fusion = self._fusion["fusion"]
        need = {"incremental": "i", "forward": "f", "backward": "b"}.get(fusion, "ifb")
        moments = [{name: film[row] for name, film in frames.items()} for row in at]
        start = moments[0]
        goal = {name: image for name, image in self._goal.items() if name in frames}
        if self._marked:
            goal = dict.fromkeys(frames, next(iter(self._goal.values()))) | goal
        if "b" in need and self._goal and not goal:  # every hop would be missing, and progress 0 for ever
            raise ValueError(
                f"grm_vlm: goal must be of a camera that is shown, {', '.join(frames)}; got {', '.join(self._goal)}."
            )
        inc, fwd, bwd = [math.nan], [0.0], [-1.0]  # at the reset nothing is done
        for before, now in pairwise(moments):
            inc.append(self._hop(start, before, now) if "i" in need else math.nan)
            fwd.append(self._hop(start, start, now) if "f" in need else math.nan)
            ask_goal = "b" in need and goal
            bwd.append(self._hop(start, goal, {name: now[name] for name in goal}) if ask_goal else math.nan)
        return torch.tensor([inc]), torch.tensor([fwd]), torch.tensor([bwd]) if self._goal else None

    def compare(
        self, start: np.ndarray, end: np.ndarray, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
    ) -> float:
        """h(BEFORE, AFTER) in [-1, 1] of two moments that need not follow each other; NaN where the answer is missing.

        Args:
            start, end: (H, W, 3) uint8 of the task's start and of the finished task, from the reference view.
            before, after: camera name -> (H, W, 3) uint8; those in `views` are shown.

        Raises:
            ValueError: none of these cameras is in `views`.
        """
        names = [name for name in (before if self.views is None else self.views) if name in before]
        if not names:
            raise ValueError(f"grm_vlm: views must hold one of {', '.join(before)}; got {', '.join(self.views or ())}.")
        return self._ask(start, end, *({name: each[name] for name in names} for each in (before, after)))

    def _hop(
        self, start: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
    ) -> float:
        reference = next(iter(start))
        goal = self._goal.get(reference, next(iter(self._goal.values()), None))
        return self._ask(start[reference], goal, before, after)

    def _ask(
        self,
        start: np.ndarray,
        goal: np.ndarray | None,
        before: Mapping[str, np.ndarray],
        after: Mapping[str, np.ndarray],
    ) -> float:
        own = self._prompt is GRM_PROMPT and goal is not None
        template = self._prompt.replace("{goal}", GRM_GOAL) if own else self._prompt
        text = filled(
            template,
            instruction=self._instruction,
            task=self._instruction,
            start=1,
            goal=int(goal is not None),
            views=", ".join(before),
            before=len(before),
            after=len(after),
        )
        sides = [_three(before), _three(after)] if self._marked else [list(before.values()), list(after.values())]
        given = [start, *([] if goal is None else [goal]), *sides[0], *sides[1]]
        return self.ask.numbers([Message("user", text, given)], parse_score, "grm")[0]


def _three(views: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The first three views; the first again for each that is missing."""
    shown = list(views.values())[:VIEWS]
    return shown + shown[:1] * (VIEWS - len(shown))
