"""Keypoint rewards whose camera nobody calibrated: found from five demonstrations, or not at all.

Episodes of seeds that nothing was tuned on (experts, noisy ones, near misses, random actions), judged by
`embodied judge`: with the camera's calibration, with the camera found from demonstrations, and without either, where
each frame's vector tells where the gripper is. No depth: all plan in the image.

    python -m benchmarks.keypoint_camera
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import record
from benchmarks.judging import FIGURES, embodied, number
from embodied.collecting.opening import open_dataset
from embodied.datasets.encoding import encode
from rewards.encoders import embedded_encoder
from rewards.grounding import Grounder
from rewards.keypoint.camera import TIP, camera_from_demos
from rewards.keypoint.reward import GRIPPER
from rewards.metrics import bootstrap_interval

ROOT = Path("runs", "benchmarks", "keypoint_camera")
TASKS = ("drawer", "press", "place", "close")
SEED, EPISODES, DEMOS = 7200, 40, 5
CAMERA, SIDE = "front", 96
WAYS = {  # name -> settings of reward.keypoint
    "calibrated": ["reward.demos=5"],
    "camera found from 5 demonstrations": ["reward.demos=5", "reward.calibration={}"],
    "gripper told by each frame's vector": ["reward.calibration={}"],
}


def main() -> None:
    """Collect, judge and record, task by task."""
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for task in TASKS:
        data = ROOT / f"{task}-data"
        embodied(task, "collect", f"env=desk-{task}", "policy=mixed", f"episodes={EPISODES}", f"seed={SEED}", out=data)
        for k, (way, words) in enumerate(WAYS.items()):
            found += judged(task, way, words, data, ROOT / f"{task}-{k}")
        found += distances(task, data)
        record("keypoint_camera", found)


def judged(task: str, way: str, words: list[str], data: Path, folder: Path) -> list[dict[str, Any]]:
    """What `embodied judge` says of one way."""
    if not (folder / "report.html").is_file():
        embodied(task, "judge", "reward=keypoint", *words, f"cameras=[{CAMERA}]", f"data={data}", run=folder)
    judgement = json.loads((folder / "judgement.json").read_text("utf-8"))["rewards"]["keypoint"]
    rows = []
    for key, told in FIGURES.items():
        figure = judgement["figures"][key]
        rows.append(
            {
                "claim": f"desk-{task}, {way}: {told}",
                "value": number(figure["value"]),
                "unit": "AUROC" if key == "auroc" else "correlation",
                "n": len(judgement["potentials"]),
                "seeds": [SEED],
                "interval": [figure["low"], figure["high"]],
            }
        )
        print(f"{rows[-1]['claim']}: {rows[-1]['value']:.3f}", flush=True)
    return rows


def distances(task: str, data: Path) -> list[dict[str, Any]]:
    """How far the gripper is from where the map sees it: by a found camera, in other episodes, and by the vector."""
    encoder = embedded_encoder()
    grounder = Grounder(encoder)
    expert = open_dataset(f"desk-{task}-expert")
    demos = encode(expert, encoder, cameras=[CAMERA], indices=range(DEMOS), frames_read="all")
    found = camera_from_demos(demos, grounder, GRIPPER, CAMERA)
    assert found is not None, task
    medians: dict[str, list[float]] = {"the found camera": [], "its frame's vector": []}
    for episode in encode(open_dataset(str(data)), encoder, cameras=[CAMERA], frames_read="all"):
        frames = episode.features.frames[CAMERA][0]
        height, width = frames.shape[1:3]
        tips = torch.stack([episode.features.signals[name][0] for name in TIP], -1).numpy()
        vectors = episode.features.views[CAMERA][0]
        places = found.camera.project(tips), grounder.point(vectors, (height, width)).numpy()
        seen = grounder.track(frames, GRIPPER).numpy()
        for gaps, each in zip(medians.values(), places, strict=True):
            gaps.append(float(np.median(np.linalg.norm(each - seen, axis=1)) * SIDE / height))
    return [
        {
            "claim": f"desk-{task}: gripper by {way}, from where the map sees it; median of an episode's frames",
            "value": float(np.median(gaps)),
            "unit": f"px of {SIDE}",
            "n": len(gaps),
            "seeds": [SEED],
            "interval": bootstrap_interval(np.array(gaps), np.median),
        }
        for way, gaps in medians.items()
    ]


if __name__ == "__main__":
    main()
