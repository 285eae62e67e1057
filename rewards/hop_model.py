"""Robo-Dopamine's general reward model on encoder features: the network, its demonstrations, and its fitting.

Shape letters: B episodes, T time, V views, D feature width, W inner width, E state width, N pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rewards.core import Episode, Features
from rewards.hops import balanced_pairs, hop, segment_progress
from rewards.phrases import as_worded
from rewards.progress import tqdm

CAP = 0.8  # no moment of a failed episode has made more progress
REST = 0.1  # of a large move (the 0.9 quantile): rows after the last one above it show a robot at rest
RESTING = 5  # rows of that rest which are kept
WIDTH, STATE = 96, 64  # of z, and of e: E
# A model that has demonstrations of one task only would learn that the text says nothing; these are the others.
OTHER_TASKS = (
    "wave the arm", "pick up the cup", "open the door", "close the box", "push the plate to the left",
    "stack the bowls", "put the pen in the drawer", "touch the blue block", "turn the knob", "wipe the table",
    "lift the yellow ball", "move away from the table",
)  # fmt: skip


class HopModel(nn.Module):
    """h(p, q) in [-1, 1] from features of two moments, given text, start and goal; shared over views.

        z_v(x) = relu((A x_v + B start_v + C goal_v) ⊙ (1 + S text) + U text)
        e(x)   = relu(W · mean over the seen views of z_v(x))
        h      = tanh(g(e_p, e_q) · (e_q − e_p)),   g a two-layer network

    so no change is exactly no hop. A missing start or goal is left out of the sum, a missing view out of the mean.

    Args:
        dim: D.
    Source: arXiv 2512.23703 §3.1 and App. A, whose GRM is a fine-tuned generative VLM that reads eight images and
        writes a percentage. Departs: a small network on frozen features; any number of views; squared error on
        hops (the paper's statement; its released code trains on next tokens).
    """

    centre: Tensor
    text_centre: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.now, self.start, self.goal = (nn.Linear(dim, WIDTH, bias=i == 0) for i in range(3))
        self.gate, self.shift = nn.Linear(dim, WIDTH), nn.Linear(dim, WIDTH)
        self.pool = nn.Linear(WIDTH, STATE)
        self.pair = nn.Sequential(nn.Linear(2 * STATE, STATE), nn.ReLU(), nn.Linear(STATE, STATE))
        self.register_buffer("centre", torch.zeros(dim))  # of features
        self.register_buffer("text_centre", torch.zeros(dim))
        self.scale = math.sqrt(dim)  # entries of a unit vector are 1 / scale

    def states(
        self,
        rows: Float[Tensor, "B T V D"],
        start: Float[Tensor, "B V D"],
        goal: Float[Tensor, "B V D"],
        text: Float[Tensor, "B D"],
    ) -> tuple[Float[Tensor, "B T E"], Bool[Tensor, "B T"]]:
        """e of each row, and whether any view shows it; NaN marks what is missing."""
        seen = torch.isfinite(rows).all(-1, keepdim=True)  # (B, T, V, 1)
        references = self._seen(self.start, start) + self._seen(self.goal, goal)  # (B, V, W)
        inner = self.now(self._centred(rows)) + references.unsqueeze(1)
        text = (text - self.text_centre) * self.scale
        inner = torch.relu(inner * (1 + self.gate(text))[:, None, None] + self.shift(text)[:, None, None])
        count = seen.sum(2)
        mean = (inner * seen).sum(2) / count.clamp(min=1)
        return torch.relu(self.pool(mean)), count[..., 0] > 0

    def hops(self, before: Float[Tensor, "*S E"], after: Float[Tensor, "*S E"]) -> Float[Tensor, "*S"]:
        """h of pairs of states."""
        weight = self.pair(torch.cat([before, after], -1))
        return torch.tanh((weight * (after - before)).sum(-1))

    def _centred(self, features: Tensor) -> Tensor:
        return torch.nan_to_num(features - self.centre) * self.scale

    def _seen(self, layer: nn.Linear, features: Float[Tensor, "B V D"]) -> Float[Tensor, "B V W"]:
        return layer(self._centred(features)) * torch.isfinite(features).all(-1, keepdim=True)


# Demonstrations ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledDemo:
    """One labelled demonstration.

    Attributes:
        rows: (T, V, D), NaN where a view is missing.
        progress: (T,) in [0, 1]; NaN throughout a failed one.
        instruction: the task's text.
    """

    rows: Tensor
    progress: Tensor
    instruction: str

    @property
    def failed(self) -> bool:
        return bool(self.progress.isnan().any())


def demonstrations(episodes: Sequence[Episode], views: Sequence[str]) -> list[LabelledDemo]:
    """Episodes with hop labels; failed ones (success False) get no labels, only the bound `CAP`.

    Args:
        episodes: encoded.
        views: names, in order.

    Raises:
        ValueError: one without an instruction, without any of the views, or of a single row.
    """
    demos: list[LabelledDemo] = []
    for i, episode in enumerate(episodes):
        where = f"ProcessReward: demo {i}"
        if not episode.instruction.strip() or len(episode) < 2:
            raise ValueError(
                f"{where} must have an instruction and at least 2 rows; "
                f"got {episode.instruction!r} and {len(episode)} rows."
            )
        if not set(views) & set(episode.features.views):
            raise ValueError(f"{where} must show {' or '.join(views)}; got {', '.join(episode.features.views)}.")
        rows = stack_views(episode.features, views)[0]
        labels = torch.full((len(rows),), math.nan) if episode.success is False else _labels(rows, episode.steps)
        end = len(rows) if episode.success is False else int((labels < 1).sum()) + RESTING
        text = as_worded(episode.instruction, (demo.instruction for demo in demos))
        demos.append(LabelledDemo(rows[:end], labels[:end], text))
    return demos


def stack_views(features: Features, views: Sequence[str]) -> Float[Tensor, "B T V D"]:
    """The views in order, NaN where one is missing.

    Args:
        features: of B episodes.
        views: names, in order.
    """
    blank = torch.full_like(features.main, math.nan)
    return torch.stack([features.views.get(name, blank) for name in views], 2)


def _labels(rows: Float[Tensor, "T V D"], steps: tuple[int, ...]) -> Float[Tensor, " T"]:
    """Equal progress a segment; one segment without marked steps. Rest at the end belongs to no step."""
    moves = torch.nan_to_num(rows).diff(dim=0).flatten(1).norm(dim=1)
    moving = (moves > REST * moves.quantile(0.9)).nonzero()
    stopped = int(moving[-1]) + 1 if len(moving) else len(rows) - 1
    earlier, last = (steps[:-1], steps[-1]) if steps else ((), len(rows) - 1)
    return segment_progress(len(rows), (*earlier, max(min(last, stopped), earlier[-1] + 1 if earlier else 1)))


# Fitting ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a `HopModel` is fitted. Rates that the paper leaves open (dropout) are ours.

    Attributes:
        steps: of Adam, learning rate falling to 0 along a cosine.
        pairs: a step.
        lr, weight_decay: of Adam.
        anchored: share of pairs that start from the episode's first row, and as much again from a goal's.
        mismatched: share of pairs told another task's text, whose progress is 0 throughout.
        view_dropout, start_dropout, goal_dropout: rates.
        noise: standard deviation of noise on features, relative to their own spread.
    """

    steps: int = 1200
    pairs: int = 256
    lr: float = 2e-3
    weight_decay: float = 1e-2
    anchored: float = 0.2
    mismatched: float = 0.25
    view_dropout: float = 0.25
    start_dropout: float = 0.3
    goal_dropout: float = 0.3
    noise: float = 0.3


class Pairs:
    """Draws training pairs from demonstrations: p, q, what the model is told, and the hop it should say.

    Args:
        demos: with hop labels.
        texts: task text -> (D,) its vector.
        recipe: how many of which kind.
        generator: of the draws.
        share: task text -> how much more often than the others it is drawn.
    """

    def __init__(
        self,
        demos: Sequence[LabelledDemo],
        texts: Mapping[str, Tensor],
        recipe: Recipe,
        generator: torch.Generator,
        share: Mapping[str, float],
    ) -> None:
        self._recipe, self._generator = recipe, generator
        self._rows = torch.cat([demo.rows for demo in demos])
        self._progress = torch.cat([demo.progress for demo in demos])
        self._names = list(texts)
        self._texts = torch.stack(list(texts.values()))
        self._task = torch.tensor([self._names.index(demo.instruction) for demo in demos])
        lengths = torch.tensor([len(demo.rows) for demo in demos])
        self._first = lengths.cumsum(0) - lengths
        self._length = lengths
        pools = []
        for demo, first in zip(demos, self._first, strict=True):
            if demo.failed:
                pairs = torch.randint(len(demo.rows), (2, 2000), generator=generator)
            else:
                pairs = torch.stack(balanced_pairs(demo.progress, 2000, generator))
            pools.append(pairs + first)
        self._pools = torch.stack(pools)  # (demos, 2, 2000)
        self._spread = torch.nan_to_num(self._rows - self._rows.nanmean(0)).std()
        # goals[task, j]: rows; tasks without one repeat -1
        ends = [
            [int(first + length - 1) for first, length, demo in zip(self._first, lengths, demos, strict=True)
             if demo.instruction == name and not demo.failed] for name in self._names
        ]  # fmt: skip
        most = max(map(len, ends))
        self._goals = torch.tensor([[row[j % len(row)] if row else -1 for j in range(most)] for row in ends])
        each = torch.tensor([share.get(demo.instruction, 1.0) for demo in demos])
        of_task = torch.bincount(self._task, minlength=len(self._names))
        self._weight = each / of_task[self._task]

    def draw(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Arguments of `HopModel.states` for N pairs (T = 2), their target hops (N,), and where those are bounds."""
        recipe, generator = self._recipe, self._generator
        count = recipe.pairs

        def chance(rate: float) -> Tensor:
            return torch.rand(count, generator=generator) < rate

        demo = torch.multinomial(self._weight, count, replacement=True, generator=generator)
        column = torch.randint(self._pools.shape[-1], (count,), generator=generator)
        before, after = self._pools[demo, 0, column], self._pools[demo, 1, column]
        told = self._task[demo]
        wrong = chance(recipe.mismatched) & torch.tensor(len(self._names) > 1)
        other = (told + torch.randint(1, max(2, len(self._names)), (count,), generator=generator)) % len(self._names)
        told = torch.where(wrong, other, told)
        goal = self._goals[told, torch.randint(self._goals.shape[1], (count,), generator=generator)]

        kind = torch.rand(count, generator=generator)
        from_start = kind < recipe.anchored
        from_goal = (kind >= recipe.anchored) & (kind < 2 * recipe.anchored) & (goal >= 0)
        bounded = self._progress[after].isnan() & ~wrong  # of failed episodes only bounds are known
        from_start |= bounded & ~from_goal
        before = torch.where(from_start, self._first[demo], torch.where(from_goal, goal, before))
        progress = torch.where(wrong[:, None], 0.0, self._progress[torch.stack([before, after], 1)])
        progress[:, 0] = torch.where(from_goal, 1.0, torch.where(from_start, 0.0, progress[:, 0]))
        target = hop(progress[:, 0], progress[:, 1])
        target = torch.where(bounded, torch.where(from_goal, CAP - 1, CAP), target)

        nothing = torch.tensor(math.nan)
        rows = self._rows[torch.stack([before, after], 1)]  # (N, 2, V, D)
        rows = rows + recipe.noise * self._spread * torch.randn(rows.shape, generator=generator)
        if rows.shape[2] > 1:
            hidden = torch.rand(count, 2, rows.shape[2], 1, generator=generator) < recipe.view_dropout
            hidden &= ~hidden.all(2, keepdim=True)
            rows = torch.where(hidden, nothing, rows)
        start = torch.where(chance(recipe.start_dropout)[:, None, None], nothing, self._rows[self._first[demo]])
        no_goal = chance(recipe.goal_dropout) | (goal < 0)
        told_goal = torch.where(no_goal[:, None, None], nothing, self._rows[goal.clamp(min=0)])
        given = {"rows": rows, "start": start, "goal": told_goal, "text": self._texts[told]}
        return given, target, bounded


def train(
    model: HopModel,
    demos: Sequence[LabelledDemo],
    texts: Mapping[str, Tensor],
    recipe: Recipe,
    *,
    seed: int = 0,
    share: Mapping[str, float] | None = None,
) -> float:
    """Fit a model in place; the same seed gives the same weights on the same machine.

    Args:
        model: fresh, or to be adapted.
        demos: what to fit to.
        texts: instruction -> embedding (D,): the demonstrations', and others that nothing shown fulfils.
        recipe: how.
        seed: of pairs, dropout and noise.
        share: instruction -> how much more often than the others a task is drawn.

    Returns:
        The mean squared error of the hops over the last tenth of the steps.
    """
    pairs = Pairs(demos, texts, recipe, torch.Generator().manual_seed(seed), share or {})
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
    model.train()
    errors = []
    for _ in tqdm(range(recipe.steps), desc="fitting process reward", unit="step", delay=5, mininterval=1):
        given, target, bounded = pairs.draw()
        states, seen = model.states(**given)
        miss = model.hops(states[:, 0], states[:, 1]) - target
        miss = torch.where(bounded, miss.clamp(min=0), miss)
        known = seen.all(1)
        loss = (miss**2 * known).sum() / known.sum().clamp(min=1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        errors.append(loss.item())
    model.eval()
    last = errors[-max(1, len(errors) // 10) :]
    return sum(last) / len(last)
