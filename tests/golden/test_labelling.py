"""One frame, one number: the wrapper, the labeller, evaluation and offline scoring agree on the same frames."""

from functools import partial

import numpy as np
import pytest
import torch
from embodied.labeller import Labeller
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO, SAC

from embodied import evaluation
from embodied.envs.vector import WorldVecEnv
from embodied.envs.wrappers import ScoredEnv
from rewards.clip_goal import clip_scorer
from rewards.combine import WeightedSum
from rewards.core import Features, Scorer
from rewards.encoders import OpenCLIPEncoder
from rewards.shaping import PotentialShaping
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
@pytest.mark.parametrize("algorithm", [SAC, PPO])
def test_every_door_gives_the_same_number(tiny_clip, name, end, algorithm):
    scorer = scorers(tiny_clip)[name]
    venv = WorldVecEnv(partial(make_recorded, end), 2, seed=3, frame_size=scorer.encoder.image_size[0])
    common = {"seed": 3, "device": "cpu", "policy_kwargs": {"net_arch": [4]}}
    if algorithm is SAC:
        model = SAC("MlpPolicy", venv, learning_starts=10_000, train_freq=4, **common)
    else:
        model = PPO("MlpPolicy", venv, n_steps=STEPS, batch_size=STEPS, n_epochs=1, gamma=0.9, **common)
    labeller = Labeller(scorer, batch_size=3)
    model.learn(2 * STEPS, callback=labeller, log_interval=None)
    labeller.close()
    buffer = model.replay_buffer if algorithm is SAC else model.rollout_buffer
    labelled = buffer.rewards[:STEPS].copy()
    actions = buffer.actions[:STEPS] if algorithm is SAC else None
    offline, frames = [], venv.get_attr("frames")
    for e in range(2):
        offline.append([])
        for episode in frames[e]:
            views = {"main": scorer.encode(torch.from_numpy(np.stack(episode)))[None]}
            terminated = torch.zeros(1, len(episode) - 1, dtype=torch.bool)
            if end is not None and len(episode) == end + 1:
                terminated[0, -1] = True
            offline[e].extend(scorer.rewards(Features(views=views), terminated)[0].tolist())
    venv.close()
    expected = np.array([each[:STEPS] for each in offline]).T
    if algorithm is PPO and end is None:  # SB3 has added the value of the state where the time limit cut
        limit = np.arange(1, STEPS + 1) % LIMIT == 0
        assert np.abs(labelled[limit] - expected[limit]).max() > 1e-5
        labelled, expected = labelled[~limit], expected[~limit]
    np.testing.assert_allclose(labelled, expected, atol=1e-5)

    if actions is not None:  # the same actions in the same world, scored one step at a time
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


class Right:
    """Pushes right, always."""

    def predict(self, observation, *, deterministic):
        return np.ones((len(observation), 1) if observation.ndim == 2 else (1,), np.float32), None


def test_evaluation_and_its_film_agree(tiny_clip):
    for scorer in scorers(tiny_clip).values():
        venv = WorldVecEnv(partial(make_probe, limit=LIMIT), 2, frame_size=scorer.encoder.image_size[0])
        result = evaluation.evaluate(Right(), venv, 3, seed=50, scorer=scorer)
        venv.close()
        assert len(result.episodes) == 3
        episode, pictures = evaluation.film(Right(), make_probe(limit=LIMIT), seed=50, scorer=scorer)
        np.testing.assert_allclose(episode.rewards, result.episodes[0].rewards, atol=1e-5)
        assert (episode.success, episode.env_reward) == (result.episodes[0].success, result.episodes[0].env_reward)
        assert [ProbeWorld.read(picture)[2] for picture in pictures] == list(range(LIMIT + 1))
