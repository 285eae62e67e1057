"""Policies of chunks: normalisation, masks, heads, imitation that resumes, folders."""

import json

import numpy as np
import pytest
import torch

from policies.vla.actor import ChunkActor
from policies.vla.core import ChunkBatch, ChunkPolicy, Spec
from policies.vla.embedded import ChunkObservation, Places
from policies.vla.heads import HEADS, TRAIN_STEPS, alphas
from policies.vla.imitation import ChunkImitation
from policies.vla.stats import KINDS, Normaliser
from policies.vla.weights import progress_weights

CAMERAS, STATES, ACTIONS = {"front": 6, "wrist": 5}, ("x", "y", "grip"), ("dx", "dy", "open")


def values(count, width, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width))


def make(head="l1", horizon=4, *, width=16, **options):
    torch.manual_seed(0)
    spec = Spec(
        cameras=CAMERAS, states=STATES, actions=ACTIONS, text=7, horizon=horizon, fps=20.0, head=head, width=width,
        places=3, frames={"front": (8, 8), "wrist": (6, 8)}, encoder={"name": "none"}, **options,
    )  # fmt: skip
    state = Normaliser.fit(values(200, 3), "mean_std", names=STATES)
    return ChunkPolicy(spec, state, Normaliser.fit(values(200, 3, 1), "quantile", names=ACTIONS))


def observed(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    maps = {name: torch.randn(count, c, 5, 4, generator=random) for name, c in CAMERAS.items()}
    seen = {name: torch.ones(count, dtype=torch.bool) for name in CAMERAS}
    return ChunkObservation(
        maps, seen, torch.randn(count, 7, generator=random), torch.randn(count, 3, generator=random)
    )


def test_places_are_those_of_a_convolution_that_the_sentence_modulates():
    torch.manual_seed(0)
    places = Places(channels=5, text=7, inner=6, places=3)
    torch.nn.init.normal_(places.film.bias)
    maps, text = torch.randn(2, 5, 4, 6), torch.randn(2, 7)
    where, what = places(maps, text)
    gamma, beta = places.film(text)[..., None, None].chunk(2, 1)
    query, value = places.read(torch.relu(places.inner(maps) * (1 + gamma) + beta)).chunk(2, 1)
    weights = query.flatten(2).softmax(-1).view_as(query)
    x, y = torch.linspace(-1, 1, 6), torch.linspace(-1, 1, 4)[:, None]
    for k, expected in enumerate((x, y)):
        assert torch.allclose(where[..., k], (weights * expected).sum((2, 3)), atol=1e-6)
    assert torch.allclose(what, (weights * value).sum((2, 3)), atol=1e-6)


# Normalisation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_normalisation_follows_its_convention_and_comes_back(kind):
    rows = values(500, 3) * [1, 10, 0.1] + [0, 5, -2]
    found = Normaliser.fit(rows, kind, names=STATES)
    if kind == "quantile":
        low, high = np.quantile(rows, [0.01, 0.99], axis=0)
        expected = np.clip(2 * (rows - low) / (high - low + 1e-8) - 1, -1, 1)
    elif kind == "mean_std":
        expected = (rows - rows.mean(0)) / (rows.std(0) + 1e-8)
    elif kind == "min_max":
        expected = 2 * (rows - rows.min(0)) / (rows.max(0) - rows.min(0) + 1e-8) - 1
    else:
        expected = rows
    normal = found.forward(torch.from_numpy(rows))
    assert np.allclose(normal.numpy(), expected, atol=1e-5)
    inside = np.abs(expected) < 1 if kind == "quantile" else np.ones_like(rows, bool)
    assert np.allclose(found.backward(normal).numpy()[inside], rows[inside], atol=1e-4)


def test_entries_that_never_change_become_0_and_come_back_and_kept_ones_stay():
    rows = values(100, 3)
    rows[:, 0], rows[:, 2] = 4.0, (rows[:, 2] > 0).astype(float)
    found = Normaliser.fit(rows, "quantile", names=STATES, keep=["grip"])
    normal = found.forward(torch.from_numpy(rows))
    assert (normal[:, 0] == 0).all()
    assert np.array_equal(normal[:, 2].numpy(), rows[:, 2].astype(np.float32))
    assert (found.backward(normal)[:, 0] == 4).all()
    again = Normaliser.from_dict(json.loads(json.dumps(found.as_dict())))
    assert torch.equal(again.forward(torch.from_numpy(rows)), normal)


def test_an_entry_that_rarely_moves_is_not_blown_up():
    rows = values(1000, 3)
    rows[:, 1] = 0
    rows[:5, 1] = 0.8  # fewer than the quantiles see
    found = Normaliser.fit(rows, "quantile", names=STATES)
    assert found.forward(torch.from_numpy(rows)).abs().max() <= 1
    assert found.backward(found.forward(torch.tensor([[0.0, 0.8, 0.0]])))[0, 1] == pytest.approx(0.8, abs=1e-4)


def test_bad_normalisation_is_refused():
    with pytest.raises(ValueError, match="kind must be one of"):
        Normaliser.fit(values(5, 3), "zscore", names=STATES)
    with pytest.raises(ValueError, match="finite row"):
        Normaliser.fit(np.full((4, 3), np.nan), "quantile", names=STATES)
    policy = make()
    with pytest.raises(ValueError, match=r"normalised entries must be \['x', 'y', 'grip'\]"):
        ChunkPolicy(policy.spec, policy.action, policy.action)


# Masks and slots ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["flow", "diffusion"])  # whose slots begin as noisy actions
def test_slots_see_each_other_both_ways(head):
    """The last slot moves the first one, and the other way round: nothing is causal."""
    policy = make(head).eval()
    context = policy.fusion.look(observed(2))
    noisy, time = torch.zeros(2, 4, 3), torch.full((2,), 0.5)
    before = policy.fusion.slot(context, noisy, time)
    for moved in (0, 3):
        changed = noisy.clone()
        changed[:, moved] = 1
        after = policy.fusion.slot(context, changed, time)
        assert all((after[:, k] - before[:, k]).abs().max() > 1e-4 for k in range(4))


def test_a_camera_that_was_not_there_is_not_looked_at():
    policy, obs = make().eval(), observed(2)
    obs.seen["wrist"][1] = False
    before = policy.predict_chunk(obs)
    obs.maps["wrist"].add_(5)
    after = policy.predict_chunk(obs)
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[0], after[0])


