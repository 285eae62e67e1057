"""Episodes of a policy: what is held of them while many are played."""

from functools import partial

import numpy as np
import pytest

from embodied.datasets import Dataset
from embodied.envs.bridge import make
from embodied.envs.experts import expert
from embodied.finetuning.growing import Episodes, Handover
from embodied.finetuning.rollouts import RolloutWorlds, play
from policies.vla.core import ChunkPolicy, Spec
from policies.vla.stats import Normaliser

STEPS = 4


class Still:
    """Does nothing."""

    def begin(self, count):
        return None

    def act(self, obs, memory, first, *, explore):
        return np.zeros((len(first), 4), np.float32), memory


@pytest.fixture
def stage():
    made = RolloutWorlds(
        partial(make, "embodied/desk-reach-v0", max_episode_steps=STEPS), 2, cameras={"front": (32, 32)}, states=(),
        actions=4,
    )  # fmt: skip
    yield made
    made.close()


def test_frames_are_shown_as_an_episode_ends_and_held_no_longer(stage):
    """All episodes' frames were held until the last had ended: 60 of two cameras took 1.6 GB."""
    shown = []

    def ended(each):
        shown.append((each.seed, each.frames["front"].shape, each.success))

    played = play(Still(), stage, range(5), ended=ended)
    assert sorted(seed for seed, _, _ in shown) == [each.seed for each in played] == list(range(5))
    assert {shape for _, shape, _ in shown} == {(STEPS + 1, 32, 32, 3)}
    assert all(not each.frames and len(each.actions) == STEPS for each in played)
    assert not any(each.frames for each in play(Still(), stage, range(2)))


def test_a_dataset_of_episodes_begins_with_the_first(stage, tmp_path):
    spec = Spec(
        cameras={"front": 1}, states=(), actions=("x", "y", "z", "grip"), text=1, horizon=1, fps=20.0,
        frames={"front": (32, 32)},
    )  # fmt: skip
    none = Normaliser.fit(np.zeros((2, 0)), "none", names=())
    policy = ChunkPolicy(spec, none, Normaliser.fit(np.zeros((2, 4)), "none", names=spec.actions))
    with Episodes(tmp_path / "none", policy, stage, "own"):
        pass
    assert not (tmp_path / "none").exists()
    with Episodes(tmp_path / "some", policy, stage, "own") as own:
        play(Still(), stage, range(3), ended=lambda each: own.add(each, first=each.seed))
    data = Dataset(tmp_path / "some")
    assert sorted(data.length(i) for i in range(3)) == [STEPS - 2, STEPS - 1, STEPS]
    assert {data.kind(i) for i in range(3)} == {"own"}


class Scripted:
    """Each world's expert, or nothing in the worlds of which it is told so."""

    def __init__(self, stage, still):
        self.worlds, self.still = [env.unwrapped for env in stage.envs], still

    def begin(self, count):
        self.experts = [None] * count
        return None

    def act(self, obs, memory, first, *, explore):
        for e in np.flatnonzero(first):
            self.experts[e] = expert(self.worlds[e])
        acting = [e not in self.still for e in range(len(first))]
        acted = [self.experts[e](self.worlds[e]) if acting[e] else np.zeros(4) for e in range(len(first))]
        return np.array(acted, np.float32), memory


@pytest.mark.parametrize("world", ["embodied/desk-place-v0", "metaworld/reach-v3"])
def test_the_expert_takes_over_where_the_task_is_not_solved_by_then(world):
    """Once it took the cube out of the tray to put it there again, and that was imitated."""
    if world.startswith("metaworld"):
        pytest.importorskip("metaworld")
    stage = RolloutWorlds(partial(make, world, max_episode_steps=200), 2, cameras={}, states=(), actions=4)
    try:
        after = 60
        actor = Handover(Scripted(stage, still={1}), stage, [after, after])
        solved, stuck = play(actor, stage, range(2))
    finally:
        stage.close()
    assert actor.taken == [False, True]
    assert solved.success
    assert solved.steps < after
    assert stuck.success
    assert stuck.steps > after
