"""A policy's figures from its curve of progress, derived again by walking along the curve, 1,000 random curves."""

import numpy as np
import pytest

from rewards.trace import trace


def walked(progress: list[float]):
    """(MP, PPL, CRA, STR, DRR), one row after another."""
    before, way, highest, lost, stalled = 0.0, 0.0, 0.0, 0.0, 0
    peak, fall, low = progress[0], 0.0, 0
    for t, value in enumerate(progress):
        way += abs(value - before)
        stalled += abs(value - before) < 0.005
        highest = max(highest, value)
        lost += highest - value
        before, peak = value, max(peak, value)
        if peak - value > fall:
            fall, low = peak - value, t
    most = max(progress)
    recovery = 1.0
    if fall > 1e-12:
        recovery = min(1.0, (max(progress[low:]) - progress[low] + 1e-6) / (fall + 1e-6))
    share = lost / len(progress) / most if most > 0 else 0.0
    return most, min(1.0, most * most / way) if way > 1e-9 else 0.0, share, stalled / len(progress), recovery


def test_a_thousand_random_curves():
    rng = np.random.default_rng(0)
    for k in range(1000):
        count = rng.integers(1, 30)
        values = rng.random(count) if k % 2 else np.clip(np.cumsum(rng.choice([-0.1, 0, 0, 0.1, 0.2], count)), 0, 1)
        assert trace(values)[:5] == pytest.approx(walked(values.tolist()), abs=1e-9)


def test_curves_that_are_known():
    straight = trace(np.linspace(0.1, 1, 10))
    assert straight == pytest.approx((1, 1, 0, 0, 1, False))
    back = trace([0.5, 0.2, 0.6])  # 0.3 lost and more than won back, by a way of 0.5 + 0.3 + 0.4
    assert back == pytest.approx((0.6, 0.36 / 1.2, 0.1 / 0.6, 0, 1, True), abs=1e-5)
    half = trace([0.8, 0.4, 0.6, 0.6])
    assert half.recovery == pytest.approx(0.5, abs=1e-5)
    assert half.stalls == 0.25
    assert trace([0.0, 0.0]) == (0, 0, 0, 1, 1, False)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        trace([0.2, 1.2])
    with pytest.raises(ValueError, match="T ≥ 1"):
        trace([])
