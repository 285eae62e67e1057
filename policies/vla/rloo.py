"""Practice in a learned world: several rollouts from one moment, each set against the others (RLOO), clipped as in PPO.

The policy is the L1 head with Gaussian noise of one fixed scale around it, in normalised actions, independent in every
action of a chunk that is executed; without the noise it is the policy that acts. It is held near the policy that it
began as by the divergence of the two. A reflector gives the reward and decides when a rollout is over; the simulator is
not asked. Where the members of the world disagree, a rollout is stopped and judged at the last moment that was trusted.

Shape letters: G groups, N rollouts of a group, R = G·N, U model steps at most, K actions of one, A action, S own
readings, L tokens of D, T of the sentence's vector; n decisions of all rollouts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from policies.saving import pack, unpack
from policies.vla.core import ChunkPolicy
from policies.vla.embedded import ChunkObservation
from policies.vla.world import Reflector, WorldEnsemble


def leave_one_out(rewards: Float[Tensor, "G N"]) -> Float[Tensor, "G N"]:
    """A_n = R_n − mean over j ≠ n of R_j: how much better than the others of its group (RLOO).

    Args:
        rewards: of N rollouts in each of G groups.
    """
    count = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * count / (count - 1)


def clipped_loss(log_ratio: Float[Tensor, " n"], advantage: Float[Tensor, " n"], clip: float) -> Float[Tensor, " n"]:
    """−min(r·A, clip(r, 1 − ε, 1 + ε)·A), r the probability of what was done against what it was.

    Args:
        log_ratio: log r.
        advantage: A.
        clip: ε.
    """
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def log_density(actions: Float[Tensor, "n K A"], mean: Float[Tensor, "n K A"], scale: float) -> Float[Tensor, " n"]:
    """Of a Gaussian with one scale, summed over the actions that are executed.

    Args:
        actions: that were executed, normalised.
        mean: that the policy said.
        scale: standard deviation.
    """
    off = ((actions - mean) / scale).square() / 2 + math.log(scale * math.sqrt(2 * math.pi))
    return -off.sum((1, 2))


@dataclass(frozen=True)
class ImaginedStarts:
    """Moments that rollouts begin at.

    Attributes:
        tokens: (G, L, D).
        state: (G, S), normalised as the world does.
        text: (G, T).
    """

    tokens: Float[Tensor, "G L D"]
    state: Float[Tensor, "G S"]
    text: Float[Tensor, "G T"]


@dataclass(frozen=True)
class ImaginedRollouts:
    """What rollouts were.

    Attributes:
        rollout: (n,) of each decision.
        tokens: (n, L, D) half precision, what each was decided on.
        state: (n, S) own readings then, in the robot's units.
        actions: (n, K, A), normalised as the policy does.
        log_density: (n,) under the policy that decided.
        reward: (R,) of the last moment that was trusted, in [0, 1].
        solved: (R,) bool, the reflector ended it.
        stopped: (R,) bool, the members disagreed.
    """

    rollout: Int64[Tensor, " n"]
    tokens: Float[Tensor, "n L D"]
    state: Float[Tensor, "n S"]
    actions: Float[Tensor, "n K A"]
    log_density: Float[Tensor, " n"]
    reward: Float[Tensor, " R"]
    solved: Bool[Tensor, " R"]
    stopped: Bool[Tensor, " R"]


def seen(world: WorldEnsemble, tokens: Tensor, state: Tensor, text: Tensor) -> ChunkObservation:
    """An imagined moment as a policy reads it; `state` in the robot's units.

    Args:
        world: in which it is imagined.
        tokens: of the moment.
        state: (B, S).
        text: (B, D) the sentence's vector.
    """
    there = torch.ones(len(tokens), dtype=torch.bool)
    return ChunkObservation(world.codec.decode(tokens), dict.fromkeys(world.spec.cameras, there), text, state)


@torch.no_grad()
def imagine(
    policy: ChunkPolicy, world: WorldEnsemble, reflector: Reflector, starts: ImaginedStarts,
    *, horizon: int, scale: float, done: float, random: torch.Generator,
) -> ImaginedRollouts:  # fmt: skip
    """One rollout a start.

    Args:
        policy: decides; its first K actions are done before it looks again.
        world, reflector: what follows, and what that is worth.
        starts: R of them.
        horizon: U.
        scale: of the noise, in normalised actions; 0: none (then `log_density` says nothing).
        done: of the reflector, from which on it ends a rollout, in (0, 1].
        random: draws the noise.
    """
    stride, count = world.spec.stride, len(starts.tokens)
    tokens, state = starts.tokens.clone(), starts.state.clone()
    said = reflector.judge(tokens, starts.text)
    reward, solved = said[:, 0], said[:, 1] >= done
    stopped = torch.zeros(count, dtype=torch.bool)
    parts: list[tuple[Tensor, ...]] = []
    for _ in range(horizon):
        live = torch.nonzero(~solved & ~stopped)[:, 0]
        if not len(live):
            break
        now, readings = tokens[live], world.state.backward(state[live])
        mean = policy.decide(policy.look(seen(world, now, readings, starts.text[live]))).cpu()[:, :stride]
        actions = mean + scale * torch.randn(mean.shape, generator=random)
        after, moved, apart = world.step(now, state[live], world.normal(policy.action.backward(actions)))
        trusted = apart <= world.limit
        stopped[live] = ~trusted
        kept = live[trusted]
        density = log_density(actions, mean, scale) if scale else torch.zeros(len(live))
        parts.append(tuple(each[trusted] for each in (live, now.half(), readings, actions, density)))
        tokens[kept], state[kept] = after[trusted], moved[trusted]
        said = reflector.judge(tokens[kept], starts.text[kept])
        reward[kept], solved[kept] = said[:, 0], said[:, 1] >= done
    shapes = (tokens[:0, 0, 0].long(), tokens[:0].half(), state[:0], state.new_zeros(0, stride, 1), state.new_zeros(0))
    joined = [torch.cat(each) for each in zip(*parts, strict=True)] if parts else shapes
    return ImaginedRollouts(*joined, reward=reward, solved=solved, stopped=stopped)


class RLOO:
    """Updates of a policy by what it imagines.

        L = mean over decisions of [ −min(r·A, clip(r, 1 ± ε)·A) + β·KL ],   KL = ‖μ − μ_former‖² / (2σ²)

    Groups whose rewards do not differ by `spread` say nothing and are skipped; an update without any group changes
    nothing. Where it stands depends on the seed and the number of updates alone.

    Args:
        policy: learns in place; of the L1 head.
        world, reflector: see `imagine`; they stay as they are.
        draw: generator, G -> that many starts.
        steps: updates in all.
        groups: G.
        rollouts: N, at least 2.
        horizon, scale, done: see `imagine`.
        clip: ε.
        anchor: β.
        epochs: how often the decisions of an update are gone through.
        batch_size: decisions of a gradient step.
        learning_rate: of Adam.
        spread: the least difference of rewards within a group.
        seed: of starts, noise and batches.

    Raises:
        ValueError: a policy of another head, a chunk shorter than K, fewer than 2 rollouts, or a scale that is not
            more than 0.
    Source: World-Env (arXiv 2509.24948) §LOOP, known here by descriptions of the paper, not by its code. Departs: a
        Gaussian of one fixed scale, not a Laplace with a learned one; the divergence from the former policy, which the
        paper has not; all weights of a small policy, not low-rank ones of a large.
    """

    def __init__(
        self, policy: ChunkPolicy, world: WorldEnsemble, reflector: Reflector,
        draw: Callable[[torch.Generator, int], ImaginedStarts], *, steps: int, groups: int = 8, rollouts: int = 8,
        horizon: int = 10, scale: float = 0.2, done: float = 0.5,
        clip: float = 0.1, anchor: float = 0.1, epochs: int = 2, batch_size: int = 256, learning_rate: float = 1e-4,
        spread: float = 0.05, seed: int = 0,
    ) -> None:  # fmt: skip
        if policy.spec.head != "l1":
            raise ValueError(f"RLOO: the policy's head must be l1; got {policy.spec.head}.")
        if policy.spec.horizon < world.spec.stride:
            raise ValueError(
                f"RLOO: the policy's chunk must have the {world.spec.stride} actions of a model step; "
                f"got {policy.spec.horizon}."
            )
        if rollouts < 2 or scale <= 0:
            raise ValueError(f"RLOO: rollouts must be 2 or more, and scale more than 0; got {rollouts}, {scale}.")
        self.policy, self.world, self.reflector, self._draw = policy, world, reflector, draw
        self._former = copy.deepcopy(policy).eval().requires_grad_(False)
        self._groups, self._rollouts, self._epochs, self._batch = groups, rollouts, epochs, batch_size
        self._scale, self._clip, self._anchor, self._spread = scale, clip, anchor, spread
        self._how: dict[str, Any] = {"horizon": horizon, "scale": scale, "done": done}
        self._adam = torch.optim.Adam(policy.parameters(), lr=learning_rate)
        self._seed, self.steps, self.done = seed, steps, 0

    def step(self) -> dict[str, float]:
        """Imagine G groups and learn from them; returns what they were.

        Returns:
            `reward`, `solved`, `stopped` (means over rollouts), `skipped` (share of groups), and `clipped` and
            `divergence` (means over decisions; 0 where all were skipped).

        Raises:
            FloatingPointError: the loss is not finite.
        """
        random = torch.Generator().manual_seed((self._seed << 32) + self.done)
        self.policy.eval()
        starts = self._draw(random, self._groups)
        starts = ImaginedStarts(*(each.repeat_interleave(self._rollouts, 0) for each in vars(starts).values()))
        found = imagine(self.policy, self.world, self.reflector, starts, random=random, **self._how)
        grouped = found.reward.view(self._groups, self._rollouts)
        used = grouped.amax(1) - grouped.amin(1) > self._spread
        advantage = leave_one_out(grouped).flatten()
        rows = torch.nonzero(used.repeat_interleave(self._rollouts)[found.rollout])[:, 0]
        told = {"clipped": 0.0, "divergence": 0.0}
        for _ in range(self._epochs if len(rows) else 0):
            order = rows[torch.randperm(len(rows), generator=random)]
            told = self._epoch(found, advantage, starts.text, order)
        self.done += 1
        means = {name: float(getattr(found, name).float().mean()) for name in ("reward", "solved", "stopped")}
        return means | {"skipped": float((~used).float().mean())} | told

    def _epoch(self, found: ImaginedRollouts, advantage: Tensor, text: Tensor, order: Tensor) -> dict[str, float]:
        clipped = divergence = 0.0
        for part in order.split(self._batch):
            rollout, actions = found.rollout[part], found.actions[part]
            obs = seen(self.world, found.tokens[part].float(), found.state[part], text[rollout])
            mean = self.policy.decide(self.policy.look(obs)).cpu()[:, : actions.shape[1]]
            with torch.no_grad():
                before = self._former.decide(self._former.look(obs)).cpu()[:, : actions.shape[1]]
            log_ratio = log_density(actions, mean, self._scale) - found.log_density[part]
            apart = ((mean - before) / self._scale).square().sum((1, 2)) / 2
            loss = (clipped_loss(log_ratio, advantage[rollout], self._clip) + self._anchor * apart).mean()
            if not torch.isfinite(loss):
                raise FloatingPointError(f"RLOO: the loss must be finite; got {loss.item()}.")
            self._adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
            self._adam.step()
            share = len(part) / len(order)
            clipped += share * float((log_ratio.detach().exp() - 1).abs().gt(self._clip).float().mean())
            divergence += share * float(apart.detach().mean())
        return {"clipped": clipped, "divergence": divergence}

    def get_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values from which `load_state` goes on."""
        return pack({"policy": self.policy, "former": self._former, "adam": self._adam}), {"done": self.done}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on where `get_state` was called."""
        parts = {"policy": self.policy, "former": self._former, "adam": self._adam}
        unpack("Practice.load_state", parts, tensors)
        self.done = int(values["done"])
