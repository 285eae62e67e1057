"""DrM: its formulas by hand, and DrQ-v2 where its parts are switched off."""

import math

import numpy as np
import pytest
import torch

from policies.drm import dormant_noise, drm, expectile_loss, kept_share, perturb, value_share
from policies.drqv2 import PixelActor, drqv2
from policies.networks import LayerNorm, Linear
from policies.replay import Mix
from tests.learner_probes import ACTION, OBS, STATES, VALUES, finds, memory, resumes, taught
from tests.unit.test_drqv2 import PICTURE, SMALL, pictured, resumes_on_pictures, run
from tests.unit.test_drqv2 import memory as remembered

OFF = {"awaken": False, "exploitation": 0.0, "perturb_every": 0}


def make(seed=0, space=OBS, **settings):
    return drm(space, ACTION, num_worlds=2, total_steps=1000, seed=seed, device="cpu", **(SMALL | settings))


@pytest.mark.parametrize("kind", ["both", "truncated"])
def test_it_finds_known_values_and_actions(kind):
    finds(make(), kind)


def test_without_its_parts_it_is_drqv2_bit_for_bit():
    rollout, settings = pictured(VALUES["both"][0]), SMALL | {"batch_size": 16, "n_steps": 3}
    made = {"num_worlds": 2, "total_steps": 1000, "seed": 0, "device": "cpu"}
    one, other = drqv2(PICTURE, ACTION, **made, **settings), drm(PICTURE, ACTION, **made, **(settings | OFF))
    batches = [Mix(remembered(rollout, PICTURE)).batches(each.sampling) for each in (one, other)]
    (action, told), (again, retold) = run(one, batches[0], rollout, 3), run(other, batches[1], rollout, 3)
    np.testing.assert_array_equal(action, again)
    assert told == retold
    tensors, others = one.state()[0], other.state()[0]
    assert all(torch.equal(tensors[key], others[key]) for key in tensors)
    assert set(others) - set(tensors) == {"renewing/state"}


@pytest.mark.parametrize("part", [{"awaken": True}, {"exploitation": 0.6}, {"perturb_every": 500}])
def test_each_part_alone_changes_something(part):
    one, other = make(**OFF), make(**(OFF | part))
    taught(one, "both", 3)
    taught(other, "both", 3)
    assert any(not torch.equal(value, other.state()[0][key]) for key, value in one.state()[0].items())


@pytest.mark.parametrize(
    ("beta", "noise", "share", "kept"),
    [
        (0.0, 1 / (1 + math.e**2), 0.6 / (1 + math.exp(-10)), 0.9),
        (0.2, 0.5, 0.3, 0.6),
        (0.3, 1 / (1 + math.exp(-1)), 0.6 / (1 + math.exp(5)), 0.4),
        (0.7, 1 / (1 + math.exp(-5)), 0.6 / (1 + math.exp(25)), 0.2),
    ],
)
def test_schedules_are_the_papers(beta, noise, share, kept):
    assert dormant_noise(beta) == pytest.approx(noise)
    assert value_share(beta, 0.6) == pytest.approx(share)
    assert kept_share(beta, 0.9) == pytest.approx(kept)


def test_the_expectile_loss_by_hand():
    u = torch.tensor([2.0, -1.0, 0.5])
    expected = (0.9 * 4 + 0.1 * 1 + 0.9 * 0.25) / 3
    assert expectile_loss(u, 0.9).item() == pytest.approx(expected)


def test_its_value_is_the_expectile_of_what_was_done():
    """Rewards of uniform actions u are u: the e-expectile m solves e ∫_m^1 (u − m) = (1 − e) ∫_{−1}^m (m − u)."""
    rollout, _ = VALUES["constant"]
    rollout = rollout._replace(env_reward=rollout.action[..., 0])
    learner = make(expectile=0.9)
    learner.observe(rollout, rollout.env_reward)
    learner.update(Mix(memory(rollout)).batches(learner.sampling), 200)
    # 0.9 (1 − m)² = 0.1 (1 + m)²  ⇒  m = (3 − 1) / (3 + 1)
    x = learner.encoder((torch.zeros(2, 0, 0, 0), torch.tensor(STATES)))
    np.testing.assert_allclose(learner._value(x).detach(), [0.5, 0.5], atol=0.1)


