"""How the benchmark of perceptual rewards compares steps."""

import numpy as np
import torch

from benchmarks.perceptual import Take, agreement, jaccard_row, known, split


def test_known_steps_and_their_agreement():
    take = Take(torch.zeros(1, 6, 2), second=2, solved=4)
    truth = known(take, 5)
    assert truth.tolist() == [0, 0, 1, 1, 1]
    assert agreement((1, 4), truth) == 1
    assert agreement((2, 4), truth) == np.mean([2 / 3, 2 / 3])
    assert take.until_solved().main.shape == (1, 5, 2)
    assert len(take.episode()) == 6


def test_no_demonstration_is_judged_where_an_expert_fails():
    experts = [Take(torch.zeros(1, 6, 2), 2, None if k in (3, 20) else k) for k in range(25)]
    shown, held_out = split(experts)
    assert [[take.solved for take in group] for group in shown] == [[0, 1, 2, 4], [*range(5, 10)], [*range(10, 15)]]
    assert [take.solved for take in held_out] == [15, 16, 17, 18, 19, 21, 22, 23, 24]


def test_a_missed_bar_is_recorded_as_missed():
    found = {"a": {"x": [0.6, 0.8], "chance": [0.5]}, "b": {"x": [0.7, 0.7], "chance": [0.3]}}
    row = jaccard_row(found, "x", "x", ">= 0.72", "chance")
    assert abs(row["value"] - 0.7) < 1e-12
    assert row["met"] is False
    assert row["n"] == 4
    assert row["ordered_random_mean"] == 0.4
    assert jaccard_row(found, "x", "x", None, "chance")["met"] is None
