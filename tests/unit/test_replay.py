"""The replay: every moment stored once and found again, windows that never cross an episode, rewards given anew."""

import time

import numpy as np
import pytest
import torch
from gymnasium import spaces

from policies import moments
from policies.core import Batch, Rollout, Sampling
from policies.replay import Mix, Replay, n_step

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTION = spaces.Box(-1, 1, (2,), np.float32)


class Stream:
    """Worlds whose observation says where it is: (world, episode, step). Episodes have lengths 1 to 6."""

    def __init__(self, num_worlds, seed=0, ends=0.3):
        self.rng, self.num_worlds, self.ends = np.random.default_rng(seed), num_worlds, ends
        self.episode, self.step = np.zeros(num_worlds, int), np.zeros(num_worlds, int)

    def obs(self, step):
        return np.stack([np.arange(self.num_worlds), self.episode, step], 1).astype(np.float32)

    def rollout(self, steps):
        rows = []
        for _ in range(steps):
            obs, next_obs, first = self.obs(self.step), self.obs(self.step + 1), self.step == 0
            ended = (self.rng.random(self.num_worlds) < self.ends) | (self.step == 5)
            terminated = ended & (self.rng.random(self.num_worlds) < 0.5)
            reward = reward_of(next_obs)
            action = np.stack([reward / 1000, -reward / 1000], 1).astype(np.float32)
            rows.append((obs, action, next_obs, -reward, terminated, ended & ~terminated, first))
            self.step = np.where(ended, 0, self.step + 1)
            self.episode = self.episode + ended
        return Rollout(*(np.stack(column) for column in zip(*rows, strict=True)))


def reward_of(obs):
    """The reward of the step that led to an observation."""
    return (100 * obs[..., 1] + 10 * obs[..., 0] + obs[..., 2]).astype(np.float32)


def filled(steps, *, capacity=60, num_worlds=3, seed=0, rows=False, ends=0.3, chunk=4, space=BOX):
    """A replay and the rollouts it was given."""
    stream = Stream(num_worlds, seed, ends)
    replay = Replay(space, ACTION, capacity=capacity, num_worlds=num_worlds, seed=seed)
    rollouts = []
    for at in range(0, steps, chunk):
        rollout = stream.rollout(min(chunk, steps - at))
        pair = (rollout.obs, rollout.next_obs) if rows else None
        replay.add(rollout, reward_of(rollout.next_obs), rollout.terminated, rows=pair)
        rollouts.append(rollout)
    return replay, Rollout(*(np.concatenate(column) for column in zip(*rollouts, strict=True))) if steps else None


def index(rollout):
    """(world, episode, step) → (t, e)."""
    return {tuple(rollout.obs[t, e].astype(int)): (t, e) for t in range(len(rollout.first)) for e in range(3)}


@pytest.mark.parametrize("steps", [3, 20, 23, 50, 77])
@pytest.mark.parametrize("length", [1, 4])
def test_windows_are_what_happened_over_the_rings_wrap(steps, length):
    replay, rollout = filled(steps)
    where, seen = index(rollout), set()
    batch = replay.sample(Sampling(length=length, batch_size=800))
    for b in range(800):
        t, e = where[tuple(batch.obs[0, b].int().tolist())]
        seen.add((t, e))
        ended = np.flatnonzero(rollout.ended[t : t + length, e])
        count = min(length, steps - t, ended[0] + 1 if len(ended) else length)
        valid = np.arange(length) < count
        assert batch.valid[:, b].tolist() == valid.tolist()
        moments_ = [rollout.obs[t + k, e] for k in range(count)] + [rollout.next_obs[t + count - 1, e]]
        moments_ += [moments_[-1]] * (length - count)
        np.testing.assert_array_equal(batch.obs[:, b], moments_)
        np.testing.assert_array_equal(
            batch.reward[:, b], np.where(valid, [reward_of(m) for m in moments_[1:]], 0).astype(np.float32)
        )
        for column in ("terminated", "action", "imitate"):
            source = rollout.terminated if column == "imitate" else getattr(rollout, column)
            values = source[t : t + count, e]
            np.testing.assert_array_equal(getattr(batch, column)[:count, b], values)
            assert not getattr(batch, column)[count:, b].any()
    stored = {(t, e) for t in range(max(0, steps - 20), steps) for e in range(3)}
    assert seen == stored  # every stored step is drawn, and no other
    np.testing.assert_array_equal(replay.env_reward.sum(), -replay.reward.sum())


