"""A whole run of BARFI: a chain whose hint points away from the goal, and one whose hint points to it.

States 0 to 6, start at 3, steps left or right, ten of them. The task pays 1 at each step spent at the right end; the
misleading hint pays for every step to the left, so a learner of the plain sum goes left and stays there.
"""

import numpy as np
import pytest
import torch

from rewards.barfi import BarfiBlend, Rollouts

STATES, START, STEPS, EPISODES = 7, 3, 10, 32


def play(theta: torch.Tensor, rng: torch.Generator, hint: float) -> Rollouts:
    """Episodes of the softmax policy; `hint` is paid for each step to the left."""
    state = torch.full((EPISODES,), START)
    states, actions, primary = [], [], []
    for _ in range(STEPS):
        action = torch.multinomial(theta.detach()[state].softmax(-1), 1, generator=rng)[:, 0]
        states.append(state)
        actions.append(action)
        state = (state + 2 * action - 1).clamp(0, STATES - 1)
        primary.append((state == STATES - 1).float())
    observed, acted = torch.stack(states, 1), torch.stack(actions, 1)
    return Rollouts(
        observations=observed,
        actions=acted,
        features=torch.nn.functional.one_hot(observed, STATES).float(),
        primary=torch.stack(primary, 1),
        auxiliary=hint * (acted == 0).float(),
        valid=torch.ones_like(observed, dtype=torch.bool),
    )


def evaluator(theta: torch.Tensor):
    def evaluate(of: Rollouts):
        logp = theta[of.observations].log_softmax(-1)
        return logp.gather(-1, of.actions[..., None])[..., 0], -(logp.exp() * logp).sum(-1)

    return evaluate


def run(seed: int, hint: float, learn_blend: bool, rounds: int = 60) -> tuple[float, dict[str, float]]:
    """Mean steps at the goal in the last rounds, and the last log."""
    rng = torch.Generator().manual_seed(seed)
    theta = torch.zeros(STATES, 2, requires_grad=True)
    learner = torch.optim.Adam([theta], lr=0.05)
    torch.manual_seed(seed)
    blend = BarfiBlend(STATES, entropy=0.25, step=0.02, rate=0.03)
    buffer: list[Rollouts] = []
    earned, log = [], {}
    for _ in range(rounds):
        rollouts = play(theta, rng, hint)
        earned.append(float(rollouts.primary.sum(1).mean()))
        buffer = [*buffer[-2:], rollouts]
        evaluate = evaluator(theta)
        for batch in buffer:
            learner.zero_grad()
            (-blend.objective(evaluate, batch)).backward()
            learner.step()
        if learn_blend:
            log = blend.improve(evaluate, [theta], buffered=rollouts, recent=play(theta, rng, hint))
    return float(np.mean(earned[-20:])), log


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_misleading_hint_is_unlearned(seed):
    misled, _ = run(seed, hint=1.0, learn_blend=False)
    led, log = run(seed, hint=1.0, learn_blend=True)
    assert misled < 1  # of 8 steps at the goal that are possible
    assert led > 7
    assert log["b3"] < 0.5 < 1 < log["b2"]  # both began at 1


def test_a_helpful_hint_is_kept():
    led, log = run(0, hint=-1.0, learn_blend=True)
    assert led > 7
    assert log["b3"] > 1
