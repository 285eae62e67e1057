"""RePo and InfoPower, on worlds whose values are known and on pictures whose backgrounds say nothing."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from policies.core import Actor, Batch, Imagines, Learner
from policies.dual import Dual
from policies.infopower import infopower
from policies.replay import Mix
from policies.repo import repo
from tests.learner_probes import ACTION, GAMMA, OBS, STATES, VALUES, best_actions, memory, resumes

SMALL = {
    "length": 1, "batch_size": 64, "imagined": 64, "horizon": 2, "gamma": GAMMA, "learning_rate": 2e-3,
    "behaviour_rate": 3e-3, "tau": 0.1, "entropy": 1e-4, "learning_starts": 0,
}  # fmt: skip
MAKERS = {"repo": repo, "infopower": infopower}


def make(seed=0, kind="repo", obs=OBS, **settings):
    given = ({"nce_bound": 0.5} if kind == "infopower" else {}) | SMALL | settings
    return MAKERS[kind](obs, ACTION, num_worlds=2, total_steps=1000, seed=seed, device="cpu", **given)


def taught(learner, kind, updates):
    rollout, _ = VALUES[kind]
    learner.observe(rollout, rollout.env_reward)
    learner.update(Mix(memory(rollout)).batches(learner.sampling), updates)
    return learner


@pytest.mark.parametrize(("probe", "updates"), [("discount", 80), ("both", 220)])
def test_it_finds_known_values_and_actions(probe, updates):
    """As published; where more teaches the dynamics, values of these smallest of worlds are off by a third."""
    learner = taught(make(dynamics_weight=0.0), probe, updates)
    np.testing.assert_allclose(learner.value(STATES), VALUES[probe][1], atol=0.08)
    if probe == "both":
        np.testing.assert_allclose(best_actions(learner), [-0.5, 0.5], atol=0.15)


def test_infopower_finds_known_values():
    learner = taught(make(kind="infopower", bonus=0.0), "observation", 60)
    np.testing.assert_allclose(learner.value(STATES), VALUES["observation"][1], atol=0.1)


@pytest.mark.parametrize("kind", MAKERS)
def test_it_keeps_the_protocol_and_draws_from_no_global_generator(kind):
    def run(noise):
        torch.manual_seed(noise)
        np.random.seed(noise)
        learner = taught(make(kind=kind), "both", 2)
        assert isinstance(learner, Learner)
        assert isinstance(learner, Actor)
        first = learner.begin(2)
        action, second = learner.act(STATES, first, np.ones(2, bool), explore=True)
        assert (action.dtype, action.shape) == (np.float32, (2, 1))
        assert all(second[key].shape == first[key].shape and second[key].dtype == first[key].dtype for key in first)
        assert torch.initial_seed() == noise
        return learner.state()[0], action

    (one, acted), (other, again) = run(1), run(2)
    np.testing.assert_array_equal(acted, again)
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", MAKERS)
def test_it_resumes_bit_for_bit(kind):
    resumes(lambda seed: make(seed, kind), VALUES["both"][0], updates=3)


def test_memory_is_carried_and_begins_anew_with_an_episode():
    learner = taught(make(), "discount", 5)
    _, once = learner.act(STATES, learner.begin(2), np.ones(2, bool), explore=False)
    _, twice = learner.act(STATES, once, np.array([False, True]), explore=False)
    assert not np.allclose(twice["h"][0], once["h"][0])
    np.testing.assert_allclose(twice["h"][1], once["h"][1], atol=1e-6)  # as if it were the first
    np.testing.assert_allclose(twice["s"][1], once["s"][1], atol=1e-6)
    alone, _ = learner.act(
        STATES[:1], {name: part[:1] for name, part in once.items()}, np.zeros(1, bool), explore=False
    )
    both, _ = learner.act(STATES, once, np.zeros(2, bool), explore=False)
    np.testing.assert_allclose(alone, both[:1], atol=1e-6)


def test_what_it_imagines_ahead_begins_with_what_it_saw():
    learner = taught(make(), "both", 3)
    assert isinstance(learner, Imagines)
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(6, 1)).astype(np.float32), rng.uniform(-1, 1, (5, 1)).astype(np.float32)
    told = learner.imagine(obs, action, 2)
    assert (told.seen.shape, told.ahead.shape, told.reward.shape) == ((6, 80), (4, 2, 80), (4, 2))
    blind = learner.imagine(np.concatenate([obs[:4], obs[4:] + 9]), action, 2)  # it cannot see what is yet to come
    torch.testing.assert_close(blind.ahead, told.ahead)
    other = learner.imagine(obs, np.concatenate([action[:4], -action[4:]]), 2)
    torch.testing.assert_close(other.ahead[:3], told.ahead[:3])
    assert not torch.allclose(other.ahead[3, 1], told.ahead[3, 1])


def test_an_actor_with_the_weights_of_now_keeps_them():
    learner = taught(make(), "both", 3)
    actor, before = learner.acting(), learner.begin(2)
    expected, _ = learner.act(STATES, before, np.ones(2, bool), explore=False)
    taught(learner, "both", 5)
    np.testing.assert_array_equal(actor.act(STATES, before, np.ones(2, bool), explore=False)[0], expected)
    assert not np.array_equal(learner.act(STATES, before, np.ones(2, bool), explore=False)[0], expected)


def test_padding_is_never_learned_from():
    """Windows of four steps of which one is real, against windows of one."""
    rollout, _ = VALUES["both"]
    source = Mix(memory(rollout)).batches(make(length=4).sampling)
    batch = next(source)
    spoiled = batch._replace(
        action=torch.where(batch.valid[..., None], batch.action, torch.tensor(0.9)),
        reward=torch.where(batch.valid, batch.reward, torch.tensor(50.0)),
        obs=torch.cat([batch.obs[:2], 0 * batch.obs[2:] - 3]),
    )
    assert not batch.valid[1:].any()
    told = [make(length=4).update(iter([each] * 2), 2) for each in (batch, spoiled)]
    assert told[0] == told[1]


# The multiplier ---------------------------------------------------------------------------------------------


def test_a_multiplier_follows_its_constraint_whatever_its_size():
    dual = Dual(1e-5, 0.1, torch.device("cpu"))
    for _ in range(100):
        dual.step(torch.tensor(0.7))
    assert float(dual.value) == pytest.approx(1e-5 * np.exp(7), rel=1e-4)
    for _ in range(30):
        dual.step(torch.tensor(-5.0))  # clipped to 1
    assert float(dual.value) == pytest.approx(1e-5 * np.exp(4), rel=1e-4)
    still = Dual(0.5, 0.0, torch.device("cpu"))
    still.step(torch.tensor(1.0))
    assert float(still.value) == 0.5


def looking(cap, updates):
    """KL, β and error, update by update, of a learner that must look to know its rewards: one a step, drawn anew."""
    learner = make(kl_cap=cap, beta=0.03, beta_rate=0.05, learning_rate=5e-3)
    rng, told = np.random.default_rng(0), []
    for _ in range(updates):
        obs = torch.from_numpy(rng.uniform(-1.7, 1.7, (2, 64, 1)).astype(np.float32))
        no = torch.zeros(1, 64, dtype=torch.bool)
        batch = Batch(obs, torch.zeros(1, 64, 1), 3 * obs[1:, :, 0], no, ~no, no)
        told.append({name: float(value) for name, value in learner.learn_world(batch)[1].items()})
    return told


def test_the_cap_is_held_and_the_multiplier_is_what_holds_it():
    told = looking(1.0, 160)
    assert told[10]["kl"] > 5  # while looking was cheap
    assert np.mean([each["kl"] for each in told[-30:]]) == pytest.approx(1, abs=0.2)
    assert told[-1]["beta"] > 30 * told[0]["beta"]
    free = looking(None, 60)  # the control: without a cap it looks as much as it likes
    assert min(each["kl"] for each in free) > 5
    assert free[-1]["beta"] == free[0]["beta"]
    slack = looking(100.0, 20)
    assert slack[-1]["beta"] < 0.6 * slack[0]["beta"]


@pytest.mark.parametrize(("beta", "same"), [(0.5, True), (1e-3, False)])
def test_what_teaches_the_prior_never_weighs_less_than_asked(beta, same):
    """With a balance of ½: a multiplier of 0.5 gives it more than 0.1 anyway, and nothing changes, bit for bit."""
    states = []
    for weight in (0.0, 0.1):
        learner = make(beta=beta, beta_rate=0.0, balance=0.5, dynamics_weight=weight)
        states.append(taught(learner, "both", 2).state()[0])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]) == same


def test_reconstruction_is_the_control_and_has_no_multiplier():
    learner = taught(make(reconstruct=True), "both", 2)
    assert float(learner.beta.value) == 1.0
    assert "reconstruction_error" in learner.update(Mix(memory(VALUES["both"][0])).batches(learner.sampling), 1)


# Empowerment ------------------------------------------------------------------------------------------------


def test_without_empowerment_the_inverse_head_learns_nothing_and_nobody_is_paid():
    learner = taught(make(kind="infopower", empowerment=0.0), "both", 2)
    fresh = make(kind="infopower", empowerment=0.0)
    for one, other in zip(learner.heads.inverse.parameters(), fresh.heads.inverse.parameters(), strict=True):
        assert torch.equal(one, other)
    state = learner.world.rssm.begin(3)
    assert learner._bonus(state, learner.behaviour.actor.sample(state.features, torch.zeros(3, 1)), state) is None


def moving(batch=64, seed=0):
    """What the action moves, beside what moves by itself."""
    rng = np.random.default_rng(seed)
    while True:
        action = torch.from_numpy(rng.uniform(-1, 1, (1, batch, 1)).astype(np.float32))
        own, stray = (torch.from_numpy(rng.uniform(-1, 1, (1, batch, 1)).astype(np.float32)) for _ in range(2))
        obs = torch.cat([torch.cat([own, own + action]), torch.cat([stray, stray.roll(1, 1)])], -1)
        no = torch.zeros(1, batch, dtype=torch.bool)
        yield Batch(obs, action, torch.zeros(1, batch), no, ~no, no)


def test_the_inverse_head_reads_actions_off_what_is_seen_and_not_off_what_is_remembered():
    space, source = spaces.Box(-3, 3, (2,), np.float32), moving()
    known = {}
    for kept in (True, False):
        learner = make(kind="infopower", obs=space, empowerment=1.0, learning_rate=5e-3)
        for _ in range(90):
            batch = next(source)
            if not kept:
                batch = batch._replace(obs=batch.obs[:1].expand(2, -1, -1))  # nothing shows what was done
            told = learner.learn_world(batch)[1]
        known[kept] = float(told["action_log_prob"])
    chance = -np.log(2 / np.sqrt(12)) - 0.5 * np.log(2 * np.pi * np.e)  # the best Gaussian for uniform actions
    assert known[True] > chance + 0.3
    assert known[False] < chance + 0.1


def test_the_bonus_fades():
    learner = taught(make(kind="infopower", bonus=1.0, bonus_updates=10), "both", 2)
    state = learner.world.rssm.begin(3)
    drawn = learner.behaviour.actor.sample(state.features, torch.zeros(3, 1))
    paid = []
    for learner.updates in (0, 5, 10):
        bonus = learner._bonus(state, drawn, state)
        paid.append(0.0 if bonus is None else float(bonus[0].detach()))
    assert paid[0] != 0
    assert paid[1:] == pytest.approx([paid[0] / 2, 0])


# Alignment --------------------------------------------------------------------------------------------------


def test_alignment_learns_to_see_again_without_rewards():
    """A world whose number is shown scaled and shifted: values are right again, and only the encoder has moved."""
    rollout, _ = VALUES["discount"]
    learner = taught(make(align_rate=1e-3, dynamics_weight=0.0), "discount", 80)
    turned = rollout._replace(obs=0.6 * rollout.obs + 1.1, next_obs=0.6 * rollout.next_obs + 1.1)
    seen = 0.6 * STATES + 1.1
    wrong = np.abs(learner.value(seen) - VALUES["discount"][1]).max()
    kept = {name: tensor for name, tensor in learner.state()[0].items() if not name.startswith("world/encoder")}
    nothing = np.zeros_like(rollout.env_reward)
    sources = []
    for each in (rollout, turned):
        replay = memory(each._replace(env_reward=nothing))
        sources.append(Mix(replay).batches(learner.sampling))
    told = learner.align(*sources, 60)
    assert wrong > 0.3
    np.testing.assert_allclose(learner.value(seen), VALUES["discount"][1], atol=0.15)
    assert told["distance_after"] < 0.5 * told["distance_before"]
    after = learner.state()[0]
    assert all(torch.equal(kept[name], after[name]) for name in kept if name != "updating/state")


def test_alignment_counts_no_padding():
    """It repeats an episode's end: counted on one side alone, the same pictures were far from each other."""
    rollout, _ = VALUES["discount"]
    learner = make(length=4)
    batch = next(Mix(memory(rollout)).batches(learner.sampling))
    assert not batch.valid.all()
    assert learner.align(iter([batch]), iter([batch]), 1)["distance_before"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("head", "times"), [("reward", 100), ("ends", 1)])