def test_draws_are_even_and_its_own():
    replay, rollout = filled(23)
    np.random.seed(0)
    batch = replay.sample(Sampling(batch_size=60_000))
    np.random.seed(1)
    again, _ = filled(23)
    torch.testing.assert_close(again.sample(Sampling(batch_size=60_000)).obs, batch.obs)
    where = index(rollout)
    counts = np.zeros((23, 3))
    for obs in batch.obs[0].int().tolist():
        counts[where[tuple(obs)]] += 1
    assert 850 < counts[3:].min() <= counts[3:].max() < 1150  # of 1000; √1000 ≈ 32
    assert not counts[:3].any()


def test_an_episode_that_was_left_is_cut_there_and_not_terminated():
    """Worlds that begin anew after a resume: the last step keeps its own next observation."""
    replay, _ = filled(5, ends=0)
    stream = Stream(3)
    stream.episode += 7
    later = stream.rollout(2)
    replay.add(later, reward_of(later.next_obs))
    batch = replay.sample(Sampling(length=3, batch_size=500))
    last = (batch.obs[0, :, 1] == 0) & (batch.obs[0, :, 2] == 4)
    assert last.any()
    assert (batch.valid[:, last].sum(0) == 1).all()
    assert (batch.obs[1:, last][..., 2] == 5).all()
    assert (batch.obs[1:, last][..., 1] == 0).all()
    assert not batch.terminated.any()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"first": np.zeros((2, 3), bool)}, "first must be True after an episode's end"),
        ({"terminated": np.ones((2, 3), bool), "truncated": np.ones((2, 3), bool)}, "never both"),
    ],
)
def test_what_cannot_have_happened_is_refused(change, error):
    replay, _ = filled(6, ends=1.0)
    rollout = Stream(3, ends=1.0).rollout(2)
    with pytest.raises(ValueError, match=error):
        replay.add(rollout._replace(**change), reward_of(rollout.next_obs))


def test_rewards_that_are_no_numbers_are_refused():
    replay, _ = filled(6)
    rollout = Stream(3).rollout(1)._replace(first=np.ones((1, 3), bool))
    reward = reward_of(rollout.next_obs)
    reward[0, 1] = np.nan
    with pytest.raises(ValueError, match="reward must be finite; got nan"):
        replay.add(rollout, reward)
    with pytest.raises(ValueError, match="rewards must be finite"):
        replay.set_rewards(np.array([0]), 0, np.array([np.inf], np.float32))
    assert len(replay) == 18


@pytest.mark.parametrize("steps", [13, 20, 50])
def test_returns_are_the_sums_to_a_termination_and_unknown_elsewhere(steps):
    replay, rollout = filled(steps)
    sampling = Sampling(length=2, batch_size=500, returns=True, gamma=0.5)
    replay.sample(sampling)
    for change in (lambda r: r, lambda r: r + 1):
        for slots, world in ((np.arange(len(replay.reward)), e) for e in range(3)):
            replay.set_rewards(slots, world, change(replay.reward[:, world]))
        batch = replay.sample(sampling)
        expected = {}
        for e in range(3):
            after = np.nan
            for t in reversed(range(steps)):
                after = 0.0 if rollout.terminated[t, e] else np.nan if rollout.truncated[t, e] else after
                after = change(float(reward_of(rollout.next_obs[t, e]))) + 0.5 * after
                expected[t, e] = after
        where = index(rollout)
        for b in range(500):
            t, e = where[tuple(batch.obs[0, b].int().tolist())]
            assert batch.returns[0, b].item() == pytest.approx(expected[t, e], nan_ok=True)
            wanted = expected[t + 1, e] if batch.valid[1, b] else np.nan
            assert batch.returns[1, b].item() == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize("capacity", [60, 15])  # the smaller one forgets the beginnings of episodes under way
def test_returns_kept_up_equal_returns_computed_anew(capacity):
    kept, anew = (Replay(BOX, ACTION, capacity=capacity, num_worlds=3, seed=0) for _ in range(2))
    sampling = Sampling(batch_size=500, returns=True, gamma=0.9)
    streams = Stream(3), Stream(3)
    for _ in range(13):
        for replay, stream in zip((kept, anew), streams, strict=True):
            rollout = stream.rollout(4)
            replay.add(rollout, reward_of(rollout.next_obs))
        kept.sample(sampling)
    _, values = kept.arrays()
    anew.load(anew.arrays()[0], values)
    np.testing.assert_array_equal(kept.sample(sampling).returns, anew.sample(sampling).returns)
    assert not torch.isnan(kept.sample(sampling).returns).all()


