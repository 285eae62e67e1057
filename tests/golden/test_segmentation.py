"""Steps of demonstrations against brute force, and feature selection against the paper's formula, in NumPy."""

import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from rewards.segmentation import (
    FLOOR,
    Gaussians,
    choose_num_steps,
    follow,
    gaussians,
    jaccard,
    log_likelihood,
    ordered_random,
    row_steps,
    segment,
    segment_jointly,
    select_features,
)


def paper_cost(values: np.ndarray, ends: tuple[int, ...]) -> float:
    """arXiv 1612.06699 §3.1: the mean over segments of the feature-averaged standard deviation."""
    starts = (0, *(end + 1 for end in ends[:-1]))
    return float(np.mean([values[a : b + 1].std(0).mean() for a, b in zip(starts, ends, strict=True)]))


def every_cut(length: int, num_steps: int, min_length: int) -> list[tuple[int, ...]]:
    found = []
    for cuts in combinations(range(length - 1), num_steps - 1):
        ends = (*cuts, length - 1)
        if min(np.diff([-1, *ends])) >= min_length:
            found.append(ends)
    return found


def walk(length: int, dim: int = 3, seed: int = 0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).normal(size=(length, dim)), 0) + 50.0


@pytest.mark.parametrize(
    ("length", "num_steps", "min_length"), [(9, 1, 3), (10, 2, 1), (12, 3, 2), (13, 4, 3), (6, 3, 2)]
)
@pytest.mark.parametrize("seed", range(4))
def test_the_programme_finds_the_optimum_of_brute_force(length, num_steps, min_length, seed):
    values = walk(length, seed=seed)
    best = min(every_cut(length, num_steps, min_length), key=lambda ends: paper_cost(values, ends))
    assert segment(values, num_steps, min_length=min_length) == best


def test_following_a_long_demonstration_needs_no_matrix_of_its_rows():
    """20,000 rows have 400 million pairs, 3 GB a step."""
    values = np.repeat(np.array([[0.0], [3.0], [1.0], [-2.0]]), [4000, 1000, 12_000, 3000], 0)
    values += 0.1 * np.random.default_rng(0).normal(size=values.shape)
    model = Gaussians(np.array([[0.0], [3.0], [1.0], [-2.0]]), np.full((4, 1), 0.1))
    tracemalloc.start()
    ends, _ = follow(values, model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ends == (3999, 4999, 16_999, 19_999)
    assert peak < 50e6


@pytest.mark.parametrize("seed", range(4))
def test_following_given_steps_finds_the_optimum_of_brute_force(seed):
    values = walk(11, seed=seed)
    model = gaussians([walk(11, seed=9)], [(3, 6, 10)])
    density = log_likelihood(values, model)

    def total(ends: tuple[int, ...]) -> float:
        return sum(density[row, step] for row, step in enumerate(row_steps(ends)))

    best = max(every_cut(11, 3, 2), key=total)
    ends, mean = follow(values, model, min_length=2)
    assert ends == best
    assert_allclose(mean, total(best) / 11, rtol=1e-12)


def test_log_likelihood_is_the_gaussian_density():
    values, model = walk(8), gaussians([walk(8, seed=1)], [(3, 7)])
    density = np.exp(-0.5 * ((values[:, None] - model.mean) / model.std) ** 2) / (model.std * np.sqrt(2 * np.pi))
    expected = np.log(density).mean(-1) + 0.5 * np.log(2 * np.pi)
    assert_allclose(log_likelihood(values, model), expected, rtol=1e-9)
    assert model.std.min() >= FLOOR


def test_joint_steps_never_lower_the_likelihood_and_align_what_looks_alike():
    rng = np.random.default_rng(0)
    lengths = [(6, 12, 5), (14, 4, 9), (8, 8, 8)]
    places = rng.normal(size=(3, 5)) * 2
    demos = [
        np.concatenate([places[k] + 0.1 * rng.normal(size=(n, 5)) for k, n in enumerate(each)]) for each in lengths
    ]
    steps, _ = segment_jointly(demos, 3)
    assert steps == [tuple(np.cumsum(each) - 1) for each in lengths]
    walks = [walk(15 + k, seed=k) for k in range(4)]
    scores = []
    for rounds in range(5):
        steps, model = segment_jointly(walks, 3, rounds=rounds)
        pairs = zip(walks, steps, strict=True)
        scores.append(sum(log_likelihood(v, model)[np.arange(len(v)), row_steps(e)].sum() for v, e in pairs))
    assert np.all(np.diff(scores) >= -1e-9)
    assert scores[-1] > scores[0]


def test_joint_steps_are_mostly_the_likeliest_of_brute_force():
    """Over all pairs of cuts of two random walks: started from `segment` alone, 13 of 40 are; from every start, 30."""
    found = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        both = np.cumsum(rng.normal(size=(2, 10, 4)), 1)
        demos = list((both - both.mean((0, 1))) / both.std((0, 1)))

        def total(steps: list[tuple[int, ...]], demos: list[np.ndarray] = demos) -> float:
            model = gaussians(demos, steps)
            pairs = zip(demos, steps, strict=True)
            return sum(log_likelihood(v, model)[np.arange(10), row_steps(ends)].sum() for v, ends in pairs)

        best = max(total([(one, 9), (other, 9)]) for one in range(2, 7) for other in range(2, 7))
        steps, _ = segment_jointly(demos, 2)
        assert total(steps) <= best + 1e-9
        found += total(steps) > best - 1e-9
    assert found >= 28


def test_the_number_of_steps_is_found():
    rng = np.random.default_rng(1)
    for count in (2, 3, 5):
        places = rng.normal(size=(count, 8)) * 2
        demos = [np.concatenate([p + 0.3 * rng.normal(size=(rng.integers(5, 9), 8)) for p in places]) for _ in range(4)]
        assert choose_num_steps(demos) == count
        assert choose_num_steps(demos[:1]) == count
    assert choose_num_steps([places[:5, :]]) == 1  # too short for two


def test_selected_features_have_the_largest_z():
    rng = np.random.default_rng(2)
    positive, negative = rng.normal(size=(20, 6)), rng.normal(size=(30, 6)) * 2
    positive[:, 4] += 3
    z = 5 * np.abs(positive.mean(0) - negative.mean(0)) - (positive.std(0) + negative.std(0))
    chosen, found = select_features(positive, negative, count=2)
    assert_allclose(found, z, rtol=1e-12)
    assert chosen[0] == 4
    assert set(chosen) == set(np.argsort(z)[-2:])


def test_steps_of_rows_and_jaccard():
    assert row_steps((1, 4)).tolist() == [0, 0, 1, 1, 1]
    assert jaccard(np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)) == 1 / 3
    assert jaccard(np.zeros(3, bool), np.zeros(3, bool)) == 1


def test_ordered_random_cuts_are_uniform_over_places():
    rng = np.random.default_rng(0)
    cuts = [ordered_random(6, 2, rng, min_length=2)[0] for _ in range(3000)]
    values, counts = np.unique(cuts, return_counts=True)
    assert values.tolist() == [1, 2, 3]
    assert counts.min() > 900
    assert all(np.diff([-1, *ordered_random(9, 3, rng, min_length=2)]).min() >= 2 for _ in range(50))


def test_too_short_a_demonstration_is_refused():
    with pytest.raises(ValueError, match=r"at least num_steps · min_length = 12 rows; got 8"):
        segment(walk(8), 4)
    with pytest.raises(ValueError, match="must be ≥ 1; got 0 and 3"):
        segment(walk(8), 0)
