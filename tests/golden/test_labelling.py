"""One frame, one number: the wrapper, the labeller, evaluation and offline scoring agree on the same frames."""

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit

from embodied.envs.vector import WorldVecEnv
from embodied.envs.wrappers import ScoredEnv
from embodied.scoring import Layout
from embodied.training import evaluation
from embodied.training.collector import Collector
from embodied.training.labeller import Labeller
from embodied.training.perception import Perception
from rewards.clip_goal import clip_scorer
from rewards.combine import WeightedSum
from rewards.core import Features, Scorer
from rewards.encoders import OpenCLIPEncoder
from rewards.shaping import PotentialShaping
from tests.actors import Right, Wanders
from tests.probe_rewards import ProbeEncoder, ProbeHead, ShadeHead
from tests.probes import ProbeWorld, make_probe

SIZE, STEPS, LIMIT = 16, 22, 5


class Recorded(ProbeWorld):
    """Keeps every frame that was asked for, in order, by episode."""

    def reset(self, **kwargs):
        self.frames = [*getattr(self, "frames", []), []]
        return super().reset(**kwargs)

    def frame(self, camera=None, image_size=SIZE):
        frame = super().frame(camera, image_size)
        self.frames[-1].append(frame)
        return frame


def make_recorded(end=None):
    return TimeLimit(Recorded(end=end), LIMIT)


def scorers(tiny_clip, precision="fp32"):
    heads = {"probe": ProbeHead(), "shade": ShadeHead()}
    encoder = OpenCLIPEncoder(tiny_clip, precision=precision, device="cpu")
    goal = {"goal": "the drawer is open", "baseline": "a robot arm at a desk"}
    return {
        "remembering": Scorer(ProbeEncoder(), heads, WeightedSum({"probe": 2.0, "shade": -1.0}), PotentialShaping()),
        "difference": Scorer(ProbeEncoder(), heads, WeightedSum(), PotentialShaping(kind="difference", discount=0.9)),
        "clip": clip_scorer(encoder=encoder, **goal),
        "clip difference": clip_scorer(encoder=encoder, **goal, shaping={"kind": "difference", "scale": 10.0}),
    }


@pytest.mark.parametrize("name", ["remembering", "difference", "clip", "clip difference"])
@pytest.mark.parametrize("end", [None, 3])
def test_every_door_gives_the_same_number(tiny_clip, name, end):
    scorer = scorers(tiny_clip)[name]
    venv = WorldVecEnv(partial(make_recorded, end), 2, seed=3, frame_size=scorer.encoder.image_size[0])
    collector = Collector(venv, partial(Perception, scorer.encoder, form="state"), batch_size=3)
    labeller, labelled, actions = Labeller(scorer, collector.layout, 2), [], []
    for steps in (4, 4, 5, 9):
        collected = collector.collect(Wanders(), steps)
        labelled.extend(labeller.label(collected).reward)
        actions.extend(collected.rollout.action)
    labelled, actions = np.array(labelled), np.array(actions)
    offline, frames = [], venv.get_attr("frames")
    for e in range(2):
        offline.append([])
        for episode in frames[e]:
            views = {"main": scorer.encode(torch.from_numpy(np.stack(episode)))[None]}
            terminated = torch.zeros(1, len(episode) - 1, dtype=torch.bool)
            if end is not None and len(episode) == end + 1:
                terminated[0, -1] = True
            offline[e].extend(scorer.rewards(Features(views=views), terminated)[0].tolist())
    collector.close()
    expected = np.array([each[:STEPS] for each in offline]).T
    np.testing.assert_allclose(labelled, expected, atol=1e-5)

    # the same actions in the same world, scored one step at a time
    wrapped = ScoredEnv(make_recorded(end), scorer)
    wrapped.reset(seed=3)
    for t, action in enumerate(actions[:, 0]):
        _, reward, terminated, truncated, info = wrapped.step(action)
        assert reward == pytest.approx(expected[t, 0], abs=1e-5)
        assert info["env_reward"] == t % (end or LIMIT) + 1
        assert {f"reward/{head}" for head in scorer.heads} <= set(info)
        if terminated or truncated:
            wrapped.reset()


def test_a_frame_from_after_the_reset_would_be_noticed(tiny_clip):
    """Negative control: one frame off at the episode's end moves the reward far beyond the tolerance."""
    for scorer in scorers(tiny_clip).values():
        world = ProbeWorld()
        world.reset(seed=0)
        episode = [world.frame()] + [(world.step([0.5]), world.frame())[1] for _ in range(LIMIT)]
        world.reset()
        late = [*episode[:-1], world.frame()]
        right, wrong = (
            scorer.rewards(
                Features(views={"main": scorer.encode(torch.from_numpy(np.stack(each)))[None]}),
                torch.zeros(1, LIMIT, dtype=torch.bool),
            )
            for each in (episode, late)
        )
        assert (right[0, :-1] - wrong[0, :-1]).abs().max() < 1e-5
        assert (right[0, -1] - wrong[0, -1]).abs() > 1e-3


def test_evaluation_and_its_film_agree(tiny_clip):
    for scorer in scorers(tiny_clip).values():
        worlds = WorldVecEnv(partial(make_probe, limit=LIMIT), 2, seed=50, frame_size=scorer.encoder.image_size[0])
        collector = Collector(worlds, partial(Perception, scorer.encoder, form="state"))
        result = evaluation.evaluate(Right(), collector, Labeller(scorer, Layout(), 2, watches=False), 3)
        collector.close()
        assert len(result.episodes) == 3
        world = make_probe(limit=LIMIT)
        episode, pictures = evaluation.film(Right(), world, collector.perception, seed=50, scorer=scorer)
        np.testing.assert_allclose(episode.rewards, result.episodes[0].rewards, atol=1e-5)
        assert (episode.success, episode.env_return) == (result.episodes[0].success, result.episodes[0].env_return)
        assert [ProbeWorld.read(picture)[2] for picture in pictures] == list(range(LIMIT + 1))
