"""Progress held to its outcome: no step of a fitted head counts for more than the goal's text lets it.

A head that was fitted to demonstrations knows where the robot goes, and pays for going there whatever comes of it. The
goal's text says what was to come of it, and the demonstrations show how far their scores of it rise. With p the head's
potential and q how far the goal is reached, both in [0, 1],

    φ = q + (1 − q) · dense · p

so that a pose earns `dense` at most, and a goal that is reached earns 1, whatever the robot does. No episodes are
needed beside the demonstrations.

Shape letters: B batch, T time, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.core import Encoder, Episode, Features, Head
from rewards.phrases import plain
from rewards.storage import CONFIG, load_fitted, save_fitted
from rewards.views import mean_over_views

DENSE = 0.25  # the most that progress is worth beside a goal that is reached
REACHED = 0.9  # of the way from the demonstrations' starts to their ends: from there on q = 1
BEND = 3  # power of q below it: near nothing where the robot is near the goal, and nowhere flat
APART = 0.5  # share of the mean way from start to end that must lie between all starts and all ends
KIND, FOLDER = "outcome", "outcome"  # of the kept bounds, in the head's folder


@dataclass(frozen=True)
class GoalDegree:
    """How far a goal in words is reached in a frame, by where demonstrations start and end on its text.

        x_v = (s_v·g − start_v) / (end_v − start_v),    q = mean over views of clip(x_v / 0.9, 0, 1)³

    A pointwise head. A fifth of the way is what a robot near the goal looks like, worth a hundredth; from `REACHED` on
    frames of success differ by chance. Between them q rises all the way, as a learner that has come to a drawer's
    handle finds no other slope to climb.

    Args:
        text: g, (D,), the goal's embedding.
        bounds: view -> (start, end): mean similarity of the demonstrations' first rows, and of their last ones.

    Source: ours.
    """

    text: Float[Tensor, " D"]
    bounds: Mapping[str, tuple[float, float]]

    name = "outcome"
    pointwise = True

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """q of each frame, in [0, 1]; a view that is missing gives 0."""

        def degree(bounds: tuple[float, float], state: Tensor) -> Tensor:
            start, end = bounds
            share = (state @ self.text.to(state) - start) / (end - start)
            return (share / REACHED).clamp(0, 1) ** BEND

        return mean_over_views("GoalDegree", features, self.bounds, degree)

    @classmethod
    def fit(cls, text: Float[Tensor, " D"], demos: Sequence[Episode]) -> GoalDegree | None:
        """From demonstrations that end with the goal reached; None where its text does not tell their ends from their
        starts in any view: a view is read where the lowest end is above the highest start by half of their difference.

        Args:
            text: (D,), the goal's embedding.
            demos: those that are known to have failed are left out.
        """
        good = [demo for demo in demos if demo.success is not False]
        bounds = {}
        for name in good[0].features.views if good else ():
            if any(name not in demo.features.views for demo in good):
                continue
            said = [demo.features.views[name][0].float() @ text.to(demo.features.main).float() for demo in good]
            starts, ends = torch.stack([each[0] for each in said]), torch.stack([each[-1] for each in said])
            start, end = float(starts.mean()), float(ends.mean())
            if end > start and float(ends.min() - starts.max()) >= APART * (end - start):
                bounds[name] = (start, end)
        return cls(text, bounds) if bounds else None


class OutcomeBound:
    """A head whose potential is held to the outcome, as the formula of this module has it.

    Args:
        head: whose potential rises from `low` to `high` along the demonstrations.
        degrees: goal -> how far it is reached; a goal that is not among them bounds nothing.
        goal: which one counts.
        low, high: what the head says of the demonstrations' first and last rows, mean.
        dense: in [0, 1); what progress alone may earn.
        untold: texts that do not tell the demonstrations' ends from their starts, for who makes it to say so.
        sentence: what was said to be true of success; None: the goals themselves.

    Raises:
        ValueError: a share out of its range.
    """

    def __init__(
        self,
        head: Head,
        degrees: Mapping[str, GoalDegree],
        goal: str,
        *,
        low: float = 0.0,
        high: float = 1.0,
        dense: float = DENSE,
        untold: Sequence[str] = (),
        sentence: str | None = None,
    ) -> None:
        if not 0 <= dense < 1:
            raise ValueError(f"OutcomeBound: dense must be in [0, 1); got {dense}.")
        self.head, self.degrees, self.goal, self.name = head, dict(degrees), goal, head.name
        self.low, self.high = (low, high) if high > low else (0.0, 1.0)
        self.dense, self.untold, self.sentence = dense, tuple(untold), sentence
        if hasattr(head, "toward"):
            self.toward = self._toward

    @property
    def advances(self) -> bool:
        """Whether rows can be scored as they come: where the head's can."""
        return bool(getattr(self.head, "advances", False))

    @property
    def pointwise(self) -> bool:
        return bool(getattr(self.head, "pointwise", False))

    @property
    def cameras(self) -> tuple[str, ...]:
        """The views that the head was fitted on."""
        return tuple(getattr(self.head, "cameras", ()))

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """φ of each frame, in [0, 1]; the head's own potential where the goal bounds nothing."""
        return self._bound(self.head.score(features), features)

    def advance(self, features: Features, memory: Any = None) -> tuple[Float[Tensor, "B T"], Any]:
        """φ of the frames that follow (see `rewards.core.Head`)."""
        step: Any = self.head
        progress, memory = step.advance(features, memory)
        return self._bound(progress, features), memory

    def _bound(self, progress: Float[Tensor, "B T"], features: Features) -> Float[Tensor, "B T"]:
        degree = self.degrees.get(self.goal)
        if degree is None:
            return progress
        share = ((progress - self.low) / (self.high - self.low)).clamp(0, 1)
        return bound(share, degree.score(features), self.dense)

    def _toward(self, goal: str) -> OutcomeBound:
        """The same for another task of the head's."""
        head: Any = self.head
        return OutcomeBound(
            head.toward(goal), self.degrees, goal, low=self.low, high=self.high, dense=self.dense, untold=self.untold,
            sentence=self.sentence,
        )  # fmt: skip

    def save(self, folder: Path, encoder: Encoder) -> None:
        """Write the head, and the bounds in a folder of their own inside; see `rewards.storage`."""
        head: Any = self.head
        head.save(folder, encoder)
        goals = [{"goal": goal, "bounds": degree.bounds} for goal, degree in self.degrees.items()]
        config = {"goals": goals, "goal": self.goal, "low": self.low, "high": self.high, "sentence": self.sentence}
        tensors = {f"text/{k}": degree.text for k, degree in enumerate(self.degrees.values())}
        save_fitted(folder / FOLDER, kind=KIND, encoder=encoder, config=config, tensors=tensors)


