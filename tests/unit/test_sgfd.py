"""SGFD's weights against their definitions in float64 NumPy, and what they do to features that go together."""

import numpy as np
import pytest
import torch

from policies.sgfd import Decorrelation, dependence, fourier, saliency


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_fourier_features_are_their_definition():
    rng = np.random.default_rng(0)
    x, slope, phase = rng.normal(size=(5, 3)), rng.normal(size=2), rng.uniform(0, 2 * np.pi, (3, 2))
    expected = np.zeros((5, 3, 4))
    for n in range(5):
        for m in range(2):
            angle = slope[m] * x[n] + phase[:, m]
            angle = (angle - angle.min()) / (angle.max() - angle.min()) * np.pi / 2
            expected[n, :, m], expected[n, :, 2 + m] = np.cos(angle), np.sin(angle)  # √(2/2) = 1
    got = fourier(*(torch.tensor(each, dtype=torch.float32) for each in (x, slope, phase)))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_dependence_is_its_definition():
    rng = np.random.default_rng(0)
    waves, weights, p = rng.normal(size=(7, 3, 2)), rng.random(7), rng.random(3)
    weights /= weights.sum()
    expected = 0.0
    for c in range(2):
        mean = sum(w * x for w, x in zip(weights, waves[..., c], strict=True))
        covariance = sum(w * np.outer(x, x) for w, x in zip(weights, waves[..., c], strict=True)) - np.outer(mean, mean)
        for i in range(3):
            for j in range(3):
                expected += (i != j) * covariance[i, j] ** 2 * p[i] * p[j]
    given = (waves, weights, np.outer(p, p))
    got = dependence(*(torch.tensor(each, dtype=torch.float32) for each in given))
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_saliency_is_guided_backpropagation():
    """The mean over looks of gradients that pass a hidden unit only where it and they are positive."""
    made = Decorrelation(4, 3, 8, generator=generator())
    layer, head = made.classifier.layers[0], made.classifier.head
    x = np.random.default_rng(0).normal(size=(6, 4))
    down, bias, up = (t.detach().double().numpy() for t in (layer.weight[0], layer.bias[0, 0], head.weight[0]))
    attribution = np.zeros((6, 4))
    for b in range(6):
        active = x[b] @ down + bias > 0
        for look in range(3):
            attribution[b] += down @ (np.maximum(up[:, look], 0) * active) / 3
    size = np.abs(attribution).mean(0)
    p = 7 * np.exp(size) / np.exp(size).sum()
    np.testing.assert_allclose(saliency(made.classifier, torch.tensor(x).float()), np.outer(p, p), rtol=1e-4)


def correlated(count=128):
    """Two features that go together, and two that do not."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=count)
    features = np.stack(
        [common, common + 0.5 * rng.normal(size=count), rng.normal(size=count), rng.normal(size=count)], 1
    )
    return torch.tensor(np.tanh(features), dtype=torch.float32)


def test_the_weights_make_features_less_dependent():
    features, look = correlated(), torch.zeros(128, dtype=torch.int16)
    made = Decorrelation(4, 2, 128, generator=generator())
    weights, told = made.weights(features, look, generator())
    assert weights.sum().item() == pytest.approx(1)
    assert not weights.requires_grad
    assert 20 < told["effective_samples"] < 128
    slope, phase = torch.randn(50, generator=generator(7)), 6.28 * torch.rand(4, 50, generator=generator(8))
    waves, ones = fourier(features, slope, phase), torch.ones(4, 4)  # other maps than it descended on
    after, before = (dependence(waves, w, ones) for w in (weights, torch.full((128,), 1 / 128)))
    assert after < 0.8 * before


def test_former_batches_are_averaged_and_then_forgotten_slowly():
    made, look = Decorrelation(4, 2, 16, generator=generator()), torch.zeros(16, dtype=torch.int16)
    batches = [torch.full((16, 4), float(k)) + 0.1 * torch.rand(16, 4, generator=generator(k)) for k in range(12)]
    for k, batch in enumerate(batches):
        made.weights(batch, look, generator(k))
    expected = torch.stack(batches[:10]).mean(0)
    for batch in batches[10:]:
        expected = 0.9 * expected + 0.1 * batch
    torch.testing.assert_close(made.past, expected)


def test_the_classifier_learns_the_looks_and_then_rests():
    made = Decorrelation(4, 2, 64, generator=generator())
    look = (torch.arange(64) % 2).short()
    features = 0.3 * torch.randn(64, 4, generator=generator(1))
    features[:, 2] += 2 * look - 1
    accuracy = [made._learn(features, look)["look_accuracy"].item() for _ in range(200)]
    assert accuracy[0] < 0.8 <= accuracy[-1]
    before = made.classifier.head.weight.clone()
    made._learn(features, look)
    assert torch.equal(made.classifier.head.weight, before)
    p = saliency(made.classifier, features).diagonal()
    assert p.argmax() == 2  # the feature that the look changes


@pytest.mark.parametrize(
    ("look", "error"),
    [(-1, "no look is known. Vary them: env.looks=4"), (5, "as many as the worlds show; got 2 for look 5")],
)
def test_looks_that_do_not_fit_are_refused(look, error):
    made = Decorrelation(4, 2, 8, generator=generator())
    with pytest.raises(ValueError, match=error):
        made.weights(torch.rand(8, 4), torch.full((8,), look, dtype=torch.int16), generator())
