"""Who plays an episode: decided by what each policy earned, and by nothing else."""

import json

import numpy as np
import pytest
from gymnasium import spaces

from policies.core import Rollout, Sampling
from policies.handover import IMITATION, LEARNED, HandOver
from policies.keeping import Keeping

OBS = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTION = spaces.Box(-1, 1, (1,), np.float32)


def episodes(lengths, start=0, num_worlds=2):
    """Steps of worlds whose episodes all have one length; the last is cut, not terminated."""
    first = np.concatenate([[True] + [False] * (length - 1) for length in lengths])
    first = np.repeat(first[:, None], num_worlds, 1)
    ended = np.roll(first, -1, 0)
    ended[-1] = True
    steps = len(first)
    obs = np.stack(
        [np.repeat(np.arange(steps)[:, None] + start, num_worlds, 1), np.tile(np.arange(num_worlds), (steps, 1))], -1
    )
    return Rollout(
        obs=obs.astype(np.float32),
        action=np.full((steps, num_worlds, 1), 0.3, np.float32),
        next_obs=obs.astype(np.float32) + np.array([1, 0], np.float32),
        env_reward=np.full(first.shape, -7, np.float32),
        terminated=np.zeros_like(ended),
        truncated=ended,
        first=first,
    )


def play(hand, earns, count=1, seed=0):
    """So many waves of two worlds' episodes of three steps; `earns` by player."""
    rng = np.random.default_rng(seed)
    played = []
    for _ in range(count):
        rollout, players = episodes([3]), hand.choose(2)
        for t in range(3):
            hand.acted(players, rollout.first[t])
        reward = np.array([earns[player](rng) for player in players]) / 3
        hand.observe(rollout, np.tile(reward, (3, 1)).astype(np.float32))
        played += players.tolist()
    return played


def always(value):
    return lambda rng: value


def test_imitation_plays_all_until_the_critics_are_warm():
    hand = HandOver()
    assert play(hand, (always(1.0), always(9.0)), 40) == [IMITATION] * 80
    assert hand.best == IMITATION


@pytest.mark.parametrize(("earns", "best", "share"), [(2.0, LEARNED, 0.75), (0.5, IMITATION, 0.5)])
def test_the_share_rises_and_the_better_one_counts(earns, best, share):
    hand = HandOver()
    hand.open = True
    rng_earns = (lambda rng: 1 + 0.1 * rng.normal(), lambda rng: earns + 0.1 * rng.normal())
    played = play(hand, rng_earns, 60)
    assert hand.best == best
    assert hand.share == pytest.approx(share)
    assert np.mean(played[-40:]) == pytest.approx(share, abs=0.05)
    assert hand.metrics()["handover/learned_return"] == pytest.approx(earns, abs=0.1)


def test_one_that_falls_behind_is_taken_back():
    hand = HandOver()
    hand.open = True
    play(hand, (always(1.0), always(2.0)), 40)
    assert hand.best == LEARNED
    play(hand, (always(1.0), always(0.0)), 30)
    assert hand.best == IMITATION
    assert hand.share == pytest.approx(0.5)


def test_a_hair_ahead_is_not_ahead():
    """By luck alone every second policy that is worse would be."""
    hand = HandOver()
    hand.open = True
    noisy = (lambda rng: rng.normal(), lambda rng: 0.05 + rng.normal())
    for seed in range(6):
        play(hand, noisy, 40, seed)
        shown, learned = hand.state()["returns"]
        ahead = np.mean(learned) - np.mean(shown)
        error = np.sqrt(np.var(learned) / len(learned) + np.var(shown) / len(shown))
        assert hand.best == IMITATION or ahead >= 0
        if ahead >= error:
            assert hand.best == LEARNED


def aided(hand, earns, after, count, steps=4):
    """Waves of two worlds' episodes in each of which a person acts: after so many of the player's own steps."""
    for _ in range(count):
        rollout, players = episodes([steps]), hand.choose(2)
        for t in range(steps):
            hand.acted(players, rollout.first[t])
            hand.replaced(np.array([t >= after[player] for player in players]))
        hand.observe(rollout, np.tile([earns[player] for player in players], (steps, 1)).astype(np.float32))


def test_policies_that_are_helped_in_every_episode_are_measured_by_what_came_before():
    """Else nobody ever plays when it counts but imitation, however well the other does."""
    hand = HandOver()
    hand.open = True
    aided(hand, (1.0, 1.0), after=(1, 3), count=60)  # the learned policy is let go on for longer
    assert hand.metrics()["handover/imitation_return"] == 1
    assert hand.metrics()["handover/learned_return"] == 3
    assert hand.best == LEARNED
    aided(hand, (1.0, 1.0), after=(3, 1), count=60)
    assert hand.best == IMITATION


