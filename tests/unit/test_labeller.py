"""The labeller: every reward from the right frame, in the right slot, before anything is learned from it."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import NStepReplayBuffer

from embodied.divergence import WINDOW, DivergenceWatch, RewardDivergenceWarning
from embodied.envs.vector import WorldVecEnv
from embodied.feature_memory import FeatureMemory
from embodied.labeller import Labeller
from rewards.combine import LagrangianConstraints, WeightedSum
from rewards.core import Scorer
from rewards.shaping import PotentialShaping
from tests.probe_rewards import ProbeEncoder, ProbeHead, ShadeHead, SpellHead
from tests.probes import make_probe

FOUR_STEPS = partial(make_probe, limit=4)


def spelling_scorer(kind="potential"):
    return Scorer(ProbeEncoder(spell=True), {"spell": SpellHead()}, WeightedSum(), PotentialShaping(kind=kind))


def learner(algorithm, venv, **kwargs):
    common = {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    if algorithm is SAC:
        common |= {"learning_starts": 8, "train_freq": 5, "gradient_steps": 2, "batch_size": 16, "buffer_size": 60}
    else:
        common |= {"n_steps": 7, "batch_size": 7, "n_epochs": 1}
    return algorithm("MlpPolicy", venv, **(common | kwargs))


def train(algorithm, scorer, steps=90, make=FOUR_STEPS, num_worlds=3, batch=7, threads=1, **kwargs):
    venv = WorldVecEnv(make, num_worlds, frame_size=16)
    model = learner(algorithm, venv, **kwargs)
    labeller = Labeller(scorer, batch_size=batch, encode_threads=threads)
    model.learn(steps, callback=labeller, log_interval=None)
    labeller.close()
    venv.close()
    return model, labeller


def spelled(episode, world, step):
    """What `SpellHead` reads off a frame."""
    return 100 * episode + 10 * world + step


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (1, 3), (7, 1), (7, 2), (1000, 1)])
def test_each_slot_gets_the_frame_after_its_step_over_the_rings_wrap(batch, threads):
    model, _ = train(SAC, spelling_scorer(), steps=90, batch=batch, threads=threads)  # 30 vector steps into 20 slots
    rewards, slots = model.replay_buffer.rewards, model.replay_buffer.buffer_size
    assert (slots, model.replay_buffer.full) == (20, True)
    for t in range(30 - slots, 30):
        for e in range(3):
            assert rewards[t % slots, e] == spelled(t // 4, e, t % 4 + 1)


@pytest.mark.parametrize("algorithm", [SAC, PPO])
def test_the_worlds_reward_is_added_by_its_weight(algorithm):
    venv = WorldVecEnv(FOUR_STEPS, 3, frame_size=16, env_weight=0.5)
    model = learner(algorithm, venv, gamma=0.0)  # no bootstrap to tell apart
    labeller = Labeller(spelling_scorer())
    model.learn(21, callback=labeller, log_interval=None)
    rewards = (model.replay_buffer if algorithm is SAC else model.rollout_buffer).rewards
    for t in range(7):
        for e in range(3):
            assert rewards[t, e] == spelled(t // 4, e, t % 4 + 1) + 0.5 * (t % 4 + 1)
    assert [info["r"] for info in model.ep_info_buffer][:3] == [4 * 10 * e + 10 + 0.5 * 10 for e in range(3)]
    if algorithm is SAC:
        with pytest.raises(ValueError, match="env_weight must be 0"):
            labeller.relabel(spelling_scorer())
    labeller.close()
    venv.close()


def test_scoring_frames_after_the_reset_would_be_noticed():
    """Negative control: what a vector environment's render shows after auto-reset gives other numbers."""
    venv = WorldVecEnv(partial(make_probe, limit=4), 3, frame_size=16)
    type(venv).frames = property(lambda self: np.stack(self.env_method("frame", image_size=16))[:, None])
    try:
        model = learner(SAC, venv)
        labeller = Labeller(spelling_scorer())
        model.learn(30, callback=labeller, log_interval=None)
    finally:
        del type(venv).frames
        type(venv).frames = FRAMES
        labeller.close()
        venv.close()
    rewards = model.replay_buffer.rewards
    assert rewards[2, 1] == spelled(0, 1, 3)
    assert rewards[3, 1] == spelled(1, 1, 0) != spelled(0, 1, 4)


