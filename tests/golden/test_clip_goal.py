"""The text-goal rewards against their papers, re-derived in float64 NumPy."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from rewards.clip_goal import (
    CalibratedThreshold,
    ClipGoal,
    ContrastingGoals,
    SoftmaxGoal,
    clip_scorer,
    conformal_threshold,
    contrast_scorer,
    goal_baseline_reward,
)
from rewards.core import Features
from tests.fakes import FakeEncoder

ALPHAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def paper(state: np.ndarray, goal: np.ndarray, baseline: np.ndarray, alpha: float) -> np.ndarray:
    """arXiv 2310.12921, Definition 1: project on the affine line through baseline and goal, then regularise."""
    direction = goal - baseline
    steps = (state - baseline) @ direction / (direction @ direction)
    projected = baseline + steps[..., None] * direction
    return 1 - 0.5 * np.linalg.norm(alpha * projected + (1 - alpha) * state - goal, axis=-1) ** 2


def by_matrix(state: np.ndarray, goal: np.ndarray, baseline: np.ndarray, alpha: float) -> np.ndarray:
    """As VLM-RM's code computes it, through a (D, D) matrix P = α·DᵀD/‖D‖² + (1−α)·I."""
    line = goal - baseline
    matrix = alpha * np.outer(line, line) / (line @ line) + (1 - alpha) * np.eye(len(line))
    return 1 - np.linalg.norm((state - goal) @ matrix, axis=-1) ** 2 / 2


def through_the_origin(state: np.ndarray, goal: np.ndarray, baseline: np.ndarray, alpha: float) -> np.ndarray:
    """The misreading: the same with the line's direction through the origin."""
    direction = goal - baseline
    projected = (state @ direction / (direction @ direction))[..., None] * direction
    return 1 - 0.5 * np.linalg.norm(alpha * projected + (1 - alpha) * state - goal, axis=-1) ** 2


@pytest.mark.parametrize("alpha", ALPHAS)
def test_paper_projection_matrix_and_closed_form_agree(alpha):
    state, goal, baseline = unit(3, 7, 512), unit(512, seed=1), unit(512, seed=2)
    tensors = [torch.from_numpy(each) for each in (state, goal, baseline)]
    expected = paper(state, goal, baseline, alpha)
    assert_allclose(goal_baseline_reward(*tensors, alpha), expected, atol=1e-12, rtol=0)
    assert_allclose(by_matrix(state, goal, baseline, alpha), expected, atol=1e-12, rtol=0)


def test_a_line_through_the_origin_is_another_reward():
    state, goal, baseline = unit(5, 64), unit(64, seed=1), unit(64, seed=2)
    gap = np.abs(through_the_origin(state, goal, baseline, 0.5) - paper(state, goal, baseline, 0.5))
    assert gap.min() > 1e-3


def test_alpha_zero_is_the_cosine_and_needs_no_baseline():
    state, goal, baseline = (torch.from_numpy(each) for each in (unit(9, 64), unit(64, seed=1), unit(64, seed=2)))
    assert_allclose(goal_baseline_reward(state, goal, baseline, 0.0), state @ goal, atol=1e-12)
    assert_allclose(goal_baseline_reward(state, goal, None, 0.0), state @ goal, atol=1e-12)


def test_alpha_one_sees_only_motion_along_the_line():
    goal, baseline = unit(64, seed=1), unit(64, seed=2)
    line = goal - baseline
    across = unit(64, seed=3)
    across -= across @ line / (line @ line) * line
    points = torch.from_numpy(np.stack([baseline, baseline + across, baseline + line]))
    rewards = goal_baseline_reward(points, torch.from_numpy(goal), torch.from_numpy(baseline), 1.0).numpy()
    assert_allclose(rewards[0], rewards[1], atol=1e-12)
    assert_allclose(rewards[0], 1 - line @ line / 2, atol=1e-12)
    assert_allclose(rewards[2], 1, atol=1e-12)


