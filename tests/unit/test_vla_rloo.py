"""Practice in a learned world: advantages, clipping, groups that say nothing, stops, and what a policy learns there."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from policies.vla.core import ChunkPolicy, Spec
from policies.vla.rloo import RLOO, ImaginedStarts, clipped_loss, imagine, leave_one_out, log_density
from policies.vla.stats import Normaliser
from policies.vla.world import Reflector, WorldEnsemble

# Formulas -----------------------------------------------------------------------------------------------


def test_each_rollout_is_set_against_the_mean_of_the_others():
    rewards = torch.tensor([[1.0, 0.0, 0.5], [0.2, 0.2, 0.2]], dtype=torch.float64)
    found = leave_one_out(rewards)
    assert torch.allclose(found[0], torch.tensor([1 - 0.25, 0 - 0.75, 0.5 - 0.5], dtype=torch.float64))
    assert torch.allclose(found[1], torch.zeros(3, dtype=torch.float64))


def test_the_loss_is_clipped_where_that_makes_it_worse():
    ratio = torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5], dtype=torch.float64)
    advantage = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0], dtype=torch.float64)
    log_ratio = ratio.log().requires_grad_()
    loss = clipped_loss(log_ratio, advantage, 0.1)
    assert torch.allclose(loss, -torch.tensor([2.0, 2.2, 1.0, -3.0, -1.8], dtype=torch.float64))
    (slope,) = torch.autograd.grad(loss.sum(), log_ratio)
    assert torch.allclose(slope, -torch.tensor([2.0, 0, 1.0, -3.0, 0], dtype=torch.float64))


def test_the_density_is_a_gaussians():
    rng = np.random.default_rng(0)
    actions, mean = rng.normal(size=(2, 3, 4, 2))
    expected = (-0.5 * ((actions - mean) / 0.3) ** 2 - np.log(0.3 * np.sqrt(2 * np.pi))).sum((1, 2))
    found = log_density(torch.from_numpy(actions), torch.from_numpy(mean), 0.3)
    assert np.allclose(found.numpy(), expected)


# A world of known rules ---------------------------------------------------------------------------------


class Line(WorldEnsemble):
    """A point on a line, its one token, moved by the mean of the actions; the map shows where it is."""

    def __init__(self, limit=float("inf")):
        torch.nn.Module.__init__(self)
        self.spec = SimpleNamespace(stride=2, cameras={"front": (1, 2, 2)})
        self.codec = SimpleNamespace(decode=lambda tokens: {"front": tokens.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)})
        self.state = SimpleNamespace(backward=lambda state: state)
        self.limit = torch.tensor(limit)

    def normal(self, actions):
        return actions

    def step(self, tokens, state, actions):
        moved = tokens + actions.mean((1, 2)).view(-1, 1, 1)
        return moved, moved[:, 0], moved[:, 0, 0].abs()


class Judge(Reflector):
    """Further right is better; done from a place on."""

    def __init__(self, slope=1.0, done=99.0):
        torch.nn.Module.__init__(self)
        self.slope, self.done = slope, done

    def judge(self, tokens, text):
        at = tokens[:, 0, 0]
        return torch.stack([(self.slope * at).sigmoid(), (at >= self.done).float()], 1)


def make(head="l1", horizon=3):
    torch.manual_seed(0)
    spec = Spec(
        cameras={"front": 1}, states=("x",), actions=("dx",), text=2, horizon=horizon, fps=20.0, head=head, width=16,
        places=2, frames={"front": (2, 2)}, encoder={"name": "none"},
    )  # fmt: skip
    as_is = [Normaliser.fit(np.zeros((2, 1)), "none", names=[name]) for name in ("x", "dx")]
    return ChunkPolicy(spec, *as_is)


def draw(random, count):
    at = 0.1 * torch.randn(count, 1, 1, generator=random)
    return ImaginedStarts(at, at[:, 0], torch.zeros(count, 2))


def practice(policy, world=None, judge=None, **how):
    how = {"steps": 4, "groups": 4, "rollouts": 4, "horizon": 3, "learning_rate": 3e-4, "anchor": 0.0} | how
    return RLOO(policy, world or Line(), judge or Judge(), draw, **how)


def reached(policy):
    found = imagine(
        policy, Line(), Judge(), draw(torch.Generator().manual_seed(9), 32), horizon=3, scale=0.0, done=1.0,
        random=torch.Generator(),
    )  # fmt: skip
    return float(found.reward.mean())


def test_a_policy_learns_what_is_rewarded_and_an_anchor_holds_it():
    free, held, away = make(), make(), make()
    before = reached(free)
    for policy, how in ((free, {}), (held, {"anchor": 5.0}), (away, {"judge": Judge(-1.0)})):
        learner = practice(policy, steps=10, **how)
        while learner.done < learner.steps:
            learner.step()
    assert reached(free) > before + 0.05
    assert reached(away) < before - 0.05
    assert abs(reached(held) - before) < 0.02


def test_groups_without_spread_are_skipped_and_change_nothing():
    policy = make()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    told = practice(policy, judge=Judge(0.0)).step()
    assert told["skipped"] == 1
    assert told["divergence"] == 0
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert practice(policy).step()["skipped"] < 1


def test_disagreement_stops_a_rollout_at_the_last_moment_that_was_trusted():
    policy, random = make(), torch.Generator().manual_seed(0)
    starts = ImaginedStarts(torch.tensor([[[0.0]], [[5.0]]]), torch.tensor([[0.0], [5.0]]), torch.zeros(2, 2))
    found = imagine(policy, Line(limit=3.0), Judge(), starts, horizon=3, scale=0.1, done=1.0, random=random)
    assert found.stopped.tolist() == [False, True]
    assert found.rollout.tolist() == [0, 0, 0]  # what led beyond is not learned from
    assert float(found.reward[1]) == pytest.approx(1 / (1 + np.exp(-5.0)))
    assert practice(policy, Line(limit=-1.0)).step()["stopped"] == 1


def test_the_reflector_ends_a_rollout():
    policy, random = make(), torch.Generator().manual_seed(0)
    starts = ImaginedStarts(torch.tensor([[[0.0]], [[5.0]]]), torch.tensor([[0.0], [5.0]]), torch.zeros(2, 2))
    found = imagine(policy, Line(), Judge(done=4.0), starts, horizon=3, scale=0.1, done=0.5, random=random)
    assert found.solved.tolist() == [False, True]
    assert found.rollout.tolist() == [0, 0, 0]
    assert found.tokens.shape == (3, 1, 1)
    assert found.actions.shape == (3, 2, 1)


def test_what_was_done_has_the_density_it_was_drawn_with():
    policy = make()
    found = imagine(
        policy, Line(), Judge(), draw(torch.Generator().manual_seed(1), 5), horizon=2, scale=0.3, done=1.0,
        random=torch.Generator().manual_seed(2),
    )  # fmt: skip
    assert len(found.log_density) == 10
    spread = -found.log_density.mean() / 2  # of one number: ½ + log(σ√2π)
    assert abs(float(spread) - (0.5 + np.log(0.3 * np.sqrt(2 * np.pi)))) < 0.4


def test_stopped_practice_goes_on_to_the_same_weights():
    straight = practice(make())
    curve = [straight.step() for _ in range(4)]
    halfway = practice(make())
    told = [halfway.step() for _ in range(2)]
    again = practice(make())
    again.load_state(*halfway.get_state())
    told += [again.step() for _ in range(2)]
    assert told == curve
    expected, found = straight.get_state()[0], again.get_state()[0]
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_practice_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="head must be l1; got flow"):
        practice(make("flow"))
    with pytest.raises(ValueError, match="must have the 2 actions of a model step; got 1"):
        practice(make(horizon=1))
    with pytest.raises(ValueError, match="rollouts must be 2 or more"):
        practice(make(), rollouts=1)
    with pytest.raises(ValueError, match="scale more than 0"):
        practice(make(), scale=0.0)
