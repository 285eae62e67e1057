"""The world model: what begins anew with an episode, what padding may not change, what it reads."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from policies.embedding import Decoder, ObservationEncoder
from policies.pixels import as_planes
from policies.rssm import RSSM, SIZES, State

SMALL = SIZES["small"]
PIXELS = spaces.Box(0, 255, (32, 32, 3), np.uint8)
BOTH = spaces.Dict({"pixels": PIXELS, "agent_pos": spaces.Box(-1, 1, (5,), np.float32)})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sequence(steps=6, rows=3, seed=1):
    rng = generator(seed)
    embedding, action, noise = (torch.randn(steps, rows, width, generator=rng) for width in (64, 2, SMALL.stochastic))
    first = torch.zeros(steps, rows, dtype=torch.bool)
    first[0] = True
    return embedding, action, first, noise


def test_an_episode_that_begins_in_a_sequence_remembers_nothing():
    """Both parts of the state, and the action before it, which RePo's official code lets through."""
    model = RSSM(SMALL, 2, generator=generator())
    embedding, action, first, noise = sequence()
    first[3, 1] = True
    whole = model.observe(embedding, action, first, noise)
    fresh = first[3:].clone()
    fresh[0] = True
    other = action[3:].clone()
    other[0] += 7  # the action before it counts for nothing
    alone = model.observe(embedding[3:], other, fresh, noise[3:])
    for one, other in ((whole.states.h, alone.states.h), (whole.states.s, alone.states.s)):
        torch.testing.assert_close(one[3:, 1], other[:, 1])
        assert not torch.allclose(one[3:, 0], other[:, 0])  # which goes on


def test_step_by_step_is_the_same_as_at_once():
    model = RSSM(SMALL, 2, generator=generator())
    embedding, action, first, noise = sequence()
    first[2, 0] = True
    whole, state = model.observe(embedding, action, first, noise), model.begin(3)
    for t in range(len(embedding)):
        now = model.observe(*(part[t][None] for part in (embedding, action, first, noise)), state)
        state = State(now.states.h[0], now.states.s[0])
        torch.testing.assert_close(state.h, whole.states.h[t])
        torch.testing.assert_close(state.s, whole.states.s[t])


def test_the_guess_does_not_look():
    model = RSSM(SMALL, 2, generator=generator())
    embedding, action, first, noise = sequence()
    one, other = (model.observe(embedding + shift, action, first, noise) for shift in (0.0, 1.0))
    torch.testing.assert_close(one.prior.mean[0], other.prior.mean[0])
    assert not torch.allclose(one.posterior.mean[0], other.posterior.mean[0])
    assert not torch.allclose(one.prior.mean[1], other.prior.mean[1])  # the past was looked at


@pytest.mark.parametrize(("space", "side"), [(PIXELS, 32), (BOTH, 32), (spaces.Box(0, 255, (96, 96, 3), np.uint8), 96)])
def test_any_axes_may_lead_an_observation_and_drawing_it_is_the_mirror(space, side):
    encoder = ObservationEncoder(space, SMALL, "test", generator=generator())
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (2, 4, side, side, 3), dtype=np.uint8))
    vector = torch.from_numpy(rng.normal(size=(2, 4, 5)).astype(np.float32))
    obs = {"pixels": pixels, "agent_pos": vector} if isinstance(space, spaces.Dict) else pixels
    rows = {"pixels": pixels[1], "agent_pos": vector[1]} if isinstance(space, spaces.Dict) else pixels[1]
    assert encoder(obs).shape == (2, 4, SMALL.embedding)
    torch.testing.assert_close(encoder(obs)[1], encoder(rows))
    decoder = Decoder(encoder, 80, SMALL, generator=generator())
    error = decoder.error(torch.zeros(4, 80), rows, encoder)
    shown = decoder.convolutions["obs_pixels" if isinstance(space, spaces.Dict) else "obs_"](
        decoder.starts["obs_pixels" if isinstance(space, spaces.Dict) else "obs_"](torch.zeros(4, 80))
    )
    assert shown.shape == (4, 3, side, side)
    by_hand = 0.5 * (shown - as_planes(pixels[1])).square().sum((1, 2, 3))
    if isinstance(space, spaces.Dict):
        by_hand = by_hand + 0.5 * (decoder.mlp(torch.zeros(4, 80)) - vector[1]).square().sum(-1)
    torch.testing.assert_close(error, by_hand)


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((32, 24, 3), np.uint8, r"must be square .*; got 32 x 24"),
        ((50, 50, 3), np.uint8, r"must be square .* such as 32, 64 or 96; got 50 x 50. Set env.image_size"),
        ((32, 32, 3), np.float32, r"must be a vector or a uint8 image \(H, W, C\)"),
        ((4, 4), np.float32, r"must be a vector or a uint8 image"),
    ],
)
def test_what_cannot_be_read_is_refused(shape, dtype, words):
    with pytest.raises(ValueError, match=rf"test: observations {words}"):
        ObservationEncoder(spaces.Box(0, 255, shape, dtype), SMALL, "test", generator=generator())
