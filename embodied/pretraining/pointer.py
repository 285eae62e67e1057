"""Teaching an encoder's vectors to tell where the gripper is: what its map finds in renders, a small network reads off.

`python -m embodied.pretraining.pointing` trains it after the map's projector, and writes it beside the encoder's
weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from embodied.envs import DESK, world_id
from embodied.pretraining.renders import render
from rewards.grounding import Grounder
from rewards.pointer import SPREAD, Pointer
from rewards.progress import tqdm

SURE = 0.3  # the least peak of the map from which a place is learned
OWN_LOOK, SECOND_CAMERA = 0.4, 0.2  # shares of the frames


def point(grounder: Grounder, words: Sequence[str], *, frames: int, seed: Sequence[int]) -> Pointer:
    """Render episodes and single states of the desk, and train a pointer.

    Args:
        grounder: with a projector, whose peaks are probabilities.
        words: for the gripper; the map is asked for the first.
        seed: same seed, same pointer.
    """
    made = render(
        [world_id(name) for name in DESK],
        frames,
        seed=(*seed,),
        image_size=grounder.encoder.image_size[0],
        own_look=OWN_LOOK,
        second_camera=SECOND_CAMERA,
    )
    vectors, places = see(grounder, words[0], made.frames)
    return teach(vectors, places, grounder.encoder.encode_texts(words), seed=seed[-1])


def see(
    grounder: Grounder, text: str, frames: UInt8[np.ndarray, "N H W 3"]
) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M 2"]]:
    """The vectors of those frames in which the map is sure of a text, and its places there in shares of the sides.

    Raises:
        ValueError: there is no such frame.
    """
    encoder = grounder.encoder
    size = np.array([frames.shape[2], frames.shape[1]])
    vectors: list[Tensor] = []
    places: list[np.ndarray] = []
    starts = range(0, len(frames), encoder.batch_size)
    for start in tqdm(starts, desc="looking for the gripper", unit="batch", mininterval=1.0):
        batch = torch.from_numpy(frames[start : start + encoder.batch_size])
        for vector, (region,) in zip(encoder.encode_images(batch), grounder.locate(batch, [text]), strict=True):
            if region.peak >= SURE:
                vectors.append(vector)
                places.append((region.centre + 0.5) / size)
    if not places:
        raise ValueError(f"see: frames must show {text!r}; in none of {len(frames)} is the map sure of it.")
    return torch.stack(vectors), torch.from_numpy(np.array(places)).float()


def teach(
    vectors: Float[Tensor, "N D"],
    places: Float[Tensor, "N 2"],
    words: Float[Tensor, "W D"],
    *,
    epochs: int = 40,
    batch_size: int = 256,
    lr: float = 2e-3,
    hidden: int = 512,
    seed: int = 0,
) -> Pointer:
    """A pointer by the mean distance to the places, in shares of the image's sides."""
    torch.manual_seed(seed)
    batch_size = min(batch_size, len(vectors))
    model = Pointer(words, hidden)
    model.mean.copy_(vectors.mean(0))
    model.std.copy_(vectors.std(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    steps = epochs * (len(vectors) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    bar = tqdm(total=steps, desc="training to read places", unit="step", mininterval=1.0)
    for _ in range(epochs):
        order = torch.randperm(len(vectors))
        for rows in order.split(batch_size)[: len(vectors) // batch_size]:
            gaps = (model(vectors[rows]) - places[rows]) / SPREAD
            loss = (gaps.square().sum(-1) + 1e-3).sqrt().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()
    return model.eval().requires_grad_(False)
