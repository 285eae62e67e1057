"""A process reward: how far a task has come, judged from pairs of moments by a model fitted to demonstrations.

Robo-Dopamine on encoder features: `rewards.hop_model` predicts the hop from the last step, from the episode's start
and from a reference goal to now; `rewards.hops` fuses the three into progress.

Shape letters: B episodes, T time, V views, D feature width, K reference goals.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.compose import as_scorer
from rewards.core import Encoder, Episode, Features, Scorer
from rewards.hop_model import OTHER_TASKS, HopModel, LabelledDemo, Recipe, demonstrations, stack_views, train
from rewards.hops import EPSILON, STRENGTH, Fused, fuse_next
from rewards.outcome import held_to_outcome
from rewards.phrases import as_worded
from rewards.storage import load_fitted, save_fitted

KEPT_DEMOS, KEPT_ROWS = 4, 16  # of each task, of each demonstration: rehearsed when a new task is learned
REFERENCES = 3  # goals that an episode is held against
ADAPTATION = Recipe(steps=150, lr=1e-3)  # longer, it unlearns what the new task shares with old ones


Hops = tuple[Float[Tensor, "B T"], Float[Tensor, "B T"], Float[Tensor, "B T"] | None]  # back, from start, from goal


class GoalStates(NamedTuple):
    """What one reference goal makes of an episode's first and last row and of itself: states (B, 1, E), seen (B, 1).

    Attributes:
        start, goal, last: (B, 1, E) states of the first row, the goal and the last row.
        start_seen, goal_seen, last_seen: (B, 1) bool, whether a camera showed it.
    """

    start: Tensor
    start_seen: Tensor
    goal: Tensor
    goal_seen: Tensor
    last: Tensor
    last_seen: Tensor


class ProcessMemory(NamedTuple):
    """What the rows after need of an episode: its first row (B, V, D), its states by each goal, and its progress.

    Attributes:
        start: (B, V, D).
        known: by goal, what is made of the first and the last row.
        fused: progress so far.
    """

    start: Tensor
    known: list[GoalStates]
    fused: Fused


class ProcessReward:
    """Progress in [0, 1] of the task that `goal` names; 0 at the reset, 1 where a demonstration ended.

    Args:
        model: predicts hops.
        demos: demonstrations it knows; those of `goal` are the reference goals, all are rehearsed by `adapt`.
        encoder: embeds the texts, here and in `adapt`.
        goal: an instruction of the demonstrations, or a text the model never saw (then there is no reference
            goal, and only the forward and incremental views remain); None: the only instruction there is.
        views: cameras in the order of `demos`.
        fusion, strength, epsilon: see `rewards.hops.fuse`.

    Raises:
        ValueError: no goal where the demonstrations are of several tasks.
    Source: arXiv 2512.23703 §3.1–3.2. Departs: the reference goal comes from demonstrations, never from the episode
        itself (the released code takes the scored episode's own last frame, so failures look solved); the mean hop
        over up to `REFERENCES` of them, since a goal in another layout is a weaker guide than a goal of this one;
        Φ_0 is 1 + h(goal, start) where there is such a goal, instead of 0, so that an episode that starts half-way,
        or solved, is not credited with the way back.
    """

    name, advances = "process", True

    def __init__(
        self,
        model: HopModel,
        demos: Sequence[LabelledDemo],
        *,
        encoder: Encoder,
        goal: str | None = None,
        views: Sequence[str],
        fusion: str = "guarded",
        strength: float = STRENGTH,
        epsilon: float = EPSILON,
    ) -> None:
        known = _instructions(demos)
        if goal is None and len(known) != 1:
            raise ValueError(
                f"ProcessReward: goal must say which task is meant; got none. Known: {'; '.join(known)}. "
                "Another text works too, if less well."
            )
        self.goal = as_worded(goal, known) if goal is not None else known[0]
        self.model, self.demos, self.views = model.eval().requires_grad_(False), list(demos), tuple(views)
        self.encoder = encoder
        self._fusion: dict[str, Any] = {"fusion": fusion, "strength": strength, "epsilon": epsilon}
        self.text = encoder.encode_texts([self.goal])[0].cpu().float()  # (D,)
        ends = [demo.rows[-1] for demo in demos if demo.instruction == self.goal and not demo.failed]
        self.references = ends[:REFERENCES]  # K of (V, D)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The views that it was fitted on."""
        return tuple(self.views)

    @torch.no_grad()
    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """Fused progress of each row."""
        return self.advance(features)[0]

    def advance(
        self, features: Features, memory: ProcessMemory | None = None
    ) -> tuple[Float[Tensor, "B T"], ProcessMemory]:
        """Fused progress of the rows that follow (see `rewards.core.Head`)."""
        (inc, fwd, bwd), start, states = self._hops(features, memory)
        if memory is None:
            fused = torch.zeros_like(inc[:, 0]) if bwd is None else torch.nan_to_num(1 + bwd[:, 0]).clamp(0, 1)
        else:
            fused = memory.fused
        progress, fused = fuse_next(inc, fwd, bwd, fused, **self._fusion)
        return progress, ProcessMemory(start, states, fused)

    def toward(self, goal: str) -> ProcessReward:
        """The same model, judging another task."""
        return ProcessReward(self.model, self.demos, encoder=self.encoder, goal=goal, views=self.views, **self._fusion)

    def hops(
        self, features: Features
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        """Predicted h(t−1, t), h(start, t) and h(goal, t), NaN where no camera shows what they need."""
        return self._hops(features, None)[0]

    def _hops(self, features: Features, memory: ProcessMemory | None) -> tuple[Hops, Tensor, list[GoalStates]]:
        """The hops of the rows that follow, the episode's first row, and what each goal makes of first and last."""
        rows = self._rows(features)
        start = rows[:, 0] if memory is None else memory.start
        text = self.text.to(rows).expand(len(rows), -1)
        given = [goal.to(rows).expand_as(start) for goal in self.references] or [torch.full_like(start, math.nan)]
        found: list[list[Tensor]] = [[], [], []]
        known: list[GoalStates] = []
        for k, goal in enumerate(given):
            states, seen = self.model.states(rows, start, goal, text)  # (B, T, E)
            if memory is None:
                goal_state, goal_seen = self.model.states(goal[:, None], start, goal, text)  # (B, 1, E)
                was = GoalStates(states[:, :1], seen[:, :1], goal_state, goal_seen, states[:, :1], seen[:, :1])
            else:
                was = memory.known[k]
            before = torch.cat([was.last, states[:, :-1]], 1)
            last_seen = torch.cat([was.last_seen, seen[:, :-1]], 1)
            found[0].append(_mask(self.model.hops(before, states), seen & last_seen))
            found[1].append(_mask(self.model.hops(was.start.expand_as(states), states), seen & was.start_seen))
            found[2].append(_mask(self.model.hops(was.goal.expand_as(states), states), seen & was.goal_seen))
            known.append(was._replace(last=states[:, -1:], last_seen=seen[:, -1:]))
        inc, fwd, bwd = (torch.stack(each).mean(0) for each in found)
        return (inc, fwd, bwd if self.references else None), start, known

    def _rows(self, features: Features) -> Float[Tensor, "B T V D"]:
        """The views the model knows; a lone unnamed camera stands for the first."""
        views = features.views
        if list(views) == ["main"]:
            views = {self.views[0]: views["main"]}
        if not set(views) & set(self.views):
            raise ValueError(
                f"ProcessReward.score: features must show {' or '.join(self.views)}; got {', '.join(views)}. "
                "Set env.cameras, or fit the reward again on these cameras."
            )
        return stack_views(Features(views=views), self.views)

    # Fitting ------------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls, episodes: Sequence[Episode], *, encoder: Encoder, recipe: Recipe | None = None, seed: int = 0, **head: Any
    ) -> ProcessReward:
        """A head fitted to demonstrations of one or many tasks; seconds to a minute on one core.

        Args:
            episodes: demonstrations with instructions; failed ones (success False) only bound the progress.
            encoder: whose features they hold.
            recipe: how; None: `Recipe()`.
            seed: of weights, pairs and noise.
            **head: `goal`, `fusion`, `strength`, `epsilon`.

        Raises:
            ValueError: no successful demonstration, or one that cannot be used.
        """
        if not any(episode.success is not False for episode in episodes):
            raise ValueError(
                f"ProcessReward: demos must hold a successful demonstration; got none in {len(episodes)}. Try demos=5."
            )
        views = tuple(dict.fromkeys(name for episode in episodes for name in episode.features.views))
        demos = demonstrations(episodes, views)
        texts = _texts(demos, encoder)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            model = HopModel(encoder.dim)
        model.centre = torch.cat([demo.rows.flatten(0, 1) for demo in demos]).nanmean(0)
        model.text_centre = torch.stack([*texts.values()]).mean(0)
        train(model, demos, texts, recipe or Recipe(), seed=seed)
        _round(model)
        return cls(model, _thinned(demos), encoder=encoder, views=views, **head)

    def adapt(self, episodes: Sequence[Episode], *, recipe: Recipe | None = None, seed: int = 0) -> ProcessReward:
        """A head for a new task, from one demonstration of it or a few; what was known before is rehearsed.

        Half of the pairs are of the new task. This head is left as it is.

        Args:
            episodes: of one instruction, at least one of them successful.
            recipe: how; None: `ADAPTATION`.
            seed: of pairs and noise.

        Raises:
            ValueError: no successful demonstration, several instructions, or other cameras.
        Source: arXiv 2512.23703 §3.2, one-shot adaptation. Departs: rehearses the remembered demonstrations.
        """
        worded = _instructions(self.demos)
        new = [
            replace(demo, instruction=as_worded(demo.instruction, worded))
            for demo in demonstrations(episodes, self.views)
        ]
        goals = {demo.instruction for demo in new}
        if len(goals) != 1 or all(demo.failed for demo in new):
            raise ValueError(
                "ProcessReward.adapt: episodes must hold a successful demonstration, all of one instruction; "
                f"got {len(new)} of {'; '.join(sorted(goals)) or 'none'}."
            )
        (goal,) = goals
        demos = [*self.demos, *new]
        model = copy.deepcopy(self.model).requires_grad_(True)
        known = len({demo.instruction for demo in self.demos} - goals)
        train(
            model,
            demos,
            _texts(demos, self.encoder),
            recipe or ADAPTATION,
            seed=seed,
            share={goal: float(max(known, 1))},
        )
        _round(model)
        return ProcessReward(model, _thinned(demos), encoder=self.encoder, goal=goal, views=self.views, **self._fusion)

    # On disk ------------------------------------------------------------------------------------------------

    def save(self, folder: Path, encoder: Encoder) -> None:
        """Weights and remembered demonstrations, in half precision; see `save_fitted`."""
        tensors = {f"model.{name}": value.half() for name, value in self.model.state_dict().items()}
        tensors["rows"] = torch.cat([demo.rows for demo in self.demos]).half()
        tensors["progress"] = torch.cat([demo.progress for demo in self.demos])
        demos = [{"instruction": demo.instruction, "rows": len(demo.rows)} for demo in self.demos]
        config = {"views": self.views, "demos": demos}
        save_fitted(folder, kind=self.name, encoder=encoder, config=config, tensors=tensors)

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder, **head: Any) -> ProcessReward:
        """What `save` wrote.

        Args:
            folder: of a fitted head.
            encoder: whose features it was fitted to.
            **head: `goal`, `fusion`, `strength`, `epsilon`.

        Raises:
            FileNotFoundError, ValueError: see `load_fitted`.
        """
        config, tensors = load_fitted(folder, kind=cls.name, encoder=encoder)
        texts = [str(each["instruction"]) for each in config["demos"]]
        lengths = [int(each["rows"]) for each in config["demos"]]
        labelled = zip(tensors["rows"].float().split(lengths), tensors["progress"].split(lengths), texts, strict=True)
        demos = [LabelledDemo(rows, progress, text) for rows, progress, text in labelled]
        model = HopModel(encoder.dim)
        model.load_state_dict(
            {name.removeprefix("model."): value.float() for name, value in tensors.items() if name.startswith("model.")}
        )
        return cls(model, demos, encoder=encoder, views=config["views"], **head)


