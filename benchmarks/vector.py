"""What a reward of many worlds costs beside the encoder alone: `VectorScorer.step` against one `encode_images`.

The two run in turn on the same frames; the ratio is of medians. A step also takes the heads, the memories' merging and
the shaping; it makes one call of the encoder, as the other does.

    python -m benchmarks.vector
    python -m benchmarks.vector worlds=256 device=cuda
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.common import read_options, record
from rewards.clip_goal import clip_scorer
from rewards.core import Encoder, Episode, Features, Scorer
from rewards.demonstration import demonstration_scorer
from rewards.encoders import embedded_encoder
from rewards.vector import VectorScorer

DEFAULTS = {"worlds": 64, "size": 64, "repeats": 30, "device": "cpu"}
BAR = 0.95


def main() -> None:
    """Time both by turns, for a head without and one with a memory."""
    options = read_options(DEFAULTS)
    torch.set_num_threads(1)
    encoder: Encoder = embedded_encoder(device=options["device"])
    rows = []
    for name, scorer in {"clip": clip_scorer(encoder=encoder, goal="the drawer is open"),
                         "demonstration": remembering(encoder, options["size"])}.items():  # fmt: skip
        ratios, times = timed(scorer, options)
        value = float(times["encode"] / times["step"])
        print(f"{name}: {value:.3f} of the encoder's throughput", flush=True)
        rows.append({
            "claim": f"{options['worlds']} worlds a step, {name}: throughput over the bare encoder's",
            "value": value, "unit": "ratio", "bar": f">= {BAR}", "met": value >= BAR, "n": options["repeats"],
            "spread": np.quantile(ratios, [0.025, 0.975]).tolist(), "options": options,
            "ms": {key: 1000 * each for key, each in times.items()},
        })  # fmt: skip
        record("vector", rows)


def remembering(encoder: Encoder, size: int) -> Scorer:
    """A head that remembers the steps it has seen, fitted to noise that brightens."""
    frames = torch.linspace(0, 200, 20)[:, None, None, None] + 55 * torch.rand(20, size, size, 3)
    view = encoder.encode_images(frames.to(torch.uint8)).float().cpu()[None]
    demos = [Episode(features=Features(views={"main": view}), success=True)] * 2
    return demonstration_scorer(encoder=encoder, demos=demos, sequenced=True)


def timed(scorer: Scorer, options: dict[str, Any]) -> tuple[np.ndarray, dict[str, float]]:
    """Ratios of neighbours, and median seconds of each."""
    worlds, size, device = options["worlds"], options["size"], options["device"]
    frames = torch.randint(0, 255, (worlds, size, size, 3), dtype=torch.uint8, device=device)
    done = torch.zeros(worlds, dtype=torch.bool, device=device)
    vector = VectorScorer(scorer, worlds)
    vector.reset(frames)
    work: dict[str, Callable[[], Any]] = {
        "encode": lambda: scorer.encoder.encode_images(frames),
        "step": lambda: vector.step(frames, done),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(options["repeats"] + 2):
        for name, each in work.items():
            start = time.perf_counter()
            each()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat > 1:  # the first ones warm up
                seconds[name].append(time.perf_counter() - start)
    ratios = np.array(seconds["encode"]) / np.array(seconds["step"])
    return ratios, {name: float(np.median(values)) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
