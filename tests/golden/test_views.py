"""Two views, readings, images and depth: the same numbers at every door, from a world stepped by hand."""

import numpy as np
import pytest
import torch
from embodied.labeller import Labeller
from stable_baselines3 import SAC

from embodied import checkpoints, evaluation, runs
from embodied.envs.vector import WorldVecEnv
from embodied.envs.worker import WorldError
from embodied.envs.wrappers import ScoredEnv
from rewards.combine import WeightedSum
from rewards.core import Features, Scorer
from rewards.shaping import PotentialShaping
from tests.probe_rewards import ImageHead, ProbeEncoder, ShadeHead, TwoEyedHead
from tests.probes import SIZE, TwoEyedWorld, make_probe, make_two_eyed

STEPS, LIMIT, VIEWS = 24, 5, ("left", "right")


def make_scorer(read="none"):
    heads = {"eyes": TwoEyedHead(), "shade": ShadeHead()} | ({} if read == "none" else {"image": ImageHead(read)})
    return Scorer(ProbeEncoder(), heads, WeightedSum(), PotentialShaping(kind="difference", discount=0.9))


def make_venv(scorer, workers=0):
    depth = scorer.frames_read != "none"
    return WorldVecEnv(make_two_eyed, 2, seed=3, frame_size=SIZE, cameras=VIEWS, depth=depth, workers=workers)


def learner(venv):
    kwargs = {"learning_starts": 10_000, "train_freq": 4, "buffer_size": 200}
    return SAC("MlpPolicy", venv, seed=3, device="cpu", policy_kwargs={"net_arch": [4]}, **kwargs)


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
def test_every_door_gives_the_same_number(read, workers):
    scorer = make_scorer(read)
    venv = make_venv(scorer, workers)
    model, labeller = learner(venv), Labeller(scorer, batch_size=5)
    model.learn(2 * STEPS, callback=labeller, log_interval=None)
    labeller.close()
    venv.close()
    actions, labelled = model.replay_buffer.actions[:STEPS], model.replay_buffer.rewards[:STEPS]
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


class Right:
    """Pushes right, always."""

    def predict(self, observation, *, deterministic):
        return np.ones((len(observation), 1) if observation.ndim == 2 else (1,), np.float32), None


@pytest.mark.parametrize("read", ["none", "first", "all"])
def test_evaluation_and_its_film_agree(read):
    scorer = make_scorer(read)
    venv = make_venv(scorer)
    result = evaluation.evaluate(Right(), venv, 4, seed=50, scorer=scorer)
    venv.close()
    episode, _ = evaluation.film(Right(), make_two_eyed(), seed=50, scorer=scorer, cameras=VIEWS)
    np.testing.assert_allclose(episode.rewards, result.episodes[0].rewards, atol=1e-5)
    np.testing.assert_allclose(episode.rewards, by_hand(scorer, np.ones((LIMIT, 1)), seed=50), atol=1e-5)
    second = by_hand(scorer, np.ones((2 * LIMIT, 1)), seed=50)[LIMIT:]
    np.testing.assert_allclose(result.episodes[1].rewards, second, atol=1e-5)


def test_views_in_another_order_would_be_noticed():
    """Negative control: the right view's features under the left's name give other rewards."""
    scorer = make_scorer()
    rewards = []
    for views in (VIEWS, VIEWS[::-1]):
        venv = WorldVecEnv(make_two_eyed, 2, seed=3, frame_size=SIZE, cameras=VIEWS)
        venv.views = views
        rewards.append(evaluation.evaluate(Right(), venv, 1, seed=50, scorer=scorer).episodes[0].rewards)
        venv.close()
    assert np.abs(rewards[0] - rewards[1]).max() > 0.01


@pytest.mark.parametrize("read", ["none", "first", "all"])
def test_a_checkpoint_in_the_middle_of_an_episode_keeps_its_images(read, tmp_path):
    def train(steps, checkpoint=None, folder=None):
        scorer = make_scorer(read)
        venv = make_venv(scorer)
        model, labeller = learner(venv), Labeller(scorer, batch_size=5)
        model.set_logger(runs.Logger(None, []))
        if checkpoint is not None:
            assert checkpoints.load_checkpoint(checkpoint, model, labeller)
        model.learn(steps, callback=labeller, log_interval=None, reset_num_timesteps=checkpoint is None)
        saved = checkpoints.save_checkpoint(folder, model, labeller) if folder else None
        labeller.close()
        venv.close()
        return model, saved, labeller

    straight, _, _ = train(48)
    _, saved, _ = train(24, folder=tmp_path)  # 12 vector steps, two into an episode
    resumed, _, labeller = train(24, checkpoint=saved)
    np.testing.assert_array_equal(straight.replay_buffer.rewards, resumed.replay_buffer.rewards)
    assert np.abs(resumed.replay_buffer.rewards[:24]).min() > 0
    assert labeller.memory.rows.shape[-1] == 2 * 8 + 2


def test_another_goal_relabels_both_views_but_images_are_not_kept():
    scorer = make_scorer()
    venv = make_venv(scorer)
    model, labeller = learner(venv), Labeller(scorer, batch_size=5)
    model.learn(2 * STEPS, callback=labeller, log_interval=None)
    before = model.replay_buffer.rewards.copy()
    labeller.relabel(scorer)
    np.testing.assert_allclose(model.replay_buffer.rewards, before, atol=5e-3)  # half precision
    for read in ("first", "all"):
        with pytest.raises(ValueError, match="one reads images, which the replay does not keep"):
            labeller.relabel(make_scorer(read))
    labeller.close()
    venv.close()


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
