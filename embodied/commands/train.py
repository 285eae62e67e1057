"""Train a policy from a goal in words, or on the task's own reward for comparison.

Worlds step, the encoder turns frames into features, the reward's heads score them, and the policy climbs the score;
success is only watched. Writes a run folder with curves, checkpoints, videos of a last evaluation and report.html.
Ctrl-C or a crash loses nothing before the last checkpoint: resume=true continues the same curve, with steps=… beyond
the number it was started with.

    embodied train env=desk-drawer reward=clip reward.goal="the drawer is open" reward.baseline="a robot arm at a desk"
    embodied train env=desk-drawer reward=[clip,softmax] reward.goal="the drawer is open" reward.softmax.negatives=[…]
    embodied train env=cartpole reward=true policy=ppo steps=100000
    embodied train run=runs/train/20260101-120000-desk-drawer-clip-s0 resume=true
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from tqdm import tqdm

from embodied import cli, evaluation, files, runs
from embodied.build import build
from embodied.envs.vector import WorldVecEnv
from embodied.errors import UserError
from embodied.files import write_text
from embodied.labeller import Labeller
from embodied.report import write_report
from embodied.scorers import keep_fitted, kept, make_scorer, reward_name
from embodied.worlds import env_maker, make_venv, reward_cameras
from rewards.core import Scorer


def run(config: DictConfig) -> None:
    """Train, evaluate, report."""
    folder, checkpoint = None, None
    if config.resume:
        folder, config = resumed(config)
        checkpoint = files.latest_checkpoint(folder)
    elif config.run and Path(config.run).exists():
        raise UserError(f"run must be a new folder; got {config.run}. Add resume=true to go on with it.")
    torch.set_num_threads(config.threads)
    scorer = make_scorer(config)
    venv = make_venv(config, scorer, num_worlds=config.num_worlds, workers=config.workers, seed=config.seed)
    labeller: Labeller | None = None
    if scorer is not None:
        labeller = Labeller(scorer, batch_size=config.encode_batch, encode_threads=config.encode_threads)
    progress: Progress | None = None
    log: Logger | None = None
    try:
        model: BaseAlgorithm = build(config.policy, venv=venv, seed=config.seed, device=config.device)
        if folder is None:  # nothing is written before everything could be built
            folder = made_folder(config)
            save_config(folder, config)
            if scorer is not None:
                keep_fitted(scorer, config.reward, folder)
            runs.write_run(folder, verb="train", seed=config.seed, command=sys.argv, **runs.facts())
        runs.write_run(folder, status="running")
        done = int(checkpoint.name) if checkpoint is not None else None
        log = runs.logger(folder, steps=done)
        model.set_logger(log)
        if checkpoint is not None and not runs.load_checkpoint(checkpoint, model, labeller):
            print("This world cannot save its state: its episodes begin anew.", file=sys.stderr)
        progress = Progress(config, folder, scorer, labeller)
        callbacks: list[BaseCallback] = [progress] if labeller is None else [labeller, progress]
        if config.steps > model.num_timesteps:
            # log_interval: Progress decides when to log, after the labels are there
            model.learn(
                config.steps - model.num_timesteps,
                callback=callbacks,
                reset_num_timesteps=checkpoint is None,
                log_interval=None,  # pyright: ignore[reportArgumentType]
            )
        summary = finish(config, folder, model, scorer)
        warned = labeller.watch.messages if labeller is not None else []
        runs.write_run(folder, status="finished", warnings=warned, steps=model.num_timesteps)
        print(f"{told(summary)}. Report: {write_report(folder)}")
    except BaseException as error:
        if folder is not None:
            runs.write_run(folder, status="interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            if files.latest_checkpoint(folder) is not None:
                print(f"Go on with: embodied train run={folder} resume=true", file=sys.stderr)
        raise
    finally:
        if progress is not None:
            progress.close()
        if log is not None:
            log.close()
        if labeller is not None:
            labeller.close()
        venv.close()


def resumed(config: DictConfig) -> tuple[Path, DictConfig]:
    """The folder to go on in, and the config it was started with; `steps`, where given, is the new number of them.

    Raises:
        UserError: there is no such run, it has no checkpoint, or it is beyond the steps given.
    """
    folder = runs.find(config.run or "latest", runs.ROOT / "train")
    checkpoint = files.latest_checkpoint(folder)
    if checkpoint is None:
        raise UserError(f"resume: {folder} must hold a checkpoint; it stopped before its first. Start it again.")
    old = saved_config(folder)
    if cli.given(config, "steps") and config.steps != old.steps:
        if config.steps < int(checkpoint.name):
            raise UserError(f"steps must be at least {int(checkpoint.name)}, where {folder} is; got {config.steps}.")
        old.steps = config.steps
        save_config(folder, old)
    return folder, old


def saved_config(folder: Path) -> DictConfig:
    """The config a run was started with, with what was fitted for it; settings that came later have their defaults."""
    saved, defaults = OmegaConf.load(folder / "config.yaml"), cli.compose("train", [])
    assert isinstance(saved, DictConfig)
    for key, default in defaults.items():
        if key not in saved:
            saved[key] = default
    for key, default in defaults.env.items():
        if key not in saved.env:
            saved.env[key] = default
    kept(saved.reward, folder)
    return saved


def save_config(folder: Path, config: DictConfig) -> None:
    """Write config.yaml, whole or not at all."""
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config))


def made_folder(config: DictConfig) -> Path:
    """The run folder, new."""
    if config.run:
        Path(config.run).mkdir(parents=True)
        return Path(config.run)
    name = str(config.env.id).removeprefix("embodied/").removesuffix("-v0")
    return runs.new_folder(runs.ROOT / "train", name, reward_name(config.reward), config.seed)


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
            runs.save_checkpoint(self._folder, self.model, self._labeller)

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
        runs.save_checkpoint(self._folder, self.model, self._labeller)
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
