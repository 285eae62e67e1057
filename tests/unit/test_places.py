"""Places of a fine-tuned policy, as another learner reads them."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from embodied.errors import UserError
from embodied.finetuning.inputs import kept_eyes
from embodied.finetuning.places import PlaceActor, PlaceReader
from policies.vla.core import ChunkPolicy, Spec
from policies.vla.embedded import ChunkObservation
from policies.vla.stats import Normaliser
from rewards.encoders import embedded_encoder
from rewards.storage import picture_probe

SENTENCE, VIEWS = "the drawer is open", ("front", "side", "wrist")
SPACE = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 1], np.float32))


@pytest.fixture(scope="module")
def encoder():
    return embedded_encoder(precision="fp32")


def policy_of(encoder, **more):
    """A policy of random weights that looks at the wrist and the front, in this order, and not at the side."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    spec = Spec(
        cameras={"wrist": 8, "front": 8}, states=("grip", "lift"), actions=("x", "grip"), text=encoder.dim, horizon=3,
        fps=10.0, width=16, **{"places": 5, **more},
        encoder={"name": encoder.name, "layer": None, "probe": picture_probe(encoder).tolist(), "mark": ""},
    )  # fmt: skip
    compress = {name: (0.02 * torch.randn(256, 8), torch.zeros(8)) for name in spec.cameras}
    state = Normaliser.fit(rng.normal(size=(50, 2)), "quantile", names=spec.states)
    action = Normaliser.fit(rng.uniform(SPACE.low, SPACE.high, (50, 2)), "quantile", names=spec.actions)
    return ChunkPolicy(spec, state, action, compress)


def moments(views=VIEWS):
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (4, len(views), 96, 96, 3), np.uint8), rng.normal(size=(4, 3)).astype(np.float32)


def observed(reader, frames, readings):
    return np.concatenate([readings, reader.read(frames)[1]], 1)


def test_the_vectors_are_the_encoders_and_every_place_has_a_name(encoder):
    reader, (frames, _) = PlaceReader(policy_of(encoder), encoder, SENTENCE, VIEWS), moments()
    vectors, places = reader.read(frames)
    assert torch.allclose(vectors, encoder.encode_images(torch.from_numpy(frames.reshape(-1, 96, 96, 3))), atol=1e-5)
    assert places.shape == (4, len(reader.names)) == (4, 2 * 5 * 3)
    assert reader.names[:2] == ["front, place 0: u", "front, place 0: v"]
    assert reader.names[-1] == "wrist, place 4: seen"


def test_the_actor_of_places_does_what_the_policy_does(encoder):
    policy, (frames, readings) = policy_of(encoder), moments()
    reader = PlaceReader(policy, encoder, SENTENCE, VIEWS)
    actor = PlaceActor(reader, ("lift", "other", "grip"), SPACE)
    action, _ = actor.act(observed(reader, frames, readings), actor.begin(4), np.ones(4, bool), explore=True)

    eyes = kept_eyes(policy, encoder)
    seen = ChunkObservation(
        {name: eyes[name](frames[:, VIEWS.index(name)]) for name in ("wrist", "front")},
        dict.fromkeys(("wrist", "front"), torch.ones(4).bool()),
        encoder.encode_texts([SENTENCE]).expand(4, -1), torch.from_numpy(readings[:, [2, 0]]),
    )  # fmt: skip
    wanted = policy.predict_chunk(seen)[:, 0].numpy()
    np.testing.assert_allclose(
        action, np.clip(2 * (wanted - SPACE.low) / (SPACE.high - SPACE.low) - 1, -1, 1), atol=1e-4
    )
    assert np.ptp(action, axis=0).min() > 1e-3


def test_a_camera_that_is_not_shown_counts_as_not_seen(encoder):
    policy, (frames, readings) = policy_of(encoder), moments(("front",))
    reader = PlaceReader(policy, encoder, SENTENCE, ("front",))
    actor = PlaceActor(reader, ("lift", "other", "grip"), SPACE)
    action, _ = actor.act(observed(reader, frames, readings), {}, np.ones(4, bool), explore=False)
    eyes = kept_eyes(policy, encoder)
    seen = ChunkObservation(
        {"front": eyes["front"](frames[:, 0]), "wrist": torch.zeros(4, 8, 12, 12)},
        {"front": torch.ones(4).bool(), "wrist": torch.zeros(4).bool()},
        encoder.encode_texts([SENTENCE]).expand(4, -1), torch.from_numpy(readings[:, [2, 0]]),
    )  # fmt: skip
    wanted = policy.predict_chunk(seen)[:, 0].numpy()
    np.testing.assert_allclose(
        action, np.clip(2 * (wanted - SPACE.low) / (SPACE.high - SPACE.low) - 1, -1, 1), atol=1e-4
    )


def test_what_cannot_be_read_is_refused(encoder, tiny_clip):
    from rewards.encoders import OpenCLIPEncoder

    with pytest.raises(UserError, match=r"looks at wrist, front; the world shows top"):
        PlaceReader(policy_of(encoder), encoder, SENTENCE, ("top",))
    with pytest.raises(UserError, match=r"must be a policy that looks for places"):
        PlaceReader(policy_of(encoder, places=0), encoder, SENTENCE, VIEWS)
    with pytest.raises(UserError, match=r"encoder must be the one that the policy was trained with"):
        PlaceReader(policy_of(encoder), OpenCLIPEncoder(tiny_clip), SENTENCE, VIEWS)
    reader = PlaceReader(policy_of(encoder), encoder, SENTENCE, VIEWS)
    with pytest.raises(UserError, match=r"reads 'grip', which the world does not tell"):
        PlaceActor(reader, ("lift",), SPACE)
    with pytest.raises(UserError, match=r"gives 2 actions; the world wants \(3,\)"):
        PlaceActor(reader, ("lift", "grip"), spaces.Box(-1, 1, (3,)))
