"""Teaching an encoder to point: renders with the simulator's segmentation, a small projector, and its judge.

    python -m embodied.pretraining.pointing             # the embedded encoder: a quarter of an hour on two cores
    python -m embodied.pretraining.pointing encoder=FOLDER frames=8000 epochs=8 pointer=96000 seed=1
    python -m embodied.pretraining.pointing frames=0    # leaves the projector as it is

Writes `grounding.safetensors` beside the encoder's weights, for `rewards.grounding`, and then `pointer.safetensors`,
which learns from its map where the gripper is (`embodied.pretraining.pointer`; pointer=0: not). The encoder stays as it
is. The simulator's truth is used here and never by a reward.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
import yaml
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from embodied.cli import run_module
from embodied.envs.captions import Captions
from embodied.envs.world import World
from embodied.errors import UserError
from embodied.paths import asset
from embodied.pretraining.pointer import point
from embodied.pretraining.renders import open_world
from rewards.encoders import OpenCLIPEncoder, embedded_encoder
from rewards.grounding import FILE as PROJECTOR
from rewards.grounding import Grounder, Projector, resnet_maps
from rewards.pointer import FILE as POINTER
from rewards.pointer import Pointer
from rewards.progress import tqdm

WORLDS = {  # scene -> worlds that start differently, and its share of the frames
    "desk": (("desk-drawer", "desk-close", "desk-place"), 0.64),
    "reacher": (("reacher-red",), 0.16),
    "cartpole": (("cartpole",), 0.08),
    "humanoid": (("humanoid-stand",), 0.12),
}
TRAIN_SEED, JUDGE_SEED = 31, 930_001  # streams of renders that never meet
SECOND_CAMERA = 0.3  # share of frames from a scene's second camera
OWN_LOOK = 0.25
LEAST_FRAMES, LEAST_POINTER = 100, 256  # of which each scene has some, and that make a batch
VISIBLE_PX = 6  # fewer visible pixels of a part, at 96 px, are not judged
STRANGERS = 2  # texts of other scenes a frame is told not to show
POSITIVE = 6.0  # weight of a part's cells against all the others


@dataclass(frozen=True)
class Parts:
    """The named parts of one scene.

    Attributes:
        captions: part -> split -> wordings.
        geoms: part -> names of its geoms.
        bodies: part -> names of its bodies.
    """

    captions: Captions
    geoms: Mapping[str, Sequence[str]]
    bodies: Mapping[str, Sequence[str]]

    @classmethod
    def load(cls, scene: str) -> Parts:
        """Those of `sim_assets/SCENE/parts.yaml`, whose wordings may use the macros of the scene's captions."""
        macros = yaml.safe_load((asset(scene) / "captions.yaml").read_text("utf-8")).get("macros", {})
        file = asset(scene) / "parts.yaml"
        content = yaml.safe_load(file.read_text("utf-8"))["facts"]
        return cls(
            Captions.load(file, macros),
            {name: part.get("geoms", []) for name, part in content.items()},
            {name: part.get("bodies", []) for name, part in content.items()},
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.captions.facts)

    def of_geoms(self, model: mujoco.MjModel) -> np.ndarray:
        """(G + 1,) part number of each geom, counting from 1; 0 is none, and so is the last entry, of no geom."""
        numbers = np.zeros(model.ngeom + 1, np.uint8)
        for number, name in enumerate(self.names, 1):
            for geom in self.geoms[name]:
                numbers[model.geom(geom).id] = number
            for body in self.bodies[name]:
                numbers[:-1][model.geom_bodyid == model.body(body).id] = number
        return numbers


@dataclass(frozen=True)
class Segmented:
    """Frames (N, H, W, 3) uint8 and parts (N, H, W) uint8, numbered from 1 in the order of `names`; 0 is none."""

    scene: str
    names: tuple[str, ...]
    frames: np.ndarray
    parts: np.ndarray


