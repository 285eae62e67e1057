"""Judge a trained policy: success rate with its 95 % interval, returns, videos.

Rebuilds the world, the reward and the policy from the run's config, which is data and never runs code, and loads the
newest checkpoint. Writes evaluation.json and videos into the run folder, and its report again.

    embodied evaluate run=latest
    embodied evaluate run=runs/train/20260101-120000-desk-drawer-clip-s0 episodes=200 videos=0
    embodied evaluate run=runs/finetune/20260101-120000-desk-place-solved-s0 env=desk-place
"""

from __future__ import annotations

import json

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from embodied import checkpoints, evaluation, files, runs
from embodied.build import build
from embodied.commands.train import told
from embodied.errors import UserError
from embodied.finetuning import trying
from embodied.report import write_report
from embodied.scorers import kept, make_scorer
from embodied.settings import check_device, check_least
from embodied.worlds import env_maker, make_venv, reward_cameras


def run(config: DictConfig) -> None:
    """Evaluate the newest checkpoint of a run."""
    check_least(config, episodes=1, num_worlds=1, videos=0, threads=1)
    check_device(config.device)
    folder = runs.find(config.run, runs.ROOT / "train")
    if json.loads((folder / "run.json").read_text("utf-8")).get("verb") == "finetune":
        print(trying.evaluate(config, folder))
        return
    if config.get("env") is not None:
        raise UserError("env is for runs of embodied finetune; this one is judged in the world it was trained in.")
    checkpoint = files.latest_checkpoint(folder)
    if checkpoint is None:
        raise UserError(f"run must hold a checkpoint; {folder} stopped before its first.")
    trained = runs.saved_config(folder, "train")
    kept(trained.reward, folder)
    torch.set_num_threads(config.threads)
    scorer = make_scorer(trained)
    checkpoints.load_constraints(checkpoint, scorer)
    count = min(config.num_worlds, config.episodes)
    venv = make_venv(trained, scorer, num_worlds=count, workers=0, seed=config.seed)
    env = env_maker(trained)()
    try:
        if "buffer_size" in trained.policy:
            trained.policy.buffer_size = count  # nothing is learned here
        model = build(trained.policy, venv=venv, seed=config.seed, device=config.device)
        checkpoints.load_parameters(checkpoint, model)
        with tqdm(total=config.episodes, desc="evaluation", unit="episode", leave=False) as bar:
            result = evaluation.evaluate(model, venv, config.episodes, seed=config.seed, scorer=scorer, tick=bar.update)
        seen = {"scorer": scorer, "cameras": reward_cameras(trained)}
        evaluation.save_videos(folder, "evaluate", model, env, seed=config.seed, count=config.videos, **seen)
    finally:
        venv.close()
        env.close()
    summary = {"steps": int(checkpoint.name), "seed": config.seed} | result.summary()
    files.write_text(folder / "evaluation.json", json.dumps(summary, indent=2) + "\n")
    print(f"{told(summary)}. Report: {write_report(folder)}")
