"""Whether what the embedded encoder was never taught is told, and nothing else is: texts, and the look of worlds.

Texts: held-out wordings of every scene's captions and the goals that we offer (near), and sentences about other things
(far). A text is flagged where `preview` and `train` warn of it. Our own list of far texts is the one below; words were
never chosen by it.

Worlds: episodes' starts, and moments of random actions, of our taught worlds in their own look and in varied ones, by
both cameras that rewards read (near); and of worlds of Meta-World, Gymnasium-Robotics, Gymnasium's MuJoCo, dm_control,
our own town, noise, and photographs where scikit-image or scikit-learn is installed (far). A world is flagged where
most of eight frames look unlike (`rewards.known`); single frames are told beside. The worlds by which the encoder's
layer was chosen are told as `chosen_on`, and count for nothing.

    python -m benchmarks.far
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from PIL import Image

from benchmarks.common import read_options, record
from embodied.building.far_texts import TAUGHT, known_words, unknown_words
from embodied.building.far_worlds import unlike
from embodied.envs import WORLDS, world_cameras, world_scene
from embodied.envs.bridge import make
from embodied.envs.captions import Captions
from embodied.paths import asset
from rewards.encoders import embedded_encoder
from rewards.metrics import wilson_interval

FRAMES, GAP, SEED = 8, 7, 950_000  # of a world; random actions between them; of its resets
SIZE = 96
FAR_TEXTS = """the sink is full of dishes|fold the shirt on the bed|a violin|the eggs are scrambled
the dog catches a frisbee|a bowl of cherries|sharpen the pencil|the windmill is spinning
the scarf is knitted|peel the banana|a sailing ship at sea|the toaster pops|an astronaut on the moon
the curtains are drawn|the violinist takes a bow|paint the fence|a stack of newspapers
the snowman has melted|charge the battery|the kite is flying|the teapot is empty|wrap the present in paper
a herd of cows|the stapler is loaded|vacuum the carpet|the necklace is in its case|plug in the toaster
a lighthouse at night|the wine is poured|the piano is tuned|screw the bulb into the socket|a purple umbrella
the suitcase is packed|butter the toast|an orange tractor|the hammer hits the nail|the tent is pitched
a cyan teacup|scrub the pan|the guitar has new strings""".replace("\n", "|")
CHOSEN_ON = (  # of what the layer and its directions were chosen
    "metaworld/reach-v3", "dm_control/cheetah-run-v0", "dm_control/reacher-easy-v0", "dm_control/cartpole-balance-v0",
    "CartPole-v1", "FetchReach-v4", "HalfCheetah-v5", "drive-town",
)  # fmt: skip
OTHERS = (
    "metaworld/drawer-open-v3", "metaworld/button-press-v3", "metaworld/door-open-v3", "metaworld/peg-insert-side-v3",
    "metaworld/window-close-v3", "metaworld/pick-place-v3", "dm_control/walker-walk-v0", "dm_control/humanoid-stand-v0",
    "dm_control/finger-spin-v0", "dm_control/ball_in_cup-catch-v0", "dm_control/hopper-stand-v0",
    "dm_control/fish-swim-v0", "Humanoid-v5", "Ant-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5", "InvertedPendulum-v5",
    "Pusher-v5", "Reacher-v5", "MountainCarContinuous-v0", "FetchPickAndPlace-v4", "FetchSlide-v4",
    "HandReach-v3", "FrankaKitchen-v1",
)  # fmt: skip
PHOTOS = {
    "skimage": ("astronaut.png", "chelsea.png", "motorcycle_left.png", "rocket.jpg", "brick.png", "gravel.png"),
    "sklearn": ("china.jpg", "flower.jpg"),
}


def texts() -> list[dict[str, Any]]:
    """Shares of far and of near texts that are flagged in each taught scene."""
    far = FAR_TEXTS.split("|")
    told, wrong, near = 0, [], 0
    for scene in TAUGHT["desk"]:
        known, captions = known_words((scene,)), Captions.load(asset(scene) / "captions.yaml")
        told += sum(bool(unknown_words(text, known)) for text in far)
        splits = [splits[split].all() for splits in captions.facts.values() for split in ("val", "test")]
        held = [*captions.goals.values(), *(text for each in splits for text in each)]
        near += len(held)
        wrong += [text for text in held if unknown_words(text, known)]
    count = len(far) * len(TAUGHT["desk"])
    missed = sorted({text for text in far if not unknown_words(text, known_words(TAUGHT["desk"]))})
    return [
        _row("texts about other things, in each taught scene: flagged", told, count, 0.9, missed=missed),
        _row("own goals and held-out wordings: flagged", len(wrong), near, 0.05, least=False, flagged=wrong),
    ]


def near_worlds() -> Iterator[tuple[str, np.ndarray]]:
    """World, camera and look -> (F, H, W, 3) frames of episodes that no fit saw."""
    for name in (name for name in WORLDS if world_scene(name) in TAUGHT["desk"]):
        for camera in world_cameras(name)[:2]:
            for look in (None, 0):
                env = make(name, camera=camera, image_size=SIZE)
                rng = np.random.default_rng(SEED)

                def vary(env: gymnasium.Env = env, look: int | None = look, rng: np.random.Generator = rng) -> None:
                    if look is not None:
                        env.unwrapped.restore_look()  # pyright: ignore[reportAttributeAccessIssue]
                        env.unwrapped.randomize_look(rng)  # pyright: ignore[reportAttributeAccessIssue]

                yield f"{name}, {camera}, {'own look' if look is None else 'varied looks'}", filmed(env, vary)


def far_worlds(names: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """World -> (F, H, W, 3) frames; those whose package is not there are left out."""
    packages = {"metaworld/": "metaworld", "dm_control/": "dm_control", "Fetch": "gymnasium_robotics"}
    packages |= {"Hand": "gymnasium_robotics", "Franka": "gymnasium_robotics"}
    for name in names:
        needed = [package for start, package in packages.items() if name.startswith(start)]
        if all(importlib.util.find_spec(package) for package in needed):
            yield name, filmed(make(name, image_size=SIZE))


def filmed(env: gymnasium.Env, vary: Callable[[], None] = lambda: None) -> np.ndarray:
    """(F, H, W, 3) frames: every other one of an episode's start, the rest of random actions after it."""
    env.action_space.seed(SEED)
    frames = []
    for episode in range(FRAMES // 2):
        env.reset(seed=SEED + episode)
        vary()
        frames.append(env.unwrapped.frame())  # pyright: ignore[reportAttributeAccessIssue]
        for _ in range(GAP):
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                break
        frames.append(env.unwrapped.frame())  # pyright: ignore[reportAttributeAccessIssue]
    env.close()
    return np.stack(frames)


def pictures() -> Iterator[tuple[str, np.ndarray]]:
    """Photographs -> (F, H, W, 3) crops, and noise of several kinds."""
    rng = np.random.default_rng(SEED)
    for package, names in PHOTOS.items():
        if (spec := importlib.util.find_spec(package)) is None or spec.origin is None:
            continue
        for name in names:
            file = next(Path(spec.origin).parent.rglob(name))
            yield f"photograph {name}", crops(Image.open(file).convert("RGB"), rng)
    yield "white noise", rng.integers(0, 256, (FRAMES, SIZE, SIZE, 3), np.uint8)
    soft = torch.from_numpy(rng.uniform(0, 255, (FRAMES, 3, 12, 12)))
    blown = torch.nn.functional.interpolate(soft, (SIZE, SIZE), mode="bicubic").clamp(0, 255)
    yield "soft noise", blown.permute(0, 2, 3, 1).to(torch.uint8).numpy()
    steps = np.arange(FRAMES, dtype=np.uint8)[:, None, None, None] * 30
    yield "one grey", np.broadcast_to(steps, (FRAMES, SIZE, SIZE, 3)).copy()


def crops(picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """(F, H, W, 3) squares of a photograph, at least half of its shorter side."""
    width, height = picture.size
    found = []
    for _ in range(FRAMES):
        side = int(min(width, height) * rng.uniform(0.5, 1))
        left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        found.append(np.asarray(picture.crop((left, top, left + side, top + side)).resize((SIZE, SIZE))))
    return np.stack(found)


def worlds() -> list[dict[str, Any]]:
    """Shares of far and near worlds, and of their frames, that look unlike."""
    encoder = embedded_encoder()

    def looked(sources: Iterator[tuple[str, np.ndarray]]) -> dict[str, float]:
        found = {}
        for name, frames in sources:
            share = unlike(encoder, list(frames))
            assert share is not None, "the embedded encoder must have what it knows beside it"
            found[name] = share
            print(f"{name}: {share:.2f}", flush=True)
        return found

    near, chosen = looked(near_worlds()), looked(far_worlds(CHOSEN_ON))
    far = looked(far_worlds(OTHERS)) | looked(pictures())
    rows = []
    for claim, shares, bar, least in (
        ("worlds and pictures it was never taught: flagged", far, 0.9, True),
        ("own worlds, two cameras, own look and varied ones: flagged", near, 0.05, False),
    ):
        flagged = sum(share > 0.5 for share in shares.values())
        by_name = {name: round(share, 2) for name, share in shares.items()}
        told = f"{claim} ({np.mean(list(shares.values())):.2f} of single frames)"
        rows.append(_row(told, flagged, len(shares), bar, least=least, shares=by_name))
    rows[0]["chosen_on"] = chosen
    return rows


def _row(claim: str, count: int, total: int, bar: float, *, least: bool = True, **detail: Any) -> dict[str, Any]:
    value = count / total
    low, high = wilson_interval(count, total)
    return {
        "claim": claim,
        "value": value,
        "unit": "share",
        "bar": f"{'>=' if least else '<='} {bar}",
        "met": value >= bar if least else value <= bar,
        "n": total,
        "interval": [low, high],
        **detail,
    }


def main() -> None:
    """Look at everything, record."""
    read_options({})
    torch.set_num_threads(1)
    record("far", [*texts(), *worlds()])


if __name__ == "__main__":
    main()
