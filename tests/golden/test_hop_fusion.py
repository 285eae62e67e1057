"""Hop labels and the fusion of progress, derived again in float64 NumPy (arXiv 2512.23703 §3.1–3.2)."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from rewards.hops import FUSIONS, apply_hop, fuse, hop, segment_progress


def hops(seed, batch=3, length=12):
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, (batch, length)) for _ in range(3)]


def t(array):
    return torch.from_numpy(array)


def clip(x):
    return min(max(x, 0.0), 1.0)


def by_hand(inc, fwd, bwd, fusion, a, eps, first=0.0):
    """One episode, a line per line of the paper, whose Φ_0 = first is 0."""
    forward = [clip(first + ((1 - first) * h if h >= 0 else first * h)) for h in fwd]
    backward = [clip(1 + h) for h in bwd]
    summed = [first]
    for h in inc[1:]:
        last = summed[-1]
        summed.append(last + ((1 - last) * h if h >= 0 else last * h))
    if fusion == "incremental":
        return summed
    if fusion == "forward":
        return forward
    if fusion == "backward":
        return backward
    if fusion == "mean":
        return [(i + f + b) / 3 for i, f, b in zip(summed, forward, backward, strict=True)]
    phi = [first]
    for step in range(1, len(inc)):
        last, h = phi[-1], inc[step]
        d = (1 - last) * h if h >= 0 else last * h
        p = (forward[step] + backward[step]) / 2
        w = np.exp(-a * (abs(backward[step] - forward[step]) / (p + eps)) ** 2)
        phi.append(last + w / 2 * (p - last + d))
    return phi


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("a", [0.0, 0.3, 20.0])
def test_fusions_are_the_papers(fusion, a):
    inc, fwd, bwd = hops(1)
    expected = [by_hand(*rows, fusion, a, 0.05) for rows in zip(inc, fwd, bwd, strict=True)]
    assert_allclose(fuse(t(inc), t(fwd), t(bwd), fusion=fusion, strength=a, epsilon=0.05).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_episode_may_start_half_way(fusion):
    inc, fwd, bwd = hops(5)
    first = np.array([0.0, 0.4, 1.0])
    expected = [by_hand(*rows, fusion, 20.0, 0.1, start) for *rows, start in zip(inc, fwd, bwd, first, strict=True)]
    found = fuse(t(inc), t(fwd), t(bwd), first=t(first), fusion=fusion)
    assert_allclose(found.numpy(), expected, atol=1e-12)
    at_zero = fuse(t(inc), t(fwd), t(bwd), fusion=fusion)[0]
    assert_allclose(found[0].numpy(), at_zero.numpy(), atol=1e-12)  # the paper's own, where Φ_0 = 0


def test_an_episode_that_starts_solved_is_not_paid_for_the_way_back():
    """Reversed episodes must fall: from Φ_0 = 0 they would rise instead, forward hops being clipped at 0."""
    phi = segment_progress(20).double().flip(0)
    inc = torch.cat([torch.zeros(1, dtype=torch.float64), hop(phi[:-1], phi[1:])])[None]
    fwd, bwd = hop(phi[0].expand(20), phi)[None], hop(torch.ones_like(phi), phi)[None]
    one = torch.ones(1, dtype=torch.float64)
    for fusion in ("incremental", "forward", "backward", "mean"):
        assert_allclose(fuse(inc, fwd, bwd, first=one, fusion=fusion)[0].numpy(), phi.numpy(), atol=1e-7)
    assert (fuse(inc, fwd, bwd, first=one)[0].diff() <= 0).all()


def test_full_trust_is_half_anchors_and_half_increment_and_not_the_mean():
    inc, fwd, bwd = hops(2)
    phi = fuse(t(inc), t(fwd), t(bwd), strength=0.0).numpy()
    anchors = (np.clip(fwd, 0, 1) + np.clip(1 + bwd, 0, 1)) / 2
    stepped = apply_hop(t(phi[:, :-1]), t(inc[:, 1:])).numpy()
    assert_allclose(phi[:, 1:], anchors[:, 1:] / 2 + stepped / 2, atol=1e-12)
    assert np.abs(phi - fuse(t(inc), t(fwd), t(bwd), fusion="mean").numpy()).max() > 0.05


def test_no_trust_holds():
    inc, fwd, bwd = (torch.full((1, 9), v, dtype=torch.float64) for v in (0.2, 0.0, 0.0))  # Φ_F = 0, Φ_B = 1
    assert_allclose(fuse(inc, fwd, bwd, strength=1e6).numpy(), 0)
    assert fuse(inc, fwd, bwd, strength=0.0)[0, -1] > 0.3  # the control: with trust it moves


def test_the_papers_trust_early_middle_and_late():
    """w = (Φ_1 − Φ_0)·2 / P with one step from 0 and no increment: the values dense_rewards gives for ε → 0."""
    for forward, backward, w in ((0.05, 0.10, 1.4e-4), (0.4, 0.5, 0.37), (0.8, 0.9, 0.76)):
        row = [torch.tensor([[0.0, v]], dtype=torch.float64) for v in (0.0, forward, backward - 1)]
        phi = fuse(*row, epsilon=1e-9)[0, 1].item()
        assert phi * 2 / ((forward + backward) / 2) == pytest.approx(w, rel=0.03)


def test_hops_of_labels_rebuild_the_labels():
    phi = segment_progress(40, (7, 11, 33)).double()
    p, q = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    assert_allclose(apply_hop(phi[p], hop(phi[p], phi[q])).numpy(), phi[q].numpy(), atol=1e-12)
    inc = hop(phi[:-1], phi[1:])
    inc = torch.cat([torch.zeros(1, dtype=torch.float64), inc])[None]
    fwd, bwd = hop(torch.zeros_like(phi), phi)[None], hop(torch.ones_like(phi), phi)[None]
    for fusion in ("incremental", "forward", "backward", "mean"):
        assert_allclose(fuse(inc, fwd, bwd, fusion=fusion)[0].numpy(), phi.numpy(), atol=1e-7)
    guarded = fuse(inc, fwd, bwd)[0]  # a filter: half of the innovation a step, so it lags by less than a step
    assert (guarded <= phi + 1e-12).all()
    assert (guarded[1:] >= phi[:-1] - 0.05).all()


def test_hop_is_the_papers():
    phi = np.random.default_rng(3).uniform(0, 1, (50, 2))
    expected = [(q - p) / (1 - p) if q >= p else (q - p) / p for p, q in phi]
    assert_allclose(hop(t(phi[:, 0]), t(phi[:, 1])).numpy(), expected, atol=1e-12)
    ends = torch.tensor([0.0, 1.0])
    assert hop(ends, ends).tolist() == [0.0, 0.0]
    assert hop(ends, 1 - ends).tolist() == [1.0, -1.0]


def test_labels_equal_the_papers_samples():
    """m samples in each of N segments, Φ(s_i) = i/M."""
    steps, m = (12, 18, 60), 6
    ends = (0, *steps)
    rows = [round(a + (b - a) * j / m) for a, b in pairwise(ends) for j in range(m)] + [60]
    phi = segment_progress(61, steps).numpy()
    assert_allclose(phi[rows], np.arange(len(rows)) / (3 * m), atol=1e-6)
