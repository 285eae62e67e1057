"""How good policies are, on the same starts: success and steps to it, with intervals and paired tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from torch import Tensor

from embodied.files import write_text
from embodied.finetuning.rollouts import Played, RolloutWorlds, play
from embodied.training.evaluation import Evaluation
from embodied.training.worth import Ended
from policies.vla.actor import ChunkActor
from policies.vla.choosing import BestOfN
from policies.vla.core import ChunkPolicy
from rewards.metrics import mcnemar, wilson_interval
from rewards.progress import tqdm

CHOOSING = 1_000_000  # added to a run's seed: starts on which the number of executed steps is chosen
DECIDING = 3_000_000  # starts on which a policy that practised in a learned world is kept or not
PLANNED = 4_000_000  # starts of its own rollouts, which it learns from
LEVEL = 0.05  # of the paired test
# evaluation.FINAL, 2,000,000: starts that choose nothing and teach nothing


@dataclass(frozen=True)
class Arena:
    """Where policies of one run are tried.

    Attributes:
        make: makes one world.
        eyes: camera -> pictures to maps.
        say: sentences to vectors or tokens.
        worlds: at once.
        instruction: the sentence; None: the world's own.
        name: of the world, where a run has several.
    """

    make: Callable[[], gymnasium.Env]
    eyes: Mapping[str, Callable[[np.ndarray], Tensor]]
    say: Callable[[Sequence[str]], Tensor]
    worlds: int
    instruction: str | None = None
    name: str = ""

    def told(self) -> str:
        """The sentence that a policy is told here."""
        if self.instruction is not None:
            return self.instruction
        env = self.make()
        try:
            return str(getattr(env.unwrapped, "instruction", ""))
        finally:
            env.close()

    def stage(self, policy: ChunkPolicy | BestOfN, count: int) -> RolloutWorlds:
        """Worlds that show what a policy reads; close them."""
        spec = policy.spec
        cameras = {name: spec.frames[name] for name in spec.cameras}
        return RolloutWorlds(
            self.make, min(self.worlds, count), cameras=cameras, states=spec.states, actions=len(spec.actions),
            instruction=self.instruction,
        )  # fmt: skip

    def actor(
        self,
        policy: ChunkPolicy | BestOfN,
        stage: RolloutWorlds,
        execute: int,
        *,
        noise: float = 0.0,
        seed: int = 0,
        **how: Any,
    ) -> ChunkActor:
        """The policy, acting; `how` of `ChunkActor`."""
        return ChunkActor(
            policy, lambda name, frames: self.eyes[name](frames), self.say, low=stage.low, high=stage.high,
            execute=execute, noise=noise, seed=seed, **how,
        )  # fmt: skip

    def play(
        self,
        policy: ChunkPolicy | BestOfN,
        execute: int,
        seeds: Sequence[int],
        *,
        desc: str,
        film: Sequence[int] = (),
        **how: Any,
    ) -> list[Played]:
        """One episode a start, with a bar; `how` of `ChunkActor`."""
        stage = self.stage(policy, len(seeds))
        try:
            with tqdm(total=len(seeds), desc=desc, unit="episode", leave=False) as bar:
                played = play(self.actor(policy, stage, execute, **how), stage, seeds, film=film, tick=bar.update)
                return [replace(each, world=self.name) for each in played]
        finally:
            stage.close()


def play_all(
    arenas: Sequence[Arena], policy: ChunkPolicy | BestOfN, execute: int, seeds: Sequence[int], *, desc: str, **how: Any
) -> list[Played]:
    """One episode a start in each world, world by world; `how` of `Arena.play`."""
    return [
        each
        for arena in arenas
        for each in arena.play(policy, execute, seeds, desc=" ".join(filter(None, (desc, arena.name))), **how)
    ]


def candidates(horizon: int) -> list[int]:
    """How many steps of a chunk could be executed: all, half, a quarter … one."""
    found = [horizon]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


def choose_execute(
    arenas: Sequence[Arena], policy: ChunkPolicy | BestOfN, seeds: Sequence[int], file: Path, *, desc: str
) -> int:
    """The number of executed steps with the most success on validation starts; of equals, the larger (it looks less);
    where the world does not tell success, all of the chunk.

    What was tried is kept in `file`, with the success of each, so that a run that was stopped does not try it again.
    """
    tried: dict[int, float] = {}
    if file.is_file():
        tried = {int(key): value for key, value in json.loads(file.read_text("utf-8")).items()}
    for execute in candidates(policy.spec.horizon):
        if execute not in tried:
            played = play_all(arenas, policy, execute, seeds, desc=f"{desc}, {execute} steps")
            known = [each.success for each in played if each.success is not None]
            if not known:
                return policy.spec.horizon
            tried[execute] = float(np.mean(known))
            write_text(file, json.dumps(tried) + "\n")
    return max(tried, key=lambda execute: (tried[execute], execute))


def as_rows(played: Sequence[Played]) -> list[dict[str, Any]]:
    """Episodes as JSON values."""
    return [
        {"seed": each.seed, "success": each.success, "ever": each.ever, "steps": each.steps,
         "env_reward": each.env_return, "length": len(each.rewards)} | ({"world": each.world} if each.world else {})
        for each in played
    ]  # fmt: skip


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `Evaluation.summary` tells, and `ever_rate`, and the median `steps_to_success` of those that succeeded."""
    episodes = [Ended(0, np.array([row["env_reward"]]), row["env_reward"], row["success"]) for row in rows]
    found = Evaluation(episodes).summary()
    ever = [row["ever"] for row in rows if row["ever"] is not None]
    steps = [row["steps"] for row in rows if row["steps"] is not None]
    found["ever_rate"] = float(np.mean(ever)) if ever else None
    found["steps_to_success"] = float(np.median(steps)) if steps else None
    return found


