"""Two views, readings, images and depth: the same numbers at every door, from a world stepped by hand."""

from functools import partial

import numpy as np
import pytest
import torch

from embodied.envs.vector import WorldVecEnv
from embodied.envs.worker import WorldError
from embodied.envs.wrappers import ScoredEnv
from embodied.training import checkpoints, evaluation
from embodied.training.collector import Collector
from embodied.training.experience import score_replay
from embodied.training.labeller import Labeller
from embodied.training.log import RunLog
from embodied.training.loop import Training, train
from embodied.training.perception import Perception
from policies import sb3
from rewards.combine import WeightedSum
from rewards.core import Features, Scorer
from rewards.shaping import PotentialShaping
from tests.actors import Right
from tests.probe_rewards import ImageHead, ProbeEncoder, ShadeHead, TwoEyedHead
from tests.probes import SIZE, TwoEyedWorld, make_probe, make_two_eyed

STEPS, LIMIT, VIEWS = 24, 5, ("left", "right")


def make_scorer(read="none"):
    heads = {"eyes": TwoEyedHead(), "shade": ShadeHead()} | ({} if read == "none" else {"image": ImageHead(read)})
    return Scorer(ProbeEncoder(), heads, WeightedSum(), PotentialShaping(kind="difference", discount=0.9))


def make_venv(scorer, workers=0, seed=3):
    depth = scorer.frames_read != "none"
    return WorldVecEnv(make_two_eyed, 2, seed=seed, frame_size=SIZE, cameras=VIEWS, depth=depth, workers=workers)


def make_training(scorer, venv):
    perceive = partial(Perception, scorer.encoder, form="state")
    collector = Collector(venv, perceive, frames_read=scorer.frames_read, batch_size=5)
    spaces = (venv.observation_space, venv.action_space)
    settings = {"learning_starts": 10_000, "rollout_steps": 4, "buffer_size": 200, "network": [4], "device": "cpu"}
    learner = sb3.sac(*spaces, num_worlds=2, total_steps=48, seed=3, **settings)
    rewards = Labeller(scorer, collector.layout, 2)
    return Training.of(collector, rewards, learner, demos=None, total=48, seed=3)


def evaluated(scorer, venv, episodes):
    collector = Collector(venv, partial(Perception, scorer.encoder, form="state"), frames_read=scorer.frames_read)
    result = evaluation.evaluate(Right(), collector, Labeller(scorer, collector.layout, 2, watches=False), episodes)
    collector.close()
    return result, collector.perception


@pytest.fixture
def log(tmp_path):
    made = RunLog(tmp_path)
    yield made
    made.close()


def by_hand(scorer, actions, seed):
    """Rewards of the actions (T, 1) in a world of that seed, from its frames, depth and readings alone."""
    world, rewards = TwoEyedWorld(), []
    for start in range(0, len(actions), LIMIT):
        world.reset(seed=seed if start == 0 else None)
        frames, signals = {name: [] for name in VIEWS}, []
        depth = {name: torch.from_numpy(world.depth(name))[None] for name in VIEWS}
        for action in [None, *actions[start : start + LIMIT]]:
            if action is not None:
                world.step(action)
            for name in VIEWS:
                frames[name].append(world.frame(name))
            signals.append(world.signals())
        images = {name: torch.from_numpy(np.stack(seen))[None] for name, seen in frames.items()}
        count = {"none": 0, "first": 1, "all": len(signals)}[scorer.frames_read]
        features = Features(
            views={name: scorer.encode(seen[0])[None] for name, seen in images.items()},
            signals={name: torch.tensor([[float(each[name]) for each in signals]]) for name in signals[0]},
            frames={name: seen[:, :count] for name, seen in images.items()} if count else {},
            depth=depth if count else {},
        )
        rewards.extend(scorer.rewards(features, torch.zeros(1, len(signals) - 1, dtype=torch.bool))[0].tolist())
    return np.array(rewards)


