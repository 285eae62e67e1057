"""Keypoint progress, KAGI's rule and its shaping, derived again in float64 NumPy, one step at a time."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from rewards.core import Features
from rewards.keypoint.path import CLOSED, EMPTY, GATE_M, LEAD_M, SLACK, nearest_on_polyline, path_progress
from rewards.keypoint.rule import KeypointRule, KeypointShaping

SIGMA, REACH = 0.1, 0.05
NONE = Features(views={})
RNG = np.random.default_rng(0)


def by_hand(points, gates, robot, opening):
    """The docstring's words as a loop over time that keeps what has happened so far."""
    legs = [math.dist(a, b) for a, b in pairwise(points)]
    bonus = [GATE_M if gate in ("grasp", "release") else 0.0 for gate in gates]
    total = LEAD_M + sum(legs) + sum(bonus)
    ends = [k for k, gate in enumerate(gates) if gate] + ([len(gates) - 1] if not gates[-1] else [])

    def section(number, x):
        first = ends[number - 1] if number else 0  # a section starts at the gate before it
        done = LEAD_M + sum(legs[:first]) + sum(bonus[: first + 1] if number else [])
        nearest = (math.dist(x, points[first]), done)
        for k in range(first, ends[number]):
            a, b = np.array(points[k]), np.array(points[k + 1])
            share = min(max(((x - a) @ (b - a)) / max((b - a) @ (b - a), 1e-18), 0), 1)
            gap = float(np.linalg.norm(x - a - share * (b - a)))
            if gap <= nearest[0] + 1e-15:
                nearest = (gap, done + share * legs[k])
            done += legs[k]
        return nearest[1] / total * math.exp(-nearest[0] / SIGMA)

    out, stage, widest, grip, held_before = [], 0, 0.0, None, False
    grasp_section = None
    for t, x in enumerate(robot):
        wide = opening[t]
        widest = max(widest, wide)
        if grip is not None and wide >= EMPTY:
            grip = min(grip, wide)
        holding = grip is None or EMPTY <= wide <= grip + SLACK
        held_here = False
        while stage < len(ends) and gates[ends[stage]]:
            gate, near = gates[ends[stage]], math.dist(x, points[ends[stage]]) <= REACH
            if gate == "grasp":
                near = near and wide <= widest - CLOSED and wide >= EMPTY
            elif gate == "release":
                held_here = near and holding
                near = near and held_before and wide > grip + SLACK
            if not near:
                break
            if gate == "grasp":
                grip, grasp_section, holding = wide, stage, True
            if gate == "release":
                grip, holding = None, True
            stage += 1
        held_before = held_here
        if not holding:
            out.append(section(grasp_section, x))
        else:
            out.append(1.0 if stage == len(ends) else section(stage, x))
    return np.array(out)


def straight(*corners, steps=8):
    """A robot that goes through the corners."""
    parts = [np.linspace(a, b, steps, endpoint=False) for a, b in pairwise(corners)]
    return np.concatenate([*parts, [corners[-1]]])


PLACE = np.array([[0.1, 0, 0.1], [0.1, 0, 0.02], [0.1, 0, 0.1], [0.1, 0.2, 0.1], [0.1, 0.2, 0.04]])
PLACE_GATES = ("", "grasp", "", "", "release")


def placing():
    start = np.array([0.0, 0.0, 0.2])
    robot = np.concatenate([straight(start, PLACE[0], PLACE[1]), np.repeat(PLACE[1:2], 4, 0), straight(*PLACE[1:]),
                            np.repeat(PLACE[4:], 3, 0), straight(PLACE[4], PLACE[4] + [0, 0, 0.15])])  # fmt: skip
    opening = np.full(len(robot), 0.9)
    opening[19 : 19 + 26] = 0.5
    opening[17:19] = [0.8, 0.6]
    opening[45:] = 0.9
    return robot, opening


def test_an_ungated_way_is_share_times_falloff():
    points = np.array([[0.3, 0.0], [0.3, 0.4]])
    robot = np.array([[0.0, 0.0], [0.15, 0.05], [0.3, 0.2], [0.3, 0.4], [0.3, 0.5]])
    got = path_progress(points, ("", ""), robot, sigma=SIGMA, reach=REACH)
    total = LEAD_M + 0.4
    expected = [LEAD_M / total * math.exp(-3), (LEAD_M + 0.05) / total * math.exp(-1.5),
                (LEAD_M + 0.2) / total, 1, math.exp(-1)]  # fmt: skip
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_placing_rises_to_one_and_stays_there():
    robot, opening = placing()
    got = path_progress(PLACE, PLACE_GATES, robot, opening, sigma=SIGMA, reach=REACH)
    np.testing.assert_allclose(got, by_hand(PLACE, PLACE_GATES, robot, opening), atol=1e-9)
    assert (np.diff(got) >= -1e-9).all()
    assert 0 < got[0] < 0.1
    assert (got[-8:] == 1).all()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("gates", [PLACE_GATES, ("", "grasp", "", "", ""), ("", "reach", "", "reach", "")])
