"""How far a learned model may be trusted: what it imagines, against what then happened.

A policy plays. From every moment of its episodes the model imagines the next steps under the actions that were really
taken. What it thinks is observed there is read out of its states by ridge regression, fitted on every second episode;
all errors are of the other ones. An error of 0 steps is the read-out's own.

Shape letters: T actions of an episode, P steps ahead, S numbers of an observation, E worlds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embodied.errors import UserError
from embodied.training.perception import Perception
from policies.core import ImaginedEpisode, Imagines, Obs, Rollout, leaves, map_leaves

RIDGE = 1e-3  # of the read-out, relative to the number of moments
SHOWN = 3  # entries of the observation that are drawn over time


@dataclass
class WholeEpisodes:
    """Whole episodes out of rollouts, in the order of their ends: (T + 1, …) observations, (T, A) actions, (T,)
    rewards."""

    whole: list[tuple[Obs, np.ndarray, np.ndarray]] = field(default_factory=list)
    _running: dict[int, list[tuple[Obs, np.ndarray, float]]] = field(default_factory=dict)

    def add(self, rollout: Rollout, reward: np.ndarray) -> None:
        """The next steps of every world."""
        for t, e in np.ndindex(*reward.shape):
            if rollout.first[t, e]:
                self._running[e] = []
            steps = self._running.get(e)
            if steps is None:
                continue  # its beginning was not seen
            obs = map_leaves(lambda leaf, at=(t, e): leaf[at], rollout.obs)
            steps.append((obs, rollout.action[t, e], float(reward[t, e])))
            if rollout.ended[t, e]:
                last = map_leaves(lambda leaf, at=(t, e): leaf[at], rollout.next_obs)
                obs = map_leaves(lambda *parts: np.stack(parts), *(step[0] for step in steps), last)
                actions, rewards = np.stack([step[1] for step in steps]), np.array([step[2] for step in steps])
                self.whole.append((obs, actions, rewards))
                del self._running[e]


def compare(
    model: Imagines, episodes: Sequence[tuple[Obs, np.ndarray, np.ndarray]], horizon: int, names: Sequence[str] = ()
) -> dict[str, Any]:
    """Imagined against true, as JSON values.

    Args:
        model: of the policy that played, or of another.
        episodes: as `WholeEpisodes.whole` holds them; at least two that are long enough.
        horizon: P.
        names: of the S numbers; else they are numbered.

    Returns:
        `observation_error`: of 0 to P steps ahead, mean squared, in units of each number's variance. `still_error`: the
        same of supposing that nothing changes; both are empty where observations are images alone. `reward_error`: of 1
        to P steps, root mean square, and `reward_spread`: the same of always supposing the mean. `example`: of one
        episode, over time, true and imagined P steps before.

    Raises:
        UserError: there are not two episodes of at least P steps.
    """
    long = [episode for episode in episodes if len(episode[1]) >= horizon]
    if len(long) < 2:
        most = max((len(episode[1]) for episode in episodes), default=0)
        raise UserError(
            f"imagined must be at most the length of two episodes or more; got {horizon}, "
            f"and {len(episodes)} of up to {most} steps. Take fewer steps or more episodes."
        )
    seen = [(model.imagine(obs, action, horizon), _vector(obs), reward) for obs, action, reward in long]
    fitted, told = seen[::2], seen[1::2]
    read = _readout(fitted)
    wrong, still, wrong_rewards, rewards = [], [], [], []
    for imagined, obs, reward in told:
        starts = len(imagined.ahead)
        ahead = np.stack([obs[h : h + starts] for h in range(horizon + 1)], 1)  # (N, P + 1, S)
        guessed = np.concatenate([imagined.seen.numpy()[:starts, None], imagined.ahead.numpy()], 1)
        wrong.append(((read(guessed) - ahead) / read.scale) ** 2)
        still.append(((ahead[:, :1] - ahead) / read.scale) ** 2)
        true = np.stack([reward[h : h + starts] for h in range(horizon)], 1)
        wrong_rewards.append((imagined.reward.numpy() - true) ** 2)
        rewards.append(true)
    every = np.concatenate(rewards)
    return {
        "horizon": horizon,
        "episodes": len(told),
        "moments": len(every),
        "observation_error": _means(wrong),
        "still_error": _means(still),
        "reward_error": np.sqrt(np.concatenate(wrong_rewards).mean(0)).tolist(),
        "reward_spread": float(every.std()),
        "example": _example(told[0], read, horizon, names),
    }


def _means(errors: Sequence[np.ndarray]) -> list[float]:
    """Of (N, P + 1, S), one for each number of steps; none where S = 0."""
    every = np.concatenate(errors)
    return every.mean((0, 2)).tolist() if every.shape[2] else []


@dataclass(frozen=True)
class _Readout:
    """(…, L) states to (…, S) observations; `scale` is the deviation of each of their numbers."""

    weights: np.ndarray
    offset: np.ndarray
    scale: np.ndarray

    def __call__(self, states: np.ndarray) -> np.ndarray:
        return states @ self.weights + self.offset


def _readout(fitted: Sequence[tuple[ImaginedEpisode, np.ndarray, np.ndarray]]) -> _Readout:
    states = np.concatenate([imagined.seen.numpy() for imagined, _, _ in fitted]).astype(np.float64)
    obs = np.concatenate([each for _, each, _ in fitted])
    x, y = states - states.mean(0), obs - obs.mean(0)
    weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)
    std = obs.std(0)
    return _Readout(weights, obs.mean(0) - states.mean(0) @ weights, np.where(std > 1e-6, std, 1.0))


def _example(
    told: tuple[ImaginedEpisode, np.ndarray, np.ndarray], read: _Readout, horizon: int, names: Sequence[str]
) -> dict[str, Any]:
    imagined, obs, reward = told
    guessed = read(imagined.ahead[:, -1].numpy())
    lively = np.argsort((obs / read.scale).std(0))[::-1][:SHOWN]
    entries = {}
    for k in lively.tolist():
        name = names[k] if len(names) == obs.shape[1] else f"observation {k}"
        entries[name] = {"true": obs[horizon:, k].tolist(), "imagined": guessed[:, k].tolist()}
    ahead = {"true": reward[horizon - 1 :].tolist(), "imagined": imagined.reward[:, -1].tolist()}
    return {"reward": ahead, "observation": entries}


def _vector(obs: Obs) -> np.ndarray:
    """(T + 1, S) float64, the numbers of an observation that are no images."""
    parts = leaves(obs)
    flat = [np.asarray(parts[name], np.float64) for name in sorted(parts) if np.ndim(parts[name]) == 2]
    return np.concatenate(flat, 1) if flat else np.zeros((len(next(iter(parts.values()))), 0))


def names_of(perception: Perception | None) -> list[str]:
    """What the numbers of a policy's points or places are; [] of other observations."""
    if perception is None or perception.form not in ("points", "places"):
        return []
    layout = perception.layout
    if perception.places is not None:
        return [*layout.signals, *perception.places.names]
    points = [
        f"{view}, {thing}: {k}" for view in layout.views for thing in perception.things for k in ("u", "v", "peak")
    ]
    return [*layout.signals, *points]
