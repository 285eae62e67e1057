"""Hops: relative changes of progress between two moments. Labels from keyframes, and fusion back into progress.

Progress Φ is in [0, 1], 0 at the reset and 1 at the goal. A hop measures a step forward by what remained and a step
back by what was covered, so it is in [-1, 1] and never leads out of [0, 1]:

    h(p, q) = (Φ_q − Φ_p) / (1 − Φ_p)  if Φ_q ≥ Φ_p,  else (Φ_q − Φ_p) / Φ_p

Source: Robo-Dopamine, arXiv 2512.23703 §3.1–3.2. Shape letters: B episodes, T time, N pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

FUSIONS = ("guarded", "mean", "incremental", "forward", "backward")
STRENGTH = 20.0  # a of the guard
EPSILON = 0.1  # ε of the guard; the paper names none
PAIRED_ROWS = 1024  # of a demonstration, at most: all pairs of them are weighed, and torch draws from 2^24 at most

# Labels -----------------------------------------------------------------------------------------------------


def segment_progress(length: int, steps: Sequence[int] = ()) -> Float[Tensor, " T"]:
    """Progress of each row of a demonstration: every *segment* earns as much as any other, however long it takes.

        Φ = (k + (t − K_k) / (K_{k+1} − K_k)) / N   for K_k ≤ t ≤ K_{k+1},  and 1 after K_N

    At the m samples that the paper lays evenly into each of the N segments this is its Φ(s_i) = i/M, M = N·m;
    between them it is linear, so no chunk size has to be chosen.

    Args:
        length: T, rows of the demonstration.
        steps: K_1..K_N, the row at which each step of the task ends, ascending; K_0 = 0. Empty: one segment.

    Raises:
        ValueError: fewer than two rows, or steps that do not ascend within 1 to T − 1.
    """
    if length < 2:
        raise ValueError(f"segment_progress: length must be at least 2 rows; got {length}.")
    ends = [0, *steps] if steps else [0, length - 1]
    if any(later <= earlier for earlier, later in pairwise(ends)) or ends[-1] >= length:
        raise ValueError(f"segment_progress: steps must ascend within 1 to {length - 1}; got {list(steps)}.")
    at, knots = torch.arange(length, dtype=torch.float64), torch.tensor(ends, dtype=torch.float64)
    segment = (torch.searchsorted(knots, at, right=True) - 1).clamp(max=len(ends) - 2)
    within = (at - knots[segment]) / (knots[segment + 1] - knots[segment])
    return ((segment + within.clamp(max=1)) / (len(ends) - 1)).float()


def hop(before: Float[Tensor, "*S"], after: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """h(p, q) of two progresses in [0, 1]; 0 where both are equal.

    Args:
        before: Φ(p).
        after: Φ(q).
    """
    change = after - before
    base = torch.where(change >= 0, 1 - before, before)
    return torch.where(change == 0, 0.0, change / base.clamp(min=1e-12)).clamp(-1, 1)


def apply_hop(before: Float[Tensor, "*S"], hops: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """The progress a hop leads to, the inverse of `hop`: Φ + (1 − Φ)·h forward, Φ + Φ·h back.

    Args:
        before: Φ, in [0, 1].
        hops: h, in [-1, 1].
    """
    return before + torch.where(hops >= 0, 1 - before, before) * hops


def balanced_pairs(
    progress: Float[Tensor, " T"],
    count: int,
    generator: torch.Generator,
    *,
    hop_bins: int = 25,
    gap_bins: int = 4,
    zero_share: float = 0.05,
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Pairs (p, q) of rows of one demonstration, spread evenly over sizes of hop and over gaps in time.

    Every pair falls into one of `hop_bins` even bins of its hop in [-1, 1]; within a bin, into one of `gap_bins`
    even bins of |q − p| between the bin's smallest and largest. A draw picks a bin that has pairs, then a gap bin
    that has pairs, then a pair. A share of p = q pairs teaches that no change is no hop.

    Of a demonstration longer than `PAIRED_ROWS`, so many rows at even distances are paired.

    Args:
        progress: of each row.
        count: N, how many pairs, drawn with replacement.
        generator: where chance comes from.
        hop_bins, gap_bins, zero_share: as in the source.
    Returns:
        p and q.
    Source: arXiv 2512.23703 App. A. Departs: the source jitters zero hops over nearby frames; ours are exact.
    """
    length = min(len(progress), PAIRED_ROWS)
    at = torch.linspace(0, len(progress) - 1, length, dtype=torch.float64).round().long()
    progress = progress[at]
    before, after = torch.meshgrid(torch.arange(length), torch.arange(length), indexing="ij")
    apart = before != after
    before, after = before[apart], after[apart]
    size = ((hop(progress[before], progress[after]) + 1) / 2 * hop_bins).long().clamp(max=hop_bins - 1)
    gap = (after - before).abs()
    low = torch.full((hop_bins,), length).scatter_reduce(0, size, gap, "amin")
    high = torch.zeros(hop_bins, dtype=torch.long).scatter_reduce(0, size, gap, "amax")
    within = (gap - low[size]) / (high - low + 1)[size] * gap_bins
    cell = size * gap_bins + within.long()
    in_cell = torch.bincount(cell, minlength=hop_bins * gap_bins)
    cells_in_bin = (in_cell.view(hop_bins, gap_bins) > 0).sum(1)
    weight = 1 / (in_cell[cell] * cells_in_bin[size]).double()
    chosen = torch.multinomial(weight, count, replacement=True, generator=generator)
    before, after = before[chosen], after[chosen]
    still = torch.rand(count, generator=generator) < zero_share
    return at[before], at[torch.where(still, before, after)]


