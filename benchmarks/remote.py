"""Remote training against local: one policy learns the same through `embodied serve` as from the reward in its process.

The same world, learner, steps and seeds, once with reward=clip and once with reward=remote, whose server runs in a
process of its own on this machine; success is judged on 50 held-out episodes at the last step of training. Before
that, frames of the world are scored at both ends: the rewards must agree to 1e-5. Runs are kept in
runs/benchmarks/remote and skipped when they are finished, so the script can be stopped and started again.

    python -m benchmarks.remote
    python -m benchmarks.remote steps=600 seeds=10 out=FOLDER     a short try, recorded in FOLDER
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, record, train
from embodied.building.scorers import make_scorer
from embodied.building.worlds import env_maker
from embodied.config import compose
from embodied.serving.remote import remote_scorer
from rewards.metrics import wilson_interval

ROOT = Path("runs", "benchmarks", "remote")
ENV, GOAL, STEPS, SEEDS = "cartpole", "pole vertically upright on top of the cart", 6_000, (10, 11, 12)
REWARD = ("reward=clip", f'reward.goal="{GOAL}"')
FRAMES = 256
TOLERANCE = 0.1  # of success, averaged over the seeds: two runs of one seed differ where their floats do


@contextlib.contextmanager
def server(log: Path) -> Iterator[str]:
    """Its address, once it answers; a process of its own, ended with SIGTERM."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as told:
        command = [sys.executable, "-m", "embodied.cli", "serve", *REWARD, "port=0"]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, stdout=told, stderr=told, env=env)
    try:
        while " at http://" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield log.read_text().split(" at ")[1].split()[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def agreement(url: str) -> dict[str, Any]:
    """The largest difference of the rewards of one random episode's frames, scored here and there."""
    config = compose("train", [f"env={ENV}", *REWARD])
    here = make_scorer(config)
    assert here is not None
    env, rng = env_maker(config)(), np.random.default_rng(0)
    env.reset(seed=0)
    pictures = []
    for _ in range(FRAMES):
        size = here.encoder.image_size[0]
        pictures.append(env.get_wrapper_attr("frame")(image_size=size))
        *_, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        if terminated or truncated:
            env.reset()
    env.close()
    frames = torch.from_numpy(np.stack(pictures))
    with torch.inference_mode():
        gap = float((remote_scorer(url=url).score(frames) - here.score(frames)).abs().max())
    return {
        "claim": "rewards of the same frames through the server and in the process differ by at most",
        "value": gap,
        "unit": "potential",
        "bar": "<= 1e-5",
        "met": gap <= 1e-5,
        "n": FRAMES,
    }


def success(runs: Mapping[str, Sequence[Mapping[str, Any]]], seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """Both successes, seed by seed."""
    rates = {where: [each["success_rate"] for each in done] for where, done in runs.items()}
    gap = round(float(np.mean(rates["remote"]) - np.mean(rates["local"])), 9)
    episodes = {where: sum(each["episodes"] for each in done) for where, done in runs.items()}
    solved = {
        where: round(sum(each["success_rate"] * each["episodes"] for each in done)) for where, done in runs.items()
    }
    complete = set(SEEDS) <= set(seeds) and steps == STEPS
    return {
        "claim": f"{ENV}, “{GOAL}”: success of policies trained through the server less that of those trained locally",
        "value": gap,
        "unit": "share of episodes",
        "bar": f">= {-TOLERANCE}",
        "met": gap >= -TOLERANCE if complete else None,
        "n": episodes["remote"],
        "seeds": list(seeds),
        "success_remote": rates["remote"],
        "success_local": rates["local"],
        "success_remote_interval": wilson_interval(solved["remote"], episodes["remote"]),
        "success_local_interval": wilson_interval(solved["local"], episodes["local"]),
        "steps": steps,
    }


def speed(folders: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """How much longer the same training takes; both encode on this machine's cores, one in another process."""
    took = {where: [_seconds(folder) for folder in each] for where, each in folders.items()}
    ratio = float(np.median(took["remote"]) / np.median(took["local"]))
    return {
        "claim": f"{ENV}: wall time of training through the server against locally, on one machine",
        "value": round(ratio, 3),
        "unit": "ratio",
        "n": len(took["remote"]),
        "remote_s": took["remote"],
        "local_s": took["local"],
    }


def _seconds(folder: Path) -> float:
    """From the run's first to its last logged step."""
    head, *lines = (folder / "progress.csv").read_text().splitlines()
    return float(lines[-1].split(",")[head.split(",").index("time/time_elapsed")])


def main() -> None:
    """Run what is missing, one after another, recording after every seed."""
    given = dict(word.split("=") for word in sys.argv[1:])
    steps = int(given.get("steps", STEPS))
    seeds = [int(seed) for seed in given["seeds"].split(",")] if "seeds" in given else list(SEEDS)
    folder = Path(given.get("out", RESULTS))
    runs: dict[str, list[dict[str, Any]]] = {"local": [], "remote": []}
    folders: dict[str, list[Path]] = {"local": [], "remote": []}
    with server(ROOT / "server.log") as url:
        agreed = agreement(url)
        print(json.dumps(agreed), flush=True)
        for k, seed in enumerate(seeds):
            settings = [f"env={ENV}", f"seed={seed}", f"steps={steps}", "videos=1", "eval_every=0", "log_every=100"]
            for where, reward in (("local", REWARD), ("remote", ("reward=remote", f"reward.url={url}"))):
                run = ROOT / f"{where}-{steps}-s{seed}"
                runs[where].append(train(run, [*settings, *reward], free=("reward.url",)))
                folders[where].append(run)
                print(f"{run}: success {runs[where][-1]['success_rate']:.2f}", flush=True)
            record("remote", [agreed, success(runs, seeds[: k + 1], steps), speed(folders)], folder=folder)


if __name__ == "__main__":
    main()