class _Segmenter:
    """A world's frames with the part that each pixel shows."""

    def __init__(self, world: World, parts: Parts) -> None:
        self.world, self.size = world, world.image_size
        self.numbers = parts.of_geoms(world.model)
        world.frame()  # the fast settings, without which edges blend
        self.renderer = mujoco.Renderer(world.model, self.size, self.size)
        self.renderer.enable_segmentation_rendering()

    def __call__(self, camera: str) -> tuple[np.ndarray, np.ndarray]:
        frame = self.world.frame(camera)
        self.renderer.update_scene(self.world.data, camera)
        ids, kinds = np.moveaxis(self.renderer.render(), -1, 0)
        return frame, self.numbers[np.where(kinds == mujoco.mjtObj.mjOBJ_GEOM, ids, -1)]

    def close(self) -> None:
        self.renderer.close()
        self.world.close()


def segmented(
    scene: str,
    count: int,
    *,
    seed: Sequence[int],
    image_size: int,
    own_look: float = OWN_LOOK,
    second_camera: float = SECOND_CAMERA,
) -> Segmented:
    """`count` frames of a scene with its parts: half episode starts, half any plausible state.

    Args:
        own_look: share of frames with the world's own look; the rest draw light, camera pose, colours, distractors.
        second_camera: share of frames from the scene's second camera; the rest are from its first.
        seed: same seed, same frames.
    """
    parts, rng = Parts.load(scene), np.random.default_rng([*seed])
    eyes = [_Segmenter(open_world(f"embodied/{name}-v0", image_size), parts) for name in WORLDS[scene][0]]
    frames = np.empty((count, image_size, image_size, 3), np.uint8)
    labels = np.empty((count, image_size, image_size), np.uint8)
    for i in tqdm(range(count), desc=f"rendering {scene}", unit="frame", mininterval=1.0):
        see = eyes[rng.integers(len(eyes))]
        world = see.world
        world.restore_look()
        world.reset(seed=int(rng.integers(2**31)))
        if rng.random() < 0.5:
            world.sample_state(rng)
        if rng.random() >= own_look:
            world.randomize_look(rng)
        frames[i], labels[i] = see(world.cameras[int(rng.random() < second_camera)])
    for see in eyes:
        see.close()
    return Segmented(scene, parts.names, frames, labels)


def train(
    encoder: OpenCLIPEncoder,
    data: Sequence[Segmented],
    *,
    epochs: int = 5,
    batch_size: int = 32,
    lr: float = 3e-3,
    hidden: int = 64,
    seed: int = 0,
) -> Projector:
    """A projector for a frozen ResNet, by a sigmoid loss of every part's wording in every cell against its coverage.

    Args:
        encoder: an open_clip ResNet, whose towers stay as they are.
        data: of one or more scenes; a frame also hears texts of other scenes, which are nowhere in it.

    Raises:
        ValueError: an encoder that is no open_clip ResNet.
    """
    tower = getattr(encoder._image_tower, "_orig_mod", encoder._image_tower)
    if not hasattr(tower, "layer4"):
        raise ValueError(f"pointing.train: encoder must be an open_clip ResNet; got {encoder.name}.")
    texts, strangers = _texts(encoder, data)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    index = np.concatenate(
        [np.stack([np.full(len(d.frames), i), np.arange(len(d.frames))], 1) for i, d in enumerate(data)]
    )
    with torch.no_grad():
        size = encoder.image_size
        widths = [m.shape[1] for m in _maps(encoder, tower, torch.zeros(1, *size, 3, dtype=torch.uint8))]
    model = Projector(widths, encoder.dim, hidden).to(encoder.device)
    steps = epochs * (len(index) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)
    bar = tqdm(total=steps, desc="training to point", unit="step", mininterval=1.0)
    for _ in range(epochs):
        order = rng.permutation(len(index))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            rows = index[order[start : start + batch_size]]
            frames = torch.from_numpy(np.stack([data[i].frames[j] for i, j in rows]))
            loss = _loss(model, _maps(encoder, tower, frames), rows, data, texts, strangers, rng)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()
    return model.eval().requires_grad_(False)


