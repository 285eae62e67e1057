"""Chunked offline RL: values of a chain, masks, targets by definition, what holds critics down, actors, resume."""

import json

import numpy as np
import pytest
import torch

from policies.vla import critic as parts
from policies.vla.choosing import BestOfN, candidates, load_acting
from policies.vla.chunked import ChunkedRL, ChunkedRLSettings
from policies.vla.core import ChunkBatch, ChunkPolicy, Spec
from policies.vla.critic import Outcomes, PrefixCritic, prefix_targets
from policies.vla.embedded import ChunkObservation
from policies.vla.imitation import ChunkImitation
from policies.vla.stats import Normaliser

GAMMA, LENGTH = 0.8, 4
NAMES, ACTIONS = tuple(f"at_{k}" for k in range(LENGTH + 1)), ("move", "grip")


def make_policy(horizon=3, head="l1", seed=0):
    torch.manual_seed(seed)
    spec = Spec(
        cameras={"front": 2}, states=NAMES, actions=ACTIONS, text=3, horizon=horizon, fps=10.0, head=head, width=16,
        places=1,
    )  # fmt: skip
    rows = np.concatenate([np.eye(len(NAMES)), -np.eye(len(NAMES))])
    state = Normaliser.fit(rows, "none", names=NAMES)
    return ChunkPolicy(spec, state, Normaliser.fit(np.array([[1.0, 1], [-1, -1]]), "none", names=ACTIONS))


class Chain:
    """Places in a row, the task solved at the end of it; each episode walks on from somewhere, or is lost beyond it.

    Args:
        walks: (first place, steps, how its end is known: 1 solved, 0 not, NaN cut) of each episode.
        horizon: H.
    """

    def __init__(self, walks, horizon=3):
        self.horizon = horizon
        self.place, solved, last, end = [], [], [], []
        for first, steps, known in walks:
            here = [LENGTH] * steps if known == 0 else [first + k for k in range(steps)]
            last += [len(last) + steps - 1] * steps
            self.place += here
            solved += [float(known != 0 and at + 1 >= LENGTH) for at in here]
            end += [known] * steps
        self.outcomes = Outcomes(torch.tensor(solved), torch.tensor(last), torch.tensor(end, dtype=torch.float32))
        self.count = len(last)

    def __call__(self, rows):
        inside = self.outcomes.prefixes(torch.from_numpy(rows), self.horizon)[0].numpy()
        state = torch.eye(len(NAMES))[torch.tensor(self.place)[torch.from_numpy(rows)]]
        chunk = torch.ones(len(rows), self.horizon, 2)
        pad = torch.from_numpy(np.concatenate([np.zeros((len(rows), 1), bool), np.diff(inside, axis=1) == 0], 1))
        maps = {"front": torch.zeros(len(rows), 2, 2, 2)}
        obs = ChunkObservation(maps, {"front": torch.ones(len(rows)).bool()}, torch.zeros(len(rows), 3), state)
        return ChunkBatch(obs, chunk, pad)


CUT = float("nan")
WALKS = [(0, 3, CUT), (1, 3, 1), (0, 2, CUT), (0, 4, 0), (2, 1, CUT)]


def make(chain, *, policy=None, seed=0, **settings):
    wanted = {
        "actor": "best_of_n", "held": "none", "discount": GAMMA, "batch_size": 32, "learning_rate": 1e-2, "tau": 0.1,
        "width": 16, "layers": 1, "heads": 1, "critics": 1, "steps": 1000, "solved_share": 0.4,
    } | settings  # fmt: skip
    ones = np.ones(chain.count)
    policy = policy or make_policy(chain.horizon)
    return ChunkedRL(policy, chain, chain.outcomes, ones, ones > 0, settings=ChunkedRLSettings(**wanted), seed=seed)


def q_of(learner, chain):
    """(N, H), and which prefixes are of walks and known."""
    rows = torch.arange(chain.count)
    with torch.no_grad():
        return learner.critic(learner._context(rows), torch.ones(chain.count, chain.horizon, 2)).mean(0)


# A chain ------------------------------------------------------------------------------------------------


