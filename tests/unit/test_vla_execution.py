"""From chunks to actions: averages, chunks that go on, the rules for answers, LeRobot's signatures."""

from collections import Counter

import numpy as np
import pytest
import torch

from benchmarks.policy_faults import episode
from embodied.finetuning.ranking import Branching
from policies.vla.actor import ChunkActor
from policies.vla.choosing import BestOfN, candidates
from policies.vla.critic import PrefixCritic
from policies.vla.embedded import ChunkObservation
from policies.vla.execute import Ensemble, GoingOn, guided
from policies.vla.lerobot import LeRobotPolicy
from policies.vla.queue import ChunkQueue
from tests.unit.test_vla_policy import ACTIONS, CAMERAS, make, observed

LOW, HIGH = -100 * np.ones(3), 100 * np.ones(3)  # nothing is cut off


def acting(policy, **options):
    def see(name, frames):
        return torch.from_numpy(frames).float().mean((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, CAMERAS[name], 2, 2) / 255

    def say(texts):
        return torch.zeros(len(texts), 7)

    return ChunkActor(policy, see, say, low=LOW, high=HIGH, **options)


def shown(step, worlds=2):
    random = np.random.default_rng(step)
    images = {name: random.integers(0, 256, (worlds, 4, 4, 3), dtype=np.uint8) for name in CAMERAS}
    return {"images": images, "state": random.normal(size=(worlds, 3)), "instruction": [""] * worlds}


# Averages ------------------------------------------------------------------------------------------------


def test_an_ensemble_is_the_weighted_mean_of_all_that_is_said_of_a_moment():
    random, horizon, steps, rate = np.random.default_rng(0), 4, 9, 0.3
    chunks = random.normal(size=(steps, 2, horizon, 3))
    first = np.zeros((steps, 2), bool)
    first[0], first[5, 1] = True, True  # world 1 begins anew in between
    ensemble = Ensemble.begun(2, horizon, 3, rate)
    for t in range(steps):
        now, ensemble = ensemble.add(chunks[t], first[t])
        for e in range(2):
            begun = max(k for k in range(t + 1) if first[k, e])
            said = [chunks[k, e, t - k] for k in range(max(begun, t - horizon + 1), t + 1)]
            weights = np.exp(-rate * np.arange(len(said)))  # the oldest first
            assert np.allclose(now[e], np.average(said, axis=0, weights=weights))


def test_an_actor_that_averages_looks_at_every_step():
    policy = make()
    actor, plain = acting(policy, execute=4, ensemble=0.0), acting(policy, execute=1)
    memory, other = actor.begin(2), plain.begin(2)
    for step in range(3):
        first = np.full(2, step == 0)
        obs = shown(step)
        before = memory.ensemble.total.copy()
        action, memory = actor.act(obs, memory, first)
        newest, other = plain.act(obs, other, first)
        expected = newest if step == 0 else (before[:, 0] + newest) / (step + 1)
        assert np.allclose(action, expected, atol=1e-6)
    assert memory.chunks == 6


# Chunks that come late, and go on ------------------------------------------------------------------------


def test_a_chunk_that_comes_late_is_followed_from_its_place():
    policy = make(horizon=6)
    actor = acting(policy, execute=3, delay=2)
    memory, chunks = actor.begin(1), {}
    done = []
    for step in range(9):
        obs = shown(step, 1)
        chunks[step] = actor.scaled(policy.predict_chunk(actor.look(obs, np.array([0]))))[0]
        action, memory = actor.act(obs, memory, np.array([step == 0]))
        said = ((k, step - k) for k in range(step + 1) if step - k < 6)
        done.append(next((k, i) for k, i in said if np.array_equal(action[0], chunks[k][i])))
    # asked for at 3 and there at 5, from its third action on; asked for again where that stands at 3
    assert done == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (3, 2), (3, 3), (3, 4), (6, 2)]


def test_a_late_chunk_goes_on_from_the_one_under_way():
    policy = make("flow", horizon=6)
    away = {}
    for go_on in (False, True):
        actor = acting(policy, execute=3, delay=2, go_on=go_on)
        memory, away[go_on] = actor.begin(1), []
        for step in range(30):
            old = memory.queue.copy()
            _, memory = actor.act(shown(step, 1), memory, np.array([step == 0]))
            if step and not np.array_equal(memory.queue, old):  # what was done while it was computed
                away[go_on].append(np.abs(memory.queue[0, :2] - old[0, 3:5]).max())
    assert len(away[True]) == 9
    assert np.mean(away[True]) < 0.3 * np.mean(away[False])


@pytest.mark.parametrize(
    ("options", "told"),
    [({"execute": 9}, "execute must be from 1"), ({"execute": 3, "delay": 2}, "delay must be from 0 to 1"),
     ({"execute": 2, "ensemble": 0.1, "delay": 1}, "goes with no delay"),
     ({"execute": 2, "go_on": True}, "needs a policy with head=flow")],
)  # fmt: skip
def test_what_an_actor_cannot_do_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        acting(make(), **options)


