"""Learned worlds: maps to tokens and back, segments, known rules, disagreement, resumption, and the truth."""

import numpy as np
import pytest
import torch

from embodied.finetuning import imagining, truth
from policies.vla.stats import Normaliser
from policies.vla.world import Codec, Tracks, WorldEnsemble, WorldSpec, build_world
from policies.vla.world_learning import WorldLearning

SHAPES = {"front": (2, 4, 4)}


def normaliser(width, name):
    return Normaliser.fit(np.zeros((2, width)), "none", names=[f"{name}{k}" for k in range(width)])


# Maps and tokens ----------------------------------------------------------------------------------------


def test_maps_come_back_from_all_their_directions_and_nearly_from_the_first():
    random = torch.Generator().manual_seed(0)
    shapes = {"front": (3, 5, 4), "wrist": (2, 6, 6)}  # 5 and 4 are no whole patches of 3
    maps = {name: torch.randn(40, *shape, generator=random) for name, shape in shapes.items()}
    codec = Codec(shapes, 3, 27)
    kept = codec.fit(maps)
    tokens = codec.encode(maps)
    assert tokens.shape == (40, 2 * 2 + 2 * 2, 27)
    assert kept == {"front": pytest.approx(1), "wrist": pytest.approx(1)}
    for name, found in codec.decode(tokens).items():
        assert torch.allclose(found, maps[name], atol=1e-4)
    few = Codec(shapes, 3, 4)
    assert all(0.1 < share < 0.8 for share in few.fit(maps).values())
    with pytest.raises(ValueError, match=r"maps of wrist must be \(2, 6, 6\); got \(2, 5, 5\)"):
        codec.encode(maps | {"wrist": torch.zeros(1, 2, 5, 5)})


def test_a_segment_is_what_followed_and_says_where_an_episode_ended():
    count = np.arange(9.0)
    tracks = Tracks(
        torch.from_numpy(count).view(9, 1, 1).half(), torch.from_numpy(count)[:, None].float(),
        torch.from_numpy(10 * count)[:, None].float(), np.array([0] * 5 + [1] * 4), torch.zeros(9, 2),
        torch.zeros(9, 1),
    )  # fmt: skip
    found = tracks.segment(np.array([0, 2]), 2, 2)
    assert found.tokens[..., 0, 0].tolist() == [[0, 2, 4], [2, 4, 4]]
    assert found.actions[..., 0].tolist() == [[[0, 10], [20, 30]], [[20, 30], [40, 40]]]
    assert found.real.tolist() == [[True, True], [True, False]]
    assert tracks.starts(2, np.array([True, True])).tolist() == [0, 1, 2, 5, 6]
    assert tracks.starts(2, np.array([False, True])).tolist() == [5, 6]


# A world of known rules ---------------------------------------------------------------------------------


def known_world(episodes=24, length=24, seed=0):
    """What is seen is linear in a point that moves by 0.1 of each action: nothing but the actions foretells it."""
    rng = np.random.default_rng(seed)
    look = rng.normal(size=(2, 32)) / 4
    actions = rng.uniform(-1, 1, size=(episodes, length, 2))
    point = np.concatenate([np.zeros((episodes, 1, 2)), 0.1 * actions.cumsum(1)[:, :-1]], 1)
    maps = torch.from_numpy((point @ look).reshape(-1, 2, 4, 4)).float()
    return maps, torch.from_numpy(actions.reshape(-1, 2)).float(), point.reshape(-1, 2)


def taught(steps, *, stop=None, seed=0):
    maps, actions, point = known_world()
    spec = WorldSpec(
        cameras=SHAPES, stride=4, patch=2, tokens=8, members=2, width=32, layers=1, heads=2,
    )  # fmt: skip
    world, blind, reflector = build_world(spec, normaliser(2, "s"), normaliser(2, "a"), text=3, seed=0)
    world.codec.fit({"front": maps})
    world.within(actions.numpy())
    done = (point[:, :1] > 0.1).repeat(2, 1).astype(np.float32)
    episode = np.repeat(np.arange(24), 24)
    tracks = Tracks(
        world.codec.encode({"front": maps}).half(), torch.from_numpy(point).float(), actions, episode,
        torch.from_numpy(done), torch.zeros(len(maps), 3),
    )  # fmt: skip
    held_out = np.arange(24) % 4 == 3
    starts = tracks.starts(4, ~held_out)
    learner = WorldLearning(
        world, blind, reflector, tracks, starts, steps=steps, unroll=2, batch_size=32, learning_rate=6e-3, seed=seed
    )
    while learner.done < (steps if stop is None else stop):
        learner.step()
    return learner, held_out, point


@pytest.fixture(scope="module")
def made():
    return taught(150)


def test_a_world_learns_known_rules_and_one_without_actions_cannot(made):
    learner, held_out, _ = made
    rows = truth.windows(learner.tracks, held_out)
    rolled = truth.roll(learner.world, learner.blind, learner.tracks, rows)
    told = truth.errors(rolled, 4)
    for steps in ("8", "16"):
        assert told[steps]["world"] < 0.6
        assert told[steps]["blind"] > 0.9
        assert told[steps]["copy"] > 0
    assert imagining.refusal({"error": told}) is None


