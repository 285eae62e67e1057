"""Rollouts and their labels: every reward from the right frame, for the right step, before anything is learned."""

import warnings
from functools import partial

import numpy as np
import pytest

from embodied.envs.vector import WorldVecEnv
from embodied.scoring import Layout
from embodied.training.collector import Collector
from embodied.training.divergence import WINDOW, DivergenceWatch, RewardDivergenceWarning
from embodied.training.experience import score_replay
from embodied.training.labeller import Labeller
from embodied.training.perception import Perception
from policies.replay import Replay
from rewards.combine import LagrangianConstraints, WeightedSum
from rewards.core import Scorer
from rewards.shaping import PotentialShaping
from tests.actors import Wanders
from tests.probe_rewards import ProbeEncoder, ProbeHead, RunningHead, ShadeHead, SpellHead
from tests.probes import make_probe

FOUR_STEPS = partial(make_probe, limit=4)


def spelling_scorer(kind="potential", **heads):
    heads = heads or {"spell": SpellHead()}
    return Scorer(ProbeEncoder(spell=True), heads, WeightedSum(), PotentialShaping(kind=kind))


class Rig:
    """Worlds, what steps them and what pays for it, a rollout of five steps at a time."""

    def __init__(self, scorer, make=FOUR_STEPS, num_worlds=3, batch=7, threads=1, env_weight=0.0, length=5):
        worlds = WorldVecEnv(make, num_worlds, frame_size=16)
        perceive = partial(Perception, scorer.encoder, form="state")
        self.collector = Collector(worlds, perceive, batch_size=batch, encode_threads=threads)
        self.labeller = Labeller(scorer, self.collector.layout, num_worlds, env_weight=env_weight)
        self.replay = Replay(worlds.observation_space, worlds.action_space, capacity=60, num_worlds=num_worlds, seed=0)
        self.rewards, self.ended, self.length = [], [], length

    def run(self, steps):
        for _ in range(steps // (self.length * self.collector.worlds.num_envs)):
            collected = self.collector.collect(Wanders(), self.length)
            labels = self.labeller.label(collected)
            rows = (collected.moments.rows, collected.moments.next_rows)
            self.replay.add(collected.rollout, labels.reward, rows=rows)
            self.rewards.extend(labels.reward)
            self.ended.extend(labels.ended)
        self.collector.close()
        return self


def spelled(episode, world, step):
    """What `SpellHead` reads off a frame."""
    return 100 * episode + 10 * world + step


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (1, 3), (7, 1), (7, 2), (1000, 1)])
def test_each_step_gets_the_frame_after_it_over_the_rings_wrap(batch, threads):
    rig = Rig(spelling_scorer(), batch=batch, threads=threads).run(90)  # 30 vector steps into 20 slots
    for t in range(30):
        for e in range(3):
            assert rig.rewards[t][e] == spelled(t // 4, e, t % 4 + 1)
            if t >= 10:
                assert rig.replay.reward[t % 20, e] == rig.rewards[t][e]


def test_the_worlds_reward_is_added_by_its_weight_and_kept_apart():
    rig = Rig(spelling_scorer(), env_weight=0.5).run(15)
    for t in range(5):
        for e in range(3):
            assert rig.rewards[t][e] == spelled(t // 4, e, t % 4 + 1) + 0.5 * (t % 4 + 1)
            assert rig.replay.env_reward[t, e] == t % 4 + 1
    assert [ended.rewards.sum() for ended in rig.ended] == [4 * 10 * e + 10 + 0.5 * 10 for e in range(3)]
    assert [ended.env_return for ended in rig.ended] == [10, 10, 10]
    before = rig.replay.reward.copy()
    score_replay(
        rig.labeller.scorer, rig.replay, rig.collector.layout, env_weight=0.5
    )  # the worlds' own is still there to be added
    np.testing.assert_allclose(rig.replay.reward, before, atol=0.2)  # half precision of numbers up to 100


def test_scoring_frames_after_the_reset_would_be_noticed(monkeypatch):
    """Negative control: what a picture shows after the auto-reset gives other numbers."""
    late = property(lambda self: np.stack(self.env_method("frame", image_size=16))[:, None])
    monkeypatch.setattr(WorldVecEnv, "frames", late)
    rig = Rig(spelling_scorer()).run(30)
    assert rig.rewards[2][1] == spelled(0, 1, 3)
    assert rig.rewards[3][1] == spelled(1, 1, 0) != spelled(0, 1, 4)


@pytest.mark.parametrize("end", [None, 3])
def test_difference_starts_from_the_reset_frame_and_forgets_only_at_termination(end):
    rig = Rig(spelling_scorer("difference"), partial(make_probe, limit=4, end=end)).run(60)
    length = end or 4
    for t in range(20):
        for e in range(3):
            episode, step = divmod(t, length)
            before, after = spelled(episode, e, step), spelled(episode, e, step + 1)
            terminated = end is not None and step + 1 == length
            expected = 0.99 * after * (not terminated) - before
            assert rig.rewards[t][e] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("heads", [
    {"spell": SpellHead(), "probe": ProbeHead()},  # pointwise
    {"running": RunningHead(), "probe": ProbeHead()},  # goes on row by row
    {"shade": ShadeHead(), "probe": ProbeHead()},  # reads the episode whole
])  # fmt: skip
@pytest.mark.parametrize("length", [1, 3, 9])
def test_rollouts_of_any_length_pay_alike(heads, length):
    """As much as one rollout does; heads that remember see what they saw before, and no more than they need."""
    steps = 3 * 18
    whole, cut = (Rig(spelling_scorer("difference", **heads), length=n).run(steps) for n in (18, length))
    np.testing.assert_allclose(cut.rewards, whole.rewards, rtol=1e-6, atol=1e-5)


def test_heads_that_go_on_see_each_row_once():
    head = RunningHead()
    Rig(spelling_scorer(running=head), length=3).run(3 * 18)
    assert head.rows == 3 * (18 + 18 // 4 + 1) - 3 * (18 % 4 == 0)  # each step's, and each episode's first


def test_returns_potentials_and_success_are_told():
    rig = Rig(spelling_scorer()).run(60)
    expected = [sum(spelled(k, e, s) for s in range(1, 5)) for k in range(5) for e in range(3)]
    assert [ended.rewards.sum() for ended in rig.ended] == pytest.approx(expected)
    assert all(isinstance(ended.success, bool) for ended in rig.ended)
    logged = rig.labeller.metrics()
    every = [spelled(t // 4, e, t % 4 + 1) for t in range(20) for e in range(3)]
    assert logged["reward/spell_mean"] == pytest.approx(np.mean(every))
    assert {"reward/spell_std", "reward/divergence"} <= set(logged)
    assert len(rig.collector.latencies) > 1


class EvenHead:
    """1 after even steps, 0 after odd ones."""

    name, pointwise = "even", True

    def score(self, features):
        return (features.main[..., 2] % 2 == 0).float()


def test_the_firing_rate_of_sparse_heads_is_logged():
    scorer = spelling_scorer(even=EvenHead(), spell=SpellHead())
    logged = Rig(scorer, partial(make_probe, limit=5)).run(60).labeller.metrics()
    assert logged["reward/even_firing_rate"] == pytest.approx(2 / 5)  # after steps 2 and 4, not at the reset
    assert "reward/spell_firing_rate" not in logged


def test_constraints_learn_from_the_returns_of_ended_episodes():
    """By hand: a rollout's rewards have the μ of its start; then each ended episode moves it by rate · (J - θ)."""
    heads = {"even": EvenHead(), "spell": SpellHead()}
    combine = LagrangianConstraints({"even": 4.0}, rate=0.05, bound=0.5)
    rig = Rig(Scorer(ProbeEncoder(spell=True), heads, combine, PotentialShaping())).run(60)
    mu = 0.0
    for start in range(0, 20, 5):
        for t in range(start, start + 5):
            for e in range(3):
                assert rig.rewards[t][e] == pytest.approx(mu * (t % 2) + spelled(t // 4, e, t % 4 + 1))
        for _ in range(sum(3 for t in range(start, start + 5) if t % 4 == 3)):
            mu = min(mu - 0.05 * (2.0 - 4.0), 0.5)
    assert combine.multipliers["even"] == pytest.approx(mu)
    assert 0 < mu <= 0.5
    assert rig.labeller.metrics()["reward/lambda_even"] == pytest.approx(mu)


def test_no_frame_is_encoded_twice():
    scorer = spelling_scorer()
    Rig(scorer, batch=8).run(60)  # 20 vector steps of 3 worlds, 15 resets, 3 first frames
    assert scorer.encoder.frames == 60 + 15 + 3
    assert max(scorer.encoder.batches) <= 8


@pytest.mark.parametrize("steps", [40, 120])
@pytest.mark.parametrize("kind", ["potential", "difference"])
def test_another_goal_relabels_the_replay_without_encoding(steps, kind):
    """As if the new goal had been there from the start, before the ring is full and after."""
    heads = [{"probe": ProbeHead(seed), "shade": ShadeHead()} for seed in (1, 2)]
    shaping = PotentialShaping(kind=kind)
    old, new = (Scorer(ProbeEncoder(), each, WeightedSum(), shaping) for each in heads)
    rig, expected = (Rig(scorer, num_worlds=2).run(steps) for scorer in (old, new))
    before, frames = rig.replay.reward.copy(), (old.encoder.frames, new.encoder.frames)
    score_replay(new, rig.replay, rig.collector.layout)
    relabelled, fresh = rig.replay.reward, expected.replay.reward
    if rig.replay.full:  # the oldest episode has lost its start: heads that remember see less of it
        keep = ~np.isin(np.arange(len(fresh)), (rig.replay.pos + np.arange(4)) % len(fresh))
        relabelled, fresh, before = relabelled[keep], fresh[keep], before[keep]
    np.testing.assert_allclose(relabelled, fresh, atol=2e-3)  # half precision
    assert np.abs(before - fresh).max() > 0.02
    assert (old.encoder.frames, new.encoder.frames) == frames


def test_nan_names_the_head():
    class Broken(ProbeHead):
        def score(self, features):
            return super().score(features) * float("nan")

    scorer = Scorer(ProbeEncoder(), {"fine": ProbeHead(), "broken": Broken()}, WeightedSum(), PotentialShaping())
    rig = Rig(scorer)
    with pytest.raises(FloatingPointError, match="broken"):
        rig.run(15)
    rig.collector.close()


def test_an_encoder_error_reaches_the_caller():
    class Broken(ProbeEncoder):
        def encode_images(self, frames):
            if self.frames > 20:
                raise RuntimeError("out of memory")
            return super().encode_images(frames)

    rig = Rig(Scorer(Broken(), {"probe": ProbeHead()}, WeightedSum(), PotentialShaping()))
    with pytest.raises(RuntimeError, match="out of memory"):
        rig.run(90)
    rig.collector.close()


def test_worlds_without_frames_are_refused():
    worlds = WorldVecEnv(make_probe, 2)
    with pytest.raises(ValueError, match="must render frames"):
        Collector(worlds, partial(Perception, ProbeEncoder(), form="state"))
    worlds.close()


def test_an_evaluation_only_looks_on():
    combine = LagrangianConstraints({"even": 4.0}, rate=0.05)
    heads = {"even": EvenHead(), "spell": SpellHead()}
    rig = Rig(Scorer(ProbeEncoder(spell=True), heads, combine, PotentialShaping()))
    rig.labeller = Labeller(rig.labeller.scorer, Layout(), 3, watches=False)
    rig.run(60)
    assert combine.multipliers == {"even": 0.0}
    assert "reward/divergence" not in rig.labeller.metrics()


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