def test_every_input_moves_the_chunk():
    policy, obs = make().eval(), observed(1)
    before = policy.predict_chunk(obs)
    for tensor in (*obs.maps.values(), obs.text, obs.state):
        kept = tensor.clone()
        tensor.mul_(-2)
        assert not torch.allclose(policy.predict_chunk(obs), before)
        tensor.copy_(kept)
    assert torch.equal(policy.predict_chunk(obs), before)


@pytest.mark.parametrize("head", HEADS)
def test_padded_actions_do_not_count(head):
    policy, obs = make(head).eval(), observed(3)
    pad = torch.zeros(3, 4, dtype=torch.bool)
    pad[0, 2:], pad[1] = True, True
    chunk = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(5))
    wild = chunk.masked_fill(pad[..., None], float("nan")) if head == "l1" else chunk
    losses = [policy.loss(ChunkBatch(obs, each, pad), torch.Generator().manual_seed(1)) for each in (chunk, wild)]
    assert torch.equal(losses[0], losses[1])
    assert losses[0][1] == 0
    assert (losses[0][[0, 2]] > 0).all()


def test_l1_is_the_mean_over_real_entries():
    policy, obs = make().eval(), observed(2)
    pad = torch.tensor([[False, False, True, True], [False] * 4])
    chunk = torch.zeros(2, 4, 3)
    normal = policy.action.forward(chunk)
    context = policy.fusion.look(policy._normal(obs))
    given = policy.head.sample(lambda noisy, time: policy.fusion.slot(context, noisy, time), chunk)
    expected = [(given - normal)[0, :2].abs().mean(), (given - normal)[1].abs().mean()]
    assert torch.allclose(policy.loss(ChunkBatch(obs, chunk, pad), torch.Generator()), torch.stack(expected), atol=1e-6)


