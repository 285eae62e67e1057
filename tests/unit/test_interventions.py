"""A person's actions: stored as what was done, shown, paid alike, never counted for the policy, and held to limits."""

from functools import partial

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from embodied.envs.interventions import Intervened
from embodied.envs.vector import WorldVecEnv
from embodied.errors import UserError
from embodied.training import checkpoints, evaluation
from embodied.training.collector import Collector
from embodied.training.experience import score_replay
from embodied.training.labeller import Labeller
from embodied.training.log import RunLog
from embodied.training.loop import Training, train
from embodied.training.perception import Perception
from policies import repo, sb3, tdmpc2
from policies.core import Sampling
from policies.imitation import imitation
from policies.replay import Mix
from policies.rlpd import rlpd
from policies.shown import Shown
from rewards.combine import WeightedSum
from rewards.core import Scorer
from rewards.shaping import PotentialShaping
from tests.actors import Wanders
from tests.helped import GIVEN, STEPS, make_helped
from tests.probe_rewards import ProbeEncoder, ProbeHead, RunningHead
from tests.probes import ProbeWorld, make_probe

TOTAL, LIMIT = 96, 6  # eight episodes of two worlds
SMALL = {"batch_size": 8, "learning_starts": 10, "actor": (8,), "critic": (8,)}


@pytest.fixture
def setup():
    """Training in two worlds in which a person acts, closed at the end."""
    made = []

    def make(factory=rlpd, world=make_helped, head=ProbeHead, demos=None, **settings):
        scorer = Scorer(ProbeEncoder(), {"probe": head()}, WeightedSum(), PotentialShaping(kind="difference"))
        worlds = WorldVecEnv(partial(world, limit=LIMIT), 2, frame_size=16)
        made.append(collector := Collector(worlds, partial(Perception, scorer.encoder, form="state"), batch_size=8))
        spaces_ = (worlds.observation_space, worlds.action_space)
        settings = (SMALL if factory is rlpd else {}) | settings
        learner = factory(*spaces_, num_worlds=2, total_steps=TOTAL, seed=0, device="cpu", **settings)
        return Training.of(collector, Labeller(scorer, collector.layout, 2), learner, demos=demos, total=TOTAL, seed=0)

    yield make
    for collector in made:
        collector.close()


@pytest.fixture
def log(tmp_path):
    made = RunLog(tmp_path)
    yield made
    made.close()


def shown_some(steps=6):
    """Demonstrations of the probe world, to begin from."""
    demos = Shown(spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (1,)), capacity=4, seed=1)
    rows = np.zeros((steps + 1, 8), np.float32)
    demos.add_episode(
        np.zeros((steps + 1, 3), np.float32), np.full((steps, 1), -0.9, np.float32), np.zeros(steps, np.float32),
        terminated=False, rows=rows,
    )  # fmt: skip
    return demos


