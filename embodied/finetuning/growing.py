"""More to imitate than was demonstrated: the policy's own solved tries, and an expert's corrections of its mistakes.

    rollouts      starts where the policy fails are tried again with noise; what the success reward accepts, from
                  pixels, is imitated too
    corrections   the policy acts, then the scripted expert takes over from wherever that led, unless it led to success;
                  what the expert did is imitated too (DAgger's idea, Ross et al., arXiv 1011.0686, by episodes)

Both write LeRobot datasets below the run's folder, so they are read, encoded and labelled like any others. A person's
corrections enter the same way, as one more dataset: data=[demos/place,corrections/mine].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embodied.datasets import Writer
from embodied.envs.experts import done, expert, has_expert
from embodied.errors import UserError
from embodied.finetuning.judging import PLANNED, Arena
from embodied.finetuning.labels import SOLVED, Teacher
from embodied.finetuning.rollouts import Played, RolloutWorlds, play
from policies.vla.core import ChunkPolicy
from rewards.progress import tqdm

STATE = "observation.state"
SPARE = 0.6  # of an episode, at most, that the policy acts before the expert takes over


class Handover:
    """An actor that hands over to each world's expert after so many steps; the expert reads privileged state.

    Where the task is solved by then there is nothing to correct, and the actor goes on.

    Args:
        actor: acts first.
        stage: the worlds.
        after: steps until the expert takes over, by the order in which episodes begin.

    Attributes:
        taken: whether the expert took over, by that order, as far as episodes have come.

    Raises:
        UserError: worlds without an expert.
    """

    def __init__(self, actor: Any, stage: RolloutWorlds, after: Sequence[int]) -> None:
        self._worlds: list[Any] = [env.unwrapped for env in stage.envs]
        if not all(has_expert(world) for world in self._worlds):
            raise UserError(
                "stages=[corrections] needs a world with a scripted expert, as the desk, the town, Meta-World and "
                "LIBERO have. A person's corrections enter as a dataset: data=[demos,corrections]."
            )
        self._actor, self._after = actor, list(after)
        self.taken: list[bool] = []

    def begin(self, count: int) -> Any:
        self._episode: list[int] = [0] * count  # which of all, in each world
        self._steps: list[int] = [0] * count
        self._experts: list[Any] = [None] * count
        return self._actor.begin(count)

    def act(self, obs: Mapping[str, Any], memory: Any, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Any]:
        actions, memory = self._actor.act(obs, memory, first, explore=explore)
        for e in np.flatnonzero(first):
            self._episode[e], self._steps[e], self._experts[e] = len(self.taken), 0, None
            self.taken.append(False)
        for e, world in enumerate(self._worlds[: len(actions)]):
            if self._steps[e] == self._after[self._episode[e]] and not done(world):
                self._experts[e] = expert(world)
                self.taken[self._episode[e]] = True
            if self._experts[e] is not None:
                actions[e] = self._experts[e](world)
            self._steps[e] += 1
        return actions, memory


def own_tries(
    arena: Arena, policy: ChunkPolicy, execute: int, teacher: Teacher, *, starts: int, tries: int, noise: float,
    seed: int, root: Path, refused: Path,
) -> dict[str, Any]:  # fmt: skip
    """Play new starts as the policy does, try those that fail again with noise, and write what is accepted.

    What was not is written too, apart, for critics to learn from.

    The success reward says from pixels which starts failed and which tries succeeded; the truth is only counted.

    Returns:
        `starts`, `failed`, `tries`, `accepted`, and `wrongly` (accepted and not true; None where that is unknown).
    """
    seeds = range(seed + PLANNED, seed + PLANNED + starts)
    stage = arena.stage(policy, starts)
    failed, accepted = list[int](), list[Played]()

    def solved(each: Played) -> bool:
        return teacher.word(each.frames, stage.instruction) == SOLVED

    def first(each: Played) -> None:
        if not solved(each):
            failed.append(each.seed)
            others.add(each)

    def again(each: Played) -> None:
        if solved(each):
            accepted.append(replace(each, frames={}))
            own.add(each)
        else:
            others.add(each)

    try:
        with Episodes(root, policy, stage, "own") as own, Episodes(refused, policy, stage, "refused") as others:
            with tqdm(total=starts, desc="own starts", unit="episode", leave=False) as bar:
                play(arena.actor(policy, stage, execute), stage, seeds, ended=first, tick=bar.update)
            retried = [start for start in sorted(failed) for _ in range(tries)]
            if retried:
                with tqdm(total=len(retried), desc="tries", unit="episode", leave=False) as bar:
                    actor = arena.actor(policy, stage, execute, noise=noise, seed=seed)
                    play(actor, stage, retried, explore=True, ended=again, tick=bar.update)
    finally:
        stage.close()
    return {"starts": starts, "failed": len(failed), "tries": len(retried)} | _counted(accepted)


def corrected(
    arena: Arena, policy: ChunkPolicy, execute: int, teacher: Teacher | None, *, starts: int, seed: int, root: Path
) -> dict[str, Any]:
    """Let the policy act for a while from new starts, and the expert from there on; the expert's part is written.

    Returns:
        `starts`, `corrected` (not solved by then), `accepted` of those by the success reward (all, without one), and
        `wrongly`, as `own_tries`.
    """
    rng = np.random.default_rng((seed, PLANNED))
    seeds = range(seed + PLANNED, seed + PLANNED + starts)
    stage = arena.stage(policy, starts)
    try:
        limit = int(getattr(stage.envs[0].spec, "max_episode_steps", None) or 100)
        after = rng.integers(1, max(int(SPARE * limit), 2), size=starts).tolist()
        accepted: list[Played] = []
        actor = Handover(arena.actor(policy, stage, execute), stage, after)  # episodes begin in the order of seeds

        def ended(each: Played) -> None:
            if not actor.taken[seeds.index(each.seed)]:
                return
            if teacher is None or teacher.word(each.frames, stage.instruction) == SOLVED:
                accepted.append(replace(each, frames={}))
                corrections.add(each, after[seeds.index(each.seed)])

        with (
            Episodes(root, policy, stage, "correction") as corrections,
            tqdm(total=starts, desc="corrections", unit="episode", leave=False) as bar,
        ):
            play(actor, stage, seeds, ended=ended, tick=bar.update)
    finally:
        stage.close()
    return {"starts": starts, "corrected": sum(actor.taken)} | _counted(accepted)


def summed(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of several worlds as one; None where one of them does not know.

    Args:
        found: what `own_tries` or `corrected` returned in each.
    """
    told = {key: [each[key] for each in found] for key in found[0]}
    return {key: None if None in counts else sum(counts) for key, counts in told.items()}