@pytest.mark.parametrize(("read", "workers"), [("none", 0), ("first", 0), ("all", 0), ("first", 2)])
def test_every_door_gives_the_same_number(read, workers, log):
    scorer = make_scorer(read)
    training = make_training(scorer, make_venv(scorer, workers))
    train(training, 2 * STEPS, log)
    training.collector.close()
    actions, labelled = training.replay.arrays()[0]["action"], training.replay.reward
    assert len(labelled) == STEPS
    assert scorer.encoder.frames == 2 * 2 * (STEPS + 1 + STEPS // LIMIT)  # each frame of each view once
    for e in range(2):
        np.testing.assert_allclose(labelled[:, e], by_hand(scorer, actions[:, e], seed=3 + e), atol=1e-5)

    wrapped = ScoredEnv(make_two_eyed(), scorer, VIEWS)
    wrapped.reset(seed=3)
    for t, action in enumerate(actions[:, 0]):
        _, reward, terminated, truncated, _ = wrapped.step(action)
        assert reward == pytest.approx(labelled[t, 0], abs=1e-5)
        if terminated or truncated:
            wrapped.reset()


@pytest.mark.parametrize("read", ["none", "first", "all"])
def test_evaluation_and_its_film_agree(read):
    scorer = make_scorer(read)
    result, perception = evaluated(scorer, make_venv(scorer, seed=50), 4)
    episode, _ = evaluation.film(Right(), make_two_eyed(), perception, seed=50, scorer=scorer)
    np.testing.assert_allclose(episode.rewards, result.episodes[0].rewards, atol=1e-5)
    np.testing.assert_allclose(episode.rewards, by_hand(scorer, np.ones((LIMIT, 1)), seed=50), atol=1e-5)
    second = by_hand(scorer, np.ones((2 * LIMIT, 1)), seed=50)[LIMIT:]
    np.testing.assert_allclose(result.episodes[1].rewards, second, atol=1e-5)


def test_views_in_another_order_would_be_noticed():
    """Negative control: the right view's features under the left's name give other rewards."""
    scorer = make_scorer()
    rewards = []
    for views in (VIEWS, VIEWS[::-1]):
        venv = make_venv(scorer, seed=50)
        venv.views = views
        rewards.append(evaluated(scorer, venv, 1)[0].episodes[0].rewards)
    assert np.abs(rewards[0] - rewards[1]).max() > 0.01


@pytest.mark.parametrize("read", ["none", "first", "all"])
def test_a_checkpoint_in_the_middle_of_an_episode_keeps_its_images(read, log, tmp_path):
    def run(steps, checkpoint=None, folder=None):
        scorer = make_scorer(read)
        training = make_training(scorer, make_venv(scorer))
        if checkpoint is not None:
            assert checkpoints.load_checkpoint(checkpoint, training, log)
        train(training, steps, log)
        saved = checkpoints.save_checkpoint(folder, training, log) if folder else None
        training.collector.close()
        return training.replay, saved

    straight, _ = run(48)
    _, saved = run(24, folder=tmp_path)  # 12 vector steps, two into an episode
    resumed, _ = run(48, checkpoint=saved)
    np.testing.assert_array_equal(straight.reward, resumed.reward)
    assert np.abs(resumed.reward).min() > 0
    assert resumed.arrays()[0]["rows"].shape[-1] == 2 * 8 + 2


def test_another_goal_pays_for_both_views_anew(log):
    scorer = make_scorer()
    training = make_training(scorer, make_venv(scorer))
    train(training, 2 * STEPS, log)
    training.collector.close()
    before = training.replay.reward.copy()
    score_replay(scorer, training.replay, training.collector.layout)
    np.testing.assert_allclose(training.replay.reward, before, atol=5e-3)  # half precision


@pytest.mark.parametrize(("cameras", "message"), [
    (("left", "rihgt"), "cameras must be of this world; got 'rihgt'. .*did you mean right"),
    (("left", "left"), "cameras must differ; got left, left"),
])  # fmt: skip
def test_wrong_cameras_are_named(cameras, message):
    with pytest.raises(WorldError, match=message):
        WorldVecEnv(make_two_eyed, 1, frame_size=SIZE, cameras=cameras)
    with pytest.raises(WorldError, match=message):
        ScoredEnv(make_two_eyed(), make_scorer(), cameras)


def test_one_camera_keeps_its_name():
    for make, view in ((make_two_eyed, "left"), (make_probe, "main")):
        venv = WorldVecEnv(make, 1, frame_size=SIZE)
        venv.reset()
        assert (venv.views, venv.frames.shape, venv.reset_depth) == ((view,), (1, 1, SIZE, SIZE, 3), None)
        venv.close()


def test_what_the_policy_alone_sees_changes_no_reward():
    """The right view is rendered, encoded and observed; a reward of the left view is as if it were not there."""
    scorer = Scorer(ProbeEncoder(), {"shade": ShadeHead()}, WeightedSum(), PotentialShaping(kind="difference"))
    runs = {}
    for name, more in {"alone": (), "beside": ("right",), "again": ("left", "right")}.items():
        venv = WorldVecEnv(make_two_eyed, 2, seed=3, frame_size=SIZE, cameras=("left",), policy_cameras=more, workers=0)
        collector = Collector(venv, partial(Perception, scorer.encoder, form="features"))
        found = collector.collect(Right(), 7)
        rewards = Labeller(scorer, collector.layout, 2, watches=False)
        runs[name] = (venv.views, collector.layout.policy_views, rewards.label(found).reward, found.rollout.obs)
        collector.close()
    assert runs["alone"][:2] == (("left",), ())
    assert runs["beside"][:2] == runs["again"][:2] == (("left", "right"), ("right",))
    for name in ("beside", "again"):
        np.testing.assert_array_equal(runs["alone"][2], runs[name][2])
        assert runs[name][3].shape[-1] == runs["alone"][3].shape[-1] + scorer.encoder.dim
        assert np.abs(runs[name][3] - runs["beside"][3]).max() == 0
    with pytest.raises(WorldError, match="got 'above'"):
        WorldVecEnv(make_two_eyed, 1, seed=3, frame_size=SIZE, cameras=("left",), policy_cameras=("above",))
