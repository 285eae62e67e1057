"""Where named things are in frames, as numbers that a policy can read, and the frames' vectors of the same pass.

Shape letters: B frames, M things, D feature width, C channels, N = h w cells; H, W image; h, w map.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from rewards.core import Encoder, check_frames
from rewards.grounding import EDGE, FAINT, Grounder, Projector, resnet_maps
from rewards.phrases import noun_phrases

GAP = 1 / 8  # of a map's width: pieces of a thing that are less apart are one thing, as the fingers of a gripper are


class PointReader:
    """Named things in frames: (u, v, peak) each, and the frames' vectors, of one pass through the encoder.

    With a trained projector beside the encoder's weights the tower runs once, and its four maps give both. Other
    encoders run twice, and their peaks have no scale: they are above ½ whether or not a thing is there.

    A compiled encoder is read uncompiled.

    Args:
        encoder: see `Grounder`.
        things: phrases, such as `things` gives.

    Raises:
        ValueError: no things, one that the encoder cannot embed, or an encoder without maps.
    """

    def __init__(self, encoder: Encoder, things: Sequence[str]) -> None:
        self.things = tuple(things)
        if isinstance(things, str) or not self.things:
            raise ValueError(
                f"PointReader: things must be a list of at least one name; got {things!r}. Try ['the red cube']."
            )
        self._grounder = Grounder(encoder)
        self._encoder = self._grounder.encoder
        texts = self._encoder.encode_texts(self.things)
        projector = self._grounder.projector
        self._map = None if projector is None else _FixedTexts(projector, texts, self._encoder._dtype)
        self._grids: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def read(self, frames: UInt8[Tensor, "B H W 3"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B M 3"]]:
        """What the encoder makes of frames, and where the things are in them.

        Args:
            frames: RGB, any size.
        Returns:
            vectors: (B, D) those of `encode_images`, up to rounding; on the CPU.
            points: (B, M, 3) per thing u (rightwards) and v (downwards), -1 to 1 over the frame and 0 in its middle,
                and its highest probability, 0 to 1; on the CPU. See `peaks`.
        Raises:
            TypeError, ValueError: frames of another kind or shape.
        """
        check_frames(frames, "PointReader.read")
        vectors, points = [torch.empty(0, self._encoder.dim)], [torch.empty(0, len(self.things), 3)]
        for batch in frames.split(self._encoder.batch_size) if len(frames) else ():
            seen, heat = self._look(batch)
            vectors.append(seen.cpu())
            points.append(peaks(heat, self._grid(batch, heat)).cpu())
        return torch.cat(vectors), torch.cat(points)

    def _look(self, frames: Tensor) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B M h w"]]:
        """Vectors and probabilities of one batch."""
        encoder, grounder = self._encoder, self._grounder
        if self._map is None:
            return encoder.encode_images(frames), grounder.heat(frames, self.things)
        tower: Any = grounder._tower
        maps = resnet_maps(tower, encoder._preprocess(frames, encoder.device, encoder._dtype))
        return functional.normalize(tower.attnpool(maps[-1]).float(), dim=-1), self._map(maps)

    def _grid(self, frames: Tensor, heat: Tensor) -> Float[Tensor, "h w 2"]:
        """(u, v) of the cells' middles, -1 to 1 over the frame."""
        height, width = frames.shape[1:3]
        key = (height, width, *heat.shape[2:])
        if key not in self._grids:
            cells = self._grounder._cells(height, width, tuple(heat.shape[2:]))
            shares = (cells + 0.5) / [width, height]
            self._grids[key] = torch.from_numpy(2 * shares - 1).float().clamp(-1, 1).to(heat.device)
        return self._grids[key]