def test_targets_mix_the_value_in():
    learner = make(noise=0.0, noise_end=0.0, awaken=False)
    x = torch.tensor(STATES)
    for beta in (0.0, 0.2, 1.0):
        learner.beta = beta
        share = 0.6 / (1 + math.exp(50 * (beta - 0.2)))
        plain = learner.target(x, learner.actor(x)).min(0).values
        torch.testing.assert_close(learner._worth(x), share * learner._value(x) + (1 - share) * plain)


def test_the_noise_follows_the_dormant_ratio_until_it_awakes_and_then_its_schedule_begins():
    learner = make(noise_steps=1000)
    assert learner.sigma == pytest.approx(1 / (1 + math.exp(-8)))  # β is 1 at first
    learner.beta, learner.steps = 0.1, 4000
    assert learner.sigma == pytest.approx(1 / (1 + math.e))
    learner.awakened = 3500
    assert learner.sigma == pytest.approx(1 - 0.9 * 0.5)  # half-way down
    learner.steps = 9000
    assert learner.sigma == pytest.approx(1 / (1 + math.e))  # above the schedule's 0.1
    learner.beta = 0.9
    assert learner.sigma > 0.99


def test_it_awakes_at_the_first_ratio_below_a_fifth():
    learner = make()
    rollout, _ = VALUES["both"]
    batches = Mix(memory(rollout)).batches(learner.sampling)
    learner.observe(rollout, rollout.env_reward)
    told = []
    learner.actor.layers = lambda x: [torch.ones(4, 10) * torch.tensor([0.0] * told[-1] + [1.0] * (10 - told[-1]))]
    for dormant in (3, 2, 1, 5, 0):
        told.append(dormant)
        learner.update(batches, 1)
        assert learner.beta == pytest.approx(dormant / 10)
        learner.observe(rollout, rollout.env_reward)
    assert learner.awakened == 3 * 800  # the third update's, and no later one


def test_a_perturbation_keeps_a_share_of_every_linear_layer_and_nothing_else():
    module = make(space=PICTURE).actor
    assert isinstance(module, PixelActor)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, Linear):
                part.bias.fill_(1.0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    perturb(module, 0.7, torch.Generator().manual_seed(3))
    norms = [name for name, part in module.named_modules() if isinstance(part, LayerNorm)]
    assert norms == ["trunk.norm"]
    again = torch.Generator().manual_seed(3)
    for name, part in module.named_modules():
        if not isinstance(part, Linear):
            continue
        fresh = torch.nn.init.orthogonal_(torch.empty(part.weight.shape[1:]), generator=again)
        torch.testing.assert_close(part.weight[0], 0.7 * before[f"{name}.weight"][0] + 0.3 * fresh)
        assert torch.equal(part.bias, torch.full_like(part.bias, 0.7))
    for name in ("trunk.norm.weight", "trunk.norm.bias"):
        assert torch.equal(module.state_dict()[name], before[name])


def test_perturbations_come_when_due_and_wipe_the_optimisers():
    learner, plain = make(perturb_every=1000), make(perturb_every=0)
    rollout, _ = VALUES["both"]
    for each in (learner, plain):
        batches = Mix(memory(rollout)).batches(each.sampling)
        alphas, counts = [], []
        for _ in range(4):  # 800 transitions a round
            each.observe(rollout, rollout.env_reward)
            beta = each.beta
            told = each.update(batches, 2)
            if "perturb_alpha" in told:
                assert told["perturb_alpha"] == pytest.approx(min(max(1 - 2 * beta, 0.2), 0.9))
            alphas.append("perturb_alpha" in told)
            counts.append(each._actor_adam.state[each.actor.mlp.head.weight]["step"].item())
        assert alphas == ([False, True, True, True] if each is learner else [False] * 4)
        assert counts == ([2, 2, 2, 2] if each is learner else [2, 4, 6, 8])


def test_it_resumes_bit_for_bit():
    resumes(lambda seed: make(seed, batch_size=16, perturb_every=2000), VALUES["both"][0])


def test_it_resumes_bit_for_bit_on_pictures():
    resumes_on_pictures(lambda seed: make(seed, PICTURE, batch_size=8, perturb_every=2000))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"expectile": 1.0}, "drm: expectile must be between 0 and 1; got 1.0"),
        ({"exploitation": -0.1}, r"drm: exploitation must be in \[0, 1\]; got -0.1"),
        ({"perturb_max": 0.1}, r"drm: perturb_max must be in \[0.2, 1\]; got 0.1"),
        ({"gamma": 2.0}, r"drm: gamma must be in \[0, 1\]; got 2.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, error):
    with pytest.raises(ValueError, match=error):
        make(**change)
