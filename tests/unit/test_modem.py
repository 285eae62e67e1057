"""MoDem-V2's phases and switches, on worlds whose values are known."""

import numpy as np
import pytest
import torch

from policies.core import Learner, Rollout
from policies.handover import IMITATION, LEARNED
from policies.modem import modem
from policies.planning import terminal, worth
from policies.replay import Mix
from tests.learner_probes import (
    GAMMA,
    STATES,
    VALUES,
    best_actions,
    demonstrated,
    made,
    memory,
    one_step,
    resumes,
    shown,
)

SMALL = {
    "size": "0.1M", "critics": 2, "learning_rate": 1e-2, "batch_size": 32, "policy_stride": 1, "gamma": GAMMA,
    "tau": 0.1, "learning_starts": 0, "burst": 0, "warmup": 4, "horizon": 1, "terminations": True, "pretraining": 40,
}  # fmt: skip
FIRST = np.ones(2, bool)


def make(seed=0, **settings):
    return made(modem, seed, **(SMALL | settings))


def imitating(updates=40, **settings):
    """A learner after its imitation phase; demonstrations do half the state."""
    learner = make(**settings)
    learner.update(Mix(demonstrated(shown())).batches(learner.sampling), updates)
    return learner


def played(learner, count=1):
    """Steps of training in which every action earns what `both` pays."""
    remembered, ended = learner.begin(2), np.ones((1, 2), bool)
    for _ in range(count):
        action, remembered = learner.act(STATES, remembered, FIRST, explore=True)
        reward = (1 - (action - 0.5 * STATES) ** 2).T
        learner.observe(Rollout(STATES[None], action[None], STATES[None], reward, ended, ~ended, ended), reward)
    return remembered["player"]


def test_imitation_is_learned_first_and_the_targets_are_set_after_it():
    learner = make()
    for weight in learner._targets.parameters():
        weight.data += 1.0  # as if they lagged behind
    learner.update(Mix(demonstrated(shown())).batches(learner.sampling), 60)
    np.testing.assert_allclose(best_actions(learner), [-0.5, 0.5], atol=0.1)
    for target, head in zip(learner._targets.parameters(), learner.model.critics.parameters(), strict=True):
        torch.testing.assert_close(target, head.detach(), rtol=0, atol=0)
    noisy = [learner.act(STATES, learner.begin(2), FIRST, explore=True)[0][:, 0] for _ in range(100)]
    np.testing.assert_allclose(np.std(noisy, 0), 0.1, atol=0.03)  # seeding: imitation with noise


def test_encoder_and_policies_are_held_until_the_model_is_warm():
    learner = imitating(5)
    rollout, _ = VALUES["both"]
    learner.observe(rollout, rollout.env_reward)
    source = Mix(memory(rollout)).batches(learner.sampling)

    def moved(part):
        before = [weight.detach().clone() for weight in part.parameters()]
        return lambda: any(not torch.equal(a, b) for a, b in zip(before, part.parameters(), strict=True))

    model = learner.model
    held = [moved(part) for part in (model.encoder.mlp, model.policies)]
    free = [moved(part) for part in (model.dynamics, model.rewards, model.critics)]
    learner.update(source, 4)
    assert [each() for each in held] == [False, False]
    assert [each() for each in free] == [True, True, True]
    learner.update(source, 1)
    assert [each() for each in held] == [True, True]


@pytest.mark.parametrize(("weight", "held"), [(20.0, True), (0.0, False)])
def test_policies_are_held_to_the_demonstrations_beside_their_values(weight, held):
    """Every action earns itself, so values say 1 everywhere; demonstrations do half the state."""
    learner = imitating(60, warmup=0, imitation_weight=weight, planning=False, handover=None)
    rollout = one_step(lambda obs, action: action)
    learner.observe(rollout, rollout.env_reward)
    learner.update(Mix(memory(rollout), demonstrated(shown())).batches(learner.sampling), 40)
    assert (np.abs(best_actions(learner) - [-0.5, 0.5]).max() < 0.2) == held


def test_plans_play_once_they_earn_more_and_imitation_does_until_then():
    learner = imitating(5, warmup=0)
    assert played(learner).tolist() == [IMITATION] * 2
    assert learner._best == IMITATION
    while learner.handover.best == IMITATION:
        learner.handover._record(IMITATION, 0.0)
        learner.handover._record(LEARNED, 1.0)
    assert learner.begin(2)["player"].tolist() == [LEARNED] * 2


