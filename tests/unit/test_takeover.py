"""A person's actions at the border: what is refused, what worlds may tell, and what a robot is sent."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from benchmarks.rescue import Rescued
from embodied.envs.interventions import Intervened
from embodied.envs.vector import WorldVecEnv
from embodied.envs.worker import WorldError
from embodied.errors import UserError
from embodied.training.collector import Collector
from tests.arms import Arm
from tests.made_arms import maker
from tests.probes import ProbeWorld

# The border ---------------------------------------------------------------------------------------------

BAD = [
    (np.zeros(2), r"must be numbers of shape \(1,\); got float64 \(2,\)"),
    (0.5, r"must be numbers of shape \(1,\); got float64 \(\)"),
    ("left", r"must be numbers of shape \(1,\); got 'left'"),
    (np.array([np.nan]), r"must be finite; got \[nan\]"),
    (np.array([1.5]), r"must be of Box\(-1.0, 1.0, \(1,\), float32\); got \[1.5\]"),
]


@pytest.mark.parametrize(("given", "why"), BAD)
def test_a_persons_bad_action_does_not_reach_the_world(given, why):
    world = ProbeWorld()
    env = Intervened(world, lambda: given)
    env.reset(seed=0)
    with pytest.raises(UserError, match=why):
        env.step(np.zeros(1))
    assert world.steps == 0


class Tells(gymnasium.Wrapper):
    """Tells of every step what it was given."""

    def __init__(self, env, told):
        super().__init__(env)
        self.told = told

    def step(self, action):
        *out, info = self.env.step(action)
        return *out, info | (self.told(action) if callable(self.told) else self.told)


def told_step(told, env=ProbeWorld, actions=None):
    worlds = WorldVecEnv(lambda: Tells(env(), told), 1)
    worlds.reset()
    try:
        return worlds.step(np.zeros((1, 1), np.float32) if actions is None else actions)[4][0]
    finally:
        worlds.close()


@pytest.mark.parametrize(("given", "why"), BAD)
def test_a_world_that_tells_nonsense_is_refused(given, why):
    with pytest.raises(WorldError, match="world 0 failed in step: .*" + why):
        told_step({"intervene_action": given})


def test_a_person_who_acted_and_nobody_says_how():
    with pytest.raises(WorldError, match=r"is_intervention'\] is true, so .* must hold the action .* teleop_action"):
        told_step({"is_intervention": True, "teleop_action": np.zeros(1)})


@pytest.mark.parametrize(("told", "person", "action"), [
    ({}, False, None),
    ({"intervene_action": None, "is_intervention": False}, False, None),
    (lambda action: {"intervene_action": action}, False, 0.0),  # SERL tells the policy's own too
    ({"intervene_action": np.array([0.25])}, True, 0.25),  # HIL-SERL
    ({"intervene_action": np.array([0.25]), "is_intervention": True}, True, 0.25),
    ({"intervene_action": np.array([0.25]), "is_intervention": False}, False, 0.25),  # a robot's limits
])  # fmt: skip
def test_what_a_world_may_tell(told, person, action):
    info = told_step(told)
    assert info["is_intervention"] is person
    assert info.get("intervene_action") == action


class Choices(gymnasium.Env):
    """Choices that begin at 1."""

    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(3, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize(("given", "there"), [(1, 0), (3, 2), (0, None), (4, None), (1.5, None)])
def test_a_choice_is_told_as_the_agent_would_have_made_it(given, there):
    if there is None:
        with pytest.raises(WorldError, match="must be of Discrete"):
            told_step({"intervene_action": given}, Choices, np.zeros(1, np.int64))
    else:
        assert told_step({"intervene_action": given}, Choices, np.zeros(1, np.int64))["intervene_action"] == there


# A robot ------------------------------------------------------------------------------------------------


def test_a_robots_limits_hold_for_a_person_and_what_was_sent_is_stored():
    arm, hand = Arm(), [None, [0.01, 1.0], [9.0, 1.0], None]

    class Still:
        def begin(self, count):
            return {}

        def act(self, obs, memory, first, *, explore):
            return np.tile(np.array([[0.0, -1.0]], np.float32), (len(first), 1)), memory

    with maker() as make:
        env = make(arm, obs="state", takeover=iter(hand).__next__)
        collector = Collector(WorldVecEnv(lambda: env, 1))
        collected = collector.collect(Still(), 4)
        sent = np.array([command for _, command in arm.commands])
        assert collected.intervened[:, 0].tolist() == [False, True, True, False]
        steps, limits = np.diff(np.vstack([[0, 0], sent]), axis=0), env.limits
        most = limits.command["x"].speed * env.period_s
        assert (np.abs(steps[:, 0]) <= most + 1e-9).all()
        np.testing.assert_allclose(collected.rollout.action[:, 0, 0] * most, steps[:, 0], atol=1e-6)
        assert collected.rollout.action[2, 0, 0] < 1.0  # by its acceleration
        collector.close()


def test_a_hand_that_cannot_be_read_is_no_intervention():
    arm = Arm()
    with maker() as make:
        env = make(arm, takeover=lambda: np.zeros(3))
        env.reset()
        *_, terminated, _, info = env.step(np.zeros(2))
        assert terminated
        assert info["is_intervention"] is False
        assert arm.commands == []


# The expert that stands for a person --------------------------------------------------------------------


def test_an_expert_rescues_a_policy_that_does_nothing():
    import embodied.envs  # noqa: F401  (registers)

    env = Rescued(gymnasium.make("embodied/desk-reach-v0", obs="state"), patience=5, turn=10, most=15)
    env.reset(seed=0)
    infos, still = [], np.zeros(env.action_space.shape, np.float32)
    for _ in range(40):
        *_, info = env.step(still)
        infos.append(info)
    acted = [bool(info["is_intervention"]) for info in infos]
    assert not any(acted[:6])
    assert all(acted[6:8])
    assert 3 <= sum(acted) <= 15
    env.reset(seed=1)
    assert not env.step(still)[4]["is_intervention"]
    env.close()
