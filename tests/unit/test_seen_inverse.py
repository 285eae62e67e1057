"""The inverse model that sees: small movements on coarse maps, and the actions behind them."""

import numpy as np
import pytest
import torch

from policies.inverse import r_squared
from policies.vla.inverse import Change, SeenInverse, SeenInverses, moved, teach
from policies.vla.stats import Normaliser

SIDE, CHANNELS = 8, 4


def scene(x, y, channels=CHANNELS):
    """(B, C, h, w): waves that stand at (x, y), in pixels of the map; each channel has a wave of its own."""
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    across, down = column - x[:, None, None], row - y[:, None, None]
    waves = [torch.sin((k + 2) * across / 4 + k) + torch.cos((k + 2) * down / 4 - k) for k in range(channels)]
    return torch.stack(waves, 1)


@pytest.mark.parametrize(("u", "v"), [(0.2, 0.0), (0.0, -0.3), (-0.25, 0.15), (0.0, 0.0)])
def test_moved_measures_parts_of_a_pixel(u, v):
    start = torch.tensor([0.3, 1.7])
    found = moved(scene(start, start), scene(start + u, start + v))
    middle = found[:, :2, 2:-2, 2:-2].mean((2, 3))
    torch.testing.assert_close(middle, torch.tensor([[u, v]] * 2), atol=0.07, rtol=0)
    assert (found[:, 2].mean() > 0.05) == bool(u or v)


def test_moved_is_nothing_where_nothing_can_be_told():
    flat = torch.ones(1, CHANNELS, SIDE, SIDE)
    assert moved(flat, flat + 1)[:, :2].abs().max() == 0
    assert torch.isfinite(moved(flat.half(), flat.half())).all()


def films(count, seed, shuffled=False):
    """Changes by actions: the first two move the picture, the third is what the own reading says next."""
    rng = torch.Generator().manual_seed(seed)
    at = 4 * torch.rand(count, 2, generator=rng)
    action = 2 * torch.rand(count, 3, generator=rng) - 1
    after = at + 0.3 * action[:, :2]
    before, then = scene(at[:, 0], at[:, 1]), scene(after[:, 0], after[:, 1])
    reading = torch.rand(count, 1, generator=rng)
    state = torch.stack([reading - 0.1, reading, reading + action[:, 2:]], 1)
    if shuffled:
        action = action[torch.randperm(count, generator=rng)]
    return Change({"top": before}, {"top": then}, {"top": moved(before, then)}, state), action


def part(change, rows):
    rows = torch.as_tensor(rows)
    maps = (
        {name: values[rows] for name, values in each.items()} for each in (change.before, change.after, change.moved)
    )
    return Change(*maps, change.state[rows])


def taught(shuffled=False, **changed):
    change, action = films(400, 0, shuffled)
    spread = Normaliser.fit(action.numpy(), "mean_std", names=("x", "y", "z"))
    target = spread.forward(action)
    net = SeenInverse({"top": CHANNELS}, 1, 3, places=2, inner=4, seed=0, **changed)
    teach(
        net, lambda rows: (part(change, rows), target[torch.as_tensor(rows)]), 400, steps=150, batch_size=64,
        learning_rate=0.02, seed=0,
    )  # fmt: skip
    return SeenInverses([net.eval()], spread, action.numpy().min(0), action.numpy().max(0))


@pytest.mark.parametrize("shuffled", [False, True])
def test_actions_are_read_off_pictures_and_readings(shuffled):
    model = taught(shuffled)
    change, done = films(100, 1)
    known = r_squared(model.act(change), done.numpy())
    assert known < 0.1 if shuffled else known > 0.9


def test_nothing_beyond_what_was_done_is_said_and_the_same_seed_says_the_same():
    model = taught(widths=(8,))
    change, _ = films(50, 2)
    wild = Change(change.before, change.after, {"top": 50 * change.moved["top"]}, change.state)
    assert np.abs(model.act(wild)).max() <= 1
    assert np.abs(model.changes(wild)).max() > np.abs(model.changes(change)).max()
    np.testing.assert_array_equal(taught(widths=(8,)).act(change), model.act(change))


def test_networks_are_averaged():
    spread = Normaliser.fit(np.array([[-1.0], [1.0]]), "mean_std", names=("x",))
    nets = [SeenInverse({}, 1, 1, seed=seed) for seed in (0, 1)]
    change = Change({}, {}, {}, torch.zeros(4, 3, 1))
    each = [SeenInverses([net], spread, -np.ones(1), np.ones(1)).act(change) for net in nets]
    both = SeenInverses(nets, spread, -np.ones(1), np.ones(1)).act(change)
    np.testing.assert_allclose(both, (each[0] + each[1]) / 2, atol=1e-6)
    assert np.abs(each[0] - each[1]).max() > 1e-4


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="cameras or own readings must be there"):
        SeenInverse({}, 0, 2)
    net = SeenInverse({}, 1, 1)
    bad = Change({}, {}, {}, torch.full((2, 3, 1), torch.nan))
    with pytest.raises(FloatingPointError, match="must be finite; got nan at update 0"):
        teach(net, lambda rows: (bad, torch.zeros(2, 1)), 2, steps=1, batch_size=2, learning_rate=0.1, seed=0)