def test_the_weights_of_what_is_known():
    """1 for what will be done; then eq. 5, by hand; 0 where nothing is known."""
    found = GoingOn(torch.zeros(1, 8, 2), known=5, delay=2).weights(8).numpy()
    c = np.array([3, 2, 1]) / 4
    assert np.allclose(found, [1, 1, *(c * (np.exp(c) - 1) / (np.e - 1)), 0, 0, 0])
    with pytest.raises(ValueError, match="0 ≤ delay ≤ known"):
        GoingOn(torch.zeros(1, 8, 2), known=2, delay=3)


@pytest.mark.parametrize("time", [1.0, 0.6, 0.1])
def test_guidance_has_the_jacobian_of_the_whole_estimate(time):
    """Against J from finite differences in float64, as a matrix, one column an input."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 12)).double()

    def velocity(x):
        return net(x.flatten(1)).view_as(x)

    x, before = torch.randn(1, 4, 3).double(), torch.randn(1, 4, 3).double()
    weights = torch.tensor([1.0, 0.7, 0.2, 0.0]).double()
    with torch.no_grad():
        columns = []
        for k in range(12):
            step = torch.zeros(12).double()
            step[k] = 1e-6
            pair = [x + sign * step.view_as(x) for sign in (1, -1)]
            up, down = (each - time * velocity(each) for each in pair)
            columns.append((up - down).flatten() / 2e-6)
        jacobian = torch.stack(columns, 1)  # of the output by the input
        clean = x - time * velocity(x)
        error = (weights[:, None] * (before - clean)).flatten()
        tau = 1 - time
        push = 10.0 if tau == 0 else min(10.0, (1 - tau) / tau * ((1 - tau) ** 2 + tau**2) / (1 - tau) ** 2)
        expected = velocity(x).flatten() - push * (jacobian.T @ error)
    found = guided(velocity, x, time, before, weights).flatten()
    assert torch.allclose(found, expected, atol=1e-6)
    as_if_identity = velocity(x).flatten() - push * error
    assert (found - as_if_identity).abs().max() > 1e-2  # what the identity for J would give is something else


def test_what_is_held_pulls_along_what_is_not():
    """The action that is not held moves too: through the network's part of the Jacobian alone."""
    policy = make("flow").eval()
    context = policy.look(observed(1))
    noise = torch.zeros(1, 4, 3)

    def slots(noisy, time):
        return policy.fusion.slot(context, noisy, time)

    free = policy.head.sample(slots, noise)
    held = policy.head.go_on(slots, noise, free + 1.0, torch.tensor([1.0, 0, 0, 0]))
    assert (held[:, 0] - free[:, 0] - 1).abs().max() < 0.3
    assert (held[:, 3] - free[:, 3]).abs().max() > 1e-4


# Rules for answers ---------------------------------------------------------------------------------------

FPS, H = 10.0, 4


def queue(**options):
    return ChunkQueue(H, 1, fps=FPS, **({"refill": 2, "patience_s": 0.3} | options))


def chunk(number):
    return np.arange(H, dtype=np.float32)[:, None] + 10 * number


def test_a_late_answer_begins_in_its_middle_and_its_end_is_the_end():
    made = queue()
    first = made.ask(0.0)
    assert made.ask(0.1) is None  # one at a time
    assert made.act(0.1) is None
    assert made.answer(first, chunk(1), 0.18) == "taken"
    assert made.act(0.2)[0] == 12  # 0.2 s after its pictures
    assert made.act(0.22) is None  # not twice
    assert made.act(0.31)[0] == 13
    assert made.act(0.4) is None
    assert made.counts == {"taken": 1, "empty": 3}


def test_answers_that_are_doubled_reordered_lost_late_or_broken():
    made = queue()
    first = made.ask(0.0)
    second = made.ask(0.35)  # the first is given up
    assert second == first + 1
    assert made.answer(second, chunk(2), 0.36) == "taken"
    assert made.answer(second, chunk(9), 0.37) == "doubled"
    assert made.answer(first, chunk(1), 0.37) == "reordered"
    assert made.answer(first, chunk(1), 0.38) == "doubled"
    assert made.answer(77, chunk(1), 0.38) == "unknown"
    assert made.act(0.38)[0] == 20
    third = made.ask(0.55)
    assert made.answer(third, chunk(3)[:2], 0.56) == "broken"
    fourth = made.ask(0.57)
    assert made.answer(fourth, chunk(3) * np.nan, 0.58) == "broken"
    fifth = made.ask(0.6)
    assert made.answer(fifth, chunk(5), 1.01) == "late"
    assert made.act(1.01) is None
    made.reset()
    assert made.answer(fifth, chunk(5), 1.02) == "unknown"
    assert made.counts["lost"] == 1