# Fusion -----------------------------------------------------------------------------------------------------


class Fused(NamedTuple):
    """Where fusion stands after a row, (B,) each.

    Attributes:
        first: Φ_0.
        progress: Φ.
        summed: Φ_I.
    """

    first: Tensor
    progress: Tensor
    summed: Tensor


def fuse(
    hops_inc: Float[Tensor, "B T"],
    hops_fwd: Float[Tensor, "B T"],
    hops_bwd: Float[Tensor, "B T"] | None,
    *,
    first: Float[Tensor, " B"] | None = None,
    fusion: str = "guarded",
    strength: float = STRENGTH,
    epsilon: float = EPSILON,
) -> Float[Tensor, "B T"]:
    """Progress from predicted hops of a whole episode: `fuse_next` from its first row.

    Args:
        first: Φ_0 in [0, 1] at the reset, how far the task had come; None: 0.
        hops_inc, hops_fwd, hops_bwd, fusion, strength, epsilon: see `fuse_next`.

    Raises:
        ValueError: as `fuse_next`.
    """
    first = torch.zeros_like(hops_inc[:, 0]) if first is None else first
    return fuse_next(hops_inc, hops_fwd, hops_bwd, first, fusion=fusion, strength=strength, epsilon=epsilon)[0]


def fuse_next(
    hops_inc: Float[Tensor, "B T"],
    hops_fwd: Float[Tensor, "B T"],
    hops_bwd: Float[Tensor, "B T"] | None,
    before: Fused | Float[Tensor, " B"],
    *,
    fusion: str = "guarded",
    strength: float = STRENGTH,
    epsilon: float = EPSILON,
) -> tuple[Float[Tensor, "B T"], Fused]:
    """Progress from predicted hops; causal, in [0, 1], and never raised by a missing prediction.

        incremental  Φ_I,t = Φ_I,t−1 + (1 − Φ_I,t−1)·h(t−1, t) forward, + Φ_I,t−1·h(t−1, t) back;  Φ_I,0 = 0
        forward      Φ_F,t = clip(h(start, t))
        backward     Φ_B,t = clip(1 + h(goal, t))
        mean         (Φ_I + Φ_F + Φ_B) / 3
        guarded      P = (Φ_F + Φ_B)/2,  D = |Φ_B − Φ_F| / (P + ε),  w = exp(−a·D²),
                     Φ_t = Φ_t−1 + (w/2)·(P − Φ_t−1 + d_t),  d_t the incremental step taken from Φ_t−1;  Φ_0 = 0

    Where a needed prediction is missing (NaN, or infinite), w is 0 and Φ keeps its last value; Φ before the first
    prediction is Φ_0. Other hops are clipped to [-1, 1].

    The paper's episodes start at Φ_0 = 0. One that starts half-way says so by `first`: then Φ_I,0 = Φ_0 = first, and
    Φ_F is what h(start, t) makes of Φ_0, which is Φ_0 + (1 − Φ_0)·h or Φ_0 + Φ_0·h instead of h.

    Args:
        hops_inc: h(t−1, t); at the reset column 0 is not read.
        hops_fwd: h(start, t), start being the episode's first frame.
        hops_bwd: h(goal, t), goal being a reference and never the episode's own last frame; None where there is no
            reference goal: then P = Φ_F and w = 1, and the mean is of two.
        before: where fusion stood after the row before these, or at the reset Φ_0 in [0, 1].
        fusion: one of `FUSIONS`.
        strength: a ≥ 0. The paper's 20 is severe: (Φ_F, Φ_B) = (0.4, 0.5) gives w = 0.37 at ε = 0.
        epsilon: ε > 0. The paper names none; a tiny one freezes the start, where P is small.

    Returns:
        Φ of these rows, and where fusion stands after them.

    Raises:
        ValueError: an unknown fusion, "backward" without a goal, a < 0, or ε ≤ 0.
    Source: arXiv 2512.23703 §3.2. The paper's text leaves Φ_F and Φ_B unclipped; outside [0, 1] P could cross −ε.
    """
    _check_fusion(hops_bwd is not None, fusion, strength, epsilon)
    hops = {"inc": hops_inc, "fwd": hops_fwd} | ({} if hops_bwd is None else {"bwd": hops_bwd})
    known = {name: torch.isfinite(each) for name, each in hops.items()}
    clean = {name: torch.where(known[name], each, 0.0).clamp(-1, 1) for name, each in hops.items()}
    step = clean["inc"]
    at_reset = not isinstance(before, Fused)
    if at_reset:
        known["inc"] = torch.cat([torch.ones_like(known["inc"][:, :1]), known["inc"][:, 1:]], 1)
        step = torch.cat([torch.zeros_like(step[:, :1]), step[:, 1:]], 1)
    first, progress, summed = (before, before, before) if at_reset else before
    anchored = [apply_hop(first[:, None].expand_as(step), clean["fwd"]).clamp(0, 1)]
    if hops_bwd is not None:
        anchored.append((1 + clean["bwd"]).clamp(max=1))

    # each is Φ_t = keep·Φ_t−1 + add, since (1 − Φ)·h or Φ·h is h⁺ − |h|·Φ
    total = _recurrence(summed, 1 - step.abs(), step.clamp(min=0))
    seen = torch.stack(list(known.values())).all(0)
    if fusion == "incremental":
        fused = total
    elif fusion in ("forward", "backward", "mean"):
        value, seen = {
            "forward": (anchored[0], known["fwd"]),
            "backward": (anchored[-1], known.get("bwd", seen)),
            "mean": (torch.stack([total, *anchored]).mean(0), seen),
        }[fusion]
        fused = _recurrence(progress, (~seen).to(value), value * seen)
    else:
        middle = torch.stack(anchored).mean(0)
        apart = (anchored[-1] - anchored[0]).abs() / (middle + epsilon)
        trust = torch.exp(-strength * apart**2) * seen
        if at_reset:
            trust[:, 0] = 0.0
        fused = _recurrence(progress, 1 - trust / 2 * (1 + step.abs()), trust / 2 * (middle + step.clamp(min=0)))
    return fused, Fused(first, fused[:, -1], total[:, -1])


def _recurrence(progress: Tensor, keep: Tensor, add: Tensor) -> Tensor:
    """Φ_t = keep_t·Φ_t−1 + add_t from Φ_−1 (B,), as (B, T)."""
    columns = []
    for kept, added in zip(keep.unbind(1), add.unbind(1), strict=True):
        progress = kept * progress + added
        columns.append(progress)
    return torch.stack(columns, 1)


def _check_fusion(has_goal: bool, fusion: str, strength: float, epsilon: float) -> None:
    if fusion not in FUSIONS:
        raise ValueError(f"fuse: fusion must be one of {', '.join(FUSIONS)}; got {fusion!r}.")
    if fusion == "backward" and not has_goal:
        raise ValueError("fuse: fusion must not be 'backward' without a reference goal. Give a goal, or use 'guarded'.")
    if strength < 0:
        raise ValueError(f"fuse: strength must be ≥ 0; got {strength}.")
    if not epsilon > 0:
        raise ValueError(f"fuse: epsilon must be > 0; got {epsilon}.")