@pytest.mark.parametrize("steps", [13, 20, 50])
def test_stretches_are_pieces_of_one_episode_with_the_row_after_the_last(steps):
    replay, rollout = filled(steps, rows=True)
    where, seen = index(rollout), []
    for stretch in replay.stretches():
        count = len(stretch.slots)
        t, e = where[tuple(stretch.rows[0].astype(int))]
        assert e == stretch.world
        np.testing.assert_array_equal(stretch.rows[:-1], rollout.obs[t : t + count, e])
        np.testing.assert_array_equal(stretch.rows[-1], rollout.next_obs[t + count - 1, e])
        np.testing.assert_array_equal(stretch.terminated, rollout.terminated[t : t + count, e])
        assert not rollout.ended[t : t + count - 1, e].any()
        assert rollout.ended[t + count - 1, e] or t + count == steps
        replay.set_rewards(stretch.slots, e, -reward_of(stretch.rows[1:].astype(np.float32)))
        seen += [(t + k, e) for k in range(count)]
    assert sorted(seen) == [(t, e) for t in range(max(0, steps - 20), steps) for e in range(3)]
    batch = replay.sample(Sampling(batch_size=500))
    np.testing.assert_array_equal(batch.reward[0], -reward_of(batch.obs[1].numpy()))
    assert (replay.env_reward == replay.reward).all()  # the task's own stays: here it was minus the first rewards


@pytest.mark.parametrize("steps", [13, 20, 50])  # before the ring of 20 slots is full, as it is, and long after
@pytest.mark.parametrize("each", [7, 100])
def test_what_is_stored_is_told_as_rollouts(steps, each):
    """Every step in its order, with what followed it."""
    replay, rollout = filled(steps, rows=True)
    told = list(replay.rollouts(each))
    kept = Rollout(*(np.concatenate(parts) for parts in zip(*(part for part, _ in told), strict=True)))
    reward, count = np.concatenate([paid for _, paid in told]), min(steps, 20)
    assert max(len(paid) for _, paid in told) <= each
    for name, want in zip(Rollout._fields, rollout, strict=True):
        if name != "first":
            np.testing.assert_array_equal(getattr(kept, name), want[-count:], err_msg=name)
    np.testing.assert_array_equal(kept.first[1:], rollout.first[-count:][1:])
    assert kept.first[0].all()
    np.testing.assert_array_equal(reward, reward_of(kept.next_obs))


def test_half_of_a_batch_is_of_an_earlier_run_and_all_of_it_at_first():
    past, _ = filled(9, seed=1)
    own = Replay(BOX, ACTION, capacity=60, num_worlds=3, seed=0)
    demos, _ = filled(9, seed=2)
    for store, episode in ((past, 1000), (demos, 2000)):
        store.arrays()[0]["obs"][..., 1] += episode
    mix, sampling = Mix(own, demos, past), Sampling(batch_size=40, demo_share=0.25)

    def shares():
        episode = next(mix.batches(sampling)).obs[0, :, 1]
        return [int(((episode >= low) & (episode < low + 1000)).sum()) for low in (0, 1000, 2000)]

    assert shares() == [0, 30, 10]
    rollout = Stream(3).rollout(4)
    own.add(rollout, reward_of(rollout.next_obs))
    assert shares() == [15, 15, 10]


def test_the_observation_may_be_the_row():
    stream, replay = Stream(2), Replay(BOX, ACTION, capacity=40, num_worlds=2, seed=0, row_leaf="")
    rollout = stream.rollout(5)
    replay.add(rollout, reward_of(rollout.next_obs))
    for stretch in replay.stretches():
        np.testing.assert_array_equal(stretch.rows[-1, 2], stretch.rows[0, 2] + len(stretch.slots))
    with pytest.raises(ValueError, match="there must be rows"):
        next(filled(3)[0].stretches())