def test_the_truth_of_its_rollouts_is_asked_beside_controls(made):
    learner, held_out, point = made
    rows = truth.windows(learner.tracks, held_out)
    rolled = truth.roll(learner.world, learner.blind, learner.tracks, rows)
    taught_on = learner.tracks.starts(4, ~held_out)
    told = truth.happened(learner.world, learner.tracks, taught_on, rolled, seed=0)
    assert told["real"]["r_squared"] > 0.9
    assert told["world"]["r_squared"] > 0.4
    assert told["world"]["choice"] > 0.7
    assert max(told["blind"]["r_squared"], told["copy"]["r_squared"]) < 0.2
    same = truth.same(rolled, learner.tracks.episode[rows], 0)
    assert same["scene"]["world"] > same["scene"]["copy"] + 0.2
    assert same["moment"]["world"] > same["moment"]["copy"] == 0
    success = (point[rows + 16, 0] > 0.1).astype(float)
    found = truth.reflected(learner.reflector, rolled, learner.tracks.text[rows], success)
    assert found["real"] > 0.95
    assert found["world"] > 0.8
    assert found["copy"] < 0.7
    success[::2] = np.nan  # what was not recorded is not asked about
    assert truth.reflected(learner.reflector, rolled, learner.tracks.text[rows], success)["world"] > 0.8
    assert truth.reflected(learner.reflector, rolled, learner.tracks.text[rows], 0 * success) == dict.fromkeys(found)


def test_a_world_that_is_no_better_than_nothing_changed_is_refused(made):
    learner, held_out, _ = made
    rows = truth.windows(learner.tracks, held_out)
    wild = build_world(learner.world.spec, learner.world.state, learner.world.action, text=3, seed=1)[0]
    for member in wild.members:
        torch.nn.init.normal_(member.change.weight, generator=torch.Generator().manual_seed(0))
    told = truth.errors(truth.roll(wild, learner.blind, learner.tracks, rows), 4)
    reason = imagining.refusal({"error": told})
    assert reason is not None
    assert "better than “nothing changed”" in reason
    assert "after 8 actions" in reason
    untaught = build_world(learner.world.spec, learner.world.state, learner.world.action, text=3, seed=1)[0]
    assert imagining.refusal({"error": truth.errors(truth.roll(untaught, untaught, learner.tracks, rows), 4)})


def test_a_stopped_world_goes_on_to_the_same_weights():
    straight, halfway = taught(6)[0], taught(6, stop=3)[0]
    again = taught(6, stop=0)[0]
    tensors, values = halfway.get_state()
    again.load_state(tensors, values)
    while again.done < 6:
        again.step()
    expected, found = straight.get_state()[0], again.get_state()[0]
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


# Disagreement -------------------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """A member that adds a number to every token."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, tokens, state, actions):
        return tokens + self.change, state - self.change


def fixed(*changes):
    spec = WorldSpec(cameras=SHAPES, patch=2, tokens=8, members=len(changes), width=8, layers=1, heads=2)
    world = WorldEnsemble(spec, normaliser(2, "s"), normaliser(2, "a"))
    world.members = torch.nn.ModuleList(Fixed(change) for change in changes)
    return world


def test_members_are_asked_together_and_their_spread_is_the_disagreement():
    world = fixed(1.0, 2.0, 6.0)
    tokens, state, apart = world.step(torch.zeros(5, 4, 8), torch.zeros(5, 2), torch.zeros(5, 4, 2))
    assert (tokens == 3).all()
    assert (state == -3).all()
    assert torch.allclose(apart, torch.tensor((4 + 1 + 9) / 3).sqrt())


def test_the_limit_is_a_quantile_of_held_out_disagreement_and_actions_stay_within_what_was_seen(made):
    learner, held_out, _ = made
    segment = learner.tracks.segment(learner.tracks.starts(4, held_out), 4, 3)
    _, apart = learner.world.roll(segment)
    limit = learner.world.calibrate(segment)
    assert limit == pytest.approx(float(np.quantile(apart[segment.real].numpy(), 0.95)), rel=1e-4)
    far = learner.world.roll(
        type(segment)(segment.tokens, segment.state, 20 * segment.actions, segment.real)
    )[1]  # fmt: skip
    assert (far[:, -1] > limit).float().mean() > 0.25  # it was not taught such actions; 0.05 of what it was taught
    bounds = learner.world.normal(torch.tensor([[-99.0, 99.0]]))
    assert torch.equal(bounds[0], torch.stack([learner.world.low[0], learner.world.high[1]]))


def test_a_world_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="stride, members must be at least 1"):
        WorldSpec(cameras=SHAPES, stride=0, members=0)
    with pytest.raises(ValueError, match=r"width must be a multiple of heads \(4\); got 30"):
        WorldSpec(cameras=SHAPES, width=30)
    learner = taught(1, stop=0)[0]
    with pytest.raises(ValueError, match="an episode must have more than 4 rows"):
        WorldLearning(
            learner.world, learner.blind, learner.reflector, learner.tracks, np.zeros(0, int), steps=1
        )  # fmt: skip
