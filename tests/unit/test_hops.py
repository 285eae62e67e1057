import math

import pytest
import torch

from rewards.hops import FUSIONS, balanced_pairs, fuse, hop, segment_progress


def some(seed=0, batch=2, length=10):
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, length, generator=g) * 2 - 1 for _ in range(3)]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_progress_stays_in_range_and_is_causal(fusion):
    inc, fwd, bwd = (3 * h for h in some())  # out of range: clipped
    whole = fuse(inc, fwd, bwd, fusion=fusion)
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert torch.equal(fuse(inc[:, :6], fwd[:, :6], bwd[:, :6], fusion=fusion), whole[:, :6])


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("missing", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_missing_prediction_never_raises_progress(fusion, missing, value):
    hops = some(1)
    for index in missing:
        hops[index][:, 4] = value
    phi = fuse(*hops, fusion=fusion)
    needed = {"incremental": {0}, "forward": {1}, "backward": {2}}.get(fusion, {0, 1, 2})
    if needed & set(missing):
        assert torch.equal(phi[:, 4], phi[:, 3])
    assert torch.isfinite(phi).all()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_nothing_predicted_is_no_progress(fusion):
    nothing = torch.full((1, 5), math.nan)
    assert fuse(nothing, nothing, nothing, fusion=fusion).abs().max() == 0


def test_without_a_goal_two_remain():
    inc, fwd, _ = some(2)
    fwd = fwd.abs()
    assert torch.allclose(fuse(inc, fwd, None, fusion="forward"), fwd)
    mean = (fuse(inc, fwd, None, fusion="incremental") + fwd) / 2
    assert torch.allclose(fuse(inc, fwd, None, fusion="mean"), mean)
    agreed = fuse(inc, fwd, fwd - 1)  # a backward view that agrees changes nothing
    assert torch.allclose(fuse(inc, fwd, None), agreed, atol=1e-6)


def test_an_ever_positive_predictor_rises_only_forwards():
    """Why a reversed episode must be judged too: positive hops alone order time perfectly."""
    always = torch.full((1, 8), 0.3)
    assert (fuse(always, always, always - 1, fusion="incremental").diff() > 0).all()


def test_segments_earn_the_same_however_long():
    phi = segment_progress(11, (2, 10))
    assert phi[2] == 0.5
    assert phi[0] == 0
    assert phi[10] == 1
    assert segment_progress(20, (2, 10))[10:].eq(1).all()  # at rest after the last step
    assert torch.allclose(segment_progress(5), torch.linspace(0, 1, 5))


def test_pairs_are_spread_over_hops_and_repeat_with_a_seed():
    phi = segment_progress(60, (5, 50, 59))
    p, q = balanced_pairs(phi, 20_000, torch.Generator().manual_seed(0))
    again = balanced_pairs(phi, 20_000, torch.Generator().manual_seed(0))
    assert torch.equal(p, again[0])
    assert torch.equal(q, again[1])
    still = (p == q).float().mean()
    assert 0.04 < still < 0.06
    moved = p != q
    counts = torch.histc(hop(phi[p[moved]], phi[q[moved]]), bins=25, min=-1, max=1)
    assert counts.max() / counts.min() < 1.3
    drawn = torch.randint(60, (2, 20_000), generator=torch.Generator().manual_seed(0))
    plain = torch.histc(hop(phi[drawn[0]], phi[drawn[1]]), bins=25, min=-1, max=1)
    assert plain.max() / plain.min() > 2  # the control: unbalanced pairs are not


def test_pairs_of_a_long_demonstration_reach_all_of_it():
    phi = segment_progress(6000)
    p, q = balanced_pairs(phi, 5000, torch.Generator().manual_seed(0))
    for rows in (p, q):
        assert rows.min() < 60
        assert 5940 < rows.max() < 6000
    moved = p != q
    counts = torch.histc(hop(phi[p[moved]], phi[q[moved]]), bins=25, min=-1, max=1)
    assert counts.max() / counts.min() < 1.6


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fusion": "median"}, "fusion must be one of guarded"),
        ({"strength": -1.0}, "strength must be ≥ 0"),
        ({"epsilon": 0.0}, "epsilon must be > 0"),
        ({"hops_bwd": None, "fusion": "backward"}, "without a reference goal"),
    ],
)
def test_fuse_refuses(change, match):
    inc, fwd, bwd = some()
    with pytest.raises(ValueError, match=match):
        fuse(**({"hops_inc": inc, "hops_fwd": fwd, "hops_bwd": bwd} | change))


@pytest.mark.parametrize(("length", "steps"), [(1, ()), (5, (5,)), (5, (3, 3)), (5, (0, 4))])
def test_segments_refuse(length, steps):
    with pytest.raises(ValueError, match="segment_progress"):
        segment_progress(length, steps)
