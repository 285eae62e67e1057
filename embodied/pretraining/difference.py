"""Keep of an encoder that went on from the shipped one what is new, as the town's ships: `town.safetensors`.

    python -m embodied.pretraining.difference runs/town sim_assets/encoder/town.safetensors

RUN is a folder of `embodied pretrain model=shipped`. Words that no caption of its scenes has stay the shipped ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from omegaconf import DictConfig
from safetensors.torch import load_file

from embodied.cli import run_module
from embodied.envs.captions import NEGATIONS, OPENINGS, Captions
from embodied.errors import UserError
from embodied.literal import load_literal
from embodied.paths import asset
from rewards.encoders.difference import save_difference
from rewards.encoders.towers import WEIGHTS, Towers


def taught_tokens(config: DictConfig, towers: Towers) -> torch.Tensor:
    """(K,) the tokens of every training wording of a run's scenes.

    Args:
        config: of `embodied pretrain`, as the run keeps it.
        towers: whose tokenizer counts.
    """
    texts = {*OPENINGS, *NEGATIONS}
    for name in config.use:
        file = config.scenes[name].captions or asset(name) / "captions.yaml"
        captions = Captions.load(Path(file))
        for splits in (*captions.facts.values(), *captions.denials.values()):
            texts |= set(splits["train"].all())
    return torch.unique(towers.tokenize(sorted(texts)))


def main(arguments: list[str]) -> None:
    """Write the file."""
    if len(arguments) != 2:
        raise UserError("arguments must be a run folder of embodied pretrain model=shipped, and the file to write; "
                        f"got {' '.join(arguments) or 'none'}.")  # fmt: skip
    run, file = map(Path, arguments)
    base = load_file(asset("encoder") / WEIGHTS)
    words = taught_tokens(load_literal(run / "config.yaml"), Towers(f"local-dir:{asset('encoder')}", device="cpu"))
    save_difference(file, base, load_file(run / "encoder" / WEIGHTS), words)
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(run_module(main, "difference"))