FRAMES = WorldVecEnv.__dict__["frames"]


@pytest.mark.parametrize("end", [None, 3])
def test_difference_starts_from_the_reset_frame_and_forgets_only_at_termination(end):
    model, _ = train(SAC, spelling_scorer("difference"), 60, partial(make_probe, limit=4, end=end), buffer_size=999)
    length = end or 4
    for t in range(20):
        for e in range(3):
            episode, step = divmod(t, length)
            before, after = spelled(episode, e, step), spelled(episode, e, step + 1)
            terminated = end is not None and step + 1 == length
            expected = 0.99 * after * (not terminated) - before
            assert model.replay_buffer.rewards[t, e] == pytest.approx(expected, abs=1e-4)


def test_ppo_keeps_the_time_limit_bootstrap_and_its_advantages_follow():
    expected = {}
    for reward in (0.0, 5.0):
        scorer = spelling_scorer()
        scorer.heads["spell"].constant = reward
        model, _ = train(PPO, scorer, steps=21)
        expected[reward] = model.rollout_buffer
    none, five = expected[0.0], expected[5.0]
    bootstrapped = none.rewards != 0
    assert bootstrapped[3].all()  # the fourth step of each world is cut by the time limit
    assert bootstrapped.sum() == 3
    np.testing.assert_allclose(five.rewards - none.rewards, 5.0, rtol=1e-5)
    # the learner's GAE, from its definition, on the labelled rewards
    for rollout in (none, five):
        values = rollout.values.reshape(3, 7).T if rollout.values.shape != (7, 3) else rollout.values
        advantages = rollout.advantages.reshape(3, 7).T if rollout.advantages.shape != (7, 3) else rollout.advantages
        for t in range(6):
            alive = 1 - rollout.episode_starts[t + 1]
            delta = rollout.rewards[t] + 0.99 * values[t + 1] * alive - values[t]
            np.testing.assert_allclose(advantages[t], delta + 0.99 * 0.95 * alive * advantages[t + 1], rtol=1e-4)


def test_nothing_unlabelled_is_sampled(monkeypatch):
    """Every reward that reaches an update is a spelled number, none is the placeholder 0."""
    for n_steps in (1, 3):
        seen = []
        venv = WorldVecEnv(partial(make_probe, limit=4), 3, frame_size=16)
        model = learner(SAC, venv, n_steps=n_steps, gamma=0.5)
        buffer = model.replay_buffer
        assert isinstance(buffer, NStepReplayBuffer) == (n_steps > 1)
        sample = buffer.sample

        def spy(*args, sample=sample, buffer=buffer, seen=seen, **kwargs):
            assert (buffer.rewards[: buffer.size()] > 0).all()
            seen.append(sample(*args, **kwargs))
            return seen[-1]

        monkeypatch.setattr(buffer, "sample", spy)
        labeller = Labeller(spelling_scorer(), batch_size=4)
        model.learn(90, callback=labeller, log_interval=None)
        assert len(seen) > 5
        if n_steps == 3:
            # from the definition: three rewards of one episode, cut at its end
            possible = set()
            for episode in range(8):
                for e in range(3):
                    r = [spelled(episode, e, s) for s in range(1, 5)]
                    # the newest transitions have fewer than three rewards yet
                    possible |= {
                        sum(0.5**k * x for k, x in enumerate(r[i:j])) for i in range(4) for j in (i + 1, i + 2, i + 3)
                    }
            for batch in seen:
                assert {float(x) for x in batch.rewards} <= possible
        labeller.close()
        venv.close()


