"""What batching gains in a latent world model: an update and a plan of TD-MPC2, against the form that loops.

The reference form asks one value head after another, and plans for one world after another. Weights, noise and batches
are the same, and so are the numbers (to 1e-5, or nothing is recorded). By turns in one process, one thread; medians.
Nothing else may run.

    python -m benchmarks.planning
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from benchmarks.common import read_options, record
from policies.core import Batch
from policies.networks import MLP
from policies.planning import Noise, plan
from policies.tdmpc2 import TDMPC2, TDMPC2Settings

OPTIONS: dict[str, Any] = {"repeats": 15, "record": True}
SIZES, WORLDS, OBSERVATION, ACTION, BAR, SAME = ("0.3M", "1M"), 8, 32, 4, 1.5, 1e-5


class Looped(nn.Module):
    """The heads of an MLP, one after another."""

    def __init__(self, mlp: MLP) -> None:
        super().__init__()
        self.mlp = mlp

    def hidden(self, x: Tensor) -> list[Tensor]:
        """As the batched form's."""
        return self.mlp.hidden(x)

    def forward(self, x: Tensor) -> Tensor:
        """(K, B, O)."""
        return torch.stack([self._head(k, x if x.dim() == 2 else x[k]) for k in range(len(self.mlp.head.weight))])

    def _head(self, k: int, x: Tensor) -> Tensor:
        mlp: Any = self.mlp
        for layer, norm in zip(mlp.layers, mlp.norms, strict=True):
            x = torch.addmm(layer.bias[k], x, layer.weight[k])
            x = nn.functional.silu(nn.functional.layer_norm(x, x.shape[-1:], norm.weight[k, 0], norm.bias[k, 0]))
        return torch.addmm(mlp.head.bias[k], x, mlp.head.weight[k])


def learner(size: str) -> TDMPC2:
    """With settings that are its own but for the size."""
    box = spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
    action = spaces.Box(-1, 1, (ACTION,), np.float32)
    return TDMPC2(box, action, seed=0, device="cpu", settings=TDMPC2Settings(size=size))


def looping(made: TDMPC2) -> TDMPC2:
    """The same weights, its value heads in a loop."""
    again = copy.deepcopy(made)
    again.model.critics = Looped(again.model.critics)  # pyright: ignore[reportAttributeAccessIssue]
    again._targets = Looped(again._targets)  # pyright: ignore[reportAttributeAccessIssue]
    again._make_optimisers()
    return again


def batch(s: TDMPC2Settings) -> Batch:
    """Random windows."""
    draw, T, B = torch.Generator().manual_seed(1), s.horizon, s.batch_size
    return Batch(
        obs=torch.randn(T + 1, B, OBSERVATION, generator=draw),
        action=torch.rand(T, B, ACTION, generator=draw) * 2 - 1,
        reward=torch.rand(T, B, generator=draw),
        terminated=torch.zeros(T, B, dtype=torch.bool),
        valid=torch.ones(T, B, dtype=torch.bool),
        returns=None,
        imitate=torch.zeros(T, B, dtype=torch.bool),
    )


def timed(calls: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each, by turns, after two that do not count; and the last answers."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    answers: dict[str, Any] = {}
    for repeat in range(repeats + 2):
        for name, call in calls.items():
            began = time.perf_counter()
            answers[name] = call()
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(each)) for name, each in seconds.items()}, answers


def update_row(size: str, repeats: int) -> dict[str, Any]:
    """Updates, which must move the same weights alike."""
    ours = learner(size)
    loops = looping(ours)
    windows = batch(ours.settings)
    medians, _ = timed(
        {"ours": lambda: ours.update(iter([windows]), 1), "reference": lambda: loops.update(iter([windows]), 1)},
        repeats,
    )
    pairs = zip(ours.model.parameters(), loops.model.parameters(), strict=True)
    away = max(float((one - other).detach().abs().max()) for one, other in pairs)
    return row(f"TD-MPC2 {size}, an update of 128 windows", medians, away, repeats)


def plan_row(size: str, repeats: int) -> dict[str, Any]:
    """Plans of so many worlds."""
    ours = learner(size)
    loops, s = looping(ours), ours.settings
    noise = Noise.draw(WORLDS, ACTION, s, torch.Generator().manual_seed(2))
    obs = torch.randn(WORLDS, OBSERVATION, generator=torch.Generator().manual_seed(3))
    last, first = torch.zeros(WORLDS, s.horizon, ACTION), torch.ones(WORLDS, dtype=torch.bool)
    with torch.no_grad():
        z = ours.model.encoder(obs)

    def one(e: int) -> Tensor:
        part = Noise(noise.policy[e, None], noise.draws[:, e, None], noise.choice[e, None], noise.action[e, None])
        at = slice(e, e + 1)
        return plan(loops.model, z[at], last[at], first[at], part, gamma=s.gamma, settings=s).mean

    medians, answers = timed(
        {
            "ours": lambda: plan(ours.model, z, last, first, noise, gamma=s.gamma, settings=s).mean,
            "reference": lambda: torch.cat([one(e) for e in range(WORLDS)]),
        },
        repeats,
    )
    away = float((answers["ours"] - answers["reference"]).abs().max())
    return row(f"TD-MPC2 {size}, a plan for {WORLDS} worlds", medians, away, repeats)


def row(what: str, medians: dict[str, float], away: float, repeats: int) -> dict[str, Any]:
    """One result; a reference that answers otherwise is none."""
    if away > SAME:
        raise SystemExit(f"{what}: the two forms must agree to {SAME}; they differ by {away:.2g}.")
    ratio = medians["reference"] / medians["ours"]
    return {
        "claim": f"{what}: speed against one head, one world after another",
        "value": round(ratio, 2),
        "unit": "x",
        "bar": f">= {BAR}",
        "met": ratio >= BAR,
        "n": repeats,
        "ms": {name: round(1e3 * each, 2) for name, each in medians.items()},
        "difference": away,
    }


def main() -> None:
    """Measure and record."""
    options = read_options(OPTIONS)
    torch.set_num_threads(1)
    rows = []
    for size in SIZES:
        rows += [update_row(size, options["repeats"]), plan_row(size, options["repeats"])]
        for each in rows[-2:]:
            print(f"{each['claim']}: {each['value']} x, {each['ms']}")
    if options["record"]:
        record("planning", rows)


if __name__ == "__main__":
    main()
