"""The formulas of learning from imagination, derived again in float64 NumPy."""

import math

import numpy as np
import pytest
import torch

from policies.behaviour import lambda_returns
from policies.infopower import info_nce
from policies.repo import energy_distance
from policies.rssm import Gaussian, kl


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_lambda_returns_are_mixtures_of_n_step_returns(lambda_):
    """Dreamer's eq. 5 and 6, by their sums: V_λ = (1 − λ) Σ_n λ^(n−1) V_n + λ^(P−1) V_P."""
    steps, rows = 6, 3
    reward, value = drawn(steps, rows), drawn(steps, rows, seed=1)
    discount = np.random.default_rng(2).uniform(0.3, 1, (steps, rows))
    expected = np.zeros((steps, rows))
    for k in range(steps):
        left = steps - k

        def n_steps(n, k=k):
            total, weight = 0.0, 1.0
            for j in range(n):
                total = total + weight * reward[k + j]
                weight = weight * discount[k + j]
            return total + weight * value[k + n - 1]

        for n in range(1, left):
            expected[k] += (1 - lambda_) * lambda_ ** (n - 1) * n_steps(n)
        expected[k] += lambda_ ** (left - 1) * n_steps(left)
    said = lambda_returns(*(torch.from_numpy(each) for each in (reward, discount, value)), lambda_)
    np.testing.assert_allclose(said.numpy(), expected, rtol=1e-12)


def test_what_follows_an_end_counts_for_nothing():
    reward, value = torch.ones(3, 1), 100 * torch.ones(3, 1)
    discount = torch.tensor([[1.0], [0.0], [1.0]])
    assert lambda_returns(reward, discount, value, 0.9)[:2, 0].tolist() == pytest.approx([10.0 + 0.9 * 1.0 + 1.0, 1.0])


def test_kl_is_the_integral_of_its_definition():
    x = np.linspace(-20, 20, 400_001)
    total = 0.0
    for mean, std, other, wide in ((0.3, 0.5, -0.2, 1.1), (-1.0, 0.2, 0.4, 0.7)):
        q, p = (
            np.exp(-np.square((x - m) / s) / 2) / (s * math.sqrt(2 * math.pi)) for m, s in ((mean, std), (other, wide))
        )
        logs = -np.square((x - mean) / std) / 2 - np.log(std) + np.square((x - other) / wide) / 2 + np.log(wide)
        assert (q * logs).sum() * (x[1] - x[0]) > 0
        total += float((q * logs).sum() * (x[1] - x[0]))
        assert p.sum() * (x[1] - x[0]) == pytest.approx(1, abs=1e-6)
    q = Gaussian(torch.tensor([[0.3, -1.0]]), torch.tensor([[0.5, 0.2]]))
    p = Gaussian(torch.tensor([[-0.2, 0.4]]), torch.tensor([[1.1, 0.7]]))
    assert kl(q, p).item() == pytest.approx(total, rel=1e-5)
    assert kl(q, q).item() == pytest.approx(0, abs=1e-6)


def test_info_nce_by_hand():
    latent, seen = drawn(5, 4), drawn(5, 4, seed=1)
    scores = latent @ seen.T / 2
    expected = math.log(5) + np.mean([scores[i, i] - np.log(np.exp(scores[i]).sum()) for i in range(5)])
    assert info_nce(torch.from_numpy(latent), torch.from_numpy(seen)).item() == pytest.approx(expected, rel=1e-12)
    told = 40 * torch.eye(6)
    assert info_nce(told, told).item() == pytest.approx(math.log(6))  # it knows which is which, and no bound says more
    assert info_nce(told * 0, told).item() == pytest.approx(0, abs=1e-6)


def test_energy_distance_by_hand():
    one, other = drawn(7, 3), drawn(5, 3, seed=1) + 0.5

    def mean(a, b):
        return np.mean([[np.linalg.norm(x - y) for y in b] for x in a])

    expected = 2 * mean(one, other) - mean(one, one) - mean(other, other)
    said = energy_distance(torch.from_numpy(one), torch.from_numpy(other)).item()
    assert said == pytest.approx(expected, rel=1e-12)
    assert energy_distance(*[torch.from_numpy(one)] * 2).item() == pytest.approx(0, abs=1e-12)
