"""Chunked offline RL over a policy that was imitated: a critic of action prefixes on its frozen tokens, and an actor.

What the policy makes of an observation stays as it was learned (`ChunkPolicy.look`, computed once a row); the part that
decides from it goes on from imitation. Three actors:

    td3_bc     imitation − w·mean Q(o, π(o)): CO-RFT's actor, by TD3+BC (arXiv 2106.06860)
    distil     imitation + w·|π(o) − a*| where a*, the best of N by the critic, beats the chunk in the data (VGAS)
    best_of_n  nothing more is learned: of N chunks the critic's choice is executed (Q-chunking, arXiv 2507.07969)

The critic learns alone for the first half of the updates. Departures. Without published equations CO-RFT's actor is
TD3+BC's, w not divided by |Q|, which is bounded here and small where rewards are sparse. A row's v, which targets read
(`policies.vla.critic`), is renewed by turns, so many rows an update, with the policy as it is and without noise on it,
so that an update costs the same whatever the horizon. It is at least the return that was seen from there, which is
Cal-QL's floor: else a new critic's values overwrite what was seen before they mean anything.

Shape letters: N rows; B batch; M candidates; H actions of a chunk, A action; K critics; L tokens, W width.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from policies.saving import pack, unpack
from policies.vla.choosing import BestOfN, candidates, many
from policies.vla.core import ChunkBatch, ChunkPolicy
from policies.vla.critic import (
    HELD,
    Context,
    Outcomes,
    PrefixCritic,
    distant,
    gaussian_log_prob,
    held_down,
    prefix_targets,
    temporal,
)
from policies.vla.imitation import ChunkImitation, Rows, scheduled

ACTORS = ("td3_bc", "distil", "best_of_n")
LOOKED = 256  # rows at once
ACTOR = "actor/"  # its part of the learner's state


@dataclass(frozen=True, kw_only=True)
class ChunkedRLSettings:
    """What can be set.

    Attributes:
        actor: one of `ACTORS`.
        weight: w, of what the critic says beside imitation; 0: imitation alone.
        discount: γ, of returns, targets and rewards alike.
        held: what holds the critic down, one of `HELD`.
        conservatism: α, the weight of that.
        penalty: β, of `distance`.
        temperature: T, of `conrft`.
        drawn: chunks drawn of each kind for that.
        deviation: of the policy's chunks that are drawn and of candidates, in normalised units; held for a chunk.
        candidates: M.
        steps: updates.
        batch_size: B.
        learning_rate: of the critic; `actor_rate` of the actor.
        tau: of the target critics.
        solved_share: of a batch, from episodes that end solved.
        renewed: rows whose v is renewed an update.
        delay: updates of the critic to one of the actor.
        width, layers, heads, critics: of `PrefixCritic`.
    """

    actor: str = "distil"
    weight: float = 1.0
    discount: float = 0.99
    held: str = "distance"
    conservatism: float = 0.5
    penalty: float = 0.5
    temperature: float = 1.0
    drawn: int = 1
    deviation: float = 0.2
    candidates: int = 8
    steps: int = 3000
    batch_size: int = 48
    learning_rate: float = 3e-4
    actor_rate: float = 1e-4
    tau: float = 0.005
    solved_share: float = 0.5
    renewed: int = 128
    delay: int = 2
    width: int = 64
    layers: int = 2
    heads: int = 4
    critics: int = 2

    def __post_init__(self) -> None:
        wrong = []
        for name, known in (("actor", ACTORS), ("held", HELD)):
            if getattr(self, name) not in known:
                wrong.append(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")
        for name in (
            "steps",
            "batch_size",
            "drawn",
            "candidates",
            "renewed",
            "delay",
            "width",
            "layers",
            "heads",
            "critics",
        ):
            if getattr(self, name) < 1:
                wrong.append(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("deviation", "learning_rate", "actor_rate", "temperature"):
            if not getattr(self, name) > 0:
                wrong.append(f"{name} must be more than 0; got {getattr(self, name)}")
        for name in ("weight", "conservatism", "penalty"):
            if not getattr(self, name) >= 0:
                wrong.append(f"{name} must be 0 or more; got {getattr(self, name)}")
        for name in ("discount", "tau", "solved_share"):
            if not 0 <= getattr(self, name) <= 1:
                wrong.append(f"{name} must be from 0 to 1; got {getattr(self, name)}")
        if self.heads >= 1 and self.width % self.heads:
            wrong.append(f"width must be a multiple of heads ({self.heads}); got {self.width}")
        if wrong:
            raise ValueError(f"ChunkedRLSettings: {'; '.join(wrong)}.")


class ChunkedRL:
    """The learner; see the module. After `load_state` it goes on as if never stopped.

    Args:
        policy: as imitation left it; its deciding part learns in place.
        rows: gives the batch of some row numbers; row n + 1 is what the action of row n led to, within an episode.
        outcomes: of the N rows.
        weights: (N,) ≥ 0, how much each row is imitated.
        learned: (N,) bool, rows that the critic learns from.
        settings: see `ChunkedRLSettings`.
        seed: of weights, batches and noise.

    Raises:
        ValueError: no episode that ends solved, or none that is known not to.
    """

    def __init__(
        self, policy: ChunkPolicy, rows: Rows, outcomes: Outcomes, weights: Float[np.ndarray, " N"],
        learned: Bool[np.ndarray, " N"], *, settings: ChunkedRLSettings, seed: int,
    ) -> None:  # fmt: skip
        count = len(outcomes.end)
        solved, others = learned & (outcomes.end == 1).numpy(), learned & (outcomes.end != 1).numpy()
        if not solved.any() or not (learned & (outcomes.end == 0).numpy()).any():
            raise ValueError(
                "ChunkedRL: outcomes must tell of episodes that end solved and of some that do not; there is nothing "
                "to tell apart."
            )
        self.settings, self.policy, self.outcomes, self._seed = settings, policy, outcomes, seed
        self.steps, self.done, self._rows = settings.steps, 0, rows
        self.returns = outcomes.returns(settings.discount)
        self._tokens, self._there = _looked(policy, rows, count)
        chances = settings.solved_share * solved / solved.sum() + (1 - settings.solved_share) * others / others.sum()
        self._chances = np.cumsum(chances) / chances.sum()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.critic = PrefixCritic(
                policy.spec.width, len(policy.spec.actions), policy.spec.horizon, width=settings.width,
                layers=settings.layers, heads=settings.heads, critics=settings.critics,
            ).to(policy.device)  # fmt: skip
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self._optimizer = torch.optim.Adam(self.critic.parameters(), lr=settings.learning_rate)
        self._seen = self.returns.nan_to_num(nan=0.0)
        self.ahead = self._seen.clone()  # v of each row's observation
        self.actor: ChunkImitation | None = None
        if settings.actor != "best_of_n":
            self.actor = ChunkImitation(
                policy, weights, self.frozen, steps=max((settings.steps - self._warmup) // settings.delay, 1),
                batch_size=settings.batch_size, learning_rate=settings.actor_rate, seed=seed,
                also={"td3_bc": self._climb, "distil": self._towards_best}[settings.actor],
            )  # fmt: skip

    @property
    def _warmup(self) -> int:
        return self.settings.steps // 2

    def frozen(self, rows: Int64[np.ndarray, " B"]) -> ChunkBatch:
        """The batch of some rows, with what the policy made of them: so no gradient reaches `look`."""
        return replace(self._rows(rows), context=self._context(torch.from_numpy(rows)))

    def _context(self, rows: Tensor) -> Context:
        return self._tokens[rows].to(self.policy.device), self._there[rows].to(self.policy.device)

    # Updates --------------------------------------------------------------------------------------------

    def step(self) -> dict[str, float]:
        """One update of the critic, and from the half on, every so often, one of the actor; what was measured.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        draw = np.random.default_rng((self._seed, 1, self.done))
        random = torch.Generator().manual_seed(int(draw.integers(2**62)))
        self.policy.eval()
        self._renew()
        found = np.searchsorted(self._chances, draw.random(self.settings.batch_size), side="right")
        told = self._judge(found.clip(max=len(self._chances) - 1), random)
        late = self.done - self._warmup
        if self.actor is not None and late >= 0 and late % self.settings.delay == 0:
            told["train/actor"] = self.actor.step()
        self.done += 1
        return told

    @torch.no_grad()
    def _renew(self) -> None:
        """v of the rows whose turn it is: the least target critic at the policy's chunk, at least the return seen."""
        count, share = len(self.ahead), min(self.settings.renewed, len(self.ahead))
        rows = (torch.arange(share) + self.done * share) % count
        context = self._context(rows)
        values = self.target(context, self.policy.decide(context))[..., -1].amin(0).clamp(0, 1).cpu()
        self.ahead[rows] = values.maximum(self._seen[rows])

    def targets(self, rows: Int64[Tensor, " B"]) -> tuple[Float[Tensor, "B H"], Any]:
        """y of each prefix of some rows' chunks, and the mask of those that are known."""
        outcomes, horizon, discount = self.outcomes, self.policy.spec.horizon, self.settings.discount
        inside, steps, ended, known = outcomes.prefixes(rows, horizon)
        after = torch.where(ended, outcomes.end[rows][:, None], self.ahead[(inside + 1).clamp_max(len(self.ahead) - 1)])
        reward = (1 - discount) * outcomes.solved[inside]
        return prefix_targets(reward, after.nan_to_num(nan=0.0), steps, discount), known

    def _judge(self, drawn: np.ndarray, random: torch.Generator) -> dict[str, float]:
        """One update of the critic on some rows."""
        rows, settings, device = torch.from_numpy(drawn), self.settings, self.policy.device
        batch, context = self._rows(drawn), self._context(rows)
        target, known = self.targets(rows)
        inside = self.outcomes.prefixes(rows, target.shape[1])[0]
        beyond = torch.cat([torch.zeros(len(rows), 1).bool(), inside[:, 1:] == inside[:, :-1]], 1)
        known = known & ~(batch.pad.cpu() & ~beyond).cumsum(1).bool()  # not finite: nothing after it is known
        chunk = self.policy.action.forward(torch.nan_to_num(batch.chunk.cpu())).to(device)
        target, known = target.to(device), known.to(device)
        q = self.critic(context, chunk)
        error = temporal(q, target, known)
        loss, told = error, {"train/critic": float(error.detach()), "train/value": float(q.detach()[..., -1].mean())}
        if settings.held != "none" and settings.conservatism:
            if settings.held == "distance":
                down = self._apart(context, chunk, target, known, random)
            else:
                down = self._calibrated(rows, context, chunk, q, random)
            loss, told["train/held"] = loss + settings.conservatism * down, float(down.detach())
        if not torch.isfinite(loss):
            raise FloatingPointError(f"ChunkedRL: the loss must be finite; got {loss.item()} at update {self.done}.")
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * scheduled(self.done, self.steps, max(self.steps // 20, 1))
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.critic.parameters(), 10.0)
        self._optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.lerp_(fast, settings.tau)
        return told

    def _apart(self, context: Context, chunk: Tensor, target: Tensor, known: Tensor, random: torch.Generator) -> Tensor:
        """The penalty of distance, of uniform chunks and of the policy's with noise that is held."""
        settings, sure = self.settings, known[:, -1]
        shape = (len(chunk), settings.drawn, *chunk.shape[1:])
        with torch.no_grad():
            uniform = (2 * torch.rand(shape, generator=random) - 1).to(chunk)
            noise = settings.deviation * torch.randn((*shape[:2], 1, shape[3]), generator=random).to(chunk)
            drawn = torch.cat([uniform, self.policy.decide(context)[:, None] + noise], 1)
        values = many(self.critic, context, drawn)
        if not sure.any():
            return 0.0 * values.sum()
        return distant(values[:, sure], target[sure, -1], drawn[sure], chunk[sure], settings.penalty)

    def _calibrated(self, rows: Tensor, context: Context, chunk: Tensor, q: Tensor, random: torch.Generator) -> Tensor:
        """The conservative term, of uniform chunks and of the policy's, here and at the chunk's end, with noise."""
        settings = self.settings
        shape = (len(chunk), settings.drawn, *chunk.shape[1:])
        after = (rows + chunk.shape[1]).minimum(self.outcomes.last[rows])
        with torch.no_grad():
            uniform = (2 * torch.rand(shape, generator=random) - 1).to(chunk)
            noise = settings.deviation * torch.randn((2, *shape), generator=random).to(chunk)
            own = torch.stack([self.policy.decide(context), self.policy.decide(self._context(after))])
            drawn = torch.cat([uniform, *(own[:, :, None] + noise)], 1)
        values = many(self.critic, context, drawn).unflatten(2, (3, -1))
        log_probs = gaussian_log_prob(noise, settings.deviation)
        even = torch.full_like(log_probs[0], -chunk[0].numel() * math.log(2))
        log_probs, floor = torch.stack([even, *log_probs], 1), self.returns[rows].to(q)
        return held_down(settings.held, values, log_probs, floor, q[..., -1], temperature=settings.temperature)

    # Actors ---------------------------------------------------------------------------------------------

    def _climb(self, batch: ChunkBatch, random: torch.Generator) -> Tensor:
        """−w·mean Q(o, π(o))."""
        assert batch.context is not None
        return -self.settings.weight * self.critic(batch.context, self.policy.decide(batch.context))[0, :, -1].mean()

    def _towards_best(self, batch: ChunkBatch, random: torch.Generator) -> Tensor:
        """w·mean |π(o) − a*| over the rows whose best candidate the critic puts above what was done."""
        assert batch.context is not None
        context, settings = batch.context, self.settings
        with torch.no_grad():
            done = self.policy.action.forward(torch.nan_to_num(batch.chunk.cpu())).to(self.policy.device)
            drawn = candidates(self.policy, context, settings.candidates, settings.deviation, random)
            drawn = torch.cat([done[:, None], drawn], 1)
            chosen = many(self.critic, context, drawn).amin(0).argmax(1)
        best = drawn[torch.arange(len(drawn)), chosen]
        away = (self.policy.decide(context) - best).abs().mean((1, 2))
        return settings.weight * (away * (chosen > 0)).mean()

    def result(self) -> ChunkPolicy | BestOfN:
        """What acts."""
        if self.actor is not None:
            return self.actor.averaged()
        return BestOfN(
            self.policy, self.critic, count=self.settings.candidates, deviation=self.settings.deviation, seed=self._seed
        )

    # Resume ---------------------------------------------------------------------------------------------

    @property
    def _parts(self) -> dict[str, Any]:
        return {"critic": self.critic, "target": self.target, "optimizer": self._optimizer, "ahead": self.ahead}

    def get_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values from which `load_state` goes on."""
        tensors, values = ({}, {}) if self.actor is None else self.actor.get_state()
        own = {ACTOR + name: value for name, value in tensors.items()}
        return pack(self._parts) | own, {"done": self.done, "actor": values}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on where `get_state` was called."""
        unpack("ChunkedRL.load_state", self._parts, {k: v for k, v in tensors.items() if not k.startswith(ACTOR)})
        if self.actor is not None:
            own = {name.removeprefix(ACTOR): value for name, value in tensors.items() if name.startswith(ACTOR)}
            self.actor.load_state(own, values["actor"])
        self.done = int(values["done"])


@torch.no_grad()
def _looked(policy: ChunkPolicy, rows: Rows, count: int) -> Context:
    """What a policy makes of every row."""
    policy.eval()
    parts = [policy.look(rows(np.arange(k, min(k + LOOKED, count))).obs) for k in range(0, count, LOOKED)]
    return torch.cat([tokens.cpu() for tokens, _ in parts]), torch.cat([there.cpu() for _, there in parts])
