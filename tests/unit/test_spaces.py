"""What an agent sends is what the world gets, and what the world tells is what the agent reads; or a refusal."""

from functools import partial

import numpy as np
import pytest
from gymnasium import spaces

from embodied.envs.bridge import make
from embodied.envs.spaces import told_success
from embodied.envs.vector import WorldError, WorldVecEnv
from embodied.errors import UserError
from embodied.training.collector import Collector
from policies import sb3
from tests.echo import Echo

SEEDS = range(50)
FLOATS, WHOLE = (np.float32, np.float64, np.float16), (np.int8, np.uint8, np.int32, np.int64)


def inner(env) -> Echo:
    return env.unwrapped.inner.unwrapped


def stepped(venv, action):
    """The observation and the info after an action in the one world of a vector."""
    obs, *_, infos = venv.step(np.array([action]))
    return obs[0], infos[0]


def some_actions(rng):
    """A space, and whether it must be refused."""
    shape = tuple(int(n) for n in rng.integers(1, 4, rng.integers(0, 4)))
    start = int(rng.integers(-5, 6))
    kind = rng.integers(9)
    if kind == 0:
        return spaces.Discrete(int(rng.integers(1, 9)), start=start), False
    if kind == 1:
        counts = rng.integers(1, 6, shape or (2,))
        return spaces.MultiDiscrete(counts, start=rng.integers(-3, 4, counts.shape)), False
    if kind == 2:
        return spaces.MultiBinary(list(shape) or 3), False
    if kind == 3:  # whole numbers, in bounds that float32 tells apart or not
        dtype = WHOLE[rng.integers(len(WHOLE))]
        if rng.random() < 0.3:
            info = np.iinfo(dtype)
            return spaces.Box(info.min, info.max, shape, dtype), info.max > 2**24
        return spaces.Box(int(rng.integers(0, 5)), int(rng.integers(5, 100)), shape, dtype), False
    if kind in (4, 5, 6):
        dtype = FLOATS[rng.integers(len(FLOATS))]
        low = rng.uniform(-3, 0, shape).astype(dtype)
        high = (low + rng.uniform(0.1, 4, shape)).astype(dtype)
        if rng.random() < 0.3:
            high = np.full(shape, np.inf, dtype)
        return spaces.Box(low, high, shape, dtype), False
    box = spaces.Box(-1, 1, (2,))
    if kind == 7:
        return spaces.Dict({"arm": box, "grip": spaces.Discrete(2)}), True
    return (spaces.Tuple([box, spaces.Discrete(3)]) if rng.random() < 0.5 else spaces.Text(4)), True


def some_observations(rng, deep=True):
    shape = tuple(int(n) for n in rng.integers(1, 4, rng.integers(0, 4)))
    kind = rng.integers(7 if deep else 4)
    if kind == 0:
        return spaces.Discrete(int(rng.integers(1, 9)), start=int(rng.integers(-5, 6)))
    if kind == 1:
        counts = rng.integers(1, 6, shape or (2,))
        return spaces.MultiDiscrete(counts, start=rng.integers(-3, 4, counts.shape))
    if kind == 2:
        return spaces.MultiBinary(list(shape) or 3)
    if kind == 3:
        dtype = (*FLOATS, *WHOLE)[rng.integers(7)]
        whole = np.dtype(dtype).kind in "iu"
        return spaces.Box(0, int(rng.integers(1, 100)) if whole or rng.random() < 0.5 else np.inf, shape, dtype)
    if kind == 4:
        return spaces.Dict({name: some_observations(rng, False) for name in ("b", "a", "ünïcode")})
    if kind == 5:
        return spaces.Tuple([some_observations(rng, False) for _ in range(3)])
    return spaces.Dict({"deep": spaces.Tuple([some_observations(rng, False)]), "own": some_observations(rng, False)})


def expected(space, sent):
    """What the world should get of what an agent sent, by the space's own definition."""
    if isinstance(space, spaces.Discrete):
        return space.start + int(sent)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start + np.reshape(sent, space.shape)
    whole = np.dtype(space.dtype).kind in "iu"
    return np.reshape(np.rint(sent) if whole else sent, space.shape).astype(space.dtype)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_world_gets_what_the_agent_sends_and_the_agent_what_it_tells(seed):
    rng = np.random.default_rng(seed)
    (actions, refused), observations = some_actions(rng), some_observations(rng)
    actions.seed(seed)
    observations.seed(seed)
    maker = partial(make, "Echo-v0", action_space=actions, observation_space=observations)
    if refused:
        with pytest.raises(UserError) as caught:
            maker()
        assert str(actions) in str(caught.value)
        assert "Echo-v0" in str(caught.value)
        return
    if (
        isinstance(actions, spaces.Box) and not actions.is_bounded()
    ):  # they may be played, but no learner can scale them
        with pytest.raises(UserError, match="Echo-v0: actions must have finite bounds") as caught:
            WorldVecEnv(maker, 1)
        assert str(actions) in str(caught.value)
        return
    venv = WorldVecEnv(maker, 1, seed=seed)
    (world,) = venv.get_attr("inner")
    world, own = world.unwrapped, venv.action_space
    own.seed(seed)
    rows = [venv.reset()[0]]
    for sent in [*(own.sample() for _ in range(4)), *((own.low, own.high) if isinstance(own, spaces.Box) else ())]:
        rows.append(stepped(venv, sent)[0])
        got, right = world.got[-1], expected(actions, sent)
        if np.dtype(actions.dtype).kind == "f":  # bounds that float32 rounds outwards are kept
            np.testing.assert_allclose(got, right, rtol=2**-22)
        else:
            np.testing.assert_array_equal(got, right)
        assert np.asarray(got).dtype == actions.dtype
    told = world.told[-len(rows) :]
    for row, each in zip(rows, told, strict=True):
        with np.errstate(over="ignore"):
            flat = np.asarray(spaces.flatten(observations, each)).astype(np.float32)
        np.testing.assert_array_equal(row, flat)
        assert venv.observation_space.contains(row)
    venv.close()