def test_closed_form_is_accurate_in_float32():
    state, goal, baseline = unit(1000, 1280), unit(1280, seed=1), unit(1280, seed=2)
    tensors = [torch.from_numpy(each).float() for each in (state, goal, baseline)]
    assert_allclose(goal_baseline_reward(*tensors, 0.5), paper(state, goal, baseline, 0.5), atol=1e-6)


def features(state: np.ndarray, **signals: np.ndarray) -> Features:
    return Features(
        views={"main": torch.from_numpy(state).float()},
        signals={name: torch.from_numpy(values).float() for name, values in signals.items()},
    )


def encoder(**vectors: np.ndarray) -> FakeEncoder:
    return FakeEncoder(vectors={name: torch.from_numpy(vector).float() for name, vector in vectors.items()})


def test_several_prompts_are_averaged_without_renormalising():
    """As in vlmrm's code: R = ½ + s·ḡ − ½‖ḡ‖², the ranking of the mean cosine, shifted."""
    state, first, second = unit(2, 3, 16), unit(16, seed=1), unit(16, seed=2)
    mean = (first + second) / 2
    head = ClipGoal(["a", "b"], encoder=encoder(a=first, b=second))
    score = head.score(features(state)).numpy()
    assert_allclose(score, 0.5 + state @ mean - 0.5 * mean @ mean, atol=1e-6)
    assert np.abs(score - state @ (mean / np.linalg.norm(mean))).max() > 1e-2


def test_clip_goal_head_is_the_paper_with_its_texts():
    state, goal, baseline = unit(2, 3, 16), unit(16, seed=1), unit(16, seed=2)
    head = ClipGoal("a", baseline="b", alpha=0.3, encoder=encoder(a=goal, b=baseline))
    assert_allclose(head.score(features(state)), paper(state, goal, baseline, 0.3), atol=1e-6)
    assert ClipGoal("a", baseline="b", encoder=encoder()).alpha == 0.1
    assert ClipGoal("a", encoder=encoder()).alpha == 0


def test_several_views_are_scored_each_by_itself_and_averaged():
    """The mean of the views' rewards, which with a baseline is not the reward of a mean view."""
    encoder, seen = FakeEncoder(), {name: unit(1, 5, 16, seed=k) for k, name in enumerate(("front", "side", "wrist"))}
    features = Features(views={name: torch.from_numpy(rows) for name, rows in seen.items()})
    goal, baseline = encoder.encode_texts(["open", "closed"]).double().numpy()
    texts = {"encoder": encoder, "goal": "open", "baseline": "closed", "alpha": 0.5}
    each = np.stack([paper(rows, goal, baseline, 0.5) for rows in seen.values()])
    assert_allclose(clip_scorer(**texts, views="mean").heads["clip"].score(features), each.mean(0), atol=1e-6)
    assert_allclose(clip_scorer(**texts).heads["clip"].score(features), each[0], atol=1e-6)
    contrast = contrast_scorer(encoder=encoder, goal="open", negative="closed", views="mean")
    assert contrast.pointwise
    expected = np.mean([0.5 * rows @ (goal - baseline) for rows in seen.values()], 0)
    assert_allclose(contrast.potentials(features)["contrast"], expected, atol=1e-6)
    with pytest.raises(ValueError, match="clip: views must be first or mean; got 'all'"):
        clip_scorer(**texts, views="all")


def test_contrasting_goals_of_the_paper():
    state, goal, negative = unit(2, 3, 16), unit(16, seed=1), unit(16, seed=2)
    head = ContrastingGoals("a", "b", alpha=0.7, beta=0.2, encoder=encoder(a=goal, b=negative))
    assert_allclose(head.score(features(state)), 0.7 * state @ goal - 0.2 * state @ negative, atol=1e-6)


def test_contrasting_goals_of_the_code():
    """Saturates at 1 once the goal leads, reaches 0 where the negative leads by the margin."""
    goal, negative = np.eye(16)[0], np.eye(16)[1]
    leads = np.array([0.2, 0.0, -0.015, -0.03, -0.2])  # goal's cosine minus negative's
    state = np.zeros((1, 5, 16))
    state[0, :, 0], state[0, :, 1] = 0.3 + leads, 0.3
    head = ContrastingGoals("a", "b", form="code", encoder=encoder(a=goal, b=negative))
    assert_allclose(head.score(features(state))[0], [1, 1, 0.5, 0, 0], atol=1e-5)


