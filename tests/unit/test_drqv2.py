"""DrQ-v2, on worlds whose values are known and on pictures."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from policies.core import Rollout
from policies.drqv2 import drqv2
from policies.networks import Standardise, dormant_ratio
from policies.pixels import Contrast
from policies.replay import Mix, Replay
from tests.learner_probes import ACTION, GAMMA, OBS, STATES, VALUES, finds, resumes, taught

SMALL = {
    "hidden": (32, 32), "features": 8, "learning_rate": 1e-2, "batch_size": 64, "gamma": GAMMA, "tau": 0.1,
    "learning_starts": 0, "noise_steps": 1, "n_steps": 1,
}  # fmt: skip
PICTURE = spaces.Box(0, 255, (15, 15, 1), np.uint8)


def make(seed=0, space=OBS, **settings):
    return drqv2(space, ACTION, num_worlds=2, total_steps=1000, seed=seed, device="cpu", **(SMALL | settings))


def pictured(rollout):
    """The same worlds seen as pictures, brighter to the right: dark where the state is −1, bright where it is 1."""

    def picture(obs):
        shape = (*obs.shape[:-1], 15, 15, 1)
        columns = 3 * np.arange(15)[:, None]
        return np.broadcast_to(np.where(obs > 0, 200, 50)[..., None, None] + columns, shape).astype(np.uint8)

    return rollout._replace(obs=picture(rollout.obs), next_obs=picture(rollout.next_obs))


def memory(rollout, space, look=None):
    replay = Replay(space, ACTION, capacity=rollout.first.size, num_worlds=2, seed=0)
    replay.add(rollout, rollout.env_reward, look=look)
    return replay


@pytest.mark.parametrize(
    ("kind", "n_steps"), [("observation", 1), ("action", 1), ("both", 1), ("discount", 3), ("truncated", 3)]
)
def test_it_finds_known_values_and_actions(kind, n_steps):
    finds(make(n_steps=n_steps), kind)


@pytest.mark.parametrize("switches", [{}, {"prediction": 1.0, "horizon": 2, "looks": 2}])
def test_it_finds_them_on_pictures_too(switches):
    """Their brightness is all there is to see."""
    rollout = pictured(VALUES["observation"][0])
    learner = make(space=PICTURE, stack=2, batch_size=16, learning_rate=3e-3, **switches)
    look = (np.arange(800).reshape(400, 2) % 3 == 0).astype(np.int16)
    learner.observe(rollout, rollout.env_reward)
    told = learner.update(Mix(memory(rollout, PICTURE, look)).batches(learner.sampling), 60)
    shown = pictured(Rollout(STATES[None], *[STATES[None]] * 6)).obs[0]
    np.testing.assert_allclose(learner.value(shown, np.zeros((2, 1), np.float32)), [-1, 1], atol=0.2)
    assert ("prediction_error" in told) == ("prediction" in switches)
    assert ("effective_samples" in told) == ("looks" in switches)


def test_the_update_is_its_definition():
    """One update with nothing random in it, against autograd on the equations: y, both critics, the actor, targets."""
    learner = make(noise=0.0, noise_end=0.0, learning_rate=1e-3)
    rollout, _ = VALUES["discount"]
    learner.observe(rollout, rollout.env_reward)
    batch = next(Mix(memory(rollout, OBS)).batches(learner.sampling))
    with torch.no_grad():
        learner.target.mlp.head.bias += torch.tensor([0.3, 0.4])[:, None, None]  # so that it is not the critic
    old = make(noise=0.0, noise_end=0.0, learning_rate=1e-3)
    old.load_state(*learner.state())
    assert old.settings.pre_activation == 3e-3
    x = old.encoder((torch.zeros(64, 0, 0, 0), batch.obs[0]))
    after = old.encoder((torch.zeros(64, 0, 0, 0), batch.obs[1]))
    going = ~batch.terminated[0]
    assert 10 < going.sum() < 54
    target = batch.reward[0] + GAMMA * going * old.target(after, old.actor(after)).min(0).values
    q = old.critic(x, batch.action[0])
    told = learner.update(iter([batch]), 1)
    expected = ((q - target.detach()) ** 2).mean(1).sum()
    assert told["critic_loss"] == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    adam = torch.optim.Adam(old.critic.parameters(), 1e-3)
    adam.step()
    for name, weight in learner.critic.state_dict().items():
        torch.testing.assert_close(weight, old.critic.state_dict()[name])
    action = old.actor(x.detach())
    worth = old.critic(x.detach(), action).min(0).values
    loss = 3e-3 * worth.detach().abs().mean() * torch.atanh(action).square().mean() - worth.mean()
    assert told["actor_loss"] == pytest.approx(loss.item(), rel=1e-4)
    loss.backward(inputs=list(old.actor.parameters()))
    torch.optim.Adam(old.actor.parameters(), 1e-3).step()
    for name, weight in learner.actor.state_dict().items():
        torch.testing.assert_close(weight, old.actor.state_dict()[name], atol=1e-5, rtol=1e-4)
    for name, weight in learner.target.state_dict().items():
        former, now = old.target.state_dict()[name], learner.critic.state_dict()[name]
        torch.testing.assert_close(weight, 0.9 * former + 0.1 * now)


def test_noise_goes_down_in_a_line_and_acting_has_it_unclipped():
    learner = make(noise=0.8, noise_end=0.2, noise_steps=400, noise_clip=0.1)
    for steps, sigma in ((0, 0.8), (100, 0.65), (400, 0.2), (900, 0.2)):
        learner.steps = steps
        assert learner.sigma == pytest.approx(sigma)
    assert make(noise_steps=None).noise_steps == 200  # a fifth of the run
    learner.steps = 100
    many = np.zeros((4000, 1), np.float32)
    best, _ = learner.act(many, {}, np.zeros(4000, bool), explore=False)
    noisy, _ = learner.act(many, {}, np.zeros(4000, bool), explore=True)
    np.testing.assert_allclose(np.quantile(noisy - best, [0.3, 0.5, 0.7]), [-0.341, 0, 0.341], atol=0.05)  # σ 0.65
    clipped = learner._explored(torch.zeros(4000, 1))
    assert clipped.abs().max().item() == pytest.approx(0.1)


def test_actions_come_back_from_the_ends_of_tanh():
    """Where all of them are at 1 and the best is 0.5; as published they stay."""
    for pre_activation, back in ((3e-3, True), (0.0, False)):
        learner = make(pre_activation=pre_activation)
        with torch.no_grad():
            learner.actor.mlp.head.bias += 12
        taught(learner, "action", 250)
        action, _ = learner.act(STATES, {}, np.zeros(2, bool), explore=False)
        assert (np.abs(action - 0.5) < 0.1).all() == back, (pre_activation, action)


def test_the_clamp_lets_the_gradient_pass():
    learner = make(noise=0.0, noise_end=0.0)
    mean = torch.tensor([[1.0], [0.3]], requires_grad=True)
    action = learner._explored(mean)
    action.sum().backward()
    assert action[0] < 1
    assert mean.grad.tolist() == [[1.0], [1.0]]


def test_first_actions_are_uniform():
    learner = make(learning_starts=10)
    obs, first = np.zeros((5000, 1), np.float32), np.zeros(5000, bool)
    action, _ = learner.act(obs, {}, first, explore=True)
    np.testing.assert_allclose(np.quantile(action, [0.05, 0.25, 0.75]), [-0.9, -0.5, 0.5], atol=0.04)
    assert np.ptp(learner.act(obs, {}, first, explore=False)[0]) == 0


def test_the_dormant_ratio_is_of_every_linear_layer():
    """Trunk before its norm, hidden layers after ReLU, head before tanh; one unit of each is put to sleep."""
    learner = make(space=PICTURE, hidden=(8, 8), features=4)
    actor = learner.actor
    with torch.no_grad():
        for layer in (actor.trunk.linear, *actor.mlp.layers):
            layer.weight[0, :, 0] = 0
            layer.bias[..., 0] = 0
            layer.bias[..., 1:] = 1
    x = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    layers = [layer.detach().double().numpy() for layer in actor.layers(x)]
    assert [layer.shape[1] for layer in layers] == [4, 8, 8, 1]
    dormant = units = 0
    for layer in layers:
        size = np.abs(layer).mean(0)
        dormant += (size / size.mean() < 0.025).sum()
        units += len(size)
    assert dormant >= 3
    assert dormant_ratio(actor.layers(x)) == pytest.approx(dormant / units)
    assert (layers[1] >= 0).all()
    expected = (x @ actor.trunk.linear.weight[0] + actor.trunk.linear.bias[0]).detach()
    np.testing.assert_allclose(layers[0], expected, rtol=1e-4)


def run(learner, batches, rollout, rounds):
    """So many rounds of acting and learning; the actions and metrics of the last."""
    told, remembered = {}, learner.begin(2)
    for _ in range(rounds):
        action, remembered = learner.act(rollout.obs[0], remembered, np.ones(2, bool), explore=True)
        learner.observe(rollout, rollout.env_reward)
        told = learner.update(batches, 2)
    return action, told


def test_it_resumes_bit_for_bit():
    resumes(lambda seed: make(seed, batch_size=16), VALUES["both"][0])


def resumes_on_pictures(make):
    """As `resumes`, with frames at once and looks."""
    rollout, look = pictured(VALUES["both"][0]), (np.arange(800).reshape(400, 2) % 2).astype(np.int16)
    straight, resumed, other = make(0), make(5), make(1)
    one, two, three = (Mix(memory(rollout, PICTURE, look)).batches(straight.sampling) for _ in range(3))
    run(straight, one, rollout, 3)
    run(other, three, rollout, 5)
    tensors, values = straight.state()
    resumed.load_state(tensors, json.loads(json.dumps(values)))
    for _ in range(6):
        next(two)
    (action, told), (again, also) = run(straight, one, rollout, 2), run(resumed, two, rollout, 2)
    np.testing.assert_array_equal(action, again)
    assert told == also
    (tensors, values), (same, also), (others, _) = (each.state() for each in (straight, resumed, other))
    assert values == also
    assert set(tensors) == set(same)
    assert all(torch.equal(tensors[key], same[key]) for key in tensors)
    assert any(not torch.equal(tensors[key], others[key]) for key in tensors)


def test_it_resumes_bit_for_bit_on_pictures_with_its_switches_on():
    settings = {"stack": 3, "prediction": 0.5, "looks": 2, "n_steps": 3, "batch_size": 8}
    resumes_on_pictures(lambda seed: make(seed, PICTURE, **settings))


def test_nothing_is_drawn_from_global_generators():
    def once(noise):
        torch.manual_seed(noise)
        np.random.seed(noise)
        learner = make(space=PICTURE, batch_size=16, looks=2, prediction=1.0)
        rollout, look = pictured(VALUES["both"][0]), np.zeros((400, 2), np.int16)
        action, _ = run(learner, Mix(memory(rollout, PICTURE, look)).batches(learner.sampling), rollout, 2)
        assert torch.initial_seed() == noise
        return learner.state()[0], action

    (one, acted), (other, again) = once(1), once(2)
    np.testing.assert_array_equal(acted, again)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_who_acts_while_it_learns_keeps_weights_and_noise():
    learner = make(space=PICTURE, batch_size=16, noise_steps=10_000)
    rollout = pictured(VALUES["both"][0])
    learner.observe(rollout, rollout.env_reward)
    actor = learner.acting()
    before, _ = actor.act(rollout.obs[0], actor.begin(2), np.ones(2, bool), explore=False)
    sigma = actor.sigma
    run(learner, Mix(memory(rollout, PICTURE)).batches(learner.sampling), rollout, 2)
    after, _ = actor.act(rollout.obs[0], actor.begin(2), np.ones(2, bool), explore=False)
    np.testing.assert_array_equal(before, after)
    assert learner.sigma < sigma == actor.sigma


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"gamma": 1.5}, r"drqv2: gamma must be in \[0, 1\]; got 1.5"),
        ({"stack": 0}, "drqv2: stack must be at least 1; got 0"),
        ({"hidden": ()}, r"drqv2: hidden must be one width or more, each at least 1; got \(\)"),
        ({"looks": 1}, "drqv2: looks must be at least 2, or 0; got 1"),
        ({"noise_steps": 0}, "drqv2: noise_steps must be at least 1, or null; got 0"),
        ({"prediction": 1.0}, "drqv2: prediction shapes the encoder of pictures; there are none"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, error):
    with pytest.raises(ValueError, match=error):
        make(**change)


def test_other_actions_and_states_are_refused():
    with pytest.raises(ValueError, match="drqv2: actions must be a Box"):
        drqv2(OBS, spaces.Discrete(3), num_worlds=1, total_steps=1, seed=0)
    with pytest.raises(ValueError, match=r"DrQv2.load_state: actor/mlp.layers.0.weight must be \(1, 1, 16\)"):
        make(hidden=[16, 16]).load_state(*make().state())


def test_ratios_for_the_log_are_of_a_rounds_last_update(monkeypatch):
    asked = []

    def counted(layers):
        asked.append(len(layers))
        return dormant_ratio(layers)

    monkeypatch.setattr("policies.drqv2.dormant_ratio", counted)
    learner = make()
    told = taught(learner, "both", 3).update(Mix(memory(VALUES["both"][0], OBS)).batches(learner.sampling), 4)
    assert len(asked) == 4  # of actor and critic, in two rounds
    assert {"dormant_actor", "dormant_critic"} <= set(told)


@pytest.mark.parametrize("made", [lambda: Standardise(2), lambda: Contrast((2, 1, 1))])
def test_running_means_go_where_there_is_no_float64(made):
    def apple(tensor):
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return tensor

    rows = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) * 3 + 5
    rows = rows if isinstance(made(), Standardise) else rows[..., None, None]
    there, here = nn.Sequential(made())._apply(apple)[0], made()
    for each in (there, here):
        each.add(rows[:30])
        each.add(rows[30:])
    assert there.mean.dtype == torch.float32
    torch.testing.assert_close(there(rows), here(rows))
