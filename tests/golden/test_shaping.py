"""Potential to reward, against Ng, Harada and Russell 1999."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from rewards.shaping import PotentialShaping

NO, YES = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
PHI, NEXT = torch.tensor([0.1, 0.5, -1.0, 2.0]), torch.tensor([0.3, 0.4, -0.5, 2.0])


def test_potential_is_the_next_state_s_own_number():
    assert_allclose(PotentialShaping()(PHI, NEXT, NO), NEXT)
    assert_allclose(PotentialShaping()(PHI, NEXT, YES), NEXT)


def test_difference():
    assert_allclose(PotentialShaping(kind="difference", discount=0.9)(PHI, NEXT, NO), 0.9 * NEXT - PHI)


def test_truncation_is_not_termination():
    shape = PotentialShaping(kind="difference", discount=0.9)
    kept, cut = shape(PHI, NEXT, NO), shape(PHI, NEXT, YES)
    assert_allclose(kept - cut, 0.9 * NEXT)  # the difference is exactly what a learner may bootstrap on


@pytest.mark.parametrize("clip", [None, [0.0, 1.0]])
def test_differences_telescope_over_an_episode(clip):
    """Discounted, they sum to γ^T p(s_T) − p(s_0), and to −p(s_0) if the task ended there: no policy gains by them."""
    discount, steps = 0.95, 30
    phi = torch.from_numpy(np.random.default_rng(0).normal(size=steps + 1))
    shape = PotentialShaping(kind="difference", discount=discount, scale=2.0, offset=0.3, clip=clip)
    potential = 2 * phi.numpy() + 0.3
    if clip:
        potential = potential.clip(*clip)
    weights = discount ** np.arange(steps)
    ended = torch.zeros(steps, dtype=torch.bool)
    total = weights @ shape(phi[:-1], phi[1:], ended).numpy()
    assert_allclose(total, discount**steps * potential[-1] - potential[0], atol=1e-12)
    ended[-1] = True
    total = weights @ shape(phi[:-1], phi[1:], ended).numpy()
    assert_allclose(total, -potential[0], atol=1e-12)


def test_shaping_leaves_the_best_policy_alone():
    """On random finite problems the greedy policy of r + F is that of r; adding φ(s′) itself changes some."""
    rng = np.random.default_rng(0)
    discount, changed = 0.9, 0
    for _ in range(20):
        next_state, reward, phi = rng.integers(0, 6, (6, 3)), rng.normal(size=(6, 3)), 3 * rng.normal(size=6)
        now = torch.from_numpy(np.repeat(phi[:, None], 3, 1))
        after = torch.from_numpy(phi[next_state])
        ended = torch.zeros(6, 3, dtype=torch.bool)
        difference = PotentialShaping(kind="difference", discount=discount)(now, after, ended).numpy()
        plain = greedy(next_state, reward, discount)
        assert (greedy(next_state, reward + difference, discount) == plain).all()
        bonus = PotentialShaping()(now, after, ended).numpy()
        changed += bool((greedy(next_state, reward + bonus, discount) != plain).any())
    assert changed > 10


def greedy(next_state: np.ndarray, reward: np.ndarray, discount: float) -> np.ndarray:
    value = np.zeros(len(next_state))
    for _ in range(400):
        value = (reward + discount * value[next_state]).max(1)
    return (reward + discount * value[next_state]).argmax(1)


def test_affine_then_clip():
    shaped = PotentialShaping(scale=2.0, offset=-0.5, clip=(0.0, 1.0))(PHI, NEXT, NO)
    assert_allclose(shaped, [0.1, 0.3, 0.0, 1.0], atol=1e-6)


def test_bad_values():
    with pytest.raises(ValueError, match="kind must be one of potential, difference; got 'diff'"):
        PotentialShaping(kind="diff")
    with pytest.raises(ValueError, match=r"discount must be in \[0, 1\]; got 1.5"):
        PotentialShaping(discount=1.5)
    with pytest.raises(ValueError, match="clip must be"):
        PotentialShaping(clip=(1.0, 0.0))
