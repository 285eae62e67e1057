"""What each embedded reward costs beside the encoding of the frames it scores.

Rewards have their defaults: five demonstrations of the scripted expert, the front camera, the drawer task. Every
episode (experts, noisy ones, near misses, random actions) is encoded in one batch and then scored once by each reward
as if it were new, plans of its first frame included, on one thread. `keypoint` is also measured without the camera's
calibration, which it then finds from the demonstrations; and without these too, as on pictures of unknown origin, where
each frame's vector tells it where the gripper is.

    python -m benchmarks.heads     # quiet machine
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import record
from embodied.building.build import build
from embodied.collecting.opening import open_dataset
from embodied.config import compose
from embodied.judging.cases import read_cases
from embodied.judging.judgement import potential
from embodied.judging.rewards import make_scorers, reward_parts
from rewards.metrics import bootstrap_interval
from rewards.progress import tqdm

DATA = Path("runs", "benchmarks", "heads", "desk-drawer-mixed")
SEED, EPISODES, WARM = 7100, 40, 4
GOAL, OTHER = "the drawer is open", "the drawer is closed"
TEXTS = ("clip", "contrast", "softmax", "synthesis", "calibrated")
REWARDS = (
    *TEXTS, "keypoint", "demonstration", "xirl", "rapl", "process", "success", "goal_image", "preference", "vpl",
)  # fmt: skip
WORDS = [
    *(f'reward.{name}.goal="{GOAL}"' for name in TEXTS),
    *(f'reward.{name}.negative="{OTHER}"' for name in ("contrast", "synthesis")),
    f'reward.softmax.negative=["{OTHER}"]', "reward.calibrated.threshold=0.5", "reward.keypoint.demos=5",
]  # fmt: skip
WITHOUT = {  # name -> what is taken from keypoint's config
    "keypoint, no calibration": {"calibration": {}},
    "keypoint, no calibration and no demonstrations": {"calibration": {}, "demos": None},
}
BAR = 0.1


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(1)
    collect()
    config = compose("judge", [f"reward=[{','.join(REWARDS)}]", *WORDS, f"data={DATA}"])
    dataset, encoder = open_dataset(str(DATA)), build(config.encoder)
    camera = dataset.cameras[0]
    parts = reward_parts(config, dataset.instruction(0))
    parts |= {name: parts["keypoint"] | less for name, less in WITHOUT.items()}
    scorers = make_scorers(parts, encoder, dataset.env | {"camera": camera}, (), [camera])
    cases = read_cases(dataset, encoder, [camera], unlabelled="skip", frames_read="all")
    seconds = {name: [] for name in ("encoding", *scorers)}
    for case in tqdm(cases, desc="scoring", unit="episode"):
        features = case.episode.features
        start = time.perf_counter()
        encoder.encode_images(features.frames[camera][0])
        seconds["encoding"].append(time.perf_counter() - start)
        for name, scorer in scorers.items():
            start = time.perf_counter()
            potential(scorer, features)
            seconds[name].append(time.perf_counter() - start)
    record("heads", [row(name, seconds) for name in scorers])


def collect() -> None:
    """The episodes, as far as they are not there."""
    words = ["env=desk-drawer", "policy=mixed", f"episodes={EPISODES + WARM}", f"seed={SEED}", f"out={DATA}"]
    command = [sys.executable, "-m", "embodied.cli", "collect", *words]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def row(name: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """A reward's time over the encoder's, of all episodes but the first few."""
    times = np.array([seconds[name], seconds["encoding"]])[:, WARM:]
    value = float(times[0].sum() / times[1].sum())
    print(f"{name}: {value:.3f} of encoding", flush=True)
    return {
        "claim": f"{name}: time of scoring over time of encoding",
        "value": value,
        "unit": "ratio",
        "bar": f"<= {BAR}",
        "met": value <= BAR,
        "n": times.shape[1],
        "seeds": [SEED],
        "interval": bootstrap_interval(times.T, lambda rows: float(rows[:, 0].sum() / rows[:, 1].sum())),
        "milliseconds": (1000 * np.median(times, 1)).tolist(),
    }


if __name__ == "__main__":
    main()
