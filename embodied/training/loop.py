"""The whole of training.

    worlds ──► collector ──► labeller ──► replay ──► learner.update
      ▲                                                   │
      └───────────────── learner.act ◄────────────────────┘

Every rollout is labelled before it is stored, so nothing unlabelled is ever learned from. Between two rounds nothing is
under way: that is when jobs run (evaluations, checkpoints), and where a run stops when asked to.

Shape letters: T steps of a rollout, E worlds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from embodied.errors import UserError
from embodied.training.collector import Collected, Collector
from embodied.training.log import RunLog
from embodied.training.worth import Rewards, RolloutLabels
from policies.core import Learner
from policies.replay import Mix, Replay
from policies.shown import Shown

EPISODES = 100  # ended ones behind the logged means
CATCHING_UP = 100  # updates on the past between two looks at whether to stop, and steps of it told at once


@dataclass
class Training:
    """Everything that training goes on from.

    Attributes:
        collector: of the worlds of training.
        rewards: labels their rollouts.
        learner: acts in them and improves.
        replay: what it did; None where it learns from the newest rollout alone.
        demos: what it was shown, before and in the middle of its episodes; None where it learns from the newest rollout
            alone.
        steps: transitions so far, T·E a rollout.
        past: what an earlier run did, paid by this one's rewards; None where it begins with nothing.
        owed: updates of the newest rollout, where they are made while the next one is collected; at first, of the past.
        begun: whether the learner was shown demonstrations and the past, where there are any.
        recent: of the last ended episodes, "reward", "length", "env_return", "success" of the policy where it is known,
            and, once a person has acted, "interventions" (steps) and "assisted_success" of the episodes with any.
    """

    collector: Collector
    rewards: Rewards
    learner: Learner
    replay: Replay | None
    demos: Shown | None = None
    steps: int = 0
    past: Replay | None = None
    owed: int = 0
    begun: bool = False
    recent: dict[str, deque[float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, collector: Collector, rewards: Rewards, learner: Learner, *, demos: Shown | None, total: int, seed: int
    ) -> Training:
        """Training at its beginning, with a replay as large as the learner wants and the run can fill, and a place for
        what a person shows it, empty where there are no demonstrations."""
        replay, sampling = None, learner.sampling
        if sampling is not None:
            count = collector.worlds.num_envs
            replay = Replay(
                collector.observation_space,
                collector.worlds.action_space,
                capacity=max(min(sampling.capacity, total + learner.pace.rollout_steps * count), count),
                num_worlds=count,
                seed=seed,
            )
            if demos is None:
                demos = Shown(collector.observation_space, collector.worlds.action_space, capacity=1, seed=seed + 1)
        return cls(collector, rewards, learner, replay, demos)


@dataclass
class Job:
    """Something done now and then, between the updates of one rollout and the collecting of the next.

    Attributes:
        every: steps; 0: never.
        run: what is done.
        following: steps at which it is due next.
    """

    every: int
    run: Callable[[], Any]
    following: float = 0.0

    def set(self, steps: int) -> None:
        """Wait for the next multiple of `every`."""
        self.following = (steps // self.every + 1) * self.every if self.every else float("inf")


def train(
    training: Training, total: int, log: RunLog, *, log_every: int = 500, jobs: Sequence[Job] = (),
    overlap: bool = True, stop: Callable[[], bool] = lambda: False,
    tick: Callable[[Training], Any] = lambda training: None,
) -> bool:  # fmt: skip
    """Train until so many transitions were collected.

    A learner that can act with the weights it had (`acting`) acts with those from before the newest updates: then
    worlds and updates need not wait for each other. Whether they do changes no number.

    Args:
        training: where it stands; goes on from there.
        total: transitions of the whole run.
        log: gets a row every `log_every` steps, and one at the end.
        log_every: steps.
        jobs: in the order in which they run.
        overlap: updates run on a thread of their own while the worlds step on, where the learner allows it.
        stop: asked after each round; True ends training there.
        tick: called after each rollout.

    Returns:
        Whether all of it was done; False: `stop` ended it.
    """
    learner, pace, begun, first = training.learner, training.learner.pace, time.monotonic(), training.steps
    logs = Job(log_every, lambda: _log(training, log, first, begun))
    for job in (logs, *jobs):
        job.set(training.steps)
    mix = None if training.replay is None else Mix(training.replay, training.demos, training.past)
    batches = iter(()) if mix is None or learner.sampling is None else mix.batches(learner.sampling)
    if mix is not None and not training.begun:
        _begin(training, mix, log)
    while training.owed and not training.steps:
        count = min(training.owed, CATCHING_UP)
        log.record(learner.update(batches, count))
        training.owed -= count
        tick(training)
        if stop():
            return False
    with ThreadPoolExecutor(1, "updates", torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        while training.steps < total:
            actor, updates = learner, None
            if training.owed:
                actor = learner.acting()  # pyright: ignore[reportAttributeAccessIssue]
                updates = pool.submit(learner.update, batches, training.owed) if overlap else None
            collected = training.collector.collect(actor, pace.rollout_steps)
            if training.owed:
                log.record(learner.update(batches, training.owed) if updates is None else updates.result())
                training.owed = 0
            labels = training.rewards.label(collected)
            if training.replay is not None:
                moments = collected.moments
                rows = None if moments is None else (moments.rows, moments.next_rows)
                training.replay.add(
                    collected.rollout, labels.reward, collected.intervened, rows=rows, look=collected.look
                )
                if training.demos is not None:
                    training.demos.take(training.replay, collected.rollout.ended)
            elif collected.intervened is not None and collected.intervened.any():
                raise UserError(
                    "A person acted (info['is_intervention']), and this policy can learn from its own actions alone. "
                    "Use policy=rlpd, another of ours, or sac, td3 or dqn."
                )
            learner.observe(collected.rollout, labels.reward)
            count = collected.rollout.first.size
            training.steps += count
            _note(training, labels, log, collected)
            tick(training)
            if logs.following <= training.steps or training.steps >= total:
                logs.run()
                logs.set(training.steps)
            training.owed = pace.updates(count, training.steps + len(training.past or ()))
            if training.owed and not hasattr(learner, "acting"):
                log.record(learner.update(batches, training.owed))
                training.owed = 0
            for job in jobs:
                if job.following <= training.steps < total:
                    job.run()
                    job.set(training.steps)
            if stop() and training.steps < total:
                return False
    return True


def _begin(training: Training, mix: Mix, log: RunLog) -> None:
    """Imitate what is shown; then let the learner see what an earlier run did, and owe it the updates for that."""
    learner, pace = training.learner, training.learner.pace
    assert learner.sampling is not None
    if training.demos is not None and len(training.demos) and pace.pretraining:
        shown = mix.batches(replace(learner.sampling, demo_share=1.0, demo_share_last=None))
        log.record(learner.update(shown, pace.pretraining))
    if training.past is not None:
        for rollout, reward in training.past.rollouts(CATCHING_UP):
            learner.observe(rollout, reward)
        training.owed = pace.updates(len(training.past), len(training.past))
    training.begun = True


def _note(training: Training, labels: RolloutLabels, log: RunLog, collected: Collected) -> None:
    """Remember the episodes that ended in a rollout, for the log; what a person helped with is no success of the
    policy's."""
    recent = training.recent
    for ended in labels.ended:
        figures = {"reward": float(ended.rewards.sum(dtype=np.float64)), "length": float(len(ended.rewards))}
        figures |= {"env_return": ended.env_return}
        if ended.success is not None:
            figures["success"] = float(ended.own_success or False)
        if ended.interventions and "interventions" not in recent:  # none in those before
            recent["interventions"] = deque([0.0] * len(recent.get("length", ())), maxlen=EPISODES)
        if "interventions" in recent:
            figures["interventions"] = float(ended.interventions)
        if ended.interventions and ended.success is not None:
            figures["assisted_success"] = float(ended.success)
        for name, value in figures.items():
            recent.setdefault(name, deque(maxlen=EPISODES)).append(value)
        log.record_mean("rollout/ep_env_rew_mean", ended.env_return)


def _log(training: Training, log: RunLog, first: int, begun: float) -> None:
    names = {"reward": "ep_rew_mean", "length": "ep_len_mean", "success": "success_rate"}
    recent = training.recent
    figures = {f"rollout/{name}": float(np.mean(recent[key])) for key, name in names.items() if key in recent}
    if "interventions" in recent:
        figures["interventions/share"] = sum(recent["interventions"]) / sum(recent["length"])
        figures["interventions/episodes"] = float(np.mean([steps > 0 for steps in recent["interventions"]]))
    if "assisted_success" in recent:
        figures["interventions/success_rate"] = float(np.mean(recent["assisted_success"]))
    elapsed = max(time.monotonic() - begun, 1e-9)
    latencies = training.collector.latencies
    if latencies:
        figures |= {f"reward/latency_ms_p{p}": 1e3 * float(np.percentile(latencies, p)) for p in (50, 95)}
    log.record(figures | training.rewards.metrics())
    log.record({"time/fps": (training.steps - first) / elapsed, "time/time_elapsed": elapsed})
    log.write(training.steps)