def process_scorer(
    *,
    encoder: Encoder,
    goal: str | None = None,
    model: str | None = None,
    demos: Sequence[Episode] | None = None,
    adapt: Sequence[Episode] | None = None,
    fusion: str = "guarded",
    strength: float = STRENGTH,
    epsilon: float = EPSILON,
    seed: int = 0,
    outcome: Mapping[str, Any] | None = None,
    shaping: Mapping[str, Any] | None = None,
    fits: MutableMapping[Any, ProcessReward] | None = None,
) -> Scorer:
    """`ProcessReward` as a scorer.

    Args:
        encoder: embeds frames and texts.
        goal: the task's text; see `ProcessReward`.
        model: folder of a fitted head, or None: fit one to `demos` now.
        demos: demonstrations, where there is no model.
        adapt: demonstrations of one task that the model is then adapted to; `goal` defaults to theirs.
        fusion, strength, epsilon: see `rewards.hops.fuse`.
        seed: of fitting and adapting.
        outcome: see `rewards.outcome.held_to_outcome`.
        shaping: arguments of `PotentialShaping`.
        fits: of the same arguments but the goal: what was fitted for other goals, which fits this one as well, and
            where what is fitted here is put. None: nothing is shared.

    Raises:
        ValueError: neither a model nor demonstrations, or what `ProcessReward` refuses.
    """
    settings: dict[str, Any] = {"fusion": fusion, "strength": strength, "epsilon": epsilon}
    if goal is not None:
        settings["goal"] = goal
    first: dict[str, Any] = settings | ({"goal": adapt[0].instruction} if adapt else {})
    # no goal is learned from, but for episodes without a text, which are taken to be of this one
    shared = tuple(tuple(each.instruction for each in part or ()) for part in (demos, adapt))
    if fits is not None and shared in fits:
        known = fits[shared]
        head = ProcessReward(known.model, known.demos, encoder=encoder, views=known.views, **first)
    else:
        if model is not None:
            head = ProcessReward.load(model, encoder, **first)
        elif demos:
            head = ProcessReward.fit(demos, encoder=encoder, seed=seed, **first)
        else:
            raise ValueError("process_scorer: model or demos must be given; got neither. Try demos=5.")
        if adapt:
            head = head.adapt(adapt, seed=seed)
        if fits is not None:
            fits[shared] = head
    head = head if goal in (None, head.goal) else head.toward(goal)
    shown = [*(demos or () if model is None else ()), *(adapt or ())]
    bound = held_to_outcome(head, outcome, encoder=encoder, demos=shown, model=model)
    return as_scorer(encoder, {head.name: bound}, shaping)


