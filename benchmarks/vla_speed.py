"""Actions at once against one after another, on the same body: a SmolVLM of random weights and about 30 M parameters.

H = 8 actions of A = 7 entries, one picture, one robot. `l1` answers all slots in one pass; `tokens` says 56 of 256 bins
one by one, its prefix computed once and kept. `bare` is what the body's own towers take for as many tokens, without
anything of ours. By turns in one process; medians. Nothing else may run.

    python -m benchmarks.vla_speed
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import read_options, record
from benchmarks.measure import use_two_cores
from policies.vla.core import ChunkPolicy, Spec
from policies.vla.embedded import ChunkObservation
from policies.vla.stats import Normaliser
from tests.tiny_vla import save_tiny_backbone

OPTIONS: dict[str, Any] = {"repeats": 15, "width": 512, "layers": 8, "wide": 1536, "record": True}
ACTIONS, STATES, HORIZON, SIZE = tuple("xyzabcg"), tuple("xyzabcgs"), 8, 224


def made(folder: Path, head: str) -> ChunkPolicy:
    """A policy on the body in a folder."""
    torch.manual_seed(0)
    rows = np.random.default_rng(0).normal(size=(100, 8))
    spec = Spec(
        cameras={"front": 3}, states=STATES, actions=ACTIONS, text=0, horizon=HORIZON, fps=20.0, head=head,
        backbone={"source": str(folder), "train": "head", "size": SIZE, "augment": False},
    )  # fmt: skip
    state = Normaliser.fit(rows, "mean_std", names=STATES)
    return ChunkPolicy(spec, state, Normaliser.fit(rows[:, :7], "quantile", names=ACTIONS)).eval()


def bare(policy: ChunkPolicy, obs: ChunkObservation) -> Callable[[], Any]:
    """The body's own forward pass over as many tokens."""
    body: Any = policy.fusion
    pictures = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        count = policy.look(obs).tokens.shape[1] + HORIZON * len(ACTIONS)
    tokens = torch.randn(1, count, body.width)

    def forward() -> None:
        with torch.no_grad():
            body.network.connector(body.network.vision_model(pixel_values=pictures).last_hidden_state)
            body.network.text_model(inputs_embeds=tokens, use_cache=False)

    return forward


def main() -> None:
    """Measure and record."""
    options = read_options(OPTIONS)
    use_two_cores()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory(prefix="vla-speed-") as root:
        folder = Path(root) / "smolvlm"
        save_tiny_backbone(folder, "smolvlm", width=options["width"], layers=options["layers"], wide=options["wide"],
                           size=SIZE, patch=16)  # fmt: skip
        policies = {head: made(folder, head) for head in ("l1", "tokens")}
    body: Any = policies["l1"].fusion
    count = sum(value.numel() for value in body.network.parameters())
    obs = ChunkObservation(
        {"front": torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)}, {"front": torch.ones(1, dtype=torch.bool)},
        body.prompts(["put the cube in the tray"]), torch.zeros(1, len(STATES)),
    )  # fmt: skip
    timed: dict[str, Callable[[], Any]] = {name: lambda p=p: p.predict_chunk(obs) for name, p in policies.items()}
    timed["bare"] = bare(policies["l1"], obs)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in range(options["repeats"] + 2):
        for name, call in timed.items():
            began = time.perf_counter()
            call()
            if repeat >= 2:  # warm
                seconds[name].append(time.perf_counter() - began)
    median = {name: float(np.median(each)) for name, each in seconds.items()}
    ratio, over = median["tokens"] / median["l1"], median["l1"] / median["bare"]
    told = f"SmolVLM of random weights, {count / 1e6:.0f} M parameters, H 8, A 7, 2 cores"
    detail = {"n": options["repeats"], "ms": {name: round(1e3 * each, 1) for name, each in median.items()},
              "actions_per_s": {name: round(HORIZON / median[name], 2) for name in ("l1", "tokens")}}  # fmt: skip
    rows = [
        {"claim": f"{told}: all actions at once against 56 tokens one by one", "value": round(ratio, 2), "unit": "x",
         "bar": ">= 20", "met": ratio >= 20, **detail},
        {"claim": f"{told}: a call of the policy against the body's bare forward pass", "value": round(over, 3),
         "unit": "x", "bar": "<= 1.15", "met": over <= 1.15, **detail},
    ]  # fmt: skip
    print(json.dumps(rows, indent=2))
    if options["record"]:
        record("vla_speed", rows)


if __name__ == "__main__":
    main()
