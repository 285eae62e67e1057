"""Rewards on a public benchmark, by its own protocol: every episode is judged, nothing is chosen or fitted on it.

The frames of one episode are in memory at a time: they are encoded once, and every reward scores them under the
episode's own instruction. Figures are told as the benchmarks' authors tell them: of each source, and the mean over
sources; errors of levels over all episodes. Intervals draw with replacement what a figure is a mean of, tasks with all
their episodes or single episodes, those of one source among themselves. Of a source's only task its episodes are drawn,
those of a quality among themselves. There is no interval where there is but one of everything.

Of a pair of moments a reward judges two films, start and BEFORE, start and AFTER: each moment by itself from the task's
start on. In one film of three AFTER would come later whichever is further, and what counts time would have an opinion.
A reward that compares by itself (`compare`, Robo-Dopamine's) is asked that instead, with every picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from omegaconf import DictConfig
from torch import Tensor

from embodied.building.scorers import Shared
from embodied.config import given_in
from embodied.errors import UserError, nearest
from embodied.judging.benchmark_films import AFTER, BEFORE, BenchmarkFilm, Pair
from embodied.judging.benchmarks import BENCHMARKS, Benchmark
from embodied.judging.cells import lines, shown
from embodied.judging.confusion import MOST, margin_of
from embodied.judging.figures import Figure, later_higher
from embodied.judging.judgement import chosen_rows, controls, potential, reversed_film
from embodied.judging.rewards import demos_wanted, make_scorers, reward_parts
from embodied.literal import resolved
from rewards.core import FRAMES_READ, Encoder, Features, Scorer
from rewards.metrics import (
    average_precision,
    bootstrap_interval,
    ordinal_error,
    pairwise_accuracy,
    policy_ranking_tau,
    ranking_accuracy,
    value_order_correlation,
    value_order_pearson,
)
from rewards.progress import tqdm

MAIN = "main"  # what the one view is called
VIEWS = (MAIN, "left", "right")  # of a pair, for a reward that compares
Rows = np.ndarray  # indices of episodes


@dataclass
class Said:
    """What one reward said of the episodes, in their order; NaN where a number has no meaning.

    Attributes:
        ends: its potential in the last frame.
        values: its potential in every frame.
        voc_spearman, voc_pearson, voc_reversed, pairwise_acc: of each success.
        further: of each pair, above 0 where AFTER is further; 0 for a tie or no answer.
        elsewhere: (episode, its task, its end under each task's instruction), of the first tasks.
    """

    ends: list[float] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    voc_spearman: list[float] = field(default_factory=list)
    voc_pearson: list[float] = field(default_factory=list)
    voc_reversed: list[float] = field(default_factory=list)
    pairwise_acc: list[float] = field(default_factory=list)
    further: list[float] = field(default_factory=list)
    elsewhere: list[tuple[int, list[float]]] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """Figures of one reward.

    Attributes:
        figures: name -> over the whole benchmark.
        sources: source -> name -> of its episodes alone.
        parts: of pairs, "bin" and "source" -> name of one -> share of its pairs alone that are told right.
    """

    figures: Mapping[str, Figure]
    sources: Mapping[str, Mapping[str, float]]
    parts: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)


def benchmark_of(name: str) -> Benchmark:
    """The benchmark of a name.

    Raises:
        UserError: there is none.
    """
    if name not in BENCHMARKS:
        raise UserError(f"benchmark must be one of ours; got {name!r}. {nearest(name, BENCHMARKS)}")
    return BENCHMARKS[name]


def run_benchmark(config: DictConfig, encoder: Encoder) -> tuple[dict[str, Result], dict[str, Any]]:
    """Every reward on a benchmark, then the controls.

    Returns:
        Reward -> result, and what was judged: episodes, tasks, sources.

    Raises:
        UserError: no such benchmark, a folder that is not one, or a reward that cannot score it or has nothing to be
            fitted to.
    """
    benchmark = benchmark_of(config.benchmark)
    parts = reward_parts(config, "")
    for name, part in parts.items():
        key = f"reward.{name}" if len(parts) > 1 else "reward"
        if benchmark.pairs and part.get("stride", 1) != 1 and _stride_given(config, name):
            raise UserError(f"{key}.stride must be left out with {config.benchmark}: each moment is asked about.")
        if demos_wanted(part):
            raise UserError(
                f"{key}.demos must be a dataset, or {key}.model a fitted head: nothing is fitted to a benchmark's "
                f"episodes, and it has no world whose expert shows {demos_wanted(part)}. Add {key}.demos=FOLDER."
            )
    root = Path(config.data)
    if not root.is_dir():
        raise UserError(f"data must be the folder of {config.benchmark}; {root} is not there.")
    films = list(benchmark.films(root, resolved(config.fields)) if benchmark.pairs else benchmark.films(root))
    if not films:
        raise UserError(f"{root}: must hold episodes of {config.benchmark}; it holds none.")
    tasks: dict[tuple[str, str], list[int]] = {}
    for i, film in enumerate(films):
        tasks.setdefault((film.source, film.task), []).append(i)
    said = _score(config, encoder, benchmark, films, tasks)
    told = partial(_of_pairs if benchmark.pairs else _figures, benchmark, films)
    results = {name: told(each, config.resamples, config.seed) for name, each in said.items()}
    sources = list(dict.fromkeys(film.source for film in films))
    return results, {"episodes": len(films), "tasks": len(tasks), "sources": sources}


def _score(
    config: DictConfig,
    encoder: Encoder,
    benchmark: Benchmark,
    films: Sequence[BenchmarkFilm],
    tasks: Mapping[tuple[str, str], Sequence[int]],
) -> dict[str, Said]:
    said: dict[str, Said] = {}
    kept: dict[str, Mapping[str, Scorer]] = {}  # of the first tasks' instructions
    probes: dict[str, list[tuple[int, Features]]] = {}  # without frames: those are read again
    wanted = "confusion_margin" in benchmark.figures and config.confusion
    order: list[int] = []
    shared = Shared()
    with tqdm(total=len(films), desc=str(config.benchmark), unit="episode") as bar:
        for (_, task), members in tasks.items():
            parts = reward_parts(config, task)
            if benchmark.pairs:
                parts = {name: part | {"stride": 1} if "stride" in part else part for name, part in parts.items()}
            scorers = make_scorers(parts, encoder, None, (), [MAIN], shared)
            scorers |= controls(encoder)
            if wanted and task not in kept and len(kept) < MOST:
                kept[task], probes[task] = scorers, []
            for i in members:
                features = _features(encoder, films[i], scorers)
                for name, scorer in scorers.items():
                    _note(said.setdefault(name, Said()), name, scorer, films[i], features)
                if task in probes and len(probes[task]) < config.confusion:
                    probes[task].append((i, replace(features, frames={})))
                order.append(i)
                bar.update()
    place = np.argsort(order)
    for each in said.values():
        for name, values in vars(each).items():
            if values and name != "elsewhere":
                setattr(each, name, [values[k] for k in place])
    for number, task in enumerate(kept if len(kept) > 1 else ()):
        for i, features in probes[task]:
            if _frames_read(kept[task]) != "none":
                frames = torch.from_numpy(films[i].frames())
                features = replace(features, frames=_shown(frames, kept[task]))
            for name, each in said.items():
                ends = [float(potential(kept[asked][name], features)[-1]) for asked in kept]
                each.elsewhere.append((number, ends))
    return said


@torch.inference_mode()
def _features(encoder: Encoder, film: BenchmarkFilm, scorers: Mapping[str, Scorer]) -> Features:
    frames = torch.from_numpy(film.frames())
    view = torch.cat([encoder.encode_images(part).float().cpu() for part in frames.split(64)])[None]
    return Features(views={MAIN: view}, frames=_shown(frames, scorers))


def _frames_read(scorers: Mapping[str, Scorer]) -> str:
    return max((scorer.frames_read for scorer in scorers.values()), key=FRAMES_READ.index)


def _shown(frames: UInt8[Tensor, "T H W 3"], scorers: Mapping[str, Scorer]) -> dict[str, Tensor]:
    """Of an episode's frames, what rewards read."""
    read = _frames_read(scorers)
    return {} if read == "none" else {MAIN: frames[None] if read == "all" else frames[None, :1]}


def _stride_given(config: DictConfig, name: str) -> bool:
    return given_in(config, "reward.stride") or given_in(config, f"reward.parts.{name}.stride")


def _further(scorer: Scorer, pair: Pair, features: Features) -> float:
    """How much further AFTER is than BEFORE: one comparison, or the difference of two films from the start."""
    head = next(iter(scorer.heads.values())) if len(scorer.heads) == 1 else None
    compare = getattr(head, "compare", None)
    if compare is None:
        before, after = (float(potential(scorer, chosen_rows(features, [0, row]))[-1]) for row in (1, 2))
        return after - before
    shown = pair.pictures()
    before, after = (dict(zip(VIEWS, map(shown.__getitem__, places), strict=True)) for places in (BEFORE, AFTER))
    said = compare(shown["start"], shown["end"], before, after)
    return 0.0 if math.isnan(said) else said


def _note(said: Said, name: str, scorer: Scorer, film: BenchmarkFilm, features: Features) -> None:
    try:
        if film.pair is not None:
            said.further.append(_further(scorer, film.pair, features))
            return
        values = potential(scorer, features)
        good = bool(film.success) and len(values) > 1
        backward = potential(scorer, reversed_film(features, len(values))) if good else None
    except (FloatingPointError, ValueError, KeyError) as error:
        raise UserError(f"reward {name}: {error}") from error
    said.ends.append(float(values[-1]))
    said.values.append(values)
    said.voc_spearman.append(value_order_correlation(values) if good else math.nan)
    said.voc_pearson.append(value_order_pearson(values) if good else math.nan)
    said.pairwise_acc.append(later_higher(values) if good else math.nan)
    said.voc_reversed.append(math.nan if backward is None else value_order_correlation(backward, rewound=True))


# Figures ------------------------------------------------------------------------------------------------------


def _figures(benchmark: Benchmark, films: Sequence[BenchmarkFilm], said: Said, resamples: int, seed: int) -> Result:
    sources = np.array([film.source for film in films])
    tasks = np.array([f"{film.source}\n{film.task}" for film in films])
    quality = np.array([math.nan if film.quality is None else film.quality for film in films])
    levels = np.array([film.level or 0 for film in films])
    members = [np.flatnonzero(tasks == task) for task in np.unique(tasks)]
    owners = sources[[rows[0] for rows in members]]
    ends, everything = np.array(said.ends), np.arange(len(films))

    def gap(ends: np.ndarray, quality: np.ndarray) -> float:
        worst, best = quality == 0, quality == 2
        return float(ends[best].mean() - ends[worst].mean()) if worst.any() and best.any() else math.nan

    good = np.array([bool(film.success) for film in films])
    solved = [np.arange(len(each)) == (len(each) - 1 if g else -1) for each, g in zip(said.values, good, strict=True)]

    def of_frames(rows: Rows) -> float:
        """A success is solved in its last frame, as Robometer's labels are where no other share is told."""
        if good[rows].all() or not good[rows].any():
            return math.nan
        return average_precision(*(np.concatenate([part[row] for row in rows]) for part in (said.values, solved)))

    def drawn_by_task(
        statistic: Callable[[np.ndarray, np.ndarray], float],
    ) -> tuple[np.ndarray, Callable[[Rows], float], Rows, np.ndarray]:
        """The figure of each task, and what tells the whole's of drawn units, the units, and their strata.

        A unit is a task, told by N + its place, or an episode of a source's only task.
        """
        each, count = np.array([statistic(ends[rows], quality[rows]) for rows in members]), len(films)
        known = np.flatnonzero(~np.isnan(each))
        alone = [k for k in known if (owners[known] == owners[k]).sum() == 1]
        units = np.concatenate([*(members[k] for k in alone), count + np.setdiff1d(known, alone)]).astype(int)
        strata = [owners[u - count] if u >= count else f"{tasks[u]}\n{quality[u]}" for u in units]

        def whole(drawn: Rows) -> float:
            found = each.copy()
            for k in alone:
                rows = drawn[np.isin(drawn, members[k])]
                found[k] = statistic(ends[rows], quality[rows])
            chosen = np.concatenate([np.array(alone, int), drawn[drawn >= count] - count])
            return _over_sources(lambda ks: _mean(found[ks]), owners)(chosen)

        return each, whole, units, np.array(strata)

    of_task = {"kendall_tau": policy_ranking_tau, "ranking_acc": ranking_accuracy, "succ_fail_diff": gap}
    figures: dict[str, Figure] = {}
    per_source: dict[str, dict[str, float]] = {str(name): {} for name in dict.fromkeys(sources)}
    for name in benchmark.figures:
        if name == "confusion_margin":
            if said.elsewhere:
                asked, elsewhere = (np.array(part) for part in zip(*said.elsewhere, strict=True))
                figures[name] = margin_of(elsewhere, asked, resamples=resamples, seed=seed)[0]
            continue
        if name == "mae_ordinal":
            if not 0 <= ends.min() <= ends.max() <= 1:  # a potential in another unit has no level
                continue
            whole: Callable[[Rows], float] = lambda rows: ordinal_error(ends[rows], levels[rows])  # noqa: E731
            statistic, units, owner, strata = whole, everything, sources, sources
        elif name == "success_auprc":  # successes and the rest stay as many as they are
            whole, units, owner = of_frames, everything, sources
            statistic, strata = _over_sources(whole, owner), np.char.add(np.where(good, "+", "-"), sources)
        elif name in of_task:
            each, statistic, units, strata = drawn_by_task(of_task[name])
            whole, owner = lambda rows, each=each: _mean(each[rows]), owners
        else:
            each, owner = np.array(getattr(said, name)), sources
            units, whole = np.flatnonzero(~np.isnan(each)), lambda rows, each=each: _mean(each[rows])
            statistic, strata = _over_sources(whole, owner), owner[units]
        value = statistic(units)
        interval = (math.nan, math.nan)
        if not math.isnan(value):
            interval = bootstrap_interval(units, statistic, resamples=resamples, seed=seed, strata=strata)
        figures[name] = Figure(value, *interval)
        for source, told in per_source.items():
            told[name] = whole(np.flatnonzero(owner == source))
    return Result(figures, per_source)


def _of_pairs(benchmark: Benchmark, films: Sequence[BenchmarkFilm], said: Said, resamples: int, seed: int) -> Result:
    """The share of pairs that are told right, ties counted half: of all, over sources, and of each bin and source."""
    pairs = [film.pair for film in films if film.pair is not None]
    truth, further = np.array([pair.truth for pair in pairs]), np.array(said.further)
    sources = np.array([film.source for film in films])

    def right(rows: Rows) -> float:
        return pairwise_accuracy(np.zeros(len(rows)), further[rows], truth[rows], tie=0.5)

    def figure(rows: Rows, statistic: Callable[[Rows], float] = right) -> Figure:
        interval = bootstrap_interval(rows, statistic, resamples=resamples, seed=seed, strata=sources[rows])
        return Figure(statistic(rows), *interval)

    everything = np.arange(len(films))
    found = (figure(everything), figure(everything, _over_sources(right, sources)))
    parts = {}
    for name, labels in (("bin", np.array([pair.bin for pair in pairs])), ("source", sources)):
        known = [str(label) for label in dict.fromkeys(labels) if label]
        parts[name] = {label: figure(np.flatnonzero(labels == label)) for label in known}
    per_source = {name: {"pairwise_acc": each.value} for name, each in parts["source"].items()}
    return Result(dict(zip(benchmark.figures, found, strict=True)), per_source, parts)


def _over_sources(statistic: Callable[[Rows], float], sources: np.ndarray) -> Callable[[Rows], float]:
    names = np.unique(sources)
    return lambda rows: _mean([statistic(rows[sources[rows] == name]) for name in names])


def _mean(values: Sequence[float] | np.ndarray) -> float:
    known = np.array(values, np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else math.nan


def table(name: str, results: Mapping[str, Result]) -> str:
    """For the terminal: a row a reward with 95 % intervals, and what was published."""
    benchmark = benchmark_of(name)
    rows = [["reward", *benchmark.figures]]
    for reward, result in results.items():
        rows.append([reward, *(_with_interval(result.figures.get(figure, Figure())) for figure in benchmark.figures)])
    for model in dict.fromkeys(model for each in benchmark.published.values() for model in each):
        said = [shown(benchmark.published.get(figure, {}).get(model, math.nan)) for figure in benchmark.figures]
        rows.append([f"{model}, published", *said])
    told = lines(rows)
    for part, labels in next(iter(results.values())).parts.items():
        if labels:
            cells = [[reward, *map(_with_interval, each.parts[part].values())] for reward, each in results.items()]
            told += ["", *lines([[f"by {part}", *labels], *cells])]
    return "\n".join(told)


def _with_interval(figure: Figure) -> str:
    interval = "" if math.isnan(figure.low) else f" ({shown(figure.low)} … {shown(figure.high)})"
    return f"{shown(figure.value)}{interval}"
