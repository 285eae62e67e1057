"""VPL and Bradley–Terry against their closed forms in float64 NumPy."""

import numpy as np
import torch
from numpy.testing import assert_allclose
from scipy.integrate import quad
from scipy.stats import norm

from rewards.comparisons import Comparisons
from rewards.core import Features
from rewards.preference import PreferenceReward
from rewards.vpl import LatentUser, VPLReward, annealed, gaussian_kl

RNG = np.random.default_rng(0)


def test_kl_is_the_integral_and_has_its_half():
    mean_q, log_q, mean_p, log_p = 0.3, -0.7, -0.5, 0.4
    q, p = norm(mean_q, np.exp(log_q / 2)), norm(mean_p, np.exp(log_p / 2))
    expected = quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -12, 12)[0]
    given = [torch.tensor([v], dtype=torch.float64) for v in (mean_q, log_q, mean_p, log_p)]
    assert_allclose(gaussian_kl((given[0], given[1]), (given[2], given[3])), expected, atol=1e-9)
    assert float(gaussian_kl((given[0], given[1]), (given[0], given[1]))) == 0


def test_kl_against_torch_in_many_dimensions():
    q, p = ((torch.randn(3, 5), torch.randn(3, 5)) for _ in range(2))
    own = [torch.distributions.Normal(mean, (log / 2).exp()) for mean, log in (q, p)]
    assert_allclose(gaussian_kl(q, p), torch.distributions.kl_divergence(*own).sum(-1), rtol=1e-4)


def pairs(count: int, length: int, width: int) -> Comparisons:
    sides = [{"front": torch.from_numpy(RNG.normal(size=(count, length, width))).float()} for _ in range(2)]
    labels = torch.from_numpy((RNG.random(count) < 0.5).astype(np.float32))
    return Comparisons(sides[0], sides[1], labels, torch.zeros(count, dtype=torch.long))


def test_the_loss_is_summed_cross_entropy_and_weighted_kl():
    reference = {"front": torch.randn(20, 6)}
    networks = LatentUser(reference, latent=2, hidden=8, seed=0)
    some = pairs(5, 3, 6)
    first, second = ({"front": side["front"][None]} for side in (some.first, some.second))
    z = torch.randn(1, 2)
    ahead = networks.ahead(first, second, z)[0].detach().double().numpy()

    def total(rows):  # Σ_L r(s, z)
        flat = networks.decoder({"front": rows.flatten(0, 1)}, z.expand(15, -1))[0]
        return flat.detach().double().numpy().reshape(5, 3).sum(1)

    assert_allclose(ahead, total(some.second["front"]) - total(some.first["front"]), atol=1e-5)
    y, p = some.labels.double().numpy(), 1 / (1 + np.exp(-ahead))
    q = networks.posterior(first, second, some.labels[None])
    kl = float(gaussian_kl(q, networks.prior())[0].detach())
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum() + 0.7 * kl
    found = networks.evidence(networks.ahead(first, second, z), some.labels[None], q, 0.7)
    assert_allclose(float(found.detach()), expected, rtol=1e-5)


def test_spo_scaling_is_the_share_of_rows_one_would_give_up():
    reference = {"front": torch.randn(30, 6)}
    networks = LatentUser(reference, latent=2, hidden=8, seed=1)
    head = VPLReward(networks, reference, pairs(4, 1, 6))
    states = torch.randn(1, 7, 6)
    z = head.q[0]

    def value(rows):
        return networks.decoder.view(0, rows, z.expand(len(rows), -1))[0].detach().double().numpy()

    fixed = value(reference["front"])
    gap = np.maximum(value(states[0]), fixed.min())[:, None] - fixed
    assert_allclose(head.score(Features(views={"front": states}))[0], (1 / (1 + np.exp(-gap))).mean(1), atol=1e-6)


def test_annealing():
    assert annealed(3, 100, 0) == 1
    found = [annealed(t, 100, 2) for t in range(100)]
    expected = [0.5 * (1 - np.cos(np.pi * min(1, (t % 50) / 25))) for t in range(100)]
    assert_allclose(found, expected, atol=1e-12)


def test_bradley_terry_and_the_fixed_set():
    """The fitted members' log-odds are differences of summed tanh rewards; the reward is standard on the fixed set."""
    some = pairs(40, 2, 6)
    reference = {"front": torch.randn(25, 6)}
    head = PreferenceReward(some, reference, epochs=3)

    def raw(rows):
        return np.tanh(head.members.view(0, rows).detach().double().numpy())

    sums = [raw(side["front"].flatten(0, 1)).reshape(3, 40, 2).sum(2) for side in (some.first, some.second)]
    floor = raw(reference["front"]).min(1)
    assert (sums[0] >= 2 * floor[:, None] - 5).all()
    chance = np.exp(sums[1]) / (np.exp(sums[0]) + np.exp(sums[1]))
    unbounded = head.members
    for i in range(1):
        getattr(unbounded, f"floor{i}").fill_(-torch.inf)
    assert_allclose(torch.sigmoid(head._ahead(some, torch.arange(40))).detach(), chance, atol=1e-5)
    scaled = head.score(Features(views={"front": reference["front"][None]}))
    assert_allclose([scaled.mean(), scaled.std()], [0, 1], atol=1e-4)