def true_values(chain):
    place = torch.tensor(chain.place)
    return torch.where(place < LENGTH, GAMMA ** (LENGTH - 1 - place).float(), 0.0)[:, None]


def walked(chain, steps):
    """A critic of the policy that walks on, learned."""
    learner = make(chain, steps=steps, tau=0.3)
    learner.policy.decide = lambda context, random=None: torch.ones(len(context[0]), chain.horizon, 2)
    for _ in range(learner.steps):
        learner.step()
    return learner


def test_each_prefix_is_worth_the_discount_to_the_number_of_steps_left():
    chain = Chain(WALKS)
    learner = walked(chain, 400)
    known = learner.targets(torch.arange(chain.count))[1]
    assert known.sum() < known.numel()  # some prefixes are cut off
    assert (learner.targets(torch.arange(chain.count))[0] - true_values(chain))[known].abs().max() < 2e-3
    assert (q_of(learner, chain) - true_values(chain))[known].abs().max() < 5e-3  # what so short a training leaves


def test_what_follows_a_row_is_worth_at_least_the_return_that_was_seen():
    """A new critic's values overwrote all that was seen within a pass over the rows, and took long to come back."""
    chain = Chain(WALKS)
    learner = make(chain, steps=50, renewed=chain.count, tau=0.005)
    for _ in range(20):
        learner.step()
        assert (learner.ahead >= learner.returns.nan_to_num(nan=0.0)).all()
    assert (learner.ahead > learner.returns.nan_to_num(nan=0.0)).any()  # where more is hoped for


def test_without_the_mask_of_prefixes_the_values_are_wrong(monkeypatch):
    prefixes = Outcomes.prefixes

    def unmasked(self, rows, horizon):
        inside, steps, ended, known = prefixes(self, rows, horizon)
        return inside, steps, ended, torch.ones_like(known)

    monkeypatch.setattr(Outcomes, "prefixes", unmasked)
    chain = Chain(WALKS)
    assert (q_of(walked(chain, 80), chain) - true_values(chain)).abs().max() > 0.05


def test_prefixes_know_where_their_episode_ends():
    chain = Chain([(0, 3, CUT), (2, 2, 1)])
    inside, steps, ended, known = chain.outcomes.prefixes(torch.arange(5), 3)
    assert inside.tolist() == [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4]]
    assert steps.tolist() == [[1, 2, 3], [1, 2, 2], [1, 1, 1], [1, 2, 2], [1, 1, 1]]
    assert ended.tolist() == [[False, False, True], [False, True, True], [True] * 3, [False, True, True], [True] * 3]
    assert known.tolist() == [[True, True, False], [True, False, False], [False] * 3, [True] * 3, [True] * 3]
    returns = chain.outcomes.returns(GAMMA)
    assert returns[:3].isnan().all()
    np.testing.assert_allclose(returns[3:], [GAMMA, 1])


def test_a_task_that_comes_undone_is_worth_only_the_steps_that_it_held():
    solved, last, end = torch.tensor([0.0, 1, 1, 0]), torch.full((4,), 3), torch.zeros(4)
    np.testing.assert_allclose(Outcomes(solved, last, end).returns(0.5), [0.375, 0.75, 0.5, 0], atol=1e-7)


# Formulas -----------------------------------------------------------------------------------------------


def test_prefix_targets_are_their_definition():
    rng = np.random.default_rng(0)
    reward, after = rng.random((5, 4)) * 0.1, rng.random((5, 4)) * 0.5
    steps = np.minimum(np.arange(1, 5), rng.integers(1, 5, (5, 1)))
    expected = np.zeros((5, 4))
    for b in range(5):
        for j in range(4):
            expected[b, j] = sum(0.9**i * reward[b, i] for i in range(steps[b, j]))
            expected[b, j] += 0.9 ** steps[b, j] * after[b, j]
    tensors = (torch.tensor(reward).float(), torch.tensor(after).float(), torch.tensor(steps))
    np.testing.assert_allclose(prefix_targets(*tensors, 0.9), expected, rtol=1e-5)
    assert prefix_targets(tensors[0] + 1, tensors[1], tensors[2], 0.9).max() == 1  # no value is above 1