def _instructions(demos: Sequence[LabelledDemo]) -> list[str]:
    return list(dict.fromkeys(demo.instruction for demo in demos))


def _texts(demos: Sequence[LabelledDemo], encoder: Encoder) -> dict[str, Tensor]:
    """The tasks of the demonstrations, and some that no demonstration shows."""
    known = dict.fromkeys([*_instructions(demos), *OTHER_TASKS])
    return dict(zip(known, encoder.encode_texts([*known]).cpu().float(), strict=True))


def _thinned(demos: Sequence[LabelledDemo]) -> list[LabelledDemo]:
    """`KEPT_ROWS` even rows of the last `KEPT_DEMOS` demonstrations of each task and outcome, in half precision."""
    kept: list[LabelledDemo] = []
    count: Counter[tuple[str, bool]] = Counter()
    for demo in reversed(demos):
        if count[demo.instruction, demo.failed] < KEPT_DEMOS:
            count[demo.instruction, demo.failed] += 1
            at = torch.linspace(0, len(demo.rows) - 1, min(KEPT_ROWS, len(demo.rows))).round().long()
            kept.insert(0, LabelledDemo(demo.rows[at].half().float(), demo.progress[at], demo.instruction))
    return kept


def _round(model: HopModel) -> None:
    """To half precision, so that a saved head says exactly what it said before."""
    for value in model.state_dict().values():
        value.copy_(value.half())


def _mask(hops: Tensor, known: Tensor) -> Tensor:
    return hops.masked_fill(~known, math.nan)