def test_a_gear_that_begins_at_one_learns_to_shift():
    """PPO's and DQN's choices arrive with the world's start, so the paid gear is found."""
    maker = partial(make, "Echo-v0", action_space=spaces.Discrete(2, start=1))
    for policy, own in (("ppo", {"rollout_steps": 32, "batch_size": 32}), ("dqn", {"learning_starts": 20})):
        venv = WorldVecEnv(maker, 1, seed=0)
        learner = getattr(sb3, policy)(
            venv.observation_space, venv.action_space, num_worlds=1, total_steps=64, seed=0, device="cpu", **own
        )
        Collector(venv).collect(learner, 64)
        (world,) = venv.get_attr("inner")
        assert {int(action) for action in world.unwrapped.got} == {1, 2}
        venv.close()


def test_a_world_that_was_not_bridged_is_held_to_the_same():
    """Straight from Gymnasium into `WorldVecEnv`: actions are translated, observations it cannot hold are refused."""
    venv = WorldVecEnv(lambda: Echo(spaces.Discrete(2, start=1)), 1)
    venv.reset()
    assert venv.action_space == spaces.Discrete(2)
    stepped(venv, 1)
    assert venv.get_attr("got") == [[2]]
    venv.close()
    for space in (spaces.Discrete(3, start=1), spaces.Tuple([spaces.Discrete(2)])):
        with pytest.raises(UserError, match=r"Echo: observations must be arrays.*bridge\.make") as caught:
            WorldVecEnv(lambda space=space: Echo(spaces.Discrete(2), space), 1)
        assert str(space) in str(caught.value)


@pytest.mark.parametrize(
    ("space", "sent", "words"),
    [
        (spaces.Discrete(3, start=1), -1, r"must be of Discrete\(3\) \(the world's own: Discrete\(3, start=1\)\)"),
        (spaces.Discrete(3, start=1), 3, "must be of Discrete"),
        (spaces.Discrete(3), 1.5, "must be of Discrete"),
        (spaces.Box(0, 255, (2,), np.uint8), [0, -1], "must be of Box"),  # a cast would send 255
        (spaces.Box(-1, 1, (2,)), [0.0], "must be of Box"),
        (spaces.Box(-1, 1, (2,)), [0.0, np.nan], "an action must be finite"),
        (spaces.MultiDiscrete([2, 3]), [0, 3], "must be of MultiDiscrete"),
        (spaces.MultiBinary(2), [0, 2], "must be of MultiBinary"),
    ],
)
def test_an_action_that_is_none_is_refused_by_name(space, sent, words):
    env = make("Echo-v0", action_space=space)
    env.reset(seed=0)
    with pytest.raises(UserError, match=f"Echo-v0: .*{words}"):
        env.step(np.array(sent))
    assert not inner(env).got


BOX = spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize(
    ("space", "tells", "words"),
    [
        (BOX, np.array([0, np.nan], np.float32), r"an observation must be finite; got nan at \[1\]"),
        (BOX, np.array([np.inf, 0], np.float32), r"an observation must be finite; got inf at \[0\]"),
        (BOX, np.zeros(1, np.float32), "an observation must be of Box"),  # it would be written twice
        (spaces.Discrete(3, start=1), 0, "an observation must be of Discrete"),  # counted from the end, it would be 3
        (spaces.Dict({"a": BOX}), {"b": np.zeros(2)}, "an observation must be of Dict"),
        (spaces.Dict({"a": BOX}), {"a": np.zeros(3)}, r"an observation\['a'\] must be of Box"),
    ],
)
def test_an_observation_that_is_none_names_its_world(space, tells, words):
    maker = partial(make, "tests.echo:Echo-v0", action_space=BOX, observation_space=space, tells=tells)
    venv = WorldVecEnv(maker, 1, workers=int(words == "an observation must be of Dict"))
    with pytest.raises(WorldError, match=f"world 0 failed in reset: Echo-v0: {words}") as caught:
        venv.reset()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bridged", [True, False])
def test_a_reward_or_observation_that_is_nan_names_its_world(bridged):
    nan = np.array([0, np.nan], np.float32)
    for own, words in (({"tells": nan}, "an observation must be finite"), ({"reward": np.nan}, "a reward must be one")):
        maker = partial(make, "Echo-v0", action_space=BOX, **own) if bridged else partial(Echo, BOX, **own)
        venv = WorldVecEnv(maker, 2)

        def play(venv=venv):
            venv.reset()
            venv.step(np.zeros((2, 2), np.float32))

        with pytest.raises(WorldError, match=rf"world 0 failed in (reset|step): Echo(-v0)?: {words}"):
            play()


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ({}, None),
        ({"is_success": None}, None),
        ({"success": float("nan")}, None),
        ({"is_success": "maybe"}, None),
        ({"is_success": 0.0}, False),
        ({"success": np.array([1.0])}, True),
        ({"is_success": None, "success": np.True_}, True),
    ],
)
def test_success_that_is_not_told_is_unknown(told, known):
    assert told_success(told) is known
    env = make("Echo-v0", action_space=BOX, info=told)
    env.reset(seed=0)
    assert env.step(np.zeros(2, np.float32))[4].get("is_success") is known
    venv = WorldVecEnv(lambda: Echo(BOX, info=told), 1)
    venv.reset()
    assert stepped(venv, np.zeros(2, np.float32))[1].get("is_success") is known
    venv.close()