def bound(progress: Float[Tensor, "*S"], outcome: Float[Tensor, "*S"], dense: float) -> Float[Tensor, "*S"]:
    """φ = q + (1 − q) · dense · p.

    Args:
        progress: p, in [0, 1].
        outcome: q, in [0, 1].
    """
    return outcome + (1 - outcome) * dense * progress


def held_to_outcome(
    head: Head,
    outcome: Mapping[str, Any] | None,
    *,
    encoder: Encoder,
    demos: Sequence[Episode] = (),
    model: str | None = None,
) -> Head:
    """A fitted head, bound by the goal's text as a config asks.

    Args:
        head: loaded from `model`, or fitted to `demos`.
        outcome: `goal` (a text that is true of success; None: each demonstration's own instruction) and `dense`; None:
            the head as it is.
        encoder: embeds the goal.
        demos: which the bounds are read from.
        model: folder of a fitted head, with the bounds that were kept in it; one without any is left as it is.

    Raises:
        ValueError: another setting than those two, one out of range, or another goal than a kept head was fitted with.
    """
    if outcome is None:
        return head
    options = dict(outcome)
    goal, dense = options.pop("goal", None), options.pop("dense", DENSE)
    if options:
        raise ValueError(f"held_to_outcome: outcome must hold goal and dense; got {', '.join(options)} besides.")
    own: str | None = getattr(head, "goal", None)
    kept = NOTHING if model is None else _read(Path(model) / FOLDER, encoder)
    if goal is not None and not demos and kept.told and goal not in (kept.sentence, *kept.degrees):
        raise ValueError(
            f"held_to_outcome: outcome.goal must be the one that the head was fitted with; got {goal!r}, and {model} "
            f"has {'none' if kept.sentence is None else repr(kept.sentence)}. Leave it out, or fit the head again."
        )
    degrees, untold = dict(kept.degrees), []
    good = [demo for demo in demos if demo.success is not False]
    by_task: dict[str, list[Episode]] = {}
    worded = {} if own is None else {plain(own): own}
    for demo in good:
        task = worded.setdefault(plain(demo.instruction), demo.instruction)
        by_task.setdefault(task, []).append(demo)
    if own is not None and len(by_task) == 1:  # the same task in other words
        by_task = {own: good}
    for task, shown in by_task.items():
        found = GoalDegree.fit(encoder.encode_texts([goal or task])[0], shown) if goal or task else None
        if found is not None:
            degrees[task] = found
        elif goal or task:
            untold.append(str(goal or task))
    said = [head.score(demo.features)[0] for demo in (good if own is None else by_task.get(own, ()))]
    low, high = kept.low, kept.high
    if said:
        low, high = (float(torch.stack([each[row] for each in said]).mean()) for row in (0, -1))
    if not degrees and not untold:
        return head
    task = own if own is not None else next(iter(by_task), kept.goal)
    sentence = kept.sentence if goal is None else goal
    return OutcomeBound(head, degrees, task, low=low, high=high, dense=dense, untold=untold, sentence=sentence)


class _Kept(NamedTuple):
    """What `OutcomeBound.save` writes of itself."""

    degrees: dict[str, GoalDegree]
    goal: str
    low: float
    high: float
    sentence: str | None = None
    told: bool = True  # whether the sentence is known: older heads kept none


NOTHING = _Kept({}, "", 0.0, 1.0)


def _read(folder: Path, encoder: Encoder) -> _Kept:
    """The bounds in a head's folder; none where it was kept without any."""
    if not (folder / CONFIG).is_file():
        return NOTHING
    config, tensors = load_fitted(folder, kind=KIND, encoder=encoder)
    degrees = {
        str(each["goal"]): GoalDegree(tensors[f"text/{k}"], {name: tuple(at) for name, at in each["bounds"].items()})
        for k, each in enumerate(config["goals"])
    }
    low, high = float(config["low"]), float(config["high"])
    return _Kept(degrees, str(config["goal"]), low, high, config.get("sentence"), "sentence" in config)
