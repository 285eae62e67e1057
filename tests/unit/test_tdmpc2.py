"""The latent world model: its losses by loops, its plans world by world, and worlds whose values are known."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from policies.core import Actor, Batch, Imagines, Learner, Rollout
from policies.latent_losses import model_loss, targets
from policies.planning import WORST, Noise, PlanSettings, plan, rollouts, terminal, worth
from policies.replay import Mix, Replay
from policies.tdmpc2 import tdmpc2
from tests.learner_probes import (
    ACTION,
    ACTIONS,
    GAMMA,
    OBS,
    STATES,
    VALUES,
    best_actions,
    draws_nothing_global,
    memory,
    resumes,
    taught,
)

SMALL = {
    "size": "0.1M", "learning_rate": 1e-2, "batch_size": 32, "policy_stride": 1, "gamma": GAMMA, "tau": 0.1,
    "learning_starts": 0, "burst": 0, "horizon": 1, "terminations": True, "updates_per_step": 0.5,
}  # fmt: skip
WIDE, TWO = spaces.Box(-np.inf, np.inf, (5,), np.float32), spaces.Box(-1, 1, (2,), np.float32)


def make(seed=0, obs=OBS, action=ACTION, **settings):
    return tdmpc2(obs, action, num_worlds=2, total_steps=1000, seed=seed, device="cpu", **(SMALL | settings))


def shaken(seed=0, **settings):
    """A learner whose heads tell something: no weight is 0."""
    learner, generator = make(seed, WIDE, TWO, **{"horizon": 2, **settings}), torch.Generator().manual_seed(seed)
    for module in (learner.model, learner._targets):
        for weight in module.parameters():
            weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    return learner


def batch_of(T=3, B=6, seed=0):
    """Random windows: some end by themselves, some are cut, and padding repeats the last observation."""
    rng = np.random.default_rng(seed)
    obs = torch.tensor(rng.normal(size=(T + 1, B, 5)), dtype=torch.float32)
    action = torch.tensor(rng.uniform(-1, 1, (T, B, 2)), dtype=torch.float32)
    reward = torch.tensor(rng.normal(size=(T, B)), dtype=torch.float32)
    valid, terminated = torch.ones(T, B, dtype=torch.bool), torch.zeros(T, B, dtype=torch.bool)
    valid[1:, 0] = valid[2:, 1] = False
    terminated[0, 0] = terminated[2, 2] = True
    obs[2:, 0], obs[3:, 1] = obs[1, 0], obs[2, 1]
    reward[~valid], action[~valid] = 0, 0
    return Batch(obs, action, reward, terminated, valid, torch.zeros_like(valid))


# Known values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["discount", "both", "truncated"])
def test_it_finds_known_values_and_actions(kind):
    learner = taught(make(), kind, 120 if kind in ACTIONS else 80)
    np.testing.assert_allclose(learner.value(STATES, best_actions(learner)[:, None]), VALUES[kind][1], atol=0.1)
    if kind in ACTIONS:
        np.testing.assert_allclose(best_actions(learner), ACTIONS[kind], atol=0.25)


def test_the_policy_alone_finds_known_actions_with_an_ensemble():
    learner = taught(make(planning=False, ensemble=True, critics=3), "both", 600)
    np.testing.assert_allclose(best_actions(learner), ACTIONS["both"], atol=0.25)


def test_a_policy_is_drawn_to_what_the_planner_did():
    """Nothing is worth anything; the actions in the replay are half the state."""
    rng = np.random.default_rng(0)
    obs = rng.choice([-1.0, 1.0], (100, 2, 1)).astype(np.float32)
    ended, nothing = np.ones((100, 2), bool), np.zeros((100, 2), np.float32)
    rollout = Rollout(obs, 0.5 * obs, obs, nothing, ended, ~ended, ended)
    learner = make(planning=False, alignment=1.0)
    learner.observe(rollout, nothing)
    learner.update(Mix(memory(rollout)).batches(learner.sampling), 50)
    np.testing.assert_allclose(best_actions(learner), [-0.5, 0.5], atol=0.1)


# The losses, by loops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ensemble", [False, True])
def test_targets_are_their_definition(ensemble):
    learner, batch = shaken(critics=3, ensemble=ensemble), batch_of()
    model, after = learner.model, learner.model.encoder(batch.obs[1:].flatten(0, 1))
    noise = torch.randn(3 if ensemble else 1, len(after), 2, generator=torch.Generator().manual_seed(2))
    got = targets(model, learner._targets, after, batch, noise, gamma=GAMMA)
    actions = model.policy(after, noise).action
    for k in range(3):
        action = actions[k if ensemble else 0]
        least = torch.minimum(*(model.values(learner._targets, after, action)[i] for i in (k, (k + 1) % 3)))
        least = least.unflatten(0, (3, 6))
        for t in range(3):
            for b in range(6):
                follows = 0.0 if batch.terminated[t, b] else GAMMA * least[t, b]
                torch.testing.assert_close(got[k, t, b], batch.reward[t, b] + follows, rtol=1e-5, atol=1e-5)


def test_the_models_loss_is_its_definition_and_padding_counts_for_nothing():
    learner, batch = shaken(), batch_of()
    model, encode = learner.model, lambda obs: learner.model.encoder(obs)
    target = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    latents = [encode(batch.obs[0])]
    for t in range(3):
        latents.append(model.next(latents[-1], batch.action[t]))
    after = torch.stack([encode(batch.obs[t + 1]) for t in range(3)])
    total, told = model_loss(model, batch, torch.stack(latents), after, target, rho=0.7, consistency=20.0)
    sums = dict.fromkeys(("consistency_loss", "reward_loss", "value_loss", "ending_loss"), 0.0)
    for t in range(3):
        for b in range(6):
            if not batch.valid[t, b]:
                continue
            z, a, w = latents[t][b : b + 1], batch.action[t, b : b + 1], 0.7**t / int(batch.valid.sum())
            sums["consistency_loss"] += w * (latents[t + 1][b] - after[t, b]).square().mean()
            said = model.rewards(torch.cat([z, a], -1))[0].log_softmax(-1)
            sums["reward_loss"] -= w * (model.two_hot.encode(batch.reward[t, b]) * said).sum()
            for k in range(2):
                said = model.logits(model.critics, z, a)[k, 0].log_softmax(-1)
                sums["value_loss"] -= w * (model.two_hot.encode(target[k, t, b]) * said).sum() / 2
            likely = model.ending(latents[t + 1][b : b + 1])[0]
            sums["ending_loss"] -= w * torch.log(likely if batch.terminated[t, b] else 1 - likely)
    for name, value in sums.items():
        torch.testing.assert_close(told[name], value, rtol=1e-4, atol=1e-5)
    weights = {"consistency_loss": 20, "reward_loss": 0.1, "value_loss": 0.1, "ending_loss": 1}
    torch.testing.assert_close(total, sum(weights[name] * value for name, value in sums.items()), rtol=1e-4, atol=1e-4)


def test_what_lies_in_padding_changes_nothing():
    def learned(fill):
        learner, batch = shaken(alignment=0.1), batch_of()
        outside = ~batch.valid
        reward, action, obs = batch.reward.clone(), batch.action.clone(), batch.obs.clone()
        reward[outside], action[outside] = fill, fill / 10
        for b, last in ((0, 1), (1, 2)):
            obs[last + 1 :, b] = fill
        told = learner._learn(batch._replace(reward=reward, action=action, obs=obs))
        return told, learner.state()[0]

    (one, weights), (two, others) = learned(0.0), learned(5.0)
    for name in set(one) - {"q", "entropy", "q_scale"}:  # means over all latents
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)
    assert all(torch.allclose(weights[key], others[key], atol=1e-5) for key in weights if key.startswith("model/"))


def test_the_scale_follows_the_first_steps_values_and_is_never_below_one():
    learner = shaken()
    assert learner._scale == 1
    for _ in range(3):
        before, batch = learner._scale.clone(), batch_of()
        told = learner._learn(batch)
        assert learner._scale >= 1
        assert abs(learner._scale - before) <= 0.01 * 30 + 1e-6
        assert told["q_scale"] == learner._scale


def test_dynamics_that_are_not_learned_stay_as_they_began():
    learner = shaken(learn_dynamics=False)
    model = learner.model
    frozen = [model.dynamics, model.out]
    before = [weight.clone() for part in frozen for weight in part.parameters()]
    encoder = model.encoder.mlp.head.weight.detach().clone()
    learner._learn(batch_of())
    after = [weight for part in frozen for weight in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not torch.equal(encoder, model.encoder.mlp.head.weight)


def test_target_heads_follow_by_tau():
    learner, batch = shaken(tau=0.25), batch_of()
    before = [weight.clone() for weight in learner._targets.parameters()]
    learner._learn(batch)
    for old, new, now in zip(before, learner.model.critics.parameters(), learner._targets.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * old + 0.25 * new.detach())


# Many at once is each alone ----------------------------------------------------------------------------------


def alone(mlp, k, x):
    """Head k of an ensemble, layer by layer."""
    for layer, norm in zip(mlp.layers, mlp.norms, strict=True):
        x = torch.nn.functional.layer_norm(x @ layer.weight[k] + layer.bias[k], (layer.weight.shape[-1],))
        x = torch.nn.functional.silu(x * norm.weight[k] + norm.bias[k])
    return x @ mlp.head.weight[k] + mlp.head.bias[k]


def test_an_ensemble_is_its_heads():
    learner, generator = shaken(critics=4, ensemble=True), torch.Generator().manual_seed(3)
    model = learner.model
    z = model.encoder(torch.randn(7, 5, generator=generator))
    shared, own = torch.randn(7, 2, generator=generator), torch.randn(4, 7, 2, generator=generator)
    for action in (shared, own):
        got = model.logits(model.critics, z, action)
        for k in range(4):
            expected = alone(model.critics, k, torch.cat([z, action if action.dim() == 2 else action[k]], -1))
            torch.testing.assert_close(got[k], expected, rtol=1e-5, atol=1e-5)
    best = torch.tanh(model.gaussian(z)[0])
    for k in range(4):
        expected = torch.tanh(alone(model.policies, k, z)[:, :2])
        torch.testing.assert_close(best[k], expected, rtol=1e-5, atol=1e-5)
    got = terminal(model, z)
    for k in range(4):
        others = [model.values(model.critics, z, best[j])[k] for j in range(4) if j != k]
        torch.testing.assert_close(got[k], torch.stack(others).max(0).values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{}, {"centre": "plan"}, {"ensemble": True, "critics": 3, "uncertainty": 2.0}])
def test_plans_of_many_worlds_are_those_of_each_alone(change):
    learner, generator = shaken(horizon=3, policy_std=0.2, **change), torch.Generator().manual_seed(4)
    s, model = learner.settings, learner.model
    z = model.encoder(torch.randn(5, 5, generator=generator))
    last, first = torch.rand(5, 3, 2, generator=generator), torch.tensor([0, 1, 0, 0, 1]).bool()
    noise = Noise.draw(5, 2, s, generator)
    every = plan(model, z, last, first, noise, gamma=0.9, settings=s)
    for e in range(5):
        at = slice(e, e + 1)
        own = Noise(noise.policy[at], noise.draws[:, at], noise.choice[at], noise.action[at])
        one = plan(model, z[at], last[at], first[at], own, gamma=0.9, settings=s)
        for name in one._fields:
            torch.testing.assert_close(getattr(every, name)[at], getattr(one, name), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_plan_is_its_definition():
    """One world, candidate by candidate, in NumPy from what the model's parts say."""
    learner, generator = shaken(horizon=3, iterations=1, samples=6, policy_samples=3, elites=4), torch.Generator()
    s, model = learner.settings, learner.model
    z, last = model.encoder(torch.randn(1, 5, generator=generator)), torch.rand(1, 3, 2, generator=generator)
    noise = Noise.draw(1, 2, s, generator)
    found = plan(model, z, last, torch.zeros(1, dtype=torch.bool), noise, gamma=0.9, settings=s)
    shown = []
    for r in range(3):
        x, actions = z, []
        for t in range(3):
            mean, log_std = model.gaussian(x)
            actions.append(torch.tanh(mean[0] + log_std[0].exp() * (noise.policy[0, r, t] if r else 0)))
            x = model.next(x, actions[-1])
        shown.append(torch.cat(actions))
    torch.testing.assert_close(rollouts(model, z, noise.policy, s)[0], torch.stack(shown))
    drawn = (shown[0] + s.first_std * noise.draws[0, 0]).clamp(-1, 1)
    candidates = torch.stack([*shown, last[0], *drawn])
    values = []
    for actions in candidates:
        x, total, weight = z, 0.0, 1.0
        for action in actions:
            total += weight * float(model.reward(x, action[None]))
            x = model.next(x, action[None])
            weight *= 0.9 * (1 - float(model.ending(x)))
        best = torch.tanh(model.gaussian(x)[0][0])
        values.append(total + weight * float(model.values(model.critics, x, best).mean()))
    top = np.argsort(values)[::-1][:4].copy()
    away = (np.array(values)[top] - max(values)) / np.std(np.array(values)[top])
    weights = np.exp(s.temperature * away) / np.exp(s.temperature * away).sum()
    mean = np.einsum("c,cpa->pa", weights, candidates[top].numpy())
    np.testing.assert_allclose(found.mean[0], mean, rtol=1e-3, atol=1e-4)
    std = np.sqrt(np.einsum("c,cpa->pa", weights, (candidates[top].numpy() - mean) ** 2))
    np.testing.assert_allclose(found.std[0], std.clip(s.min_std, s.first_std), rtol=1e-3, atol=1e-4)
    chosen = candidates[top[np.searchsorted(np.cumsum(weights), float(noise.choice[0]))]][0]
    np.testing.assert_allclose(found.explored[0], (chosen + found.std[0, 0] * noise.action[0]).clamp(-1, 1), atol=1e-4)
    np.testing.assert_allclose(found.best[0], max(values), rtol=1e-4, atol=1e-4)


