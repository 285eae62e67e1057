"""How well a critic ranks chunks at one moment, by what came of each: for judging alone.

A policy acts for a while, then one of several chunks is executed to its end, which is what the critic values, however
few actions of a chunk the policy executes itself; then the policy goes on to the episode's end. What came before is
replayed from the same reset, so that all chunks begin at the very same moment; the critic sees what the policy sees
there. A critic is never judged by its correlation with returns, which tells states apart and not actions.

Shape letters: S moments, M chunks of each; A action, H actions of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from embodied.finetuning.judging import Arena
from embodied.finetuning.rollouts import Played, RolloutWorlds, play
from policies.vla.actor import ChunkActor, ChunkMemory
from policies.vla.choosing import BestOfN, candidates
from rewards.metrics import auroc
from rewards.progress import tqdm

RANKED = 5_000_000  # added to a run's seed: starts of the moments at which chunks are ranked


class Branching:
    """An actor that replays an episode's first actions, then executes all of one of several chunks, then is itself.

    Args:
        actor: of the policy.
        chooser: ranks chunks.
        trunks: actions (t, A) in [-1, 1] that are replayed, by the order in which episodes begin.
        branches: which of the moment's chunks is executed, and the seed that draws them, in the same order.
        count, deviation: M, and how they are drawn.

    Attributes:
        scores: of the chunk executed, by order of episodes.
    """

    def __init__(
        self, actor: ChunkActor, chooser: BestOfN, trunks: Sequence[np.ndarray], branches: Sequence[tuple[int, int]],
        *, count: int, deviation: float,
    ) -> None:  # fmt: skip
        self._actor, self._chooser, self._count, self._deviation = actor, chooser, count, deviation
        self._trunks, self._branches, self._begun = trunks, branches, 0
        self.scores = np.full(len(trunks), np.nan)

    def begin(self, count: int) -> ChunkMemory:
        self._episode, self._step = np.zeros(count, int), np.zeros(count, int)
        policy = self._chooser.policy
        self._chosen = np.zeros((count, policy.spec.horizon, len(policy.spec.actions)), np.float32)
        return self._actor.begin(count)

    def act(
        self, obs: Mapping[str, Any], memory: ChunkMemory, first: np.ndarray, *, explore: bool
    ) -> tuple[Any, ChunkMemory]:
        at = memory.at.copy()
        for e in np.flatnonzero(first):
            self._episode[e], self._step[e], self._begun = self._begun, 0, self._begun + 1
        told = {}  # nothing is looked at meanwhile
        for e, (episode, step) in enumerate(zip(self._episode.tolist(), self._step.tolist(), strict=True)):
            after = step - len(self._trunks[episode])
            if after == 0:
                self._chosen[e] = self._chunk(obs, e, episode)
            if after < len(self._chosen[e]):
                told[e], at[e] = self._trunks[episode][step] if after < 0 else self._chosen[e][after], 0
            elif after == len(self._chosen[e]):
                at[e] = self._actor.execute  # looks again
        actions, memory = self._actor.act(obs, replace(memory, at=at), np.zeros(len(first), bool))
        for e, action in told.items():
            actions[e] = action
        self._step += 1
        return actions, memory

    def _chunk(self, obs: Mapping[str, Any], e: int, episode: int) -> np.ndarray:
        branch, seed = self._branches[episode]
        policy = self._chooser.policy
        with torch.no_grad():
            context = policy.look(self._actor.look(obs, np.array([e])))
            drawn = candidates(policy, context, self._count, self._deviation, torch.Generator().manual_seed(seed))
            self.scores[episode] = float(self._chooser.rank(context, drawn)[0, branch])
        return self._actor.scaled(policy.action.backward(drawn[:, branch].cpu()))[0]


def rank(
    arena: Arena, chooser: BestOfN, execute: int, *, moments: int, chunks: int, deviation: float, seed: int
) -> dict[str, Any]:
    """Execute several chunks at some moments, and see whether the critic knew what would come of them.

    Returns:
        `auroc`, the mean over moments at which some chunks led to success and some did not (None without any), `mixed`,
        how many those are; over the same moments success of the policy's `own` chunk, of one at `random`, of the
        critic's `best`; and `table`, rows of scores and successes of every moment.
    """
    rng = np.random.default_rng((seed, RANKED))
    seeds = [seed + RANKED + k for k in range(moments)]
    stage = arena.stage(chooser.policy, moments * chunks)
    try:
        with tqdm(total=moments * (chunks + 1), desc="ranking", unit="episode", leave=False) as bar:
            actor = arena.actor(chooser.policy, stage, execute)
            played = play(actor, stage, seeds, tick=bar.update)
            trunks, branches = [], []
            for each in played:
                end = each.steps if each.steps is not None else len(each.actions)
                trunk = _scaled(each, stage)[: execute * int(rng.integers(max(end // execute, 1)))]
                trunks += [trunk] * chunks
                branches += [(branch, each.seed) for branch in range(chunks)]
            branching = Branching(actor, chooser, trunks, branches, count=chunks, deviation=deviation)
            again = [start for start in seeds for _ in range(chunks)]
            found = play(branching, stage, again, tick=bar.update)
    finally:
        stage.close()
    return ranked(
        branching.scores.reshape(moments, chunks), np.array([bool(each.success) for each in found]).reshape(moments, -1)
    )


def _scaled(played: Played, stage: RolloutWorlds) -> np.ndarray:
    """An episode's actions in [-1, 1]."""
    return (2 * (played.actions - stage.low) / (stage.high - stage.low) - 1).astype(np.float32)


def ranked(scores: np.ndarray, success: np.ndarray) -> dict[str, Any]:
    """What `rank` returns, from scores (S, M) and successes (S, M) bool; the first chunk is the policy's own."""
    mixed = success.any(1) & ~success.all(1)
    found: dict[str, Any] = {"moments": len(scores), "mixed": int(mixed.sum()), "auroc": None}
    if mixed.any():
        each = [auroc(s, y) for s, y in zip(scores[mixed], success[mixed], strict=True)]
        chosen = success[mixed][np.arange(mixed.sum()), scores[mixed].argmax(1)]
        found |= {
            "auroc": float(np.mean(each)), "own": float(success[mixed][:, 0].mean()),
            "random": float(success[mixed].mean()), "best": float(chosen.mean()),
        }  # fmt: skip
    table = [{"scores": s.tolist(), "success": y.tolist()} for s, y in zip(scores, success, strict=True)]
    return found | {"table": table}
