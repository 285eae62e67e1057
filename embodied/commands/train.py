"""Train a policy from a goal in words, or on the task's own reward for comparison.

Worlds step, the encoder turns frames into features, the reward's heads score them, and the policy climbs the score;
success is only watched. Writes a run folder with curves, checkpoints, videos of a last evaluation and report.html.
Ctrl-C or a crash loses nothing before the last checkpoint: resume=true continues the same curve, with steps=… beyond
the number it was started with.

    embodied train env=desk-drawer reward=clip goal="the drawer is open"
    embodied train env=desk-drawer reward=[clip,softmax] goal="the drawer is open" reward.softmax.negative=[…]
    embodied train env=cartpole reward=true policy=ppo steps=100000
    embodied train run=runs/train/20260101-120000-desk-drawer-clip-s0 resume=true
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from embodied import checkpoints, evaluation, runs
from embodied.build import build
from embodied.envs.vector import WorldVecEnv
from embodied.labeller import Labeller
from embodied.report import write_report
from embodied.scorers import keep_fitted, kept, make_scorer, reward_name
from embodied.settings import check_device, check_least
from embodied.worlds import env_maker, make_venv, reward_cameras
from rewards.core import Scorer


def run(config: DictConfig) -> None:
    """Train, evaluate, report."""
    with runs.Run(config, "train") as run, ExitStack() as opened:
        config = run.config
        if run.folder is not None:
            kept(config.reward, run.folder)
        _check(config)
        torch.set_num_threads(config.threads)
        scorer = make_scorer(config)
        venv = make_venv(config, scorer, num_worlds=config.num_worlds, workers=config.workers, seed=config.seed)
        opened.callback(venv.close)
        labeller: Labeller | None = None
        if scorer is not None:
            labeller = Labeller(scorer, batch_size=config.encode_batch, encode_threads=config.encode_threads)
            opened.callback(labeller.close)
        model: BaseAlgorithm = build(config.policy, venv=venv, seed=config.seed, device=config.device)
        folder = run.begin(reward_name(config.reward))
        if scorer is not None and run.checkpoint is None:
            keep_fitted(scorer, config.reward, folder)
        log = runs.logger(folder, steps=run.done)
        opened.callback(log.close)
        model.set_logger(log)
        if run.checkpoint is not None and not checkpoints.load_checkpoint(run.checkpoint, model, labeller):
            print("This world cannot save its state: its episodes begin anew.", file=sys.stderr)
        progress = Progress(config, folder, scorer, labeller)
        opened.callback(progress.close)
        callbacks: list[BaseCallback] = [progress] if labeller is None else [labeller, progress]
        if config.steps > model.num_timesteps:
            # log_interval: Progress decides when to log, after the labels are there
            model.learn(
                config.steps - model.num_timesteps,
                callback=callbacks,
                reset_num_timesteps=run.checkpoint is None,
                log_interval=None,  # pyright: ignore[reportArgumentType]
            )
        summary = finish(config, folder, model, scorer)
        warned = labeller.watch.messages if labeller is not None else []
        run.finish(warnings=warned, steps=model.num_timesteps)
        print(f"{told(summary)}. Report: {write_report(folder)}")


def _check(config: DictConfig) -> None:
    """Refuse what cannot be, before anything is made."""
    check_least(
        config, steps=1, num_worlds=1, workers=0, threads=1, encode_batch=1, encode_threads=1, eval_every=0,
        eval_episodes=1, final_episodes=1, videos=0, log_every=1, checkpoint_every=0,
    )  # fmt: skip
    check_device(config.device)


def finish(config: DictConfig, folder: Path, model: BaseAlgorithm, scorer: Scorer | None) -> dict[str, Any]:
    """The last evaluation, on episodes that decided nothing, and its videos."""
    seed = config.seed + evaluation.FINAL
    count = min(config.num_worlds, config.final_episodes)
    venv = make_venv(config, scorer, num_worlds=count, workers=0, seed=seed)
    with tqdm(total=config.final_episodes, desc="evaluation", unit="episode", leave=False) as bar:
        result = evaluation.evaluate(model, venv, config.final_episodes, seed=seed, scorer=scorer, tick=bar.update)
    venv.close()
    summary = {"steps": model.num_timesteps} | result.summary() | {"final": True}
    runs.append_line(folder / "evaluations.jsonl", summary)
    env = env_maker(config)()
    cameras = reward_cameras(config)
    evaluation.save_videos(folder, "final", model, env, seed=seed, count=config.videos, scorer=scorer, cameras=cameras)
    env.close()
    return summary


def told(summary: dict[str, Any]) -> str:
    """An evaluation in one line."""
    reward = f"mean return {summary['mean_reward']:.3g}, task's own {summary['mean_env_reward']:.3g}"
    if summary["success_rate"] is None:
        return f"{summary['episodes']} episodes: {reward}"
    rate, low, high = (100 * summary[key] for key in ("success_rate", "ci_low", "ci_high"))
    return f"Success {rate:.0f} % of {summary['episodes']} episodes (95 % interval {low:.0f} to {high:.0f} %), {reward}"


class Progress(BaseCallback):
    """Between rollouts: the bar, the log, evaluations and checkpoints."""

    def __init__(self, config: DictConfig, folder: Path, scorer: Scorer | None, labeller: Labeller | None) -> None:
        super().__init__()
        self._config, self._folder, self._scorer, self._labeller = config, folder, scorer, labeller
        self._bar: tqdm | None = None
        self._venv: WorldVecEnv | None = None
        self._next: dict[str, int] = {}
        self._evaluated = ""

    def _on_training_start(self) -> None:
        config, steps = self._config, self.model.num_timesteps
        self._bar = tqdm(total=config.steps, initial=steps, unit="step", desc="training", smoothing=0.05)
        self._next = {
            name: (steps // every + 1) * every if every else sys.maxsize
            for name, every in (
                ("log", config.log_every),
                ("evaluate", config.eval_every),
                ("checkpoint", config.checkpoint_every),
            )
        }

    def _due(self, name: str) -> bool:
        if self.model.num_timesteps < self._next[name]:
            return False
        every = self._config[{"log": "log_every", "evaluate": "eval_every", "checkpoint": "checkpoint_every"}[name]]
        self._next[name] = (self.model.num_timesteps // every + 1) * every
        return True

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "env_episode" in info:
                self.logger.record_mean("rollout/ep_gt_rew_mean", info["env_episode"][0])
        return True

    def _on_rollout_start(self) -> None:
        """After the updates of the former rollout: the only moment when nothing is under way."""
        if self._due("evaluate"):
            self._evaluate()
        if self._due("checkpoint"):
            checkpoints.save_checkpoint(self._folder, self.model, self._labeller)

    def _on_rollout_end(self) -> None:
        model = self.model
        if self._due("log"):
            model.dump_logs()
        assert self._bar is not None
        self._bar.update(model.num_timesteps - self._bar.n)
        shown = {}
        if model.ep_success_buffer:
            shown["success"] = f"{sum(model.ep_success_buffer) / len(model.ep_success_buffer):.0%}"
        if model.ep_info_buffer:
            shown["reward"] = f"{sum(each['r'] for each in model.ep_info_buffer) / len(model.ep_info_buffer):.3g}"
        self._bar.set_postfix_str(", ".join([*(f"{key} {value}" for key, value in shown.items()), self._evaluated]))

    def _on_training_end(self) -> None:
        checkpoints.save_checkpoint(self._folder, self.model, self._labeller)
        self.close()

    def _evaluate(self) -> None:
        config, seed = self._config, self._config.seed + evaluation.HELD_OUT
        if self._venv is None:
            count = min(config.num_worlds, config.eval_episodes)
            self._venv = make_venv(config, self._scorer, num_worlds=count, workers=0, seed=seed)
        result = evaluation.evaluate(self.model, self._venv, config.eval_episodes, seed=seed, scorer=self._scorer)
        summary = {"steps": self.model.num_timesteps} | result.summary()
        runs.append_line(self._folder / "evaluations.jsonl", summary)
        if summary["success_rate"] is not None:
            self._evaluated = f"evaluated {summary['success_rate']:.0%}"

    def close(self) -> None:
        """End the bar and the evaluation worlds; safe to call twice."""
        if self._bar is not None:
            self._bar.close()
        if self._venv is not None:
            self._venv.close()
            self._venv = None
