"""Rewards from goal texts: VLM-RM, VLM-RL's contrasting goals, softmax over goals, and a calibrated threshold.

Shape letters: B batch, T time, D feature width, M texts. Every head reads the first view's unit embeddings, or with
`views="mean"` each view's by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.combine import Synthesis
from rewards.compose import as_scorer
from rewards.core import Combine, Encoder, Features, Head, Scorer
from rewards.views import VIEWS, MeanOfViews

Texts = str | Sequence[str]


class ClipGoal:
    """VLM-RM's similarity to a goal text, optionally only along the line from a baseline text to the goal.

        R(s) = 1 − ½‖α·proj_L(s) + (1−α)·s − g‖²,   L the affine line through b and g

    In closed form, O(D): u = (g−b)/‖g−b‖, t = (s−g)·u, R = 1 − ½[(1−α)²(‖s−g‖² − t²) + t²].
    At α = 0 this is s·g for one goal text; at α = 1 only motion along g−b counts.

    Args:
        goal: what success looks like; several wordings are averaged.
        encoder: embeds the texts, once, here.
        baseline: the ordinary scene; several wordings are averaged.
        alpha: strength of the projection, in [0, 1]; None: 0.1 with a baseline, 0 without. Small encoders of
            photographs gain from more; the embedded encoder loses, since its scene sentences vary with the arm.

    Raises:
        ValueError: no goal, alpha outside [0, 1], alpha > 0 without a baseline, or a baseline that embeds like
            the goal, through which there is no line.
    Source: arXiv 2310.12921 §3; AlignmentResearch/vlmrm `reward_model.py`. As in that code, the mean of several
        unit vectors is not renormalised, so that R(s) = ½ + s·g − ½‖g‖² at α = 0: the same ranking, shifted.
        Departs: the numbers of goal and baseline wordings may differ.
    """

    name, pointwise = "clip", True

    def __init__(
        self, goal: Texts, *, encoder: Encoder, baseline: Texts | None = None, alpha: float | None = None
    ) -> None:
        where = "ClipGoal"
        if alpha is None:
            alpha = 0.0 if baseline is None else 0.1
        if not 0 <= alpha <= 1:
            raise ValueError(f"{where}: alpha must be in [0, 1]; got {alpha}.")
        if alpha > 0 and baseline is None:
            raise ValueError(f"{where}: alpha must be 0 without a baseline; got {alpha}. Give a baseline text.")
        self.alpha = float(alpha)
        self.goal = _mean_embedding(encoder, goal, f"{where}: goal")  # (D,)
        self.baseline = None if baseline is None else _mean_embedding(encoder, baseline, f"{where}: baseline")
        if self.baseline is not None and torch.linalg.vector_norm(self.goal - self.baseline) < 1e-4:
            raise ValueError(
                f"{where}: baseline must differ from the goal; got {baseline!r} and {goal!r}, which embed alike. "
                "Describe the ordinary scene without the goal."
            )

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """R(s) of each frame, at most 1."""
        return goal_baseline_reward(features.main, self.goal, self.baseline, self.alpha)


def goal_baseline_reward(
    state: Float[Tensor, "*S D"], goal: Float[Tensor, " D"], baseline: Float[Tensor, " D"] | None, alpha: float
) -> Float[Tensor, "*S"]:
    """VLM-RM's R(s) in closed form; two dot products a frame. See `ClipGoal`.

    Args:
        state: s, unit vectors.
        goal: g, the goal's vector.
        baseline: b, the ordinary scene's vector; None: no line.
        alpha: strength of the projection, in [0, 1].
    """
    goal = goal.to(state)
    square = (state * state).sum(-1) - 2 * state @ goal + goal @ goal  # ‖s−g‖²
    if baseline is None or alpha == 0:
        return 1 - square / 2
    line = goal - baseline.to(state)
    line = line / torch.linalg.vector_norm(line)
    along = state @ line - goal @ line
    return 1 - ((1 - alpha) ** 2 * (square - along**2) + along**2) / 2


class ContrastingGoals:
    """VLM-RL: towards one text and away from another.

        paper:  R = α·cos(s, goal) − β·cos(s, negative)
        code:   R = 1 − clip(cos(s, negative) − cos(s, goal), 0, margin) / margin

    The two are different rewards. The code's has no weights, lies in [0, 1] and is 1 wherever the goal is at least
    as similar as the negative.

    Args:
        goal: what success looks like; several wordings are averaged.
        negative: what failure looks like; several wordings are averaged.
        encoder: embeds the texts, once, here.
        form: "paper" or "code".
        alpha: weight of the goal, ≥ 0 (paper).
        beta: weight of the negative, ≥ 0 (paper).
        margin: lead of the negative at which the reward is 0, > 0 (code).

    Raises:
        ValueError: an unknown form, an empty text, a negative weight, or a margin that is not positive.
    Source: arXiv 2412.15544, contrasting language goals; zihaosheng/VLM-RL `clip/clip_reward_model.py` (code).
        α = β = 0.5 is our reading; the code's index 0 is the negative text.
    """

    name, pointwise = "contrast", True

    def __init__(
        self,
        goal: Texts,
        negative: Texts,
        *,
        encoder: Encoder,
        form: str = "paper",
        alpha: float = 0.5,
        beta: float = 0.5,
        margin: float = 0.03,
    ) -> None:
        where = "ContrastingGoals"
        if form not in ("paper", "code"):
            raise ValueError(f"{where}: form must be 'paper' or 'code'; got {form!r}.")
        if min(alpha, beta) < 0 or max(alpha, beta) == 0:
            raise ValueError(f"{where}: alpha and beta must be ≥ 0 and not both 0; got {alpha} and {beta}.")
        if not margin > 0:
            raise ValueError(f"{where}: margin must be > 0; got {margin}.")
        self.form, self.alpha, self.beta, self.margin = form, alpha, beta, margin
        self.goal = _direction(encoder, goal, f"{where}: goal")
        self.negative = _direction(encoder, negative, f"{where}: negative")

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """R of each frame."""
        state = features.main
        toward, away = state @ self.goal.to(state), state @ self.negative.to(state)
        if self.form == "paper":
            return self.alpha * toward - self.beta * away
        return 1 - (away - toward).clamp(0, self.margin) / self.margin


class SoftmaxGoal:
    """The probability of the goal against negative goals, optionally cut to 0 or 1.

        p = softmax(cos(s, ·) / temperature)[goal],   R = p, or 1[p > threshold]

    Similarity has no scale or offset of its own; competing texts supply both.

    Args:
        goal: what success looks like; several wordings are averaged.
        negatives: texts of other outcomes, at least one.
        encoder: embeds the texts, once, here.
        temperature: > 0; 0.01 is CLIP's own.
        threshold: β in (0, 1), or None for p itself.

    Raises:
        ValueError: no negatives, an empty text, or a temperature or threshold out of range.
    Source: arXiv 2312.09187 (Baumli et al.).
    """

    name, pointwise = "softmax", True

    def __init__(
        self,
        goal: Texts,
        negatives: Texts,
        *,
        encoder: Encoder,
        temperature: float = 0.01,
        threshold: float | None = None,
    ) -> None:
        where = "SoftmaxGoal"
        if not temperature > 0:
            raise ValueError(f"{where}: temperature must be > 0; got {temperature}.")
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"{where}: threshold must be in (0, 1), or null; got {threshold}.")
        self.temperature, self.threshold = temperature, threshold
        goal_D = _direction(encoder, goal, f"{where}: goal")
        negative_MD = _embeddings(encoder, negatives, f"{where}: negatives")
        self.texts = torch.cat([goal_D[None], negative_MD])  # (1 + M, D), the goal first

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """p of each frame, in [0, 1]; 0 or 1 with a threshold."""
        state = features.main
        chance = (state @ self.texts.to(state).T / self.temperature).softmax(-1)[..., 0]
        return chance if self.threshold is None else (chance > self.threshold).to(chance)


class CalibratedThreshold:
    """1 where the similarity passes a threshold that true matches pass with known probability, less a firing penalty.

        R = 1[cos(s, g) > threshold], then R ← max(0, R − penalty·p̂)

    p̂ is how often this instruction fired per step lately: a text that fires everywhere says nothing. It comes from
    the signal "firing_rate", (B, T), where the caller tracks it (last episode's mean of R > 0, as in the source);
    otherwise `firing_rate` stands for it, for instance the rate under a random policy. So the head has no memory.

    Args:
        goal: what success looks like; several wordings are averaged.
        threshold: on the cosine; `conformal_threshold` fits it to matched pairs.
        encoder: embeds the texts, once, here.
        penalty: ≥ 0; the source uses 0.95.
        firing_rate: p̂ when the features carry none, in [0, 1].

    Raises:
        ValueError: no goal, a threshold outside (-1, 1), a negative penalty, or a rate outside [0, 1].
    Source: arXiv 2409.15922 (BiMI).
    """

    name, pointwise = "calibrated", True

    def __init__(
        self,
        goal: Texts,
        *,
        encoder: Encoder,
        threshold: float | None = None,
        penalty: float = 0.95,
        firing_rate: float = 0.0,
    ) -> None:
        where = "CalibratedThreshold"
        if threshold is None or not -1 < threshold < 1:
            raise ValueError(
                f"{where}: threshold must be in (-1, 1); got {threshold}. "
                "Fit one with rewards.clip_goal.conformal_threshold on the cosines of matched pairs."
            )
        if not penalty >= 0:
            raise ValueError(f"{where}: penalty must be ≥ 0; got {penalty}.")
        if not 0 <= firing_rate <= 1:
            raise ValueError(f"{where}: firing_rate must be in [0, 1]; got {firing_rate}.")
        self.threshold, self.penalty, self.firing_rate = threshold, penalty, firing_rate
        goal_D = _mean_embedding(encoder, goal, f"{where}: goal")
        self.goal = goal_D / torch.linalg.vector_norm(goal_D)  # a cosine needs a unit vector

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """R of each frame, in [0, 1]."""
        state = features.main
        fired = (state @ self.goal.to(state) > self.threshold).to(state)
        rate = features.signals.get("firing_rate", torch.full_like(fired, self.firing_rate))
        return (fired - self.penalty * rate.to(fired)).clamp(min=0)


def conformal_threshold(cosines: Float[Tensor, " N"], miss_rate: float = 0.1) -> float:
    """The cosine that a new matched pair exceeds with probability at least 1 − miss_rate.

        τ = 1 − quantile of (1 − cos) at level ⌈(n+1)(1−a)⌉ / n

    Args:
        cosines: (N,) of frames with texts that are true of them.
        miss_rate: a, in (0, 1).

    Raises:
        ValueError: miss_rate out of range, or fewer pairs than the level needs (⌈(n+1)(1−a)⌉ > n).
    Source: arXiv 2409.15922; split conformal prediction.
    """
    if not 0 < miss_rate < 1:
        raise ValueError(f"conformal_threshold: miss_rate must be in (0, 1); got {miss_rate}.")
    count = len(cosines)
    rank = math.ceil((count + 1) * (1 - miss_rate))
    if rank > count:
        raise ValueError(
            f"conformal_threshold: cosines must hold at least {math.ceil(1 / miss_rate) - 1} matched pairs "
            f"for miss_rate {miss_rate}; got {count}."
        )
    return 1 - float((1 - cosines.cpu().double()).sort().values[rank - 1])


# What the configs name: each makes a scorer -----------------------------------------------------------------


def clip_scorer(
    *,
    encoder: Encoder,
    goal: Texts | None = None,
    goals: Sequence[str] | Mapping[str, Texts] | None = None,
    baseline: Texts | None = None,
    alpha: float | None = None,
    views: str = "first",
    shaping: Mapping[str, Any] | None = None,
) -> Scorer:
    """`ClipGoal` for one goal, or for each of several on one feature stream, whose mean is shaped.

    Args:
        encoder: embeds frames and texts.
        goal: one goal; a list of texts is several wordings of it.
        goals: several goals, name -> text; a list names each goal by its text.
        baseline: see `ClipGoal`.
        alpha: see `ClipGoal`.
        views: "first", or the "mean" of all.
        shaping: arguments of `PotentialShaping`.

    Raises:
        ValueError: neither or both of goal and goals, or other views.
    """
    if (goal is None) == (goals is None):
        got = "neither" if goal is None else "both"
        raise ValueError(f'clip_scorer: one of goal and goals must be given; got {got}. Try goal="the drawer is open".')
    if goals is None:
        named: Mapping[str, Any] = {ClipGoal.name: goal}
    else:
        named = goals if isinstance(goals, Mapping) else {text: text for text in goals}
    if not named:
        raise ValueError("clip_scorer: goals must hold at least one text; got none.")
    heads = {name: ClipGoal(text, encoder=encoder, baseline=baseline, alpha=alpha) for name, text in named.items()}
    return _scorer(encoder, heads, views, shaping)


def contrast_scorer(
    *, encoder: Encoder, views: str = "first", shaping: Mapping[str, Any] | None = None, **head: Any
) -> Scorer:
    """`ContrastingGoals` as a scorer; `views` and `shaping` as of `clip_scorer`, other arguments are the head's.

    Args:
        encoder: embeds the texts, and later the frames.
    """
    return _scorer(encoder, {"contrast": ContrastingGoals(**head, encoder=encoder)}, views, shaping)


def softmax_scorer(
    *,
    encoder: Encoder,
    negative: Texts | None = None,
    negatives: Texts | None = None,
    views: str = "first",
    shaping: Mapping[str, Any] | None = None,
    **head: Any,
) -> Scorer:
    """`SoftmaxGoal` as a scorer; `views` and `shaping` as of `clip_scorer`, other arguments are the head's.

    Args:
        encoder: embeds frames and texts.
        negative: the other outcomes, one text or several.
        negatives: the same, by the name that older configs have.
        views, shaping: see `clip_scorer`.
        **head: `goal`, `temperature`, `threshold`.

    Raises:
        ValueError: both of negative and negatives, or as `SoftmaxGoal`.
    """
    if negative is not None and negatives is not None:
        raise ValueError("softmax_scorer: one of negative and negatives must be given; got both.")
    head["negatives"] = negatives if negative is None else negative
    return _scorer(encoder, {"softmax": SoftmaxGoal(**head, encoder=encoder)}, views, shaping)


def calibrated_scorer(
    *, encoder: Encoder, views: str = "first", shaping: Mapping[str, Any] | None = None, **head: Any
) -> Scorer:
    """`CalibratedThreshold` as a scorer; `views` and `shaping` as of `clip_scorer`, other arguments are the head's.

    Args:
        encoder: embeds the texts, and later the frames.
    """
    return _scorer(encoder, {"calibrated": CalibratedThreshold(**head, encoder=encoder)}, views, shaping)


def synthesis_scorer(
    *,
    encoder: Encoder,
    synthesis: Mapping[str, Any],
    views: str = "first",
    shaping: Mapping[str, Any] | None = None,
    **head: Any,
) -> Scorer:
    """VLM-RL whole: `ContrastingGoals` times the state terms of `Synthesis`; `views` and `shaping` as of
    `clip_scorer`, other arguments are the head's.

    Args:
        encoder: embeds the texts, and later the frames.
        synthesis: arguments of `rewards.combine.Synthesis`.
    """
    heads = {"contrast": ContrastingGoals(**head, encoder=encoder)}
    return _scorer(encoder, heads, views, shaping, Synthesis(**synthesis))


def _scorer(
    encoder: Encoder,
    heads: Mapping[str, Head],
    views: str,
    shaping: Mapping[str, Any] | None,
    combine: Combine | None = None,
) -> Scorer:
    if views not in VIEWS:
        raise ValueError(f"{'/'.join(heads)}: views must be {' or '.join(VIEWS)}; got {views!r}.")
    if views == "mean":
        heads = {name: MeanOfViews(head) for name, head in heads.items()}
    return as_scorer(encoder, heads, shaping, combine)


def _embeddings(encoder: Encoder, texts: Texts | None, where: str) -> Float[Tensor, "M D"]:
    """Unit embeddings of one or several texts."""
    listed = [texts] if isinstance(texts, str) else list(texts or [])
    if not listed or not all(isinstance(text, str) and text.strip() for text in listed):
        raise ValueError(f"{where} must be a text, or several; got {texts!r}.")
    return encoder.encode_texts(listed)


def _mean_embedding(encoder: Encoder, texts: Texts | None, where: str) -> Float[Tensor, " D"]:
    return _embeddings(encoder, texts, where).mean(0)


def _direction(encoder: Encoder, texts: Texts | None, where: str) -> Float[Tensor, " D"]:
    """The mean of several wordings as a unit vector, as cosines need; one wording is its own."""
    rows = _embeddings(encoder, texts, where)
    return rows[0] if len(rows) == 1 else torch.nn.functional.normalize(rows.mean(0), dim=0)