# Both stores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [ProbeHead, RunningHead])  # the second looks at the episode so far
def test_what_was_executed_lies_in_both_stores_with_the_same_rewards(setup, log, head):
    training = setup(head=head)
    train(training, TOTAL, log)
    own, shown = training.replay.arrays()[0], training.demos.arrays()[0]
    person = own["imitate"]
    assert np.flatnonzero(person[:LIMIT, 0]).tolist() == list(STEPS)
    assert (own["action"][person] == GIVEN).all()
    assert (own["action"][~person] != GIVEN).all()
    assert len(training.demos) == person.sum() == 2 * TOTAL // LIMIT
    order = [(t, e) for t in range(LIMIT - 1, TOTAL // 2, LIMIT) for e in range(2)]
    slots, worlds = (np.concatenate(each) for each in zip(*[
        (np.arange(t - LIMIT + 1, t + 1), np.full(LIMIT, e)) for t, e in order
    ], strict=True))  # fmt: skip
    for name in ("action", "reward", "env_reward", "imitate", "obs", "rows", "terminated", "truncated"):
        np.testing.assert_array_equal(shown[name][:, 0], own[name][slots, worlds], err_msg=name)
    assert own["reward"].any()

    for store in (training.replay, training.demos):
        score_replay(training.rewards.scorer, store, training.collector.layout)
    np.testing.assert_array_equal(training.demos.reward[:, 0], training.replay.reward[slots, worlds])


def test_half_of_a_batch_is_the_persons(setup, log):
    """Drawn are the person's steps alone; a window goes on as the episode did."""
    training = setup()
    train(training, TOTAL, log)
    batch = next(Mix(training.replay, training.demos).batches(Sampling(length=3, batch_size=64, demo_share=0.5)))
    assert (batch.action[0, 32:] == GIVEN).all()
    assert batch.imitate[0, 32:].all()
    assert not batch.imitate[0, :32].all()
    assert batch.valid[:, 32:].all()
    assert (batch.action[2, 32:] != GIVEN).all()


def test_a_run_with_demonstrations_goes_on_showing_them(setup, log):
    training = setup(demos=shown_some(), pretraining=5, warmup=5)
    train(training, TOTAL, log)
    drawn = training.demos.sample(Sampling(batch_size=200)).action[0, :, 0].numpy()
    assert {round(value, 3) for value in drawn.tolist()} == {-0.9, GIVEN}
    assert len(training.demos) == 6 + 2 * TOTAL // LIMIT


def test_without_a_person_nothing_is_shown(setup, log):
    training = setup(world=make_probe)
    train(training, TOTAL, log)
    assert len(training.demos) == 0
    assert "interventions" not in training.recent


# Resume -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("demos", [False, True])
@pytest.mark.parametrize("first", [40, 48])  # in the middle of an episode, between a person's two steps; and at an end
def test_a_checkpoint_goes_on_to_the_same_bits(setup, log, tmp_path, demos, first):
    def fresh():
        return setup(demos=shown_some(), pretraining=5, warmup=5) if demos else setup()

    straight = fresh()
    train(straight, TOTAL, log)
    half = fresh()
    train(half, first, log)
    assert half.demos.interventions
    checkpoint = checkpoints.save_checkpoint(tmp_path, half, log)
    resumed = fresh()
    assert checkpoints.load_checkpoint(checkpoint, resumed, log)
    train(resumed, TOTAL, log)
    for store in ("replay", "demos"):
        one, two = getattr(straight, store).arrays(), getattr(resumed, store).arrays()
        assert one[1] == two[1]
        for name, array in one[0].items():
            np.testing.assert_array_equal(array, two[0][name], err_msg=name)
    for name, value in straight.learner.state()[0].items():
        np.testing.assert_array_equal(value, resumed.learner.state()[0][name], err_msg=name)
    assert straight.recent == resumed.recent


def test_what_a_person_did_before_a_robot_was_stopped_is_shown(setup, log, tmp_path, monkeypatch):
    """A world that cannot go on in the middle of its episode begins anew; that episode ends there."""
    monkeypatch.setattr(ProbeWorld, "get_state", lambda self: (_ for _ in ()).throw(UserError("hidden")))
    half = setup()
    train(half, 32, log)  # four steps into the third episode, both of the person's done
    checkpoint = checkpoints.save_checkpoint(tmp_path, half, log)
    resumed = setup()
    assert not checkpoints.load_checkpoint(checkpoint, resumed, log)
    assert (len(half.demos), len(resumed.demos)) == (8, 12)
    train(resumed, TOTAL, log)
    assert len(resumed.demos) == resumed.replay.arrays()[0]["imitate"].sum()


# What is counted ----------------------------------------------------------------------------------------


class Solved(ProbeWorld):
    """Always solved."""

    def step(self, action):
        *out, info = super().step(action)
        return *out, info | {"is_success": True}


def solved(limit, every=1):
    """A person acts in every so many episodes."""
    world = Solved()
    asked = lambda: np.zeros(1) if world.episode % every == 0 and world.steps in STEPS else None  # noqa: E731
    return Intervened(TimeLimit(world, limit), asked)


def test_successes_with_a_person_are_not_the_policys(setup, log, tmp_path):
    training = setup(world=partial(solved, every=2))
    train(training, TOTAL, log)
    assert list(training.recent["success"]) == [0.0, 0.0, 1.0, 1.0] * 4
    assert set(training.recent["assisted_success"]) == {1.0}
    header, *rows = [line.split(",") for line in (tmp_path / "progress.csv").read_text().splitlines()]
    last = dict(zip(header, rows[-1], strict=True))
    assert float(last["interventions/share"]) == pytest.approx(2 / LIMIT / 2)
    assert float(last["interventions/episodes"]) == 0.5
    assert float(last["interventions/success_rate"]) == 1.0
    assert float(last["rollout/success_rate"]) == 0.5


@pytest.mark.parametrize(("every", "rate"), [(1, 0.0), (10, 1.0)])
def test_an_evaluation_counts_only_what_the_policy_did_alone(setup, every, rate):
    training = setup(world=partial(solved, every=every))
    training.collector.worlds.reset()  # the second episode
    actor = training.learner
    result = evaluation.evaluate(actor, training.collector, training.rewards, 4)
    assert result.summary()["known"] == 4
    assert result.summary()["success_rate"] == rate


def test_the_hand_over_measures_policies_until_a_person_acts(setup, log):
    for world, measured in ((make_helped, STEPS[0]), (make_probe, LIMIT)):
        training = setup(world=world, demos=shown_some(), pretraining=5, warmup=5)
        train(training, TOTAL, log)
        returns = training.learner.state()[1]["handover"]["returns"]
        reward = training.replay.arrays()[0]["reward"].reshape(-1, LIMIT, 2)  # episode by episode
        earned = reward[:, :measured].sum(1).flatten()
        np.testing.assert_allclose(sorted([*returns[0], *returns[1]]), sorted(earned), atol=1e-5)
    kept = training.learner.state()[1]["keeping"]
    assert kept["worlds"] == 2


def test_own_episodes_with_a_person_are_not_kept(setup):
    training = setup(demos=shown_some(), pretraining=5, warmup=0)
    learner = training.learner
    learner.update(Mix(training.replay, training.demos).batches(Sampling(batch_size=4, demo_share=1.0)), 5)
    learner.handover._returns[0].extend([-1e9] * 16)  # anything is more
    for world, kept in ((make_helped, 0), (make_probe, 2)):
        collector = Collector(WorldVecEnv(partial(world, limit=LIMIT), 2))
        learner.observe(collector.collect(learner, LIMIT).rollout, np.ones((LIMIT, 2), np.float32))
        assert learner.state()[1]["keeping"]["episodes"] == kept
        collector.close()


# What acts remembers it ---------------------------------------------------------------------------------


def after(factory, **settings):
    """The memory of a learner before and after a person acted in the first of two worlds."""
    shapes = (spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32))
    learner = factory(*shapes, num_worlds=2, total_steps=100, seed=0, device="cpu", **settings)
    obs, first = np.zeros((2, 3), np.float32), np.ones(2, bool)
    action, memory = learner.act(obs, learner.begin(2), first, explore=False)
    done = action.copy()
    done[0] = GIVEN
    return memory, learner.executed(memory, done, np.array([True, False]), explore=False), done


@pytest.mark.parametrize("factory", [partial(rlpd, chunk=3), partial(imitation, chunk=3, execute=3)])
def test_the_rest_of_a_chunk_is_forgotten_where_a_person_acted(factory):
    before, now, _ = after(factory)
    assert before["left"].tolist() == [2, 2]
    assert now["left"].tolist() == [0, 2]


def test_a_plan_begins_anew_where_a_person_acted():
    before, now, _ = after(tdmpc2.tdmpc2, size="0.1M")
    assert before["plan"][0].any()
    assert not now["plan"][0].any()
    np.testing.assert_array_equal(now["plan"][1], before["plan"][1])


def test_a_belief_goes_on_from_what_was_done():
    before, now, done = after(repo.repo)
    assert not np.array_equal(before["action"][0], done[0])
    np.testing.assert_array_equal(now["action"], done)


def test_an_actor_is_told_what_its_worlds_did():
    told = []

    class Told(Wanders):
        def executed(self, memory, action, intervened, *, explore):
            told.append((action.copy(), intervened.copy(), explore))
            return memory | {"steps": memory["steps"] + 100}

    actor = Told()
    collector = Collector(WorldVecEnv(partial(make_helped, steps=(1,)), 2))
    rollout = collector.collect(actor, 3, explore=False).rollout
    collector.close()
    ((action, intervened, explore),) = told
    assert (action == GIVEN).all()
    assert intervened.all()
    assert explore is False
    np.testing.assert_allclose(rollout.action[2, :, 0], np.sin(102 + np.arange(2)), atol=1e-6)


# stable-baselines3's ------------------------------------------------------------------------------------


def test_off_policy_learners_of_sb3_learn_from_what_was_executed(setup, log):
    training = setup(sb3.sac, learning_starts=10, batch_size=8, network=[8])
    train(training, TOTAL, log)
    own = training.replay.arrays()[0]
    assert (own["action"][own["imitate"]] == GIVEN).all()
    assert own["imitate"].sum() == 2 * TOTAL // LIMIT


def test_a_policy_that_learns_from_its_own_actions_alone_says_so(setup, log):
    training = setup(sb3.ppo, rollout_steps=4, batch_size=8, network=[8])
    with pytest.raises(UserError, match=r"can learn from its own actions alone. Use policy=rlpd"):
        train(training, TOTAL, log)


def test_sb3s_own_loop_refuses_a_person():
    model = sb3.sac(WorldVecEnv(make_helped, 1), seed=0, learning_starts=100, network=[8], device="cpu")
    with pytest.raises(ValueError, match="a person acted"):
        model.learn(12)
    model.env.close()