def test_the_weight_of_rewards_is_of_rewards_alone(head, times):
    slopes = []
    for weight in (1.0, 100.0):
        learner = make(kind="infopower", reward_weight=weight)
        batch = next(Mix(memory(VALUES["discount"][0])).batches(learner.sampling))
        learner._objective(learner.see(batch))[0].backward()
        slopes.append(torch.cat([each.grad.flatten() for each in getattr(learner.world, head).parameters()]).norm())
    assert float(slopes[1] / slopes[0]) == pytest.approx(times, rel=1e-3)


# Settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change", "error"),
    [
        ("repo", {"size": "huge"}, "repo: size must be one of small, medium, paper; got 'huge'"),
        ("repo", {"horizon": 0}, "repo: horizon must be at least 1; got 0"),
        ("repo", {"lambda_": 1.2}, r"repo: lambda_ must be in \[0, 1\]; got 1.2"),
        ("repo", {"kl_cap": 0.0}, "repo: kl_cap must be > 0; got 0.0"),
        ("repo", {"reconstruct": True, "kl_cap": None}, "kl_cap must be a number where reconstruct is true"),
        ("infopower", {"nce_bound": 9.0}, r"infopower: nce_bound must be > 0 and below log\(batch_size"),
        ("infopower", {"bonus_updates": 0}, "infopower: bonus_updates must be at least 1; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(kind, change, error):
    with pytest.raises(ValueError, match=error):
        make(kind=kind, **change)


def test_another_learners_state_is_refused():
    tensors, values = make().state()
    with pytest.raises(ValueError, match=r"RePo.load_state: .* must be .*; got"):
        make(size="medium").load_state(tensors, values)
