"""What learners on pictures read: frames at once, shifts, the encoder; and what predicts their latents."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from policies.core import Batch, Rollout, Sampling
from policies.pixels import Conv, PixelEncoder, Sight, Trunk, encoded, orthogonal, random_shift, shifted
from policies.predictive import Predictor, prediction_error
from policies.replay import Mix, Replay

PICTURE = spaces.Box(0, 255, (16, 16, 3), np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTION = spaces.Box(-1, 1, (1,), np.float32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Shifts -----------------------------------------------------------------------------------------------------


def test_a_shift_is_padding_by_the_edge_and_a_crop():
    pictures = np.random.default_rng(0).uniform(size=(81, 6, 7, 4)).astype(np.float32)
    offsets = np.stack(np.divmod(np.arange(81), 9))
    moved = shifted(torch.from_numpy(pictures), torch.from_numpy(offsets), 4).numpy()
    for picture, (row, column), got in zip(pictures, offsets.T, moved, strict=True):
        padded = np.pad(picture, [(4, 4), (4, 4), (0, 0)], mode="edge")
        np.testing.assert_array_equal(got, padded[row : row + 6, column : column + 7])


def test_random_shifts_cover_all_places_alike_and_draw_from_their_own_generator():
    pictures = torch.zeros(2500, 42, 42, 1)
    pictures[:, 20, 20] = 1
    torch.manual_seed(0)
    places = random_shift(pictures, generator()).sum(0)[..., 0]
    assert torch.equal(random_shift(pictures, generator()).sum(0)[..., 0], places)
    assert not torch.equal(random_shift(pictures, generator(1)).sum(0)[..., 0], places)
    assert torch.initial_seed() == 0
    within = places[18:23, 18:23]  # two pixels either way: as large a part of the side as 4 of 84
    assert within.sum() == 2500
    assert 60 < within.min() <= within.max() < 140  # of 100 each


# Frames at once ---------------------------------------------------------------------------------------------


def stream(lengths, num_worlds=2, terminated=True):
    """Episodes whose frames say (world, number of the frame), none said twice."""
    steps = sum(lengths)
    last = np.zeros((steps, num_worlds), bool)
    last[np.cumsum(lengths) - 1] = True
    first = np.roll(last, 1, 0)
    number = np.arange(steps) + np.cumsum(first[:, 0]) - 1  # the last frame of an episode is none's first
    world = np.arange(num_worlds)

    def frames(numbers):
        out = np.zeros((steps, num_worlds, 16, 16, 3), np.uint8)
        out[..., 0], out[..., 1] = numbers[:, None, None, None], world[:, None, None]
        return out

    action = np.zeros((steps, num_worlds, 1), np.float32)
    rewards = np.zeros((steps, num_worlds), np.float32)
    return Rollout(
        frames(number), action, frames(number + 1), rewards, last & terminated, last & (not terminated), first
    )


@pytest.mark.parametrize("capacity", [200, 36])
@pytest.mark.parametrize("stack", [1, 2, 4])
def test_frames_at_once_are_of_one_episode(capacity, stack):
    """Each window's stack, at its beginning and after its last step, is what a world had shown."""
    rollout = stream([5, 1, 3, 9, 12])
    replay = Replay(PICTURE, ACTION, capacity=capacity, num_worlds=2, seed=0)
    for at in range(0, 30, 5):
        replay.add(Rollout(*(part[at : at + 5] for part in rollout)), rollout.env_reward[at : at + 5])
    batch = replay.sample(Sampling(length=3, batch_size=600, stack=stack))
    sight = Sight(PICTURE, stack, "test")
    begins = {}  # number of a frame -> of its episode's first
    for t in range(30):
        number = int(rollout.obs[t, 0, 0, 0, 0])
        begins[number] = number if rollout.first[t, 0] else begins[number - 1]
        begins[number + 1] = begins[number]
    oldest = int(rollout.obs[max(0, 30 - capacity // 2), 0, 0, 0, 0])
    count = batch.valid.sum(0)
    for at in (torch.zeros_like(count), count):
        pictures, vectors = sight.moment(batch, at)
        assert vectors.shape == (600, 0)
        assert pictures.shape == (600, 16, 16, 3 * stack)
        now = batch.obs[at, torch.arange(600)][:, 0, 0, :2].int()
        for k in range(stack):
            numbers, worlds = pictures[:, 8, 8, 3 * k].int(), pictures[:, 8, 8, 3 * k + 1].int()
            assert torch.equal(worlds, now[:, 1])
            wanted = [max(n - (stack - 1 - k), begins[n], oldest) for n in now[:, 0].tolist()]
            assert numbers.tolist() == wanted


def test_an_actor_sees_the_frames_that_the_replay_gives():
    rollout = stream([4, 3])
    sight = Sight(PICTURE, 3, "test")
    replay = Replay(PICTURE, ACTION, capacity=14, num_worlds=2, seed=0)
    replay.add(rollout, rollout.env_reward)
    batch = replay.sample(Sampling(batch_size=100, stack=3))
    stored = sight.moment(batch, torch.zeros(100, dtype=torch.int64))[0]
    memory, seen = sight.begin(2), {}
    for t in range(7):
        (pictures, _), memory = sight.now(rollout.obs[t], memory, rollout.first[t])
        seen |= {tuple(picture[0, 0, 6:8].tolist()): picture for picture in pictures}
    for picture in stored:
        assert torch.equal(picture, seen[tuple(picture[0, 0, 6:8].tolist())])
    assert {name: part.shape for name, part in memory.items()} == {"history/": (2, 2, 16, 16, 3)}


def test_several_pictures_and_vectors_are_read_in_the_order_of_their_names():
    space = spaces.Dict({"wrist": PICTURE, "front": PICTURE, "own": VECTOR})
    sight = Sight(space, 2, "test")
    assert (sight.channels, sight.vectors, sight.size) == (12, 2, (16, 16))
    obs = {"wrist": np.full((1, 16, 16, 3), 7, np.uint8), "front": np.full((1, 16, 16, 3), 3, np.uint8)}
    obs["own"] = np.array([[0.5, 1.5]], np.float32)
    (pictures, vectors), _ = sight.now(obs, sight.begin(1), np.ones(1, bool))
    assert pictures[0, 0, 0].tolist() == [3] * 6 + [7] * 6
    assert vectors.tolist() == [[0.5, 1.5]]


@pytest.mark.parametrize(
    ("space", "error"),
    [
        (spaces.Box(0, 1, (16, 16, 3), np.float32), r"x: observations must be a uint8 picture \(H, W, C\) or a vector"),
        (spaces.Dict({"a": PICTURE, "b": spaces.Box(0, 255, (20, 16, 3), np.uint8)}), "pictures must be of one size"),
        (spaces.Box(0, 255, (14, 16, 3), np.uint8), r"at least 15 pixels high and wide; got \(14, 16\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(space, error):
    with pytest.raises(ValueError, match=error):
        Sight(space, 1, "x")


# Encoder ----------------------------------------------------------------------------------------------------


def test_the_encoder_is_its_definition_and_has_the_papers_width():
    assert 32 * encoded(84) ** 2 == 39_200
    encoder = PixelEncoder(Sight(PICTURE, 1, "test"), generator=generator())
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    encoder.add(pictures[:1, None])
    mean = pictures[0] / 255 - 0.5
    x = np.transpose(pictures / 255 - 0.5 - mean, (0, 3, 1, 2)) / 0.01  # one picture varies by nothing: the least scale
    for convolution, stride in zip(encoder.convolutions, (2, 1, 1, 1), strict=True):
        weight = convolution.weight.detach().double().numpy()
        size = (x.shape[2] - 3) // stride + 1
        out = np.zeros((2, 32, size, size))
        for row in range(size):
            for column in range(size):
                part = x[:, :, stride * row : stride * row + 3, stride * column : stride * column + 3]
                out[:, :, row, column] = np.einsum("bikl,oikl->bo", part, weight)
        x = np.maximum(out, 0)
    got = encoder((encoder.contrasted(torch.from_numpy(pictures)), torch.zeros(2, 0))).detach()
    np.testing.assert_allclose(got, x.reshape(2, -1), rtol=1e-4, atol=1e-3)


def test_weights_begin_orthogonal():
    weight = Conv(4, 32, 1, generator=generator()).weight.detach().flatten(1)
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(32), atol=1e-5, rtol=0)
    encoder = PixelEncoder(Sight(PICTURE, 1, "test"), generator=generator())
    trunk = orthogonal(Trunk(encoder, 5, generator=generator()), generator())
    weight = trunk.linear.weight[0]
    torch.testing.assert_close(weight.T @ weight, torch.eye(5), atol=1e-5, rtol=0)
    assert not trunk.linear.bias.any()


# Prediction -------------------------------------------------------------------------------------------------


class Adds(torch.nn.Module):
    """The next latent is this one and the action."""

    def forward(self, latent, action):
        return latent + action


def test_the_predictive_error_is_of_steps_that_were_done():
    """Two windows of two steps ahead; the second one ends after its first."""
    latent = torch.tensor([[1.0], [2.0]], requires_grad=True)
    action = torch.tensor([[[0.5], [1.0]], [[0.25], [9.0]]])
    target = torch.tensor([[[1.0], [2.5]], [[2.75], [-70.0]]], requires_grad=True)
    valid = torch.tensor([[True, True], [True, False]])
    error = prediction_error(Adds(), latent, action, target, valid)
    assert error.item() == pytest.approx(((1.5 - 1.0) ** 2 + (3.0 - 2.5) ** 2 + (1.75 - 2.75) ** 2) / 3)
    error.backward()
    np.testing.assert_allclose(latent.grad, [[2 * (0.5 - 1.0) / 3], [2 * 0.5 / 3]])
    assert target.grad is None


def test_a_predictor_learns_what_actions_do():
    predictor = Predictor(2, 1, generator=generator())
    adam = torch.optim.Adam(predictor.parameters(), 3e-3)
    for _ in range(60):
        latent, action = torch.randn(16, 2, generator=generator(1)), torch.randn(2, 16, 1, generator=generator(2))
        once = latent + torch.cat([action[0], -action[0]], -1)
        target = torch.stack([once, once + torch.cat([action[1], -action[1]], -1)])
        error = prediction_error(predictor, latent, action, target, torch.ones(2, 16, dtype=torch.bool))
        adam.zero_grad()
        error.backward()
        adam.step()
    assert error.item() < 0.05


def test_looks_reach_a_batch_and_demonstrations_have_none():
    rollout = stream([6])
    own = Replay(PICTURE, ACTION, capacity=12, num_worlds=2, seed=0)
    own.add(rollout, rollout.env_reward, look=np.tile(np.array([3, 5], np.int16), (6, 1)))
    demos = Replay(PICTURE, ACTION, capacity=12, num_worlds=2, seed=0)
    demos.add(rollout, rollout.env_reward)
    batch: Batch = next(Mix(own, demos).batches(Sampling(length=2, batch_size=40, demo_share=0.25, stack=2)))
    worlds = batch.obs[0, :, 0, 0, 1].int()
    assert torch.equal(batch.look[0, :30].int(), 3 + 2 * worlds[:30])
    assert set(batch.look[0, 30:].tolist()) == {-1}
    assert batch.history.shape == (1, 40, 16, 16, 3)
    again = Replay(PICTURE, ACTION, capacity=12, num_worlds=2, seed=1)
    again.load(*own.arrays())
    assert set(again.sample(Sampling(batch_size=50)).look[0].tolist()) == {3, 5}


def test_pictures_are_read_less_their_own_mean_whichever_frame_and_camera():
    space = spaces.Dict({name: spaces.Box(0, 255, (16, 16, 3), np.uint8) for name in ("left", "right")})
    sight = Sight(space, 3, "test")
    encoder = PixelEncoder(sight, generator=generator())
    rng = np.random.default_rng(0)
    still = {name: rng.integers(0, 200, (16, 16, 3), np.uint8) for name in ("left", "right")}
    seen = {name: np.stack([still[name], still[name] + 50])[:, None] for name in still}
    encoder.add(seen)
    obs = {name: picture[1] for name, picture in seen.items()}
    (pictures, _), _ = sight.now(obs, sight.begin(1), np.ones(1, bool))
    assert pictures.shape == (1, 16, 16, 18)
    away = encoder.contrasted(pictures)  # in deviations
    torch.testing.assert_close(away, torch.ones(1, 16, 16, 18), atol=1e-4, rtol=0)