def test_diffusion_schedule_is_the_squared_cosine():
    time = np.arange(TRAIN_STEPS + 1) / TRAIN_STEPS
    bar = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
    expected = np.cumprod(1 - np.minimum(1 - bar[1:] / bar[:-1], 0.999))
    assert np.allclose(alphas().numpy(), expected, atol=1e-5)
    assert alphas()[0] > 0.99


@pytest.mark.parametrize(("head", "steps", "left"), [("l1", 60, 0.3), ("flow", 240, 0.4), ("diffusion", 240, 0.7)])
def test_each_head_learns_what_it_is_shown(head, steps, left):
    """Four situations that differ, four different chunks; the share of them that is left as error."""
    policy, obs = make(head, width=32), observed(4)
    chunk = torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(3)).clamp(-1.5, 1.5)
    batch = ChunkBatch(obs, chunk, torch.zeros(4, 4, dtype=torch.bool))

    def rows(index):
        pick = torch.from_numpy(index)
        part = ChunkObservation({k: v[pick] for k, v in obs.maps.items()}, {k: v[pick] for k, v in obs.seen.items()},
                           obs.text[pick], obs.state[pick])  # fmt: skip
        return ChunkBatch(part, batch.chunk[pick], batch.pad[pick])

    learner = ChunkImitation(policy, np.ones(4), rows, steps=steps, batch_size=16, learning_rate=3e-3, decay=0.95)
    for _ in range(steps):
        learner.step()
    error = (learner.averaged().predict_chunk(obs) - chunk).abs().mean()
    assert error < left * chunk.abs().mean()


# Imitation ----------------------------------------------------------------------------------------------


def learner(weights, steps=12):
    obs, chunk = observed(8), torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(2))
    drawn = []

    def rows(index):
        drawn.extend(index.tolist())
        pick = torch.from_numpy(index)
        part = ChunkObservation({k: v[pick] for k, v in obs.maps.items()}, {k: v[pick] for k, v in obs.seen.items()},
                           obs.text[pick], obs.state[pick])  # fmt: skip
        return ChunkBatch(part, chunk[pick], torch.zeros(len(index), 4, dtype=torch.bool))

    return ChunkImitation(make(), np.array(weights, float), rows, steps=steps, batch_size=64, warmup=2), drawn


def test_rows_are_drawn_by_their_weights():
    made, drawn = learner([0, 3, 1, 0, 0, 0, 0, 0])
    for _ in range(12):
        made.step()
    assert set(drawn) == {1, 2}
    assert drawn.count(1) / len(drawn) == pytest.approx(0.75, abs=0.06)
    with pytest.raises(ValueError, match="something to imitate"):
        learner([0] * 8)
    with pytest.raises(ValueError, match="finite"):
        learner([np.nan] * 8)


def test_imitation_goes_on_to_the_same_curve():
    straight, _ = learner([1] * 8)
    curve = [straight.step() for _ in range(12)]
    first, _ = learner([1] * 8)
    begun = [first.step() for _ in range(5)]
    tensors, kept = first.get_state()
    second, _ = learner([1] * 8)
    second.load_state(tensors, json.loads(json.dumps(kept)))
    assert begun + [second.step() for _ in range(7)] == curve
    assert all(torch.equal(a, b) for a, b in zip(straight.average.values(), second.average.values(), strict=True))