def test_a_worth_that_is_no_number_is_the_worst():
    learner = shaken()
    learner.model.rewards.head.bias.data.fill_(torch.nan)
    z = learner.model.encoder(torch.zeros(2, 5))
    assert worth(learner.model, z, torch.zeros(2, 3, 2, 2), gamma=0.9, settings=learner.settings).eq(WORST).all()


def test_a_plan_stops_paying_where_the_task_ends():
    """A step earns 1 at most; where every latent is an end, the second step and the value count for nothing."""
    learner, settings = shaken(), PlanSettings(horizon=2)
    z, actions = learner.model.encoder(torch.zeros(1, 5)), torch.zeros(1, 1, 2, 2)
    learner.model.ends.head.weight.data.zero_()
    learner.model.ends.head.bias.data.fill_(40.0)
    got = worth(learner.model, z, actions, gamma=0.9, settings=settings)
    torch.testing.assert_close(got[0], learner.model.reward(z, actions[0, :, 0]))


# The protocol ------------------------------------------------------------------------------------------------


def test_it_keeps_the_protocol_and_remembers_its_plan():
    learner = shaken(centre="plan")
    for kind in (Learner, Actor, Imagines):
        assert isinstance(learner, kind)
    obs, first = np.ones((2, 5), np.float32), np.ones(2, bool)
    begun = learner.begin(2)
    action, after = learner.act(obs, begun, first, explore=True)
    assert (action.dtype, action.shape) == (np.float32, (2, 2))
    assert {key: (value.shape, value.dtype) for key, value in after.items()} == {"plan": ((2, 2, 2), np.float32)}
    assert not begun["plan"].any()
    last = {"plan": np.full((2, 2, 2), 0.9, np.float32)}
    told = [learner.act(obs, last, np.array([begins, False]), explore=False)[0] for begins in (True, False)]
    again = learner.act(obs, last, np.array([True, False]), explore=False)[0]
    np.testing.assert_array_equal(told[0], again)  # when it counts, nothing is drawn
    np.testing.assert_array_equal(told[0][1], told[1][1])
    assert not np.array_equal(told[0][0], told[1][0])  # a plan of the former episode counts no more
    assert learner.pace.updates(8, 8) == 4