def test_what_a_person_earned_is_not_counted():
    hand = HandOver()
    hand.open = True
    rollout, players = episodes([4]), np.array([IMITATION, LEARNED], np.int8)
    for t in range(4):
        hand.acted(players, rollout.first[t])
        hand.replaced(np.array([t == 2, t == 0]))  # and lets go again; the second world's never was anybody's
    hand.observe(rollout, np.tile([[1.0], [2.0], [100.0], [100.0]], (1, 2)).astype(np.float32))
    assert hand.state()["returns"] == [[3.0], []]


def test_equals_are_not_handed_over():
    """Rewards at the end alone, which a person earns, tell nobody apart."""
    hand = HandOver()
    hand.open = True
    aided(hand, (0.0, 0.0), after=(2, 2), count=60)
    assert hand.best == IMITATION


def test_steps_in_which_someone_else_acted_count_for_nobody():
    hand = HandOver()
    hand.open = True
    rollout = episodes([3])
    hand.observe(rollout, np.ones((3, 2), np.float32))  # nobody of ours acted
    for t in range(3):
        hand.acted(np.ones(2, np.int8), rollout.first[t] & (t > 5))  # told of other worlds' steps
    hand.observe(rollout, np.ones((3, 2), np.float32))
    assert hand.state()["returns"] == [[], []]


def test_acting_may_run_ahead_of_what_is_observed():
    """As when worlds step while the learner updates."""
    hand = HandOver()
    hand.open = True
    rollout = episodes([2])
    waves = [hand.choose(2) for _ in range(3)]
    for players in waves:
        for t in range(2):
            hand.acted(players, rollout.first[t])
    resumed = HandOver()
    resumed.load_state(json.loads(json.dumps(hand.state())))
    for each in (hand, resumed):
        for k in range(3):
            each.observe(rollout, np.full((2, 2), k, np.float32))
    shown, learned = hand.state()["returns"]
    assert sorted(shown + learned) == [0, 0, 2, 2, 4, 4]
    assert len(learned) == 3
    assert resumed.state() == hand.state()


# What earned much is kept -----------------------------------------------------------------------------------


def test_episodes_that_earned_more_are_kept_whole():
    keeping = Keeping(OBS, ACTION, seed=0)
    rollout = episodes([3, 4])
    reward = np.ones((7, 2), np.float32)
    reward[:3, 1], reward[3:, 0] = 2, 2  # world 1's first and world 0's second earn 6 and 8, the others 3 and 4
    for at in (slice(0, 2), slice(2, 5), slice(5, 7)):
        keeping.observe(Rollout(*(part[at] for part in rollout)), reward[at], above=5.0)
    batch = keeping.sample(400)
    kept = {(int(obs[0]), int(obs[1])) for obs in batch.obs[0]}
    assert kept == {(0, 1), (1, 1), (2, 1), (3, 0), (4, 0), (5, 0), (6, 0)}
    assert batch.imitate.all()
    assert keeping.metrics() == {"kept_episodes": 2.0}


def test_nothing_is_kept_before_there_is_a_bar_nor_without_its_beginning():
    keeping = Keeping(OBS, ACTION, seed=0)
    rollout, reward = episodes([3]), np.ones((3, 2), np.float32)
    keeping.observe(rollout, reward, above=None)
    keeping.observe(Rollout(*(part[1:] for part in rollout)), reward[1:], above=0.0)
    assert keeping.sample(4) is None
    keeping.observe(rollout, reward, above=0.0)
    assert len(keeping.sample(4).reward) == 1


def test_what_is_kept_and_what_runs_are_resumed():
    keeping = Keeping(OBS, ACTION, seed=0)
    rollout, reward = episodes([3, 4]), np.ones((7, 2), np.float32)
    keeping.observe(Rollout(*(part[:5] for part in rollout)), reward[:5], above=1.0)
    resumed = Keeping(OBS, ACTION, seed=9)
    tensors, values = keeping.state()
    resumed.load_state({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(values)))
    for each in (keeping, resumed):
        each.observe(Rollout(*(part[5:] for part in rollout)), reward[5:], above=1.0)
    one, other = keeping.sample(50), resumed.sample(50)
    np.testing.assert_array_equal(one.obs, other.obs)
    assert keeping.metrics() == resumed.metrics() == {"kept_episodes": 4.0}
    assert one.obs[0].shape == keeping.sample(50).obs[0].shape
    assert Sampling().length == 1