def test_progress_weights_follow_lerobots_rule():
    progress = [np.array([0.0, 0.1, 0.105, 0.08, 0.08]), np.array([0.5, 0.5, 0.9])]
    found = progress_weights(progress, 1)
    gains = np.array([0.1, 0.005, -0.025, 0, 0, 0, 0.4, 0])
    middle = np.clip((gains - (gains.mean() - 2 * gains.std())) / (4 * gains.std() + 1e-8), 0, 1)
    expected = np.where(gains > 0.01, 1, np.where(gains >= 0, middle, 0))
    assert np.allclose(np.concatenate(found), expected)
    assert [len(each) for each in found] == [5, 3]


# Folders ------------------------------------------------------------------------------------------------


def test_a_saved_policy_is_the_same(tmp_path):
    policy = make("flow")
    policy.compress = {"front": (torch.ones(2, 6), torch.zeros(6))}
    policy.save(tmp_path / "policy")
    again = ChunkPolicy.load(tmp_path / "policy")
    assert again.spec == policy.spec
    assert set(again.compress) == {"front"}
    assert torch.equal(again.predict_chunk(observed(3)), policy.predict_chunk(observed(3)))
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == ["policy.json", "policy.safetensors"]


def test_damaged_and_missing_policies_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"policy\.json"):
        ChunkPolicy.load(tmp_path)
    make().save(tmp_path / "policy")
    (tmp_path / "policy" / "policy.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="damaged"):
        ChunkPolicy.load(tmp_path / "policy")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something else"):
        make().save(tmp_path / "other")
    with pytest.raises(ValueError, match="head must be one of"):
        make("regression")


# Acting -------------------------------------------------------------------------------------------------


def actor(execute, looked):
    def see(camera, frames):
        looked.append(len(frames))
        return torch.zeros(len(frames), CAMERAS[camera], 2, 2) + frames.mean() / 255

    def say(texts):
        return torch.zeros(len(texts), 7)

    low, high = np.array([-2.0, -2, 0]), np.array([2.0, 2, 1])
    return ChunkActor(make(), see, say, low=low, high=high, execute=execute)


def scene(count, worlds=None):
    frames = {name: np.full((count, 8, 8, 3), 9, np.uint8) for name in CAMERAS}
    images = frames if worlds is None else lambda chosen: worlds.append(chosen.tolist()) or {
        name: each[chosen] for name, each in frames.items()
    }  # fmt: skip
    return {"images": images, "state": np.zeros((count, 3), np.float32), "instruction": ["open it"] * count}


def test_an_actor_looks_when_its_queue_is_empty_and_forgets_at_a_reset():
    worlds, made = [], actor(2, [])
    memory = made.begin(3)
    first = np.ones(3, bool)
    for step in range(5):
        if step == 3:
            first = np.array([False, True, False])
        actions, memory = made.act(scene(3, worlds), memory, first, explore=False)
        first = np.zeros(3, bool)
        assert actions.shape == (3, 3)
        assert np.abs(actions).max() <= 1
    assert worlds == [[0, 1, 2], [0, 1, 2], [1], [0, 2]]


def test_an_actor_gives_the_chunk_in_the_worlds_scale():
    made = actor(4, [])
    obs = scene(1)
    maps = {name: torch.zeros(1, channels, 2, 2) + 9 / 255 for name, channels in CAMERAS.items()}
    seen = {name: torch.ones(1, dtype=torch.bool) for name in CAMERAS}
    looked = ChunkObservation(maps, seen, torch.zeros(1, 7), torch.zeros(1, 3))
    chunk = made.policy.predict_chunk(looked)[0].numpy()
    expected = np.clip(2 * (chunk - [-2, -2, 0]) / [4, 4, 1] - 1, -1, 1)
    memory, first = made.begin(1), np.ones(1, bool)
    for k in range(4):
        actions, memory = made.act(obs, memory, first, explore=False)
        assert np.allclose(actions[0], expected[k], atol=1e-6)
        first = np.zeros(1, bool)


def test_an_actor_cannot_execute_more_than_a_chunk():
    with pytest.raises(ValueError, match="from 1 to 4"):
        actor(5, [])