def test_softmax_goal():
    state, texts = unit(2, 3, 16), unit(3, 16, seed=1)
    fake = encoder(a=texts[0], b=texts[1], c=texts[2])
    logits = np.exp(state @ texts.T / 0.1)
    expected = logits[..., 0] / logits.sum(-1)
    soft = SoftmaxGoal("a", ["b", "c"], temperature=0.1, encoder=fake).score(features(state))
    assert_allclose(soft, expected, atol=1e-5)
    hard = SoftmaxGoal("a", ["b", "c"], temperature=0.1, threshold=0.4, encoder=fake).score(features(state))
    assert_allclose(hard, expected > 0.4)
    assert 0 < np.mean(expected > 0.4) < 1


def test_several_wordings_are_one_direction_where_cosines_are_meant():
    """A longer list of wordings shortens their mean, and would lower the goal against everything else."""
    state, texts = unit(2, 3, 16), unit(4, 16, seed=1)
    fake = encoder(a=texts[0], b=texts[1], c=texts[2], d=texts[3])
    goal, negative = (mean / np.linalg.norm(mean) for mean in (texts[:2].mean(0), texts[2:].mean(0)))
    contrast = ContrastingGoals(["a", "b"], ["c", "d"], encoder=fake).score(features(state))
    assert_allclose(contrast, 0.5 * state @ (goal - negative), atol=1e-6)
    soft = SoftmaxGoal(["a", "b"], ["c", "d"], temperature=0.1, encoder=fake).score(features(state))
    logits = np.exp(state @ np.stack([goal, *texts[2:]]).T / 0.1)
    assert_allclose(soft, logits[..., 0] / logits.sum(-1), atol=1e-5)
    one = ContrastingGoals("a", "c", encoder=fake)  # a single wording keeps its very numbers
    assert torch.equal(one.goal, fake.vectors["a"])


def test_calibrated_threshold_and_its_penalty():
    goal = np.eye(16)[0]
    state = np.zeros((1, 3, 16))
    state[0, :, 0] = 0.1, 0.3, 0.5
    fake = encoder(a=goal)
    assert_allclose(CalibratedThreshold("a", threshold=0.2, encoder=fake).score(features(state))[0], [0, 1, 1])
    known = CalibratedThreshold("a", threshold=0.2, firing_rate=0.4, encoder=fake).score(features(state))
    assert_allclose(known[0], [0, 1 - 0.95 * 0.4, 1 - 0.95 * 0.4], atol=1e-6)
    rate = np.array([[0.0, 0.1, 1.0]])
    tracked = CalibratedThreshold("a", threshold=0.2, firing_rate=0.4, encoder=fake)
    assert_allclose(tracked.score(features(state, firing_rate=rate))[0], [0, 1 - 0.095, 0.05], atol=1e-6)


def test_conformal_threshold_is_the_stated_order_statistic():
    cosines = np.array([0.9, 0.5, 0.8, 0.6, 0.7, 0.4, 0.3, 0.95, 0.85])  # n = 9, ⌈10 · 0.8⌉ = 8th smallest 1 − cos
    assert_allclose(conformal_threshold(torch.from_numpy(cosines), 0.2), 0.4)
    with pytest.raises(ValueError, match=r"at least 19 matched pairs for miss_rate 0\.05; got 9"):
        conformal_threshold(torch.from_numpy(cosines), 0.05)


def test_conformal_threshold_covers_what_it_promises():
    rng = np.random.default_rng(0)
    passed = []
    for _ in range(300):
        pairs = torch.from_numpy(rng.normal(0.3, 0.05, size=40))
        threshold = conformal_threshold(pairs, 0.1)
        passed.append(np.mean(rng.normal(0.3, 0.05, size=200) >= threshold))
    assert 0.9 <= np.mean(passed) < 0.93
