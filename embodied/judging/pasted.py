"""Mimed episodes out of a success's own pictures, where no counterfactual ones are to be had: approximate.

The region of the arm in each frame, as the encoder's map finds it, is pasted over the episode's first frame, so that
the robot moves as in the success and nothing else does. What was under the arm at first is taken from the later frame.
The things that the instruction names are left out of the region, so that what is gripped does not come along. A shadow
of the arm stays away; a thing that the arm hides at the end (a button under a finger) cannot be told from one at rest:
such episodes are not made.

Shape letters: T frames, M texts; H, W image; h, w map.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from embodied.datasets import Dataset
from embodied.judging.charts import FILM_FRAMES
from embodied.judging.figures import Case
from rewards.core import Encoder, Episode, Features
from rewards.encoders.frozen import FrozenEncoder
from rewards.grounding import FILE, Grounder
from rewards.phrases import noun_phrases
from rewards.storage import weights_folder

SUCCESSES = 4  # that become mimed episodes
SURE = 0.5  # of a cell, from which it shows a part
HIDDEN = (
    0.5  # share of the first named thing's place under the arm at the end, above which nothing tells what it became
)
GROWN = 48  # a region grows by a pixel for each so many of the image's side
ROBOT = ("arm", "gripper", "robot", "hand", "finger", "fingers", "fingertip")  # names in goals that are the robot's own
BATCH = 64


def pasted(
    dataset: Dataset, encoder: Encoder, cameras: Sequence[str], cases: Sequence[Case], arm: Sequence[str]
) -> tuple[list[Case], dict[str, np.ndarray]]:
    """Mimed cases of some successes, and frames of the first one's main camera by kind, to be seen.

    Args:
        dataset: that the cases are of.
        encoder: whose map finds things; none are made without a trained projector beside its weights.
        cameras: the views that rewards read, the main one first.
        cases: labelled ones.
        arm: texts for the robot.
    """
    grounder = _grounder(encoder)
    found: list[Case] = []
    shown: dict[str, np.ndarray] = {}
    successes = [case for case in cases if case.group == "success" and case.end > 0]
    for case in successes if grounder is not None and arm else ():
        made = {}
        for camera in cameras:
            frames = dataset.frames(case.index, camera, list(range(case.end + 1)))
            film = mimed(grounder, frames, arm, _things(case.episode.instruction))
            if film is None:
                break
            made[camera] = film
        if len(made) < len(cameras):
            continue
        found.append(_case(case, encoder, made))
        if not shown:
            rows = np.linspace(0, case.end, FILM_FRAMES).round().astype(int)
            main = dataset.frames(case.index, cameras[0], rows.tolist())
            shown = {"success": main, "mimed": made[cameras[0]][rows]}
        if len(found) == SUCCESSES:
            break
    return found, shown


def mimed(
    grounder: Grounder | None, frames: np.ndarray, arm: Sequence[str], things: Sequence[str]
) -> np.ndarray | None:
    """The film of a success in which the arm alone moves.

    Args:
        grounder: with a trained projector.
        frames: (T, H, W, 3) uint8 RGB, of which the last shows the success.
        arm: texts for the robot.
        things: that the goal names, the one that is to change first.

    Returns:
        The same shape; None where no thing is named, seen at first, or seen at the end.
    """
    if grounder is None or not things:
        return None
    texts = [*arm, *things]
    heat = torch.cat(
        [grounder.heat(torch.from_numpy(part), texts) for part in np.array_split(frames, -(-len(frames) // BATCH))]
    )
    size = (frames.shape[1], frames.shape[2])
    first, hand = _thing(heat[0, len(arm)], size), _robot(heat[0], len(arm), size)
    last = _robot(heat[-1], len(arm), size)
    if not first.any() or not hand.any() or not last.any() or (first & last).sum() > HIDDEN * first.sum():
        return None
    film = np.repeat(frames[:1], len(frames), 0)
    for t in range(1, len(frames)):
        region = (hand | _robot(heat[t], len(arm), size)) & ~_others(heat[t], len(arm), size)
        film[t][region] = frames[t][region]
    return film


def _thing(heat: Float[Tensor, "h w"], size: tuple[int, int]) -> np.ndarray:
    return _blown(heat[None], size)[0] > SURE


def _robot(heat: Float[Tensor, "M h w"], arms: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, where the arm is, and a little around it."""
    region = _blown(heat[:arms], size).max(0) > SURE
    steps = max(min(size) // GROWN, 1)
    return np.asarray(ndimage.binary_dilation(region, iterations=steps)) if region.any() else region


def _others(heat: Float[Tensor, "M h w"], arms: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, where a named thing is rather than the arm."""
    blown = _blown(heat, size)
    robot, things = blown[:arms].max(0), blown[arms:].max(0)
    return (things > SURE) & (things > robot)


def _blown(heat: Float[Tensor, "M h w"], size: tuple[int, int]) -> np.ndarray:
    """(M, H, W) of the frame's size."""
    return functional.interpolate(heat[None].float(), size, mode="bilinear")[0].numpy()


def _things(instruction: str) -> list[str]:
    return [name for name in noun_phrases(instruction) if name.rpartition(" ")[2] not in ROBOT]


def _grounder(encoder: Encoder) -> Grounder | None:
    """None of an encoder whose map was never taught to point, or that does not see whole frames."""
    folder = weights_folder(encoder)
    if folder is None or not (folder / FILE).is_file() or not isinstance(encoder, FrozenEncoder):
        return None
    if encoder.precision == "int8" or encoder._preprocess.mode != "squash":
        return None
    made = Grounder(encoder)
    return made if made.projector is not None else None


@torch.inference_mode()
def _case(case: Case, encoder: Encoder, films: dict[str, np.ndarray]) -> Case:
    """The success's case with other pictures, and so another outcome."""
    rows, episode = case.end + 1, case.episode
    views = {
        camera: torch.cat([encoder.encode_images(part) for part in torch.from_numpy(film).split(BATCH)]).float()[None]
        for camera, film in films.items()
    }
    signals = {name: values[:, :rows] for name, values in episode.features.signals.items()}
    features = Features(views=views, signals=signals)
    made = Episode(features=features, instruction=episode.instruction, success=False)
    return Case(episode=made, index=case.index, kind="mimed")
