"""Linear layers in integers: their formula, what an encoder sees with them, and where they are refused."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from rewards.encoders import OpenCLIPEncoder, embedded_encoder
from rewards.encoders.int8 import Int8Linear
from rewards.grounding import Grounder


def test_a_layer_is_its_formula():
    rng = np.random.default_rng(0)
    w, b, x = rng.normal(size=(5, 32)), rng.normal(size=5), rng.normal(size=(3, 2, 32))
    x[0, 0] = 0  # a row without numbers
    layer = Int8Linear(torch.tensor(w, dtype=torch.float32), torch.tensor(b, dtype=torch.float32))
    s_w, s_x = np.abs(w).max(1) / 127, np.maximum(np.abs(x).max(-1, keepdims=True), 1e-12) / 127
    expected = np.round(x / s_x) @ np.round(w / s_w[:, None]).T * s_x * s_w + b
    got = layer(torch.tensor(x, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(got - (x @ w.T + b)).max() < 0.15


def test_an_encoder_sees_nearly_the_same_and_the_same_in_any_batch(tiny_clip):
    frames = torch.randint(0, 256, (4, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact = OpenCLIPEncoder(tiny_clip, precision="fp32", device="cpu").encode_images(frames)
    encoder = OpenCLIPEncoder(tiny_clip, precision="int8", device="cpu")
    fast = encoder.encode_images(frames)
    assert fast.dtype == torch.float32
    assert cosine_similarity(exact, fast).min() > 0.99
    assert not torch.equal(exact, fast)
    alone = torch.cat([encoder.encode_images(frame[None]) for frame in frames])
    assert_close(fast, alone, atol=1e-5, rtol=0)


def test_it_is_refused_where_it_does_not_fit(tiny_clip, monkeypatch):
    with pytest.raises(ValueError, match=r"precision must be other than int8 for .*, whose weights .* \(0%\)"):
        embedded_encoder(precision="int8", device="cpu")  # a ResNet
    encoder = OpenCLIPEncoder(tiny_clip, precision="int8", device="cpu")
    with pytest.raises(ValueError, match=r"precision of the encoder must be .*, so that its maps .*; got int8"):
        Grounder(encoder)
    monkeypatch.setattr(Int8Linear, "forward", lambda self, x: x.new_zeros(*x.shape[:-1], len(self.scale)))
    with pytest.raises(ValueError, match=r"it no longer sees the same \(cosine [-0-9.]+ with float32"):
        OpenCLIPEncoder(tiny_clip, precision="int8", device="cpu")
