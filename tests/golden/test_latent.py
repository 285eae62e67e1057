"""Two-hot numbers, bounded latents, densities and the percentile scale, derived again in float64 NumPy."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from policies.latent import GROUP, TwoHot, log_prob, simnorm, symexp, symlog
from policies.latent_losses import spread
from policies.tdmpc2 import SCALE_RATE, tdmpc2

NUMBERS = np.concatenate([np.linspace(-2000, 2000, 4001), np.linspace(-2, 2, 801), [1e-6, -1e-6, 0.0]])


def weights_of(x, bins, bound):
    """Two-hot weights, by searching for the neighbours."""
    places = np.linspace(-bound, bound, bins)
    at = np.clip(np.sign(x) * np.log1p(abs(x)), -bound, bound)
    upper = max(int(np.searchsorted(places, at)), 1)
    share = (at - places[upper - 1]) / (places[upper] - places[upper - 1])
    out = np.zeros(bins)
    out[upper - 1], out[upper] = 1 - share, share
    return out


@pytest.mark.parametrize("bins", [51, 101])
def test_two_hot_weights_are_their_definition_and_lead_back(bins):
    two_hot, x = TwoHot(bins), torch.tensor(NUMBERS, dtype=torch.float32)
    weights = two_hot.encode(x)
    expected = np.stack([weights_of(each, bins, 10.0) for each in x.double().numpy()])
    np.testing.assert_allclose(weights, expected, atol=2e-5)
    assert (weights.sum(-1) - 1).abs().max() < 1e-6
    back = two_hot.decode(weights).double().numpy()
    assert (abs(back - x.double().numpy()) / (1 + abs(NUMBERS))).max() <= 1e-5


def test_two_hot_loss_is_cross_entropy_and_the_ends_hold():
    two_hot, generator = TwoHot(51), torch.Generator().manual_seed(0)
    x = torch.tensor([-1e9, -3.0, 0.0, 0.4, 50.0, 1e9])
    logits = torch.randn(6, 51, generator=generator)
    log_probs = np.log(np.exp(logits.double().numpy()) / np.exp(logits.double().numpy()).sum(-1, keepdims=True))
    expected = [-(weights_of(float(a), 51, 10.0) * b).sum() for a, b in zip(x, log_probs, strict=True)]
    np.testing.assert_allclose(two_hot.loss(logits, x), expected, rtol=1e-4)
    assert two_hot.encode(x)[0, 0] == two_hot.encode(x)[-1, -1] == 1
    np.testing.assert_allclose(two_hot.decode(two_hot.encode(x))[[0, -1]], [-np.expm1(10), np.expm1(10)], rtol=1e-5)


def test_a_head_of_zeros_tells_exactly_zero():
    for bins in (51, 101):
        assert TwoHot(bins).expected(torch.zeros(7, bins)).eq(0).all()
    obs, action = spaces.Box(-1, 1, (5,), np.float32), spaces.Box(-1, 1, (2,), np.float32)
    learner = tdmpc2(obs, action, num_worlds=1, total_steps=1, seed=0, device="cpu", size="0.1M")
    z = learner.model.encoder(torch.randn(9, 5, generator=torch.Generator().manual_seed(0)))
    assert learner.model.reward(z, torch.ones(9, 2)).eq(0).all()
    assert learner.model.values(learner.model.critics, z, torch.ones(9, 2)).eq(0).all()


def test_even_bins_are_refused():
    with pytest.raises(ValueError, match="bins must be odd and at least 3; got 100"):
        TwoHot(100)


def test_symlog_and_simnorm():
    x = torch.tensor(NUMBERS, dtype=torch.float32)
    np.testing.assert_allclose(symlog(x), np.sign(NUMBERS) * np.log1p(abs(NUMBERS)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(symexp(symlog(x)), NUMBERS, rtol=1e-5, atol=1e-6)
    z = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    groups = np.exp(z.double().numpy().reshape(3, 48 // GROUP, GROUP))
    np.testing.assert_allclose(simnorm(z), (groups / groups.sum(-1, keepdims=True)).reshape(3, 48), rtol=1e-5)


def test_log_prob_is_the_squashed_gaussians():
    generator = torch.Generator().manual_seed(0)
    mean, log_std = torch.randn(50, 3, generator=generator), torch.randn(50, 3, generator=generator) * 0.3
    action = torch.rand(50, 3, generator=generator) * 1.9 - 0.95
    m, s, a = mean.double().numpy(), np.exp(log_std.double().numpy()), action.double().numpy()
    u = np.arctanh(a)
    expected = (-0.5 * ((u - m) / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi) - np.log(1 - a**2)).sum(-1)
    np.testing.assert_allclose(log_prob(mean, log_std, action), expected, rtol=1e-3, atol=1e-4)
    assert log_prob(mean, log_std, torch.ones(50, 3)).isfinite().all()


def test_the_scale_is_a_running_range_between_percentiles():
    values = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) * 7
    low, high = np.percentile(values.double().numpy(), [5, 95])
    np.testing.assert_allclose(spread(values), high - low, rtol=1e-5)
    assert SCALE_RATE == 0.01