def test_chunks_of_one_action_have_the_target_of_cal_ql():
    """r + γ·min_k Q̄_k(s', a'), and at an end what it is worth."""
    chain = Chain([(0, 4, 1), (0, 2, 0)], horizon=1)
    learner = make(chain, renewed=6, steps=1)
    with torch.no_grad():
        learner.target.members[0].out[1].bias += 0.5
        learner._renew()
        rows = torch.arange(6)
        context = learner._context(rows)
        value = learner.target(context, learner.policy.decide(context))[..., 0].numpy().astype(float).min(0).clip(0, 1)
    assert np.unique(value.round(4)).size > 1
    expected = [GAMMA * value[1], GAMMA * value[2], GAMMA * value[3], 1 - GAMMA + GAMMA, GAMMA * value[5], 0]
    target, known = learner.targets(rows)
    np.testing.assert_allclose(target[:, 0], expected, atol=1e-6)
    assert known.all()


@pytest.mark.parametrize("kind", ["calql", "conrft"])
def test_both_conservative_terms_are_their_definitions(kind):
    rng = np.random.default_rng(1)
    values, log_probs, q = rng.normal(size=(2, 5, 3, 4)), rng.normal(size=(5, 3, 4)), rng.normal(size=(2, 5))
    floor = np.where(rng.random(5) < 0.6, rng.normal(size=5), np.nan)
    temperature, expected = 1.0 if kind == "calql" else 0.7, 0.0
    for k in range(2):
        for b in range(5):
            mu = -np.inf if np.isnan(floor[b]) else floor[b]
            if kind == "calql":
                terms = [values[k, b, 0] - log_probs[b, 0], np.maximum(values[k, b, 1:], mu) - log_probs[b, 1:]]
            else:
                terms = [np.maximum(values[k, b], mu), q[k, b]]
            terms = np.concatenate([np.ravel(each) for each in terms]) / temperature
            count = 1 if kind == "calql" else terms.size
            expected += (temperature * np.log(np.exp(terms).sum() / count) - q[k, b]) / 5
    tensors = [torch.tensor(each, dtype=torch.float32) for each in (values, log_probs, floor, q)]
    assert parts.held_down(kind, *tensors, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["calql", "conrft"])
def test_floors_bind_only_where_the_critic_says_less_than_was_earned(kind):
    """Below the floor nothing is pressed down further: no gradient, but for Cal-QL's uniform chunks."""
    values = torch.tensor([0.2, 0.4, 0.6]).expand(1, 1, 3, 3).clone().requires_grad_(True)
    log_probs, q = torch.zeros(1, 3, 3), torch.zeros(1, 1)
    parts.held_down(kind, values, log_probs, torch.tensor([0.5]), q).backward()
    assert values.grad is not None
    pressed = values.grad[0, 0] > 0
    assert pressed[1:].tolist() == [[False, False, True]] * 2
    assert pressed[0].tolist() == ([True] * 3 if kind == "calql" else [False, False, True])


def test_the_penalty_of_distance_is_bounded():
    rng = np.random.default_rng(2)
    values, target, chunk = rng.normal(size=(2, 3, 2)), rng.random(3), rng.normal(size=(3, 4, 2))
    drawn = chunk[:, None] + rng.normal(size=(3, 2, 4, 2)) * [[[[0.1]], [[100]]]]
    expected = 0.0
    for k in range(2):
        for b in range(3):
            for n in range(2):
                away = min(np.abs(drawn[b, n] - chunk[b]).mean(), 5)
                error = abs(values[k, b, n] - max(target[b] - 0.5 * away, 0))
                expected += (error**2 / 2 if error < 1 else error - 0.5) / 6
    tensors = [torch.tensor(each, dtype=torch.float32) for each in (values, target, drawn, chunk)]
    assert parts.distant(*tensors, 0.5).item() == pytest.approx(expected, rel=1e-5)


def test_densities_are_those_of_a_normal_distribution():
    noise = np.random.default_rng(3).normal(size=(2, 3, 2))
    expected = (-0.5 * (noise / 0.3) ** 2 - np.log(0.3 * np.sqrt(2 * np.pi))).sum((1, 2))
    np.testing.assert_allclose(parts.gaussian_log_prob(torch.tensor(noise), 0.3), expected)