def _maps(encoder: OpenCLIPEncoder, tower: Any, frames: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return resnet_maps(tower, encoder._preprocess(frames, encoder.device, encoder._dtype))


def _loss(
    model: Projector,
    maps: list[Tensor],
    rows: np.ndarray,
    data: Sequence[Segmented],
    texts: list[list[Tensor]],
    strangers: list[Tensor],
    rng: np.random.Generator,
) -> Tensor:
    """Sigmoid loss of one drawn wording per part, and some of other scenes, against how much of a cell is the part."""
    most = max(len(d.names) for d in data) + STRANGERS
    cells = maps[0].shape[-2:]
    words = torch.zeros(len(rows), most, model.dim)
    truth, counts = torch.zeros(len(rows), most, *cells), torch.zeros(len(rows), most)
    for b, (i, j) in enumerate(rows):
        drawn = [each[rng.integers(len(each))] for each in texts[i]]
        drawn += [strangers[i][rng.integers(len(strangers[i]))] for _ in range(STRANGERS) if len(strangers[i])]
        words[b, : len(drawn)], counts[b, : len(drawn)] = torch.stack(drawn), 1
        truth[b, : len(texts[i])] = coverage(torch.from_numpy(data[i].parts[j]), len(texts[i]), cells)
    device = maps[0].device
    truth, counts = truth.to(device), counts.to(device)
    logits = model.logits(model(maps), words.to(device))
    each = functional.binary_cross_entropy_with_logits(
        logits, truth, reduction="none", pos_weight=torch.tensor(POSITIVE)
    )
    return (each.mean((-1, -2)) * counts).sum() / counts.sum() * 10


def coverage(parts: UInt8[Tensor, "H W"], count: int, cells: Sequence[int]) -> Float[Tensor, "M h w"]:
    """Which share of each cell shows each of the parts 1 to M."""
    masks = (parts[None] == torch.arange(1, count + 1)[:, None, None]).float()
    return functional.adaptive_avg_pool2d(masks, (cells[0], cells[1]))


def _texts(encoder: OpenCLIPEncoder, data: Sequence[Segmented]) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Per scene: embeddings of its parts' training wordings; and of other scenes' whose words none of its own share."""
    wordings = [[Parts.load(d.scene).captions.facts[name]["train"].all() for name in d.names] for d in data]
    texts = [[encoder.encode_texts(each) for each in scene] for scene in wordings]
    strangers = []
    for scene in wordings:
        own = {word for each in scene for text in each for word in text.split()} - {"the", "a", "an", "of", "on"}
        other = [t for s in wordings if s is not scene for each in s for t in each if not own & set(t.split())]
        strangers.append(encoder.encode_texts(other) if other else torch.empty(0, encoder.dim))
    return texts, strangers


def judge(grounder: Grounder, data: Segmented, split: str, *, by_vector: bool = False) -> list[dict[str, float | str]]:
    """Where each wording of `split` is found, in every frame that shows its part.

    Args:
        by_vector: by the pointer, from the frame's vector, and only wordings that it knows; otherwise by the map.

    Returns:
        Per part and frame with at least `VISIBLE_PX` (of 96 x 96) visible: `part`, `text`, `error_px` from the middle
        of the visible part, in pixels of a 96-px frame, `hit` whether the found pixel shows it, `near` whether it is
        within 2 px of it, `visible_px` of the part in the frame.
    """
    wordings = Parts.load(data.scene).captions.facts
    size = data.frames.shape[1]
    unit = 96 / size
    found: list[dict[str, float | str]] = []
    for i, (frame, parts) in enumerate(zip(data.frames, data.parts, strict=True)):
        wanted = []
        for number, name in enumerate(data.names, 1):
            v, u = np.nonzero(parts == number)
            if len(v) * unit**2 >= VISIBLE_PX:
                texts = wordings[name][split].all()
                wanted.append((name, texts[i % len(texts)], np.stack([u, v], 1)))
        if not wanted:
            continue
        image, texts = torch.from_numpy(frame)[None], [text for _, text, _ in wanted]
        if by_vector:
            wanted = [each for each in wanted if grounder.points(each[1])]
            place = grounder.point(grounder.encoder.encode_images(image), frame.shape[:2])[0].numpy()
            places = [place] * len(wanted)
        else:
            places = [region.centre for region in grounder.locate(image, texts)[0]]
        for (name, text, pixels), place in zip(wanted, places, strict=True):
            gap = float(np.linalg.norm(pixels - place, axis=1).min()) * unit
            error = float(np.linalg.norm(pixels.mean(0) - place)) * unit
            row = {"part": name, "text": text, "error_px": error, "visible_px": len(pixels)}
            found.append(row | {"hit": float(gap <= 0.71 * unit), "near": float(gap <= 2)})
    return found


def ground(encoder: OpenCLIPEncoder, *, frames: int = 4000, epochs: int = 5, seed: int = 0) -> Projector:
    """Render all scenes and train a projector for an encoder."""
    size = encoder.image_size[0]
    data = [
        segmented(scene, round(frames * share), seed=(TRAIN_SEED, seed, i), image_size=size)
        for i, (scene, (_, share)) in enumerate(WORLDS.items())
    ]
    return train(encoder, data, epochs=epochs, seed=seed)


def summary(rows: Sequence[Mapping[str, float | str]]) -> str:
    """A table: per part its median and 90th-percentile error, hit rate and count."""
    lines = [f"{'part':14} {'median px':>9} {'90 % px':>8} {'hit':>6} {'near':>6} {'n':>5}"]
    for name in dict.fromkeys(str(row["part"]) for row in rows):
        mine = [row for row in rows if row["part"] == name]
        error = [float(row["error_px"]) for row in mine]
        hit, near = (np.mean([float(row[key]) for row in mine]) for key in ("hit", "near"))
        lines.append(
            f"{name:14} {np.median(error):9.2f} {np.quantile(error, 0.9):8.2f} {hit:6.3f} {near:6.3f} {len(mine):5}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """`encoder=FOLDER frames=N epochs=N pointer=N seed=N`, each optional."""
    given = {"frames": 4000, "epochs": 5, "pointer": 48_000, "seed": 0}
    folder = asset("encoder")
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "encoder":
            folder = Path(value)
        elif key in given and value.isdigit():
            given[key] = int(value)
        else:
            raise UserError(
                f"pointing: arguments must be encoder=FOLDER, frames=N, epochs=N, pointer=N or seed=N; got {argument}."
            )
    for key, least, none in (("frames", LEAST_FRAMES, True), ("pointer", LEAST_POINTER, True), ("epochs", 1, False)):
        if given[key] < least and not (none and given[key] == 0):
            expected = f"0 or at least {least}" if none else f"at least {least}"
            raise UserError(f"pointing: {key} must be {expected}; got {given[key]}.")
    shipped = folder.resolve() == asset("encoder").resolve()
    encoder = embedded_encoder() if shipped else OpenCLIPEncoder(f"local-dir:{folder}")
    if (folder / POINTER).is_file():
        try:
            Pointer.load(folder, encoder)
        except ValueError:  # of other weights, or damaged: no Grounder would take it
            (folder / POINTER).unlink()
    if given["frames"]:
        ground(encoder, frames=given["frames"], epochs=given["epochs"], seed=given["seed"]).save(folder, encoder)
    if given["pointer"]:
        words = Parts.load("desk").captions.facts["gripper"]["train"].all()
        seed = (TRAIN_SEED, len(WORLDS), given["seed"])
        point(Grounder(encoder), words, frames=given["pointer"], seed=seed).save(folder, encoder)
    grounder = Grounder(encoder)
    for scene in WORLDS:
        held = segmented(scene, 200, seed=(JUDGE_SEED - 1, 0), image_size=encoder.image_size[0])
        print("by the map\n" + summary(judge(grounder, held, "val")))
        if scene == "desk" and grounder.pointer is not None:
            print("by the vector\n" + summary(judge(grounder, held, "val", by_vector=True)))
    print(f"{', '.join(each for each in (PROJECTOR, POINTER) if (folder / each).is_file())} in {folder}")


if __name__ == "__main__":
    sys.exit(run_module(main, "pointing"))
