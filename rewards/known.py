"""Which frames look like those that an encoder was taught: its scores of all others look like any, and say nothing.

Pooled vectors do not tell: an encoder that never met a kitchen puts it somewhere among the desks. Its last map does, by
how its channels lie on the mean over the frame.

Shape letters: B frames, S scenes, C channels, R directions; H, W image.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from rewards.core import Encoder, check_frames
from rewards.encoders.frozen import FrozenEncoder
from rewards.storage import load_half, picture_probe, save_half, weights_folder

FILE = "known.safetensors"  # beside an encoder's weights
DIRECTIONS = 64  # R; of frames that judge nothing, 16 missed one world of eight
LEAST = 200  # frames of a scene, below which nobody can say how it may look
BLOCK = 50  # frames in a row are alike: so many go to the fit, so many to the limit, in turn
FLOOR = 1e-3  # of a scene's variance: what is less along a direction, or beside all, is rounding
INSIDE = 0.99  # share of a scene's own frames within its limit


class Known(nn.Module):
    """How far frames are from every scene that an encoder knows, where 1 is the limit.

    With x the mean over a frame of each channel of the encoder's last map, x̄ a scene's mean, p = V(x − x̄) along its R
    widest directions, σ² its variances along them, and ρ = |x − x̄|² − |p|² what is left, whose median is ρ̄:

        d² = mean_r p_r² / σ_r² + ρ / ρ̄          (probabilistic PCA, each of the two parts weighted alike)
        strangeness = min over scenes of d / d_99

    d_99 is the 99th percentile of d over the scene's frames that took no part in x̄ and V; ρ̄ is of them too. σ² is the
    larger of both parts', and neither it nor ρ̄ less than a thousandth of the scene's variance.

    Args:
        scenes: S.
        channels: C.
        directions: R.
    """

    mean: Tensor
    directions: Tensor
    deviation: Tensor
    rest: Tensor
    limit: Tensor

    def __init__(self, scenes: int, channels: int, directions: int = DIRECTIONS) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(scenes, channels))
        self.register_buffer("directions", torch.zeros(scenes, directions, channels))
        self.register_buffer("deviation", torch.ones(scenes, directions))
        self.register_buffer("rest", torch.ones(scenes))  # √ρ̄
        self.register_buffer("limit", torch.ones(scenes))

    def forward(self, vectors: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
        """Strangeness of what `looks` gives: above 1, the frame is unlike every scene."""
        return (self._distances(vectors) / self.limit).min(1).values

    def _distances(self, vectors: Float[Tensor, "B C"]) -> Float[Tensor, "B S"]:
        gaps = vectors[:, None] - self.mean
        along = torch.einsum("bsc,src->bsr", gaps, self.directions)
        rest = (gaps.square().sum(-1) - along.square().sum(-1)).clamp(min=0)
        return ((along / self.deviation).square().mean(-1) + rest / self.rest.square()).sqrt()

    @classmethod
    def fit(cls, scenes: Sequence[Float[Tensor, "_ C"]]) -> Known:
        """From the looks of each scene's frames, in the order in which they were rendered.

        Args:
            scenes: at least `LEAST` frames each.

        Raises:
            ValueError: a scene of fewer.
        """
        if few := [len(looks) for looks in scenes if len(looks) < LEAST]:
            raise ValueError(f"Known.fit: scenes must have at least {LEAST} frames; got {few[0]}.")
        made = cls(len(scenes), scenes[0].shape[1], min(DIRECTIONS, scenes[0].shape[1]))
        for s, looks in enumerate(scenes):
            turn = torch.arange(len(looks)) // BLOCK % 2 == 0
            fitted, others = looks[turn].double(), looks[~turn].double()
            mean = fitted.mean(0)
            _, _, axes = torch.linalg.svd(fitted - mean, full_matrices=False)
            axes = axes[: made.directions.shape[1]]
            mean, axes = mean.half().double(), axes.half().double()  # as they are kept
            along, held = ((each - mean) @ axes.T for each in (fitted, others))
            rest = (others - mean).square().sum(1) - held.square().sum(1)
            variance = torch.maximum(along.square().mean(0), held.square().mean(0))  # few frames make the first small
            least = FLOOR * (others - mean).square().sum(1).mean()
            made.mean[s], made.directions[s, : len(axes)] = mean, axes
            made.deviation[s, : len(axes)] = variance.clamp(min=least).sqrt()
            made.rest[s] = rest.median().clamp(min=least).sqrt()
            made.limit[s] = made._distances(others.float())[:, s].quantile(INSIDE)
        return made

    def save(self, folder: Path, encoder: Encoder) -> None:
        """Write it beside the weights of the encoder that it was fitted to, in half precision."""
        save_half(folder / FILE, self, picture_probe(encoder))

    @classmethod
    def load(cls, folder: Path, encoder: Encoder) -> Known:
        """What lies beside an encoder's weights.

        Raises:
            ValueError: it was fitted to other weights, or is damaged.
        """
        tensors = load_half(folder / FILE, picture_probe(encoder), encoder.name, by="knowing")
        try:
            scenes, directions, channels = tensors["directions"].shape
            made = cls(scenes, channels, directions)
            made.load_state_dict(tensors)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{folder / FILE} is damaged. Run: python -m embodied.pretraining.knowing encoder={folder}"
            ) from error
        return made


@torch.inference_mode()
def looks(encoder: FrozenEncoder, frames: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B C"]:
    """The mean over each frame of the encoder's last map, float32 on the CPU.

    Raises:
        TypeError, ValueError: frames of another kind or shape; an encoder without maps.
    """
    check_frames(frames, "looks")
    size = encoder.batch_size
    parts = [encoder.encode_maps(batch, encoder.map_layers[-1]) for batch in frames.split(size)]
    return torch.cat([maps.float().mean((2, 3)).cpu() for maps in parts])


def strangeness(encoder: Encoder, frames: Sequence[UInt8[Tensor, "_ _ 3"]]) -> Float[Tensor, " B"] | None:
    """How unlike all that an encoder was taught frames look: above 1, unlike; None where nothing tells.

    What lies beside other weights than its own, or is damaged, is told on standard error and not used.

    Args:
        encoder: the embedded one, or one that `embodied pretrain` wrote.
        frames: B ≥ 1, uint8 RGB, of any sizes.
    """
    folder = weights_folder(encoder)
    if folder is None or not (folder / FILE).is_file():
        return None
    if not isinstance(encoder, FrozenEncoder) or not encoder.map_layers or encoder.precision == "int8":
        return None
    try:
        known = Known.load(folder, encoder)
    except ValueError as error:
        print(f"encoder: {error}", file=sys.stderr)
        return None
    alike = len({frame.shape for frame in frames}) == 1
    batches = [torch.stack(list(frames))] if alike else [frame[None] for frame in frames]
    return known(torch.cat([looks(encoder, batch) for batch in batches]))