def test_a_prefix_is_not_judged_by_what_comes_after_it():
    torch.manual_seed(0)
    critic = PrefixCritic(8, 2, 4, width=16, layers=2, heads=2)
    tokens, there = torch.randn(3, 5, 8), torch.ones(3, 5).bool()
    there[1, 3:] = False
    chunk = torch.randn(3, 4, 2)
    before = critic((tokens, there), chunk)
    assert before.shape == (2, 3, 4)
    chunk[:, 2] += 1
    after = critic((tokens, there), chunk)
    assert torch.equal(after[..., :2], before[..., :2])
    assert (after[..., 2:] != before[..., 2:]).all()
    tokens[1, 3:] += 1  # tokens that are not there
    assert torch.equal(critic((tokens, there), chunk)[:, 1], after[:, 1])


# Actors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actor", ["td3_bc", "distil"])
def test_an_actor_without_weight_is_imitation_bit_for_bit(actor):
    chain = Chain(WALKS)

    def learned(weight):
        learner = make(chain, actor=actor, weight=weight, steps=20, delay=1, batch_size=8, deviation=3.0)
        for _ in range(20):
            learner.step()
        return learner.actor

    policy = make_policy()
    frozen = make(chain, policy=policy)
    plain = ChunkImitation(
        policy, np.ones(chain.count), frozen.frozen, steps=10, batch_size=8, learning_rate=1e-4, seed=0
    )
    for _ in range(10):
        plain.step()
    without, with_it = learned(0.0), learned(5.0)
    assert without.done == plain.done == 10
    assert all(torch.equal(value, without.average[name]) for name, value in plain.average.items())
    moved = {name for name, value in plain.average.items() if not torch.equal(value, with_it.average[name])}
    assert moved
    assert all(name.startswith(("fusion.slots", "head")) for name in moved)


class Preferring(PrefixCritic):
    """A critic to which chunks are worth the more, the nearer their actions are to a value."""

    def __init__(self, best):
        torch.nn.Module.__init__(self)
        self.best = best

    def forward(self, context, chunk):
        return -(chunk - self.best).square().sum(-1).cumsum(-1)[None]


@pytest.mark.parametrize("actor", ["td3_bc", "distil"])
def test_an_actor_follows_its_critic(actor):
    chain = Chain(WALKS)
    learner = make(chain, actor=actor, weight=20.0, steps=60, delay=1, batch_size=8, actor_rate=3e-3, deviation=0.5)
    learner._judge = lambda drawn, random: {}
    learner.critic = Preferring(0.5)
    for _ in range(60):
        learner.step()
    context = learner._context(torch.arange(chain.count))
    means = learner.result().decide(context).detach().mean(1)  # candidates are moved as a whole
    assert (means - 0.5).abs().mean() < 0.2  # imitation alone goes to 1


