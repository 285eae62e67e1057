"""Train a policy from a goal in words, or on the task's own reward for comparison.

Worlds step, the encoder turns frames into features, the reward's heads score them, and the policy climbs the score;
success is only watched. Writes a run folder with curves, checkpoints, videos of a last evaluation and report.html.
Ctrl-C and SIGTERM write a checkpoint before they end the run: resume=true continues the same curve, with steps=…
beyond the number it was started with.

    embodied train env=desk-drawer reward=clip goal="the drawer is open"
    embodied train env=desk-drawer reward=[clip,softmax] goal="the drawer is open" reward.softmax.negative=[shut]
    embodied train env=desk-place env.cameras=[front,side] goal="the red cube is in the tray" demos=10
    embodied train env=desk-press experience=latest goal="the button is pressed" "env.points=[the button,the drawer]"
    embodied train env=cartpole reward=true policy=ppo steps=100000
    embodied train run=runs/train/20260101-120000-desk-drawer-clip-s0 resume=true
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from embodied import runs
from embodied.building import far_texts, far_worlds
from embodied.building.scorers import keep_fitted, make_scorer, reward_name
from embodied.errors import UserError
from embodied.reports.page import write_report
from embodied.settings import check_device, check_least
from embodied.training import checkpoints, evaluation
from embodied.training.acting import make_learner, take_kept
from embodied.training.demonstrations import demonstrations
from embodied.training.experience import earlier
from embodied.training.labeller import Labeller
from embodied.training.log import RunLog
from embodied.training.loop import Job, Training, train
from embodied.training.stage import Stage
from embodied.training.stopping import Stopping
from policies.core import Actor
from rewards.progress import tqdm


def run(config: DictConfig) -> None:
    """Train, evaluate, report."""
    with runs.Run(config, "train") as run, ExitStack() as opened:
        config = run.config
        if run.folder is not None:
            take_kept(config, run.folder)
        _check(config)
        torch.set_num_threads(config.threads)
        unknown = far_texts.warn(config)
        scorer = make_scorer(config)
        if scorer is not None:
            scorer.check_causal("train")
        stage = Stage(config, scorer)
        encoding = {"batch_size": config.encode_batch, "encode_threads": config.encode_threads}
        collector = stage.collector(config.num_worlds, seed=config.seed, workers=config.workers, **encoding)
        opened.callback(collector.close)
        if scorer is not None and not unknown:
            seen = zip(collector.layout.views, collector.worlds.reset_frames.swapaxes(0, 1), strict=False)
            starts = {view: list(frames) for view, frames in seen}
            far_worlds.warn(config, scorer.encoder, starts, str(config.env.id))
        if stage.perception is not None and stage.perception.makes_observations and not collector.layout.signals:
            print(
                f"env.obs={stage.form}: {config.env.id} tells no own readings, so the policy sees pictures alone. "
                "Give the world a method signals(), name -> number.",
                file=sys.stderr,
            )
        learner = make_learner(config, collector)
        if config.demos and not (learner.sampling and learner.sampling.demo_share):
            name = str(config.policy._target_).rpartition(".")[2]
            raise UserError(f"demos must be left out: policy={name} learns from none. Use policy=rlpd, the default.")
        demos = demonstrations(config, stage, collector)
        rewards = stage.rewards(collector)
        training = Training.of(collector, rewards, learner, demos=demos, total=config.steps, seed=config.seed)
        if config.experience and run.checkpoint is None:
            training.past = earlier(config, stage, training)
        folder = run.begin(reward_name(config.reward))
        if scorer is not None and run.checkpoint is None:
            keep_fitted(scorer, config.reward, folder)
        if run.checkpoint is None:
            stage.keep(folder)
        log = RunLog(folder, steps=run.done)
        opened.callback(log.close)
        if run.checkpoint is not None and not checkpoints.load_checkpoint(run.checkpoint, training, log):
            print("This world cannot save its state: its episodes begin anew.", file=sys.stderr)
        with Stopping() as stopping, Progress(config, folder, stage, training, log) as progress:
            done = train(
                training,
                config.steps,
                log,
                log_every=config.log_every,
                jobs=progress.jobs,
                overlap=config.overlap,
                stop=lambda: stopping.asked or progress.late(),
                tick=progress.show,
            )
            checkpoints.save_checkpoint(folder, training, log)
        if not done:
            stopping.end(f"The checkpoint at step {training.steps} is written.")
        summary = finish(config, folder, stage, learner, training.steps)
        warned = rewards.watch.messages if isinstance(rewards, Labeller) else []
        run.finish(warnings=warned, steps=training.steps, observation=stage.observation)
        print(f"{told(summary)}. Report: {write_report(folder)}")


def _check(config: DictConfig) -> None:
    """Refuse what cannot be, before anything is made."""
    check_least(
        config, steps=1, num_worlds=1, workers=0, threads=1, encode_batch=1, encode_threads=1, eval_every=0,
        eval_episodes=1, final_episodes=1, videos=0, log_every=1, checkpoint_every=0, checkpoint_minutes=0,
    )  # fmt: skip
    check_device(config.device)


def finish(config: DictConfig, folder: Path, stage: Stage, actor: Actor, steps: int) -> dict[str, Any]:
    """The last evaluation, on episodes that decided nothing, and its videos."""
    seed = config.seed + evaluation.FINAL
    count = min(config.num_worlds, config.final_episodes)
    with tqdm(total=config.final_episodes, desc="evaluation", unit="episode", leave=False) as bar:
        result = judged(stage, actor, config.final_episodes, count=count, seed=seed, tick=bar.update)
    summary = {"steps": steps} | result.summary() | {"final": True}
    runs.append_line(folder / "evaluations.jsonl", summary)
    filmed(stage, folder, "final", actor, seed=seed, count=config.videos)
    return summary


def judged(stage: Stage, actor: Actor, episodes: int, *, count: int, seed: int, **calls: Any) -> evaluation.Evaluation:
    """An evaluation in fresh worlds; `calls` as `evaluation.evaluate` takes them."""
    collector = stage.collector(count, seed=seed)
    try:
        return evaluation.evaluate(actor, collector, stage.rewards(collector, watches=False), episodes, **calls)
    finally:
        collector.close()


def filmed(stage: Stage, folder: Path, name: str, actor: Actor, *, seed: int, count: int) -> None:
    """The first episodes of an evaluation as videos."""
    if not count:
        return
    env = stage.env()
    try:
        evaluation.save_videos(folder, name, actor, env, stage.perception, seed=seed, count=count, scorer=stage.scorer)
    finally:
        env.close()


def told(summary: dict[str, Any]) -> str:
    """An evaluation in one line."""
    reward = f"mean return {summary['mean_reward']:.3g}, task's own {summary['mean_env_reward']:.3g}"
    if summary["success_rate"] is None:
        return f"{summary['episodes']} episodes: {reward}"
    rate, low, high = (100 * summary[key] for key in ("success_rate", "ci_low", "ci_high"))
    return f"Success {rate:.0f} % of {summary['episodes']} episodes (95 % interval {low:.0f} to {high:.0f} %), {reward}"


class Progress:
    """What happens beside training: the bar, evaluations and checkpoints."""

    def __init__(self, config: DictConfig, folder: Path, stage: Stage, training: Training, log: RunLog) -> None:
        self._config, self._folder, self._stage, self._training, self._log = config, folder, stage, training, log
        self._evaluated, self._saved_s = "", time.monotonic()
        self._bar = tqdm(total=config.steps, initial=training.steps, unit="step", desc="training", smoothing=0.05)
        self.jobs = [Job(config.eval_every, self._evaluate), Job(config.checkpoint_every, self._save)]

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def show(self, training: Training) -> None:
        """Move the bar."""
        self._bar.update(training.steps - self._bar.n)
        recent = {name: np.mean(values) for name, values in training.recent.items()}
        shown = [] if training.steps or not training.owed else [f"{training.owed} updates on its experience to go"]
        shown += [f"success {recent['success']:.0%}"] if "success" in recent else []
        shown += [f"reward {recent['reward']:.3g}"] if "reward" in recent else []
        self._bar.set_postfix_str(", ".join([*shown, *([self._evaluated] if self._evaluated else [])]))

    def late(self) -> bool:
        """Write a checkpoint where the last one is too long ago; never ends training."""
        minutes = self._config.checkpoint_minutes
        if minutes and time.monotonic() - self._saved_s > 60 * minutes:
            self._save()
        return False

    def _save(self) -> None:
        checkpoints.save_checkpoint(self._folder, self._training, self._log)
        self._saved_s = time.monotonic()

    def _evaluate(self) -> None:
        config, stage = self._config, self._stage
        count, seed = min(config.num_worlds, config.eval_episodes), config.seed + evaluation.HELD_OUT
        result = judged(stage, self._training.learner, config.eval_episodes, count=count, seed=seed)
        summary = {"steps": self._training.steps} | result.summary()
        runs.append_line(self._folder / "evaluations.jsonl", summary)
        if summary["success_rate"] is not None:
            self._evaluated = f"evaluated {summary['success_rate']:.0%}"