def test_wandering_equals_the_loop(gates, seed):
    rng = np.random.default_rng(seed)
    stay = rng.integers(1, 6)
    robot = np.concatenate([straight(rng.normal(0, 0.1, 3), *PLACE[rng.integers(0, 5, 9)], steps=4)] * stay)
    robot += rng.normal(0, 0.01, robot.shape)
    opening = np.repeat(rng.uniform(0, 1, len(robot)), 3)[: len(robot)]
    got = path_progress(PLACE, gates, robot, opening, sigma=SIGMA, reach=REACH)
    np.testing.assert_allclose(got, by_hand(PLACE, gates, robot, opening), atol=1e-9)
    assert ((got >= 0) & (got <= 1)).all()


def test_nothing_is_won_by_going_to_the_target_first():
    robot = straight(np.array([0.0, 0, 0.2]), PLACE[3], PLACE[4], steps=10)
    opening = np.full(len(robot), 0.5)
    got = path_progress(PLACE, PLACE_GATES, robot, opening, sigma=SIGMA, reach=REACH)
    ungated = path_progress(PLACE, [""] * 5, robot, opening, sigma=SIGMA, reach=REACH)
    assert got[-1] < 0.15 < ungated[-1]  # without gates it would have been enough


def test_closing_on_nothing_and_dropping_fall_back():
    robot, opening = placing()
    empty = opening.copy()
    empty[opening == 0.5] = 0.02
    got = path_progress(PLACE, PLACE_GATES, robot, empty, sigma=SIGMA, reach=REACH)
    dropped = opening.copy()
    dropped[32:] = 0.0
    lost = path_progress(PLACE, PLACE_GATES, robot, dropped, sigma=SIGMA, reach=REACH)
    full = path_progress(PLACE, PLACE_GATES, robot, opening, sigma=SIGMA, reach=REACH)
    grasped = full[20]
    assert got[19:].max() < grasped  # the fingers only pass through the width of an object
    assert lost[33:].max() < full[31]
    np.testing.assert_array_equal(lost[:32], full[:32])  # nothing after t is read at t


def test_a_gripper_that_was_still_closing_is_seen_to_drop():
    robot, _ = placing()
    opening = np.ones(len(robot))
    grasped = int(np.argmin(np.linalg.norm(robot - PLACE[1], axis=1)))
    opening[grasped], opening[grasped + 1 :] = 0.84, 0.3
    dropped = opening.copy()
    dropped[grasped + 3 :] = 0.9
    full, lost = (
        path_progress(PLACE, PLACE_GATES, robot, each, sigma=SIGMA, reach=REACH) for each in (opening, dropped)
    )
    np.testing.assert_array_equal(lost[: grasped + 3], full[: grasped + 3])
    assert lost[grasped + 4 :].max() < full[grasped + 2]


def test_nearest_point_of_equals_is_the_farthest_on():
    way = np.array([[0.0, 0], [1, 0], [0, 0]])
    arc, gap = nearest_on_polyline(way, np.array([[0.4, 0.1]]))
    np.testing.assert_allclose([arc[0], gap[0]], [1.6, 0.1])


def test_the_rule_takes_success_over_progress():
    potentials = {"keypoint": torch.tensor([[0.0, 0.4, 1.0, 0.2]]), "success": torch.tensor([[0.0, 0, 0, 1]])}
    got = KeypointRule(0.5)(potentials, NONE)
    np.testing.assert_allclose(got, [[0, 0.2, 0.5, 1]])
    alone = KeypointRule(0.5)({"keypoint": potentials["keypoint"]}, NONE)
    np.testing.assert_allclose(alone, [[0, 0.2, 0.5, 0.1]])


def test_shaping_is_the_sparse_reward_and_a_telescoping_sum():
    gamma, kappa = 0.9, 0.5
    p = RNG.uniform(0, kappa, 12)
    p[[4, 11]] = 1.0
    terminated = np.zeros(11, bool)
    shaping = KeypointShaping(kind="difference", discount=gamma, dense=kappa)
    tensor = torch.from_numpy(p)
    got = shaping(tensor[:-1], tensor[1:], torch.from_numpy(terminated)).numpy()
    q = np.minimum(p, kappa)
    sparse = (p[1:] == 1).astype(float)
    np.testing.assert_allclose(got, sparse + gamma * q[1:] - q[:-1], atol=1e-12)
    discounts = gamma ** np.arange(11)
    np.testing.assert_allclose(discounts @ (got - sparse), gamma**11 * q[-1] - q[0], atol=1e-12)
    terminated[-1] = True
    cut = shaping(tensor[:-1], tensor[1:], torch.from_numpy(terminated)).numpy()
    np.testing.assert_allclose(got - cut, np.append(np.zeros(10), gamma * q[-1]), atol=1e-12)
    literal = KeypointShaping(scale=2.0)(tensor[:-1], tensor[1:], torch.from_numpy(terminated)).numpy()
    np.testing.assert_allclose(literal, 2 * p[1:])