def test_the_best_of_n_is_executed_and_kept(tmp_path):
    policy, chain = make_policy(), Chain(WALKS)
    best = BestOfN(policy, Preferring(0.9), count=32, deviation=0.5, seed=0)
    obs = chain(np.arange(4)).obs
    one, other = policy.predict_chunk(obs), best.predict_chunk(obs)
    assert ((other - 0.9).abs().mean((1, 2)) < (one - 0.9).abs().mean((1, 2))).all()
    kept = BestOfN(policy, PrefixCritic(16, 2, 3, width=8, heads=2), count=8, deviation=0.5, seed=3)
    kept.save(tmp_path / "policy")
    again = load_acting(tmp_path / "policy")
    assert isinstance(again, BestOfN)
    assert torch.equal(again.predict_chunk(obs), kept.predict_chunk(obs))
    (tmp_path / "policy" / "critic.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="damaged"):
        load_acting(tmp_path / "policy")
    policy.save(tmp_path / "plain")
    assert isinstance(load_acting(tmp_path / "plain"), ChunkPolicy)


def test_candidates_are_the_policys_own_chunk_and_others_around_it():
    for head in ("l1", "flow"):
        policy = make_policy(head=head)
        context = policy.look(Chain(WALKS)(np.arange(3)).obs)
        drawn = candidates(policy, context, 5, 0.3, torch.Generator().manual_seed(0)).detach()
        assert drawn.shape == (3, 5, 3, 2)
        assert torch.equal(drawn[:, 0], policy.decide(context))
        apart = (drawn[:, 1:] - drawn[:, :1]).abs()
        assert (apart.amax((2, 3)) > 0).all()
        if head == "l1":
            assert (apart - apart[:, :, :1]).abs().max() < 1e-6  # held for the chunk


# Resume and refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("actor", "held"), [("td3_bc", "calql"), ("distil", "distance"), ("best_of_n", "conrft")])
def test_it_goes_on_to_the_same_curve(actor, held):
    chain = Chain(WALKS)

    def fresh():
        return make(chain, policy=make_policy(), actor=actor, held=held, steps=12, batch_size=8, delay=1, renewed=3)

    straight, first, second = fresh(), fresh(), fresh()
    curve = [straight.step() for _ in range(12)]
    begun = [first.step() for _ in range(8)]
    tensors, values = first.get_state()
    second.load_state(tensors, json.loads(json.dumps(values)))
    assert begun + [second.step() for _ in range(4)] == curve
    one, two = straight.get_state()[0], second.get_state()[0]
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert ("train/actor" in curve[-1]) == (actor != "best_of_n")


def test_solved_episodes_are_drawn_as_often_as_is_said():
    chain, drawn = Chain([(2, 2, 1), (0, 8, 0), (0, 2, CUT)]), []
    learner = make(chain, solved_share=0.75, steps=40, batch_size=64)
    learner._judge = lambda rows, random: drawn.extend(rows.tolist()) or {}
    for _ in range(40):
        learner.step()
    assert np.mean(np.array(drawn) < 2) == pytest.approx(0.75, abs=0.03)


def test_actions_that_are_not_finite_hide_what_follows_them():
    chain = Chain([(1, 3, 1), (0, 2, 0)])
    plain = chain.__class__.__call__

    def broken(self, rows):
        batch = plain(self, rows)
        at = self.outcomes.prefixes(torch.from_numpy(rows), 3)[0] == 1
        pad = batch.pad | at
        return ChunkBatch(batch.obs, batch.chunk.masked_fill(at[..., None], torch.nan), pad)

    seen = []
    learner = make(chain, batch_size=8)
    learner._rows = lambda rows: broken(chain, rows)
    temporal = parts.temporal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("policies.vla.chunked.temporal", lambda q, y, known: seen.append(known) or temporal(q, y, known))
        learner._judge(np.arange(5), torch.Generator().manual_seed(0))
    assert seen[0].tolist() == [[True, False, False], [False] * 3, [True] * 3, [True] * 3, [True] * 3]


def test_rows_of_which_nothing_is_known_teach_nothing():
    chain = Chain(WALKS)
    told = make(chain, held="distance")._judge(np.array([2, 2]), torch.Generator().manual_seed(0))
    assert told["train/critic"] == told["train/held"] == 0


def test_bad_settings_and_data_are_refused():
    with pytest.raises(ValueError, match=r"actor must be one of td3_bc.*held must be one of none.*discount.*got 2"):
        ChunkedRLSettings(actor="ppo", held="cql", discount=2.0)
    with pytest.raises(ValueError, match="width must be a multiple of heads"):
        ChunkedRLSettings(width=10, heads=4)
    with pytest.raises(ValueError, match="nothing to tell apart"):
        make(Chain([(1, 3, 1), (0, 2, CUT)]))
    with pytest.raises(ValueError, match="nothing to tell apart"):
        make(Chain([(0, 2, 0), (0, 2, CUT)]))


def test_a_chosen_policy_is_written_with_its_critic_or_not_at_all(tmp_path, monkeypatch):
    chooser = BestOfN(make_policy(), PrefixCritic(16, 2, 3, width=8, heads=2), count=2, deviation=0.1, seed=0)

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("policies.vla.choosing.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        chooser.save(tmp_path / "policy")
    assert not (tmp_path / "policy").exists()