def test_returns_potentials_and_success_are_logged():
    model, _ = train(SAC, spelling_scorer(), steps=60)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    expected = [sum(spelled(k, e, s) for s in range(1, 5)) for k in range(5) for e in range(3)]
    assert returns == pytest.approx(expected)
    logged = model.logger.name_to_value
    assert logged["reward/spell_mean"] == pytest.approx(
        np.mean([spelled(t // 4, e, t % 4 + 1) for t in range(20) for e in range(3)])
    )
    assert {"reward/spell_std", "reward/latency_ms_p50", "reward/latency_ms_p95", "reward/divergence"} <= set(logged)
    assert len(model.ep_success_buffer) == 15


class EvenHead:
    """1 after even steps, 0 after odd ones."""

    name = "even"

    def score(self, features):
        return (features.main[..., 2] % 2 == 0).float()


def test_the_firing_rate_of_sparse_heads_is_logged():
    heads = {"even": EvenHead(), "spell": SpellHead()}
    scorer = Scorer(ProbeEncoder(spell=True), heads, WeightedSum(), PotentialShaping())
    model, _ = train(SAC, scorer, 60, partial(make_probe, limit=5))
    logged = model.logger.name_to_value
    assert logged["reward/even_firing_rate"] == pytest.approx(2 / 5)  # after steps 2 and 4, not at the reset
    assert "reward/spell_firing_rate" not in logged


@pytest.mark.parametrize("algorithm", [SAC, PPO])
def test_constraints_learn_from_the_returns_of_ended_episodes(algorithm):
    """By hand: a rollout's rewards have the μ of its start; then each ended episode moves it by rate · (J - θ)."""
    heads = {"even": EvenHead(), "spell": SpellHead()}
    combine = LagrangianConstraints({"even": 4.0}, rate=0.05, bound=0.5)
    scorer = Scorer(ProbeEncoder(spell=True), heads, combine, PotentialShaping())
    buffers = {"learning_starts": 10_000, "buffer_size": 999} if algorithm is SAC else {"gamma": 0.0}
    model, _ = train(algorithm, scorer, 60 if algorithm is SAC else 21, **buffers)
    length, last, rewards = (5, 20, model.replay_buffer.rewards) if algorithm is SAC else (7, 7, None)
    mu = 0.0
    for start in range(0, last, length):
        for t in range(start, start + length):
            for e in range(3):
                if rewards is not None:
                    assert rewards[t, e] == pytest.approx(mu * (t % 2) + spelled(t // 4, e, t % 4 + 1))
        ended = sum(3 for t in range(start, start + length) if t % 4 == 3)
        for _ in range(ended):
            mu = min(mu - 0.05 * (2.0 - 4.0), 0.5)
    assert combine.multipliers["even"] == pytest.approx(mu)
    assert 0 < mu <= 0.5
    assert model.logger.name_to_value["reward/lambda_even"] == pytest.approx(mu)


def test_no_frame_is_encoded_twice():
    scorer = spelling_scorer()
    train(SAC, scorer, steps=60, batch=8)  # 20 vector steps of 3 worlds, 15 resets, 3 first frames
    assert scorer.encoder.frames == 60 + 15 + 3
    assert max(scorer.encoder.batches) <= 8


@pytest.mark.parametrize("steps", [40, 120])
@pytest.mark.parametrize("kind", ["potential", "difference"])
def test_another_goal_relabels_the_replay_without_encoding(steps, kind):
    """As if the new goal had been there from the start, before the ring is full and after."""
    heads = [{"probe": ProbeHead(seed), "shade": ShadeHead()} for seed in (1, 2)]
    shaping = PotentialShaping(kind=kind)
    old, new = (Scorer(ProbeEncoder(), each, WeightedSum(), shaping) for each in heads)
    limits = {"learning_starts": 10_000}  # actions must not depend on the rewards
    model, labeller = train(SAC, old, steps, num_worlds=2, **limits)
    expected, _ = train(SAC, new, steps, num_worlds=2, **limits)
    before, frames = model.replay_buffer.rewards.copy(), (old.encoder.frames, new.encoder.frames)
    labeller.relabel(new)
    size = model.replay_buffer.size()
    relabelled, fresh = model.replay_buffer.rewards[:size], expected.replay_buffer.rewards[:size]
    if model.replay_buffer.full:  # the oldest episode has lost its start: heads that remember see less of it
        keep = ~np.isin(np.arange(size), (model.replay_buffer.pos + np.arange(4)) % size)
        relabelled, fresh, before = relabelled[keep], fresh[keep], before[keep]
    np.testing.assert_allclose(relabelled, fresh, atol=2e-3)  # half precision
    assert np.abs(before[: len(fresh)] - fresh).max() > 0.02
    assert (old.encoder.frames, new.encoder.frames) == frames


def test_a_million_steps_of_512_features_fit_the_bar():
    memory = FeatureMemory(125_000, 8, 512)
    assert memory.rows.nbytes + memory.before.nbytes <= 1.1e9


def test_nan_names_the_head():
    class Broken(ProbeHead):
        def score(self, features):
            return super().score(features) * float("nan")

    scorer = Scorer(ProbeEncoder(), {"fine": ProbeHead(), "broken": Broken()}, WeightedSum(), PotentialShaping())
    with pytest.raises(FloatingPointError, match="broken"):
        train(SAC, scorer)


def test_an_encoder_error_reaches_the_learner():
    class Broken(ProbeEncoder):
        def encode_images(self, frames):
            if self.frames > 20:
                raise RuntimeError("out of memory")
            return super().encode_images(frames)

    with pytest.raises(RuntimeError, match="out of memory"):
        train(SAC, Scorer(Broken(), {"probe": ProbeHead()}, WeightedSum(), PotentialShaping()))


def test_worlds_without_frames_are_refused():
    venv = WorldVecEnv(make_probe, 2)
    labeller = Labeller(spelling_scorer())
    with pytest.raises(ValueError, match="must render frames"):
        learner(SAC, venv).learn(10, callback=labeller)
    labeller.close()
    venv.close()


def feed(watch, learned, success, count=WINDOW, rng=None):
    rng = rng or np.random.default_rng(0)
    return [
        watch.add(learned + rng.normal(0, 1), {"success": float(rng.random() < success)}, steps=0) for _ in range(count)
    ]


def test_hacking_warns_once_per_occurrence():
    watch = DivergenceWatch()
    feed(watch, learned=10, success=0.9)
    with pytest.warns(RewardDivergenceWarning, match="success fell from 0.* while the learned return rose") as caught:
        out = feed(watch, learned=14, success=0.1, count=3 * WINDOW)
    assert len(caught) == 1
    assert max(out) > 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(watch, learned=14, success=1.0, count=2 * WINDOW)
    with pytest.warns(RewardDivergenceWarning) as caught:
        feed(watch, learned=20, success=0.0, count=2 * WINDOW)
    assert len(caught) == 1
    assert len(watch.messages) == 2


@pytest.mark.parametrize(
    ("learned", "success"), [((10, 14), (0.1, 0.9)), ((14, 10), (0.9, 0.1)), ((10, 10), (0.5, 0.5))]
)
def test_honest_progress_decline_and_noise_do_not_warn(learned, success):
    for seed in range(20):
        watch, rng = DivergenceWatch(), np.random.default_rng(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for one, other in zip(learned, success, strict=True):
                feed(watch, one, other, 4 * WINDOW, rng)


def test_a_truth_that_is_told_of_some_episodes_only_is_left_out():
    watch = DivergenceWatch()
    for i in range(2 * WINDOW):
        assert watch.add(float(i), {"env return": 1.0} | ({"success": 0.0} if i % 2 else {}), steps=i) == 0.0


def test_the_watch_resumes():
    straight, first = DivergenceWatch(), DivergenceWatch()
    for watch in (straight, first):
        feed(watch, 10, 0.8, 60)
    resumed = DivergenceWatch()
    resumed.set_state(first.get_state())
    assert feed(resumed, 10.5, 0.6, 60) == feed(straight, 10.5, 0.6, 60)


def test_labels_do_not_need_gradients():
    torch.set_grad_enabled(True)
    _, labeller = train(SAC, spelling_scorer(), steps=30)
    assert labeller.memory is not None
