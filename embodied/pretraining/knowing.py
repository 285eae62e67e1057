"""What an encoder knows the look of: frames of the scenes that it was taught, beside its weights as a few numbers.

    python -m embodied.pretraining.knowing                         # the embedded encoder, its four scenes
    python -m embodied.pretraining.knowing encoder=FOLDER frames=3000

Writes `known.safetensors`, by which `preview`, `train` and `watch` tell frames that look unlike all of them
(`rewards.known`); `embodied pretrain` does so by itself. No truth of the simulator is read.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import yaml

from embodied.building.far_texts import TAUGHT
from embodied.cli import run_module
from embodied.envs import world_cameras, world_id
from embodied.errors import UserError
from embodied.paths import asset, configs
from embodied.pretraining.renders import CHUNK, render
from rewards.encoders import OpenCLIPEncoder, embedded_encoder
from rewards.known import FILE, LEAST, Known, looks

SEED = 41  # of renders that nothing else is trained or judged on
SECOND_CAMERA = 0.25  # share of frames from our scenes' second cameras, which rewards of several views read
OWN_LOOK = 0.25
FRAMES = 1600  # of a scene, rendered for this; more where it has many worlds, so that each is seen
MOST = 4000  # frames of a scene that are read: the first ones are of all its worlds in turn


def shown(worlds: list[str], count: int, *, seed: tuple[int, ...], image_size: int, workers: int = 1) -> np.ndarray:
    """(N, H, W, 3) uint8 frames of our worlds of one scene, from its first two cameras, three quarters in varied looks.

    Args:
        worlds: names of `WORLDS`.
        count: N.
        seed: as of `render`.
        image_size: H and W.
        workers: processes that render.
    """
    second = SECOND_CAMERA if len(world_cameras(worlds[0])) > 1 else 0.0
    ids = [world_id(world) for world in worlds]
    made = render(
        ids, count, seed=seed, image_size=image_size, own_look=OWN_LOOK, second_camera=second, workers=workers
    )
    return made.frames


def keep(encoder: OpenCLIPEncoder, folder: Path, scenes: Mapping[str, np.ndarray]) -> bool:
    """Fit what an encoder knows, and write it beside its weights; False where the frames are too few to say.

    Args:
        encoder: with maps.
        folder: of its weights.
        scenes: (N, H, W, 3) uint8 frames of each, in the order in which they were rendered.
    """
    if not encoder.map_layers or min(map(len, scenes.values())) < LEAST:
        (folder / FILE).unlink(missing_ok=True)
        return False
    Known.fit([looks(encoder, torch.from_numpy(frames[:MOST])) for frames in scenes.values()]).save(folder, encoder)
    return True


def main(arguments: list[str]) -> None:
    """Render, fit, write."""
    folder, frames = asset("encoder"), FRAMES
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "encoder":
            folder = Path(value)
        elif key == "frames" and value.isdigit() and int(value) >= LEAST:
            frames = int(value)
        else:
            raise UserError(f"knowing: arguments must be encoder=FOLDER or frames=N, N ≥ {LEAST}; got {argument}.")
    shipped = folder.resolve() == asset("encoder").resolve()
    encoder = embedded_encoder() if shipped else OpenCLIPEncoder(f"local-dir:{folder}")
    size = encoder.image_size[0]
    of = yaml.safe_load((configs() / "pretrain.yaml").read_text("utf-8"))["scenes"]
    scenes = {}
    for i, scene in enumerate(TAUGHT["desk"]):
        worlds = list(of[scene]["worlds"])
        scenes[scene] = shown(worlds, max(frames, CHUNK * len(worlds)), seed=(SEED, i), image_size=size)
    keep(encoder, folder, scenes)
    print(f"{FILE} in {folder}")


if __name__ == "__main__":
    sys.exit(run_module(main, "knowing"))