class _FixedTexts:
    """A projector's map of texts that do not change, without its D-dimensional vectors.

    A cell's logit is scale · t·(W x + b) / |W x + b| + bias for a text t and its hidden channels x. With [W b] = Q R,
    |W x + b| is the length of R [x 1], which has C + 1 numbers instead of D; the texts are folded into W too, so that
    one product gives both. What comes before is the projector's own, in the encoder's precision.

    Args:
        projector: see `rewards.grounding`.
        texts: (M, D), as the encoder embeds them.
        dtype: of the encoder's maps.
    """

    def __init__(self, projector: Projector, texts: Float[Tensor, "M D"], dtype: torch.dtype) -> None:
        device = projector.scale.device
        texts = texts.to(device)
        texts = functional.normalize(texts + projector.text(texts), dim=-1).cpu().double()  # Apple's GPU has no float64
        assert projector.out.bias is not None
        weights = torch.cat([projector.out.weight[:, :, 0, 0], projector.out.bias[:, None]], 1).cpu().double()  # [W b]
        root = torch.linalg.qr(weights).R
        rows = torch.cat([root, projector.scale.cpu().double().exp() * texts @ weights])
        self._length, self._bias = len(root), projector.bias
        self._weight, self._shift = rows[:, :-1].to(device, dtype).contiguous(), rows[:, -1].to(device, dtype)
        self._parts = copy.deepcopy(projector).to(dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._spread: dict[tuple[torch.Size, ...], Tensor] = {}

    def __call__(self, maps: Sequence[Tensor]) -> Float[Tensor, "B M h w"]:
        """Probabilities, from what `resnet_maps` gives."""
        height, width = maps[0].shape[-2:]
        fine, *coarse = (reduce(values) for reduce, values in zip(self._parts.reduce, maps, strict=True))
        spread = self._upsampling((height, width), coarse).to(fine).expand(len(fine), -1, -1)
        cells = torch.baddbmm(_rows(fine), spread, torch.cat([_rows(each) for each in coarse], 1))
        x = functional.gelu(cells.unflatten(1, (height, width)).permute(0, 3, 1, 2))
        for mix in self._parts.mix:
            x += functional.gelu(mix(x))
        values = functional.linear(_rows(x), self._weight, self._shift).float()
        lengths = torch.linalg.vector_norm(values[..., : self._length], dim=-1, keepdim=True)
        logits = values[..., self._length :] / lengths.clamp_min(1e-12) + self._bias  # as `normalize` clamps
        return logits.sigmoid().transpose(1, 2).unflatten(-1, (height, width))

    def _upsampling(self, size: tuple[int, int], maps: Sequence[Tensor]) -> Float[Tensor, "N K"]:
        """What brings the K cells of the coarse maps, one map after the other, to the finest grid: one product for all
        of them, which is linear interpolation."""
        sizes = (torch.Size(size), *(each.shape[-2:] for each in maps))
        if sizes not in self._spread:
            parts = []
            for rows, columns in sizes[1:]:
                each = torch.eye(rows * columns).view(-1, 1, rows, columns)
                parts.append(functional.interpolate(each, size, mode="bilinear", align_corners=False).flatten(1))
            self._spread[sizes] = torch.cat(parts).T.contiguous().to(maps[0])
        return self._spread[sizes]


def _rows(maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B N C"]:
    """Cells by channels; a view, where channels are last in memory."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def peaks(heat: Float[Tensor, "B M h w"], grid: Float[Tensor, "h w 2"]) -> Float[Tensor, "B M 3"]:
    """The place and height of each map's peak.

    The place is the mean, weighted by heat, of those cells of at least `EDGE` of the peak's height that are joined to
    it across gaps of less than `GAP` of the map: what `Grounder.locate` finds where a thing is in one piece, and the
    middle of an open gripper, of which that finds one finger or the other.

    Args:
        heat: probabilities.
        grid: (u, v) of the cells' middles.
    """
    flat = heat.flatten(2)
    top, at = flat.max(-1, keepdim=True)
    inside = heat >= EDGE * top[..., None]
    region = torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, at, True).view_as(heat)
    while True:  # the region grows over the gaps, within what is high enough, until it does not
        grown = region
        for _ in range(max(1, round(GAP * heat.shape[-1]))):
            grown = _grown(grown)
        grown &= inside
        if torch.equal(grown, region):
            break
        region = grown
    weights = (heat * region).flatten(2)
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
    return torch.cat([weights @ grid.flatten(0, 1).to(heat.dtype), top], -1)


def _grown(region: Bool[Tensor, "B M h w"]) -> Bool[Tensor, "B M h w"]:
    """A region and the cells that touch it."""
    region = functional.pad(region, (1, 1, 1, 1))
    wide = region[..., :-2] | region[..., 1:-1] | region[..., 2:]
    return wide[..., :-2, :] | wide[..., 1:-1, :] | wide[..., 2:, :]


class PointMemory:
    """Points for a policy: a thing too faint keeps its last place, and its peak says so.

    One memory goes with one set of worlds, in one order; views and things have each their own place in it. In an
    episode's first row a thing too faint is in the middle.
    """

    def __init__(self) -> None:
        self._places: Tensor | None = None

    def update(self, points: Float[Tensor, "B *M 3"], first: Bool[Tensor, " B"]) -> Float[Tensor, "B *M 3"]:
        """The points of one row of each world, with the last places of what is too faint.

        Args:
            points: as `PointReader.read` gives them; of several views (B, V, M, 3).
            first: which worlds are in an episode's first row.
        Raises:
            ValueError: other worlds, views or things than in the row before.
        """
        places, peak = points[..., :2], points[..., 2:]
        if self._places is None:
            self._places = torch.zeros_like(places)
        if self._places.shape != places.shape or len(first) != len(points):
            raise ValueError(
                f"PointMemory.update: points must be {(*self._places.shape[:-1], 3)} and first ({len(self._places)},), "
                f"as in the row before; got {tuple(points.shape)} and {tuple(first.shape)}. "
                "Make a new PointMemory for other worlds."
            )
        before = torch.where(first.view(-1, *[1] * (points.ndim - 1)), 0.0, self._places)
        self._places = torch.where(peak < FAINT, before, places)
        return torch.cat([self._places, peak], -1)

    def get_state(self) -> dict[str, np.ndarray]:
        """What `set_state` needs to go on exactly from here."""
        return {} if self._places is None else {"places": self._places.numpy().copy()}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Undo of `get_state`."""
        self._places = torch.from_numpy(state["places"].copy()) if "places" in state else None


HANDLED = ("drawer", "door", "cabinet", "cupboard")  # things that are held by a handle
ROBOTS = frozenset(
    ("arm", "claw", "effector", "fingers", "fingertip", "fingertips", "gripper", "jaws", "manipulator", "robot")
)
ROBOTIC = ROBOTS | {"end", "finger", "hand", "links", "machine", "mechanical", "robotic", "stylus", "tip"}


def things(goal: str, encoder: Encoder, *, robot: str = "the gripper") -> list[str]:
    """The things that a goal names, for `PointReader`, and the robot's own part that works on them.

    "the red cube is in the tray" gives "the red cube", "the tray" and "the gripper". Of a drawer or a door, the handle
    too. However a goal names the robot, `robot` stands for it. What the encoder's map does not know stays: its peak
    tells.

    Args:
        goal: a sentence true of success, or an instruction.
        encoder: whose texts they will be.
        robot: words for the robot's gripper, or for what else it works with.
    Raises:
        ValueError: a name that is longer than the encoder can embed.
    """
    found: list[str] = []
    for phrase in noun_phrases(goal):
        if not _robotic(phrase):
            found.append(phrase)
        thing = phrase.partition(" of ")[0]
        if thing.split()[-1] in HANDLED:
            found.append(f"the handle of {thing}")
    found = list(dict.fromkeys([*found, robot]))
    encoder.encode_texts(found)
    return found


def _robotic(phrase: str) -> bool:
    """Whether a phrase names the robot or what it works with: "the tip of the arm", "the robot's hand", "the two
    fingers"; not "the hour hand", "the washing machine" or "the tip of the pen"."""
    return all(
        words[-1] in ROBOTS or ROBOTIC.issuperset(word.removesuffix("'s") for word in words[1:])
        for words in (part.split() for part in phrase.split(" of "))
    )