def test_dictionaries_and_images_are_stored_once_as_they_are():
    space = spaces.Dict({"pixels": spaces.Box(0, 255, (3, 4, 4), np.uint8), "own": BOX})
    replay = Replay(space, ACTION, capacity=40, num_worlds=2, seed=0)
    stream = Stream(2)
    for _ in range(8):
        rollout = stream.rollout(3)
        obs, next_obs = (
            {"own": part, "pixels": np.broadcast_to(part[..., :1, None, None].astype(np.uint8), (3, 2, 3, 4, 4)) + 7}
            for part in (rollout.obs, rollout.next_obs)
        )
        replay.add(rollout._replace(obs=obs, next_obs=next_obs), reward_of(rollout.next_obs))
    batch = replay.sample(Sampling(length=3, batch_size=64))
    assert batch.obs["pixels"].dtype == torch.uint8
    assert batch.obs["pixels"].shape == (4, 64, 3, 4, 4)
    np.testing.assert_array_equal(batch.obs["pixels"][:, :, 0, 0, 0], batch.obs["own"][..., 0] + 7)
    arrays, _ = replay.arrays()
    assert arrays["obs/pixels"].nbytes == 40 * 48  # one image a moment, not two


def test_large_columns_lie_in_a_file(monkeypatch, tmp_path):
    plain, _ = filled(52)
    monkeypatch.setattr(moments, "MAPPED_BYTES", 100)
    replay = Replay(BOX, ACTION, capacity=60, num_worlds=3, seed=0, folder=tmp_path)
    stream = Stream(3)
    for _ in range(13):
        rollout = stream.rollout(4)
        replay.add(rollout, reward_of(rollout.next_obs), rollout.terminated)
    same(replay.sample(Sampling(length=3)), plain.sample(Sampling(length=3)))
    assert isinstance(replay.arrays()[0]["obs"], np.memmap)
    assert not isinstance(plain.arrays()[0]["obs"], np.memmap)
    assert not list(tmp_path.iterdir())  # nameless: nothing is left behind


def same(one: Batch, other: Batch):
    for a, b in zip(one, other, strict=True):
        if a is not None:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("steps", [0, 3, 20, 50])
def test_a_checkpoint_goes_on_bit_for_bit(steps):
    straight, _ = filled(steps, rows=True)
    if steps:
        straight.sample(Sampling(batch_size=17))
    arrays, values = straight.arrays()
    kept = {name: array.copy() for name, array in arrays.items()}
    resumed = Replay(BOX, ACTION, capacity=60, num_worlds=3, seed=99)
    resumed.load(kept, values)
    streams = [Stream(3, seed=5), Stream(3, seed=5)]
    sampling = Sampling(length=3, batch_size=200, returns=True)
    for _ in range(9):
        for replay, stream in zip((straight, resumed), streams, strict=True):
            rollout = stream.rollout(4)
            replay.add(rollout, reward_of(rollout.next_obs), rows=(rollout.obs, rollout.next_obs))
        same(straight.sample(sampling), resumed.sample(sampling))
        for one, other in zip(straight.stretches(), resumed.stretches(), strict=True):
            np.testing.assert_array_equal(one.rows, other.rows)
    assert resumed.arrays()[1] == straight.arrays()[1]
    if steps > 10:  # it has no room for them
        with pytest.raises(ValueError, match="slots of a world must be 10; got 20"):
            Replay(BOX, ACTION, capacity=30, num_worlds=3, seed=0).load(kept, values)
    longer = Replay(BOX, ACTION, capacity=90, num_worlds=3, seed=0)
    if values["full"]:  # what was overwritten cannot be told
        with pytest.raises(ValueError, match="slots of a world must be 30; got 20"):
            longer.load(kept, values)
    elif steps:
        again = Replay(BOX, ACTION, capacity=60, num_worlds=3, seed=99)
        for replay in (longer, again):
            replay.load(kept, values)
        same(longer.sample(sampling), again.sample(sampling))