def test_a_schedule_hands_over_step_by_step():
    learner = imitating(5, handover="schedule", handover_over=200, warmup=0)
    learner.steps = 50
    assert learner.share == 0.25
    obs, remembered = np.zeros((2, 1), np.float32), learner.begin(2)
    drawn = []
    for _ in range(100):
        _, remembered = learner.act(obs, remembered, np.zeros(2, bool), explore=True)
        drawn.append(remembered["player"])
    assert abs(np.mean(drawn) - 0.25) < 0.1
    assert learner._best == IMITATION
    learner.steps = 100
    assert learner._best == LEARNED


def test_without_a_hand_over_plans_play_from_the_end_of_the_warm_up():
    learner = imitating(5, handover=None)
    assert played(learner).tolist() == [IMITATION] * 2
    learner.updates = 4
    assert played(learner).tolist() == [LEARNED] * 2


def test_without_imitation_plans_play_at_once():
    learner = make(pretraining=0)
    assert isinstance(learner, Learner)
    assert learner.pace.pretraining == 0
    assert played(learner).tolist() == [LEARNED] * 2


def test_demonstrations_share_of_a_batch_falls():
    learner = make(demo_share=0.75, demo_share_last=0.25, demo_share_over=100)
    own, demos = memory(VALUES["both"][0]), demonstrated(shown())
    mix = Mix(own, demos)
    assert mix.share(learner.sampling) == 0.25
    own.total = 50
    assert mix.share(learner.sampling) == 0.5
    assert mix.share(make(demo_share_last=None).sampling) == 0.75


def test_disagreement_is_held_against_a_plan():
    """Two plans worth the same on average; heads agree on neither, and least on the second."""
    learner = make(uncertainty=0.0)
    model, s = learner.model, learner.settings
    model.critics.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    model.ends.head.bias.data.fill_(-40.0)
    z, actions = model.encoder(torch.tensor(STATES)), torch.zeros(2, 1, 1, 1)
    values = terminal(model, model.next(z, actions[:, 0, 0]))
    calm, wary = (
        worth(model, z, actions, gamma=0.5, settings=type(s)(**(SMALL | {"uncertainty": c}))) for c in (0.0, 2.0)
    )
    expected = 0.5 * 2.0 * values.std(0, correction=0)
    assert (expected > 1e-4).all()
    torch.testing.assert_close((calm - wary)[:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("handover", ["measured", "schedule"])
def test_it_resumes_bit_for_bit(handover):
    settings = {"warmup": 2, "handover": handover, "handover_over": 2000}
    resumes(lambda seed: make(seed, **settings), VALUES["both"][0], shown(), updates=3)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"handover": "never"}, "modem: handover must be measured, schedule or null; got 'never'"),
        ({"demo_share_last": 2.0}, r"modem: demo_share_last must be in \[0, 1\] or null; got 2.0"),
        ({"warmup": -1}, "modem: warmup must be at least 0; got -1"),
        ({"size": "big"}, "modem: size must be one of"),
    ],
)
def test_settings_out_of_range_are_refused(change, error):
    with pytest.raises(ValueError, match=error):
        make(**change)


def test_of_failures_alone_there_is_no_imitation():
    learner = make()
    with pytest.warns(
        UserWarning, match="modem: demonstrations that succeed must be given for imitation; got failures"
    ):
        learner.update(Mix(memory(shown())).batches(learner.sampling), 3)
    assert played(learner).tolist() == [LEARNED] * 2


def test_where_imitation_plays_nothing_is_planned():
    learner = imitating(5, warmup=0, horizon=3)
    plan = np.random.default_rng(0).uniform(-1, 1, learner.begin(2)["plan"].shape).astype(np.float32)
    mixed, goes_on = {"plan": plan, "player": np.array([LEARNED, IMITATION], np.int8)}, np.zeros(2, bool)
    action, after = learner.act(STATES, mixed, goes_on, explore=False)
    alone, _ = learner.act(STATES[:1], {name: each[:1] for name, each in mixed.items()}, goes_on[:1], explore=False)
    np.testing.assert_array_equal(action[:1], alone)
    assert after["plan"][0].any()
    assert not after["plan"][1].any()  # a plan that nobody followed is none to begin from
    assert plan.all()