def test_no_action_is_older_than_the_limit_that_is_given():
    made = queue(longest_s=0.2)
    assert made.answer(made.ask(0.0), chunk(0), 0.01) == "taken"
    assert made.left(0.01) == 2
    assert [made.act(t) is None for t in (0.02, 0.1, 0.2, 0.25, 0.3)] == [False, False, False, True, True]
    for options in ({"refill": 9}, {"patience_s": 0.0}, {"longest_s": 0.0}):
        with pytest.raises(ValueError, match="ChunkQueue"):
            queue(**options)


def test_over_a_bad_network_no_action_outlives_its_limit_and_without_rules_many_do():
    def total(rules, episodes):
        return sum((episode(np.random.default_rng(k), rules=rules, steps=40) for k in range(episodes)), Counter())

    kept, without = total(True, 60), total(False, 10)
    assert (kept["late"], kept["limits"]) == (0, 0)
    assert kept["actions"] > 0.5 * kept["commands"]
    assert without["late"] > 0.5 * without["actions"]
    assert without["limits"] > 0.5 * without["commands"]


# LeRobot's signatures ------------------------------------------------------------------------------------


def lerobot(policy, execute=2, looked=None):
    def see(name):
        def look(frames):
            if looked is not None:
                looked.append(frames)
            return torch.from_numpy(frames).permute(0, 3, 1, 2).float().mean(1, keepdim=True).expand(
                -1, CAMERAS[name], -1, -1)  # fmt: skip

        return look

    return LeRobotPolicy(policy, {name: see(name) for name in CAMERAS}, lambda t: torch.zeros(len(t), 7),
                         execute=execute)  # fmt: skip


def batch(seed=0):
    random = torch.Generator().manual_seed(seed)
    images = {f"observation.images.{name}": torch.rand(2, 3, 4, 4, generator=random) for name in CAMERAS}
    return images | {"observation.state": torch.randn(2, 3, generator=random), "task": ["push", "pull"]}


def test_lerobots_signatures_give_the_chunk_and_its_actions_in_turn():
    policy, looked = make(), []
    made = lerobot(policy, looked=looked)
    whole = made.predict_action_chunk(batch())
    assert whole.shape == (2, 4, len(ACTIONS))
    frames = np.rint(255 * batch()["observation.images.front"].numpy()).astype(np.uint8).transpose(0, 2, 3, 1)
    assert np.array_equal(looked[0], frames)
    obs = ChunkObservation(
        {name: made._see[name]((255 * batch()[f"observation.images.{name}"]).round().byte().permute(0, 2, 3, 1).numpy())
         for name in CAMERAS}, {name: torch.ones(2, dtype=torch.bool) for name in CAMERAS}, torch.zeros(2, 7),
        batch()["observation.state"])  # fmt: skip
    assert torch.equal(whole, policy.predict_chunk(obs))
    assert torch.equal(made.select_action(batch()), whole[:, 0])
    assert torch.equal(made.select_action(batch(1)), whole[:, 1])  # of the chunk, whatever is seen meanwhile
    assert not torch.equal(made.select_action(batch(1)), whole[:, 2])  # it looked again
    made.select_action(batch())
    made.select_action(batch(1))
    made.reset()
    assert torch.equal(made.select_action(batch()), whole[:, 0])
    lacking = batch()
    lacking.pop("observation.images.wrist")
    with pytest.raises(KeyError, match=r"observation\.images\.wrist"):
        made.predict_action_chunk(lacking)
    with pytest.raises(ValueError, match="execute must be from 1 to 4"):
        lerobot(policy, execute=5)


# A critic judged at one moment ---------------------------------------------------------------------------


def test_the_chunk_that_a_critic_valued_is_executed_to_its_end_however_few_actions_the_policy_executes():
    policy = make(horizon=6)
    critic = PrefixCritic(policy.spec.width, 3, 6, width=8, layers=1, heads=2, critics=2)
    chooser = BestOfN(policy, critic, count=3, deviation=0.5, seed=0)
    actor, trunk = acting(policy, execute=2), np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    branching = Branching(actor, chooser, [trunk], [(2, 7)], count=3, deviation=0.5)
    memory, done = branching.begin(1), []
    for step in range(12):
        action, memory = branching.act(shown(step, 1), memory, np.array([step == 0]), explore=False)
        done.append(action[0])
    context = policy.look(actor.look(shown(4, 1), np.array([0])))
    drawn = candidates(policy, context, 3, 0.5, torch.Generator().manual_seed(7))
    own = actor.scaled(policy.predict_chunk(actor.look(shown(10, 1), np.array([0]))))[0]
    np.testing.assert_array_equal(done[:4], trunk)
    np.testing.assert_allclose(done[4:10], actor.scaled(policy.action.backward(drawn[:, 2].detach()))[0], atol=1e-5)
    np.testing.assert_allclose(done[10:12], own[:2], atol=1e-5)
    np.testing.assert_allclose(branching.scores, chooser.rank(context, drawn)[:, 2], atol=1e-5)
