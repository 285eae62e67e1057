"""Where phrases are found, by the encoder's map and from a frame's vector alone.

On states, looks, camera poses and wordings that are kept for judging.

python -m benchmarks.grounding
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common import record
from embodied.pretraining.pointing import JUDGE_SEED, WORLDS, judge, segmented, summary
from rewards.encoders import embedded_encoder
from rewards.grounding import Grounder
from rewards.metrics import bootstrap_interval

FRAMES = 300  # per scene and view
VIEWS = {  # name -> share of own look, share of frames from the second camera
    "own look": (1.0, 0.0),
    "varied look and camera pose": (0.0, 0.0),
    "second camera, varied look and pose": (0.0, 1.0),
}
WAYS = {"by the map": False, "by the vector": True}  # name -> whether the frame's vector is all that is seen


def main() -> None:
    """Render, judge, record."""
    grounder = Grounder(embedded_encoder())
    found: list[dict[str, Any]] = []
    for number, (view, (own, second)) in enumerate(VIEWS.items()):
        for index, scene in enumerate(WORLDS):
            seed = (JUDGE_SEED, number, index)
            data = segmented(
                scene, FRAMES, seed=seed, image_size=grounder.encoder.image_size[0], own_look=own, second_camera=second
            )
            for by, by_vector in WAYS.items():
                rows = judge(grounder, data, "test", by_vector=by_vector)
                if not rows:  # the vector tells one thing, which is not in this scene
                    continue
                about = f"{by}, {scene}, {view}"
                print(f"{about}\n{summary(rows)}")
                found.extend(claims(about, rows))
    record("grounding", found)


def claims(about: str, rows: Sequence[Mapping[str, float | str]]) -> list[dict[str, Any]]:
    """Median error and hit rates of one way, scene and view, over phrases of parts that are in sight."""
    parts = {name: [row for row in rows if row["part"] == name] for name in dict.fromkeys(r["part"] for r in rows)}
    errors = np.array([float(row["error_px"]) for row in rows])
    low, high = bootstrap_interval(errors, np.median)
    about = f"{about}, unseen wordings"
    shared = {"n": len(rows), "frames": FRAMES}
    by_part = {str(name): round(float(np.median([float(r["error_px"]) for r in m])), 2) for name, m in parts.items()}
    found = [
        {
            "claim": f"{about}: median distance from the middle of what is visible",
            "value": float(np.median(errors)),
            "unit": "px of 96",
            "interval": [low, high],
            "share_of_image": float(np.median(errors)) / 96,
            "by_part": by_part,
            **shared,
        }
    ]
    for key, what in (("hit", "the pixel shows the part"), ("near", "the pixel is within 2 px of the part")):
        values = np.array([float(row[key]) for row in rows])
        low, high = bootstrap_interval(values)
        found.append(
            {
                "claim": f"{about}: {what}",
                "value": float(values.mean()),
                "unit": "share",
                "interval": [low, high],
                "by_part": {str(n): round(float(np.mean([float(r[key]) for r in m])), 3) for n, m in parts.items()},
                **shared,
            }
        )
    return found


if __name__ == "__main__":
    main()