def test_demonstrations_are_whole_episodes_and_never_overwritten():
    demos = Replay(BOX, ACTION, capacity=2, num_worlds=1, seed=0, grows=True)
    for episode in range(9):
        obs = np.array([[0, episode, step] for step in range(episode + 2)], np.float32)
        demos.add_episode(
            obs,
            np.full((episode + 1, 2), episode / 10, np.float32),
            reward_of(obs[1:]),
            terminated=episode % 2 == 0,
            imitate=episode != 3,
            rows=obs.astype(np.float16),
        )
    assert len(demos) == sum(range(1, 10))
    batch = demos.sample(Sampling(length=3, batch_size=400))
    step, episode = batch.obs[0, :, 2], batch.obs[0, :, 1]
    np.testing.assert_array_equal(batch.valid.sum(0), torch.minimum(episode + 1 - step, torch.tensor(3)))
    np.testing.assert_array_equal(batch.imitate[0], episode != 3)
    np.testing.assert_array_equal(batch.terminated[0], (step == episode) & (episode % 2 == 0))
    np.testing.assert_array_equal(batch.obs[1, :, 2], step + 1)
    assert [len(stretch.slots) for stretch in demos.stretches()] == list(range(1, 10))
    arrays, values = demos.arrays()
    again = Replay(BOX, ACTION, capacity=2, num_worlds=1, seed=3, grows=True)
    again.load(arrays, values)
    same(again.sample(Sampling()), demos.sample(Sampling()))


def test_a_batch_mixes_own_and_shown_by_the_share_and_its_schedule():
    own, _ = filled(20)
    empty, _ = filled(0)
    demos, _ = filled(20)
    demos.set_rewards(np.arange(20), 0, np.full(20, -1, np.float32))
    demos.set_rewards(np.arange(20), 1, np.full(20, -1, np.float32))
    demos.set_rewards(np.arange(20), 2, np.full(20, -1, np.float32))

    def shown(mix, share=0.25, **schedule):
        batch = next(mix.batches(Sampling(length=2, batch_size=40, demo_share=share, **schedule)))
        assert batch.reward.shape == (2, 40)
        return int((batch.reward[0] == -1).sum())

    assert shown(Mix(own, demos)) == 10
    assert shown(Mix(own, demos), 0.0) == 0
    assert shown(Mix(own), 0.5) == 0
    assert shown(Mix(own, empty), 0.5) == 0
    assert shown(Mix(empty, demos), 0.0) == 40
    assert shown(Mix(own, demos), demo_share_last=0.75, demo_share_over=120) == 20  # half way: 60 of 120 transitions
    assert shown(Mix(own, demos), demo_share_last=0.05, demo_share_over=30) == 2
    with pytest.raises(ValueError, match="must be a step to draw"):
        next(Mix(empty).batches(Sampling()))


@pytest.mark.parametrize("n", [1, 3, 5])
def test_n_step_is_its_definition(n):
    replay, rollout = filled(50)
    where, gamma = index(rollout), 0.7
    batch = replay.sample(Sampling(length=5, batch_size=400))
    step = n_step(batch, gamma, n)
    for b in range(400):
        t, e = where[tuple(batch.obs[0, b].int().tolist())]
        total, discount = 0.0, 1.0
        while True:
            total += discount * reward_of(rollout.next_obs[t, e])
            discount *= gamma
            if rollout.terminated[t, e]:
                discount = 0.0
            if rollout.ended[t, e] or t == 49 or discount < gamma**n * 1.01:
                break
            t += 1
        assert step.reward[b].item() == pytest.approx(total, rel=1e-5)
        assert step.discount[b].item() == pytest.approx(discount)
        np.testing.assert_array_equal(step.next_obs[b], rollout.next_obs[t, e])
    with pytest.raises(ValueError, match="n must be from 1 to"):
        n_step(batch, gamma, 6)


def test_a_sample_costs_the_same_at_any_size():
    def cost(capacity):
        replay = Replay(BOX, ACTION, capacity=capacity, num_worlds=8, seed=0)
        rollout = Stream(8).rollout(capacity // 8)
        replay.add(rollout, reward_of(rollout.next_obs))
        times = []
        for _ in range(60):
            start = time.perf_counter()
            replay.sample(Sampling(length=3, batch_size=256))
            times.append(time.perf_counter() - start)
        return min(times)

    assert cost(200_000) < 4 * cost(2_000)  # caches, not loops: a loop over what is stored would be 100 ×


def test_a_replay_without_room_or_of_other_spaces_is_refused():
    with pytest.raises(ValueError, match="capacity must be at least num_worlds"):
        Replay(BOX, ACTION, capacity=2, num_worlds=3, seed=0)
    with pytest.raises(ValueError, match="must be a Box or a Dict"):
        Replay(spaces.Discrete(3), ACTION, capacity=9, num_worlds=3, seed=0)
    replay, _ = filled(4, capacity=12)
    rollout = Stream(3).rollout(5)
    with pytest.raises(ValueError, match="at most 4 steps; got 5"):
        replay.add(rollout, reward_of(rollout.next_obs))