def test_the_first_steps_are_random_and_the_first_round_makes_a_burst():
    learner = make(learning_starts=100, burst=30)
    actions = np.stack([learner.act(STATES, learner.begin(2), np.ones(2, bool), explore=True)[0] for _ in range(60)])
    assert actions.min() < -0.9
    assert actions.max() > 0.9
    assert [learner.pace.updates(64, total) for total in (64, 128, 192)] == [0, 62, 32]


def test_nothing_is_drawn_from_global_generators():
    draws_nothing_global(make, updates=3)


def test_it_resumes_bit_for_bit():
    resumes(make, VALUES["both"][0], updates=3)


def test_another_size_of_state_is_refused():
    tensors, values = make(critics=3).state()
    with pytest.raises(ValueError, match=r"TDMPC2\.load_state: model/critics"):
        make().load_state(tensors, values)


def test_images_and_vectors_together():
    """The reward is told by a picture's brightness; what it says of both is told apart after learning."""
    space = spaces.Dict({"pixels": spaces.Box(0, 255, (48, 48, 3), np.uint8), "own": OBS})
    rng = np.random.default_rng(0)
    bright = rng.choice([0, 200], (20, 2, 1, 1, 1)).astype(np.uint8)
    obs = {"pixels": np.broadcast_to(bright, (20, 2, 48, 48, 3)).copy(), "own": np.zeros((20, 2, 1), np.float32)}
    ended, reward = np.ones((20, 2), bool), (bright[..., 0, 0, 0] > 0).astype(np.float32)
    rollout = Rollout(obs, np.zeros((20, 2, 1), np.float32), obs, reward, ended, ~ended, ended)
    learner, replay = make(obs=space, batch_size=16), Replay(space, ACTION, capacity=40, num_worlds=2, seed=0)
    replay.add(rollout, reward)
    learner.observe(rollout, reward)
    learner.update(Mix(replay).batches(learner.sampling), 30)
    shown = {"pixels": np.stack([np.zeros((48, 48, 3)), np.full((48, 48, 3), 200)]).astype(np.uint8)}
    shown["own"] = np.zeros((2, 1), np.float32)
    np.testing.assert_allclose(learner.value(shown, np.zeros((2, 1), np.float32)), [0, 1], atol=0.25)