def _counted(accepted: Sequence[Played]) -> dict[str, Any]:
    known = [each.success for each in accepted if each.success is not None]
    wrongly = sum(not success for success in known) if len(known) == len(accepted) else None
    return {"accepted": len(accepted), "wrongly": wrongly}


class Episodes(AbstractContextManager["Episodes"]):
    """A LeRobot dataset of episodes, begun with the first of them; nothing where there is none.

    Args:
        root: its folder.
        policy: whose readings, actions and cameras it holds.
        stage: the worlds.
        kind: of the episodes.
    """

    def __init__(self, root: Path, policy: ChunkPolicy, stage: RolloutWorlds, kind: str) -> None:
        self._root, self._spec, self._stage, self._kind = root, policy.spec, stage, kind
        self._open = ExitStack()
        self._writer: Writer | None = None

    def add(self, played: Played, first: int = 0) -> None:
        """Write an episode from its row `first` on."""
        if self._writer is None:
            spec = self._spec
            numbers = {STATE: spec.states, "action": spec.actions}
            features = {
                name: {"dtype": "float32", "shape": [len(names)], "names": list(names)}
                for name, names in numbers.items()
                if names
            }
            cameras = dict(spec.frames)
            self._writer = self._open.enter_context(
                Writer(self._root, fps=round(spec.fps), features=features, cameras=cameras)
            )
        first = min(first, len(played.actions) - 1)
        columns = {"action": played.actions[first:]}
        last: dict[str, np.ndarray] = {name: images[-1] for name, images in played.frames.items()}
        if self._spec.states:
            columns[STATE], last[STATE] = played.states[first:], played.last
        frames = {name: images[first:-1] for name, images in played.frames.items()}
        told, kind = self._stage.instruction, self._kind
        self._writer.add(columns, frames, instruction=told, last=last, kind=kind, seed=played.seed)

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)