def by_world(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each world, by its name; empty where there is one world alone."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("world"):
            found.setdefault(str(row["world"]), []).append(row)
    return found


def compare(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Two policies on the same starts; None where success is unknown.

    Returns:
        `better`, `worse` (starts that one alone solves), `p` (McNemar, exact), `difference` of success; and of the
        starts that both solve, `both` and the mean `steps` saved with its 95 % interval.
    """
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if None not in (a["success"], b["success"])]
    if not pairs:
        return None
    if any((a["seed"], a.get("world")) != (b["seed"], b.get("world")) for a, b in pairs):
        raise ValueError("compare: both must have played the same starts, in the same order.")
    better = sum(b["success"] and not a["success"] for a, b in pairs)
    worse = sum(a["success"] and not b["success"] for a, b in pairs)
    saved = np.array([a["steps"] - b["steps"] for a, b in pairs if a["success"] and b["success"]], float)
    half = 1.96 * saved.std(ddof=1) / len(saved) ** 0.5 if len(saved) > 1 else 0.0
    mean = float(saved.mean()) if len(saved) else None
    return {
        "starts": len(pairs),
        "better": int(better),
        "worse": int(worse),
        "difference": (better - worse) / len(pairs),
        "p": mcnemar(int(better), int(worse)),
        "both": len(saved),
        "steps_saved": mean,
        "steps_saved_interval": None if mean is None else [mean - half, mean + half],
    }


def better(compared: Mapping[str, Any]) -> bool:
    """Whether the paired test says that the second is better."""
    return compared.get("p") is not None and compared["p"] < LEVEL and compared["better"] > compared["worse"]


def worse(compared: Mapping[str, Any]) -> bool:
    """Whether the paired test says that the second is worse."""
    return compared.get("p") is not None and compared["p"] < LEVEL and compared["worse"] > compared["better"]


def verdict(compared: Mapping[str, Any] | None) -> str:
    """A comparison in words: better only where the paired test says so."""
    if compared is None or compared.get("p") is None:
        return "The world does not tell success: nothing can be said."
    p, better, worse = compared["p"], compared["better"], compared["worse"]
    told = f"{better} starts gained, {worse} lost of {compared['starts']} (McNemar p = {p:.2g})"
    if p < LEVEL:
        return f"{'Better' if better > worse else 'Worse'}: {told}."
    return f"No difference that the paired test sees: {told}."


def told_steps(compared: Mapping[str, Any]) -> str:
    """How many steps the second needs beside the first, in words, where both succeed.

    Args:
        compared: of `compare`, with `steps_saved`.
    """
    more = -compared["steps_saved"]
    low, high = (-each for each in compared["steps_saved_interval"][::-1])
    return (
        f"On the {compared['both']} starts that both solve it takes {abs(more):.1f} steps "
        f"{'more' if more > 0 else 'fewer'} (95 %: {low:+.1f} to {high:+.1f})."
    )


def told_rate(rows: Sequence[Mapping[str, Any]]) -> str:
    """Success in words, with its interval."""
    known = [bool(row["success"]) for row in rows if row["success"] is not None]
    if not known:
        return f"{len(rows)} episodes; this world does not tell success"
    low, high = wilson_interval(sum(known), len(known))
    return f"{np.mean(known):.0%} ({100 * low:.0f} to {100 * high:.0f}) of {len(known)} starts"