def test_imagining_follows_the_actions_that_were_taken():
    learner = shaken()
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(8, 5)).astype(np.float32), rng.uniform(-1, 1, (7, 2)).astype(np.float32)
    found = learner.imagine(obs, action, 3)
    assert (found.seen.shape, found.ahead.shape, found.reward.shape) == ((8, 48), (5, 3, 48), (5, 3))
    z, taken = found.seen[2:3], torch.tensor(action)
    for k in range(3):
        torch.testing.assert_close(found.reward[2, k], learner.model.reward(z, taken[2 + k : 3 + k])[0])
        z = learner.model.next(z, taken[2 + k : 3 + k])
        torch.testing.assert_close(found.ahead[2, k], z[0])


def test_a_task_that_ends_asks_for_its_head():
    rollout, _ = VALUES["both"]
    learner = make(terminations=False)
    with pytest.warns(UserWarning, match="set policy.terminations=true"):
        learner.observe(rollout, rollout.env_reward)
    learner.observe(rollout, rollout.env_reward)  # told once


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"size": "2M"}, "tdmpc2: size must be one of 0.1M, 0.3M, 1M, 5M, 19M, 48M, 317M; got '2M'"),
        ({"gamma": 1.5}, r"tdmpc2: gamma must be in \[0, 1\]; got 1.5"),
        ({"horizon": 0}, "tdmpc2: horizon must be at least 1; got 0"),
        ({"elites": 100}, r"tdmpc2: elites must be at most the candidates \(65\); got 100"),
        ({"centre": "middle"}, "tdmpc2: centre must be one of plan, policy; got 'middle'"),
        ({"min_std": 3.0}, "tdmpc2: min_std must be > 0 and at most first_std; got 3.0"),
        ({"ensemble": True, "critics": 1}, "tdmpc2: critics must be at least 2 for an ensemble; got 1"),
        ({"policy_stride": 33}, "tdmpc2: policy_stride must be at most batch_size; got 33"),
    ],
)
def test_settings_out_of_range_are_refused(change, error):
    with pytest.raises(ValueError, match=error):
        make(**change)


def test_other_observations_and_actions_are_refused():
    with pytest.raises(ValueError, match="actions must be a Box"):
        make(action=spaces.Discrete(3))
    with pytest.raises(ValueError, match=r"observations must be a vector or a uint8 image \(H, W, channels\)"):
        make(obs=spaces.Box(0, 1, (8, 8, 3), np.float32))
    with pytest.raises(ValueError, match=r"images must be at least 45 pixels high and wide; got \(32, 32\)"):
        make(obs=spaces.Box(0, 255, (32, 32, 3), np.uint8))
