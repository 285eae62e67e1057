"""Potential to reward, against Ng, Harada and Russell 1999."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from rewards.shaping import PotentialShaping, chunked, finite_horizon

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


# Chunks, histories, horizons -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("steps", [30, 31])
@pytest.mark.parametrize("length", [1, 4, 50])
def test_chunks_are_the_sum_of_their_steps_and_telescope(length, steps, ends):
    discount = 0.9
    phi = torch.from_numpy(np.random.default_rng(1).normal(size=(2, steps + 1)))
    ended = torch.zeros(2, steps, dtype=torch.bool)
    ended[:, -1] = ends
    shape = PotentialShaping(kind="difference", discount=discount, scale=0.5, offset=0.2)
    summed = chunked(shape(phi[:, :-1], phi[:, 1:], ended), length, discount)
    at = np.unique([*range(0, steps, length), steps])
    counts = torch.from_numpy(np.diff(at)).expand(2, -1)
    of_ends = shape(phi[:, at[:-1]], phi[:, at[1:]], ended[:, at[1:] - 1], counts)
    assert_allclose(summed, of_ends, atol=1e-12)
    p = 0.5 * phi.numpy() + 0.2
    by_hand = [discount ** (b - a) * (0 if ends and b == steps else p[:, b]) - p[:, a] for a, b in pairwise(at)]
    assert_allclose(of_ends, np.stack(by_hand, 1), atol=1e-12)
    total = of_ends.numpy() @ discount ** at[:-1].astype(float)
    assert_allclose(total, (0 if ends else discount**steps * p[:, -1]) - p[:, 0], atol=1e-6)


def test_chunks_of_one_number_of_steps():
    shape = PotentialShaping(kind="difference", discount=0.9)
    assert_allclose(shape(PHI, NEXT, NO, 3), 0.9**3 * NEXT - PHI, atol=1e-6)
    with pytest.raises(ValueError, match="steps must be 1 with kind 'potential'"):
        PotentialShaping()(PHI, NEXT, NO, 3)


def test_the_naive_difference_pays_for_dwelling():
    """−φ₀ + (1−γ)Σγ^(t−1)φ_t + γ^(T−1)φ_T; the right one is blind to what happens between."""
    discount, steps = 0.9, 20
    rng = np.random.default_rng(2)
    weights = discount ** np.arange(steps)
    totals = []
    for dwell in (0.0, 0.9):  # between the same start and end
        phi = np.concatenate([[0.1], np.full(steps - 1, dwell) + 0.01 * rng.random(steps - 1), [0.5]])
        naive = weights @ np.diff(phi)
        t = np.arange(1, steps)
        by_hand = -phi[0] + (1 - discount) * (discount ** (t - 1) @ phi[1:-1]) + discount ** (steps - 1) * phi[-1]
        assert_allclose(naive, by_hand, atol=1e-12)
        now, after = torch.from_numpy(phi[:-1]), torch.from_numpy(phi[1:])
        right = PotentialShaping(kind="difference", discount=discount)(now, after, torch.zeros(steps, dtype=torch.bool))
        totals.append((naive, weights @ right.numpy()))
    assert totals[1][0] - totals[0][0] > 0.5
    assert_allclose(totals[1][1], totals[0][1], atol=1e-12)


def test_kept_sides_survive_a_newer_model_and_one_newer_side_does_not():
    """A potential of the history, here the best so far, telescopes from what was kept with each transition."""
    discount, steps = 0.9, 12
    raw = np.random.default_rng(3).normal(size=(2, steps + 1))
    old = torch.from_numpy(np.maximum.accumulate(raw, 1))
    shape = PotentialShaping(kind="difference", discount=discount)
    ended = torch.zeros(2, steps, dtype=torch.bool)
    kept = torch.stack([old[:, :-1], old[:, 1:]], -1)
    order = torch.randperm(steps, generator=torch.Generator().manual_seed(0))  # as replay samples them
    rewards = shape(*kept[:, order].unbind(-1), ended)[:, order.argsort()]
    weights = discount ** np.arange(steps)
    expected = discount**steps * old[:, -1].numpy() - old[:, 0].numpy()
    assert_allclose(rewards.numpy() @ weights, expected, atol=1e-12)
    newer = 2 * old + 1
    mixed = shape(old[:, :-1], newer[:, 1:], ended)
    assert np.abs(mixed.numpy() @ weights - expected).min() > 1


def test_finite_horizon_gives_back_everything_at_its_end():
    phi = torch.tensor([[0.2, 0.5, 0.9], [0.2, 0.1, 0.3]], dtype=torch.float64)
    shape = PotentialShaping(kind="difference", discount=1.0)
    rewards = finite_horizon(shape, phi, torch.zeros(2, 2, dtype=torch.bool))
    assert_allclose(rewards, [[0.3, -0.5], [-0.1, -0.1]], atol=1e-12)  # the last: −φ_T + (φ_T − φ_(T−1))
    assert_allclose(rewards.sum(1), -phi[:, 0], atol=1e-12)
    open_ended = shape(phi[:, :-1], phi[:, 1:], torch.zeros(2, 2, dtype=torch.bool))
    assert_allclose((open_ended - rewards)[:, -1], phi[:, -1], atol=1e-12)


def test_success_bonus():
    """r_gold + γΦ' − Φ, r_gold = 1 when Φ' ≥ 1 − δ, of a terminal state too."""
    phi, after = torch.tensor([0.5, 0.9, 0.94, 0.9]), torch.tensor([0.94, 0.95, 1.0, 0.2])
    gold = np.array([0.0, 1.0, 1.0, 0.0])
    shape = PotentialShaping(kind="difference", discount=0.9, success_bonus=1.0, success_margin=0.05)
    assert_allclose(shape(phi, after, NO), gold + 0.9 * after.numpy() - phi.numpy(), atol=1e-6)
    assert_allclose(shape(phi, after, YES), gold - phi.numpy(), atol=1e-6)
    assert_allclose(PotentialShaping(success_bonus=2.0)(phi, after, NO), after.numpy() + 2 * gold, atol=1e-6)
    with pytest.raises(ValueError, match=r"success_bonus must be ≥ 0 and success_margin in \[0, 1\); got 1.0 and 1.0"):
        PotentialShaping(success_bonus=1.0, success_margin=1.0)
