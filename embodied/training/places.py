"""Where a learner looks that reads places: as a fine-tuned policy does, or as the demonstrations teach it first."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from embodied.building.worlds import env_maker
from embodied.collecting.opening import open_demonstrations
from embodied.config import compose
from embodied.errors import UserError
from embodied.finetuning import inputs
from embodied.finetuning.places import PlaceReader
from embodied.finetuning.stages import FinetuningRun
from embodied.finetuning.training import POLICY
from policies.vla.core import CONFIG, ChunkPolicy
from rewards.core import Encoder

FOLDER = "places"  # of a run, what it learned to look for
UPDATES = 2000


def place_reader(config: DictConfig, encoder: Encoder, views: Sequence[str]) -> PlaceReader:
    """What `env.places` says: of a policy in a folder, or of one that imitates the demonstrations for so many updates.

    Args:
        config: a verb's.
        encoder: that sees.
        views: what it will be shown.

    Raises:
        UserError: neither; no demonstrations to learn from; or an encoder without maps.
    """
    given, sentence = config.env.get("places"), _sentence(config)
    given = UPDATES if given is None else given
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return PlaceReader(_learned(config, encoder, views, sentence, given), encoder, sentence, views)
    if isinstance(given, str) and (_policy(Path(given)) / CONFIG).is_file():
        return PlaceReader(ChunkPolicy.load(_policy(Path(given))), encoder, sentence, views)
    raise UserError(f"env.places must be a number of updates, or a folder of embodied finetune; got {given!r}.")


def _policy(folder: Path) -> Path:
    """The folder of the policy that a run of `finetune` ended with; of a folder that is no run, itself."""
    about = folder / "run.json"
    name = json.loads(about.read_text("utf-8")).get("policy") if about.is_file() else None
    return folder / str(name) / POLICY if name else folder


def _sentence(config: DictConfig) -> str:
    """The world's own: what the demonstrations' is where we collect them."""
    env = env_maker(config)()
    try:
        return str(getattr(env.unwrapped, "instruction", ""))
    finally:
        env.close()


def _learned(config: DictConfig, encoder: Any, views: Sequence[str], sentence: str, steps: int) -> ChunkPolicy:
    """Imitation of the demonstrations that did not fail, all told the same sentence."""
    if not config.get("demos"):
        raise UserError(
            "env.obs=places needs demonstrations, from which it learns where to look (demos=10), or what was learned "
            "before (env.places=runs/finetune/…)."
        )
    dataset, chosen = open_demonstrations(config, views)
    learning = compose("finetune", [])
    OmegaConf.set_struct(learning, False)
    learning.data, learning.seed, learning.steps = str(dataset.root), int(config.seed), steps
    learning.validation = 0  # all are learned from
    learning.policy.cameras = list(views)
    planned = inputs.plan(learning)
    planned = replace(planned, sources=tuple(replace(source, chosen=chosen) for source in planned.sources))
    told = inputs.Sentences(encoder)([sentence])

    def say(texts: Sequence[str]) -> Tensor:
        return told.expand(len(texts), -1)

    with tempfile.TemporaryDirectory() as folder:
        made = FinetuningRun(learning, Path(folder), encoder, planned)
        rows = inputs.windows(made.episodes, planned, learning.policy.horizon, say)
        told_of = [dataset.recording(i, cameras=()).success for i in chosen]
        failed = np.array([success is not None and not success.any() for success in told_of])
        weights = rows.usable & ~failed[rows.episode]
        return made.train(FOLDER, made.fresh(), weights.astype(float), rows)
