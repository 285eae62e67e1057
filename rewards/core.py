"""The nouns every reward shares, and the scorer that turns frames into rewards.

Shape letters: B batch, E parallel worlds, T time, D feature width, M texts; H, W image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

_checks: ContextVar[bool] = ContextVar("checks", default=True)
FRAMES_READ = ("none", "first", "all")  # what a head may want of the images, least first


@runtime_checkable
class Encoder(Protocol):
    """Heavy and stateless: images and texts in, unit vectors of one space out.

    Attributes:
        name: model and weights, for texts and records.
        dim: D, of the vectors.
    """

    name: str
    dim: int

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) at which frames need no resizing."""
        ...

    def encode_images(self, frames: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B D"]:
        """RGB frames of any size, on any device -> (B, D) float32, unit length.

        Raises:
            TypeError, ValueError: not (B, H, W, 3) uint8 (see `check_frames`).
        """
        ...

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "M D"]:
        """M texts -> (M, D) float32, unit length; their cosines with frames are what heads compare."""
        ...


@dataclass(frozen=True, kw_only=True)
class Features:
    """What an encoder made of one window of each of B episodes.

    Attributes:
        views: camera name -> (B, T, D) float32, unit length.
        signals: sensor name -> (B, T) float32, readings a real robot would have (speed, force); heads
            that ask for none ignore them.
        frames: camera name -> the images themselves, only where a head reads them (`Scorer.frames_read`): all T
            of them, or the episode's first alone (N = 1).
        depth: camera name -> distance along the optical axis in each episode's first frame, metres, where the
            source measures it.
    """

    views: Mapping[str, Float[Tensor, "B T D"]]
    signals: Mapping[str, Float[Tensor, "B T"]] = field(default_factory=dict)
    frames: Mapping[str, UInt8[Tensor, "B N H W 3"]] = field(default_factory=dict)
    depth: Mapping[str, Float[Tensor, "B H W"]] = field(default_factory=dict)

    @property
    def main(self) -> Float[Tensor, "B T D"]:
        """The first view."""
        return next(iter(self.views.values()))


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One recorded episode, encoded: what heads are fitted to and judged on.

    Attributes:
        features: of the whole episode, B = 1.
        instruction: the task's text.
        success: whether it ended well, where a person has said so.
        steps: row at which each step of the task ends, ascending, where they are marked; the last row included.
    """

    features: Features
    instruction: str = ""
    success: bool | None = None
    steps: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.features.main.shape[1]


@runtime_checkable
class Head(Protocol):
    """Light: features in, one potential per step out; higher is better, units are the head's own.

    Time starts at the reset, and the potential of a step reads nothing after it. A head that reads images too says
    so by an attribute `frames_read`: "first" (of each episode) or "all"; without it, "none".

    A stream scores one row a frame of a head that can be scored so. One whose potential of a step reads that step
    alone says `pointwise = True`. One that reads the past says `advances = True` and has

        advance(features, memory=None) -> (Float[Tensor, "B T"], memory)

    the potentials of the T rows that follow, and what those after them need of all before: None at the reset. `score`
    is `advance` from None. It does not change the memory it is given.

    One that reads later steps too, of recorded episodes alone, says `reads_ahead = True`.
    """

    name: str

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """The potential of each step of B episodes from their resets on, (B, T) float32."""
        ...


@runtime_checkable
class Shaping(Protocol):
    """The one conversion from potential to reward (see `rewards.shaping`)."""

    def __call__(
        self,
        potential: Float[Tensor, "*S"],
        next_potential: Float[Tensor, "*S"],
        terminated: Bool[Tensor, "*S"],
    ) -> Float[Tensor, "*S"]: ...


@runtime_checkable
class Combine(Protocol):
    """Several potentials into one (see `rewards.combine`)."""

    def __call__(self, potentials: Mapping[str, Float[Tensor, "B T"]], features: Features) -> Float[Tensor, "B T"]: ...


@dataclass(frozen=True)
class Scorer:
    """Frames to rewards: one encoder, any number of heads on its features, one combination, one shaping.

    Holds no episode memory, so a frame gets the same number at every door: per step, per rollout, offline.

    Attributes:
        encoder: turns frames into features, once per frame however many heads read them.
        heads: name -> head; the names appear in logs and errors.
        combine: potentials -> the potential that is shaped.
        shaping: that potential -> reward.
    """

    encoder: Encoder
    heads: Mapping[str, Head]
    combine: Combine
    shaping: Shaping

    @property
    def frames_read(self) -> str:
        """What `Features.frames` must hold: "none", "first" (of each episode) or "all"."""
        return max((getattr(head, "frames_read", "none") for head in self.heads.values()), key=FRAMES_READ.index)

    @property
    def pointwise(self) -> bool:
        """Whether every head's potential of a step reads that step alone."""
        return all(getattr(head, "pointwise", False) for head in self.heads.values())

    @property
    def advances(self) -> bool:
        """Whether rows can be scored as they come, by `advance`."""
        return all(
            getattr(head, "pointwise", False) or getattr(head, "advances", False) for head in self.heads.values()
        )

    def check_causal(self, where: str) -> None:
        """Refuse heads that read later steps, where there are none yet.

        Args:
            where: begins the error's text.

        Raises:
            ValueError: names such a head, and what can score with it.
        """
        if ahead := [name for name, head in self.heads.items() if getattr(head, "reads_ahead", False)]:
            raise ValueError(
                f"{where}: rewards must read nothing after the frame they judge; {', '.join(ahead)} reads later "
                "frames, which are not there yet. Score recorded episodes with it: embodied label, judge or audit."
            )

    def advance(
        self, features: Features, memories: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Float[Tensor, "B T"]], dict[str, Any]]:
        """What each head says of the T rows that follow, and what it needs of them for those after (see `Head`).

        Args:
            features: of the rows that follow, with the frames that heads read of them.
            memories: what the last call returned; None at the reset.

        Raises:
            FloatingPointError: a head gave NaN or infinity; names the head.
        """
        scores: dict[str, Tensor] = {}
        kept: dict[str, Any] = {}
        for name, head in self.heads.items():
            if getattr(head, "pointwise", False):
                scores[name] = head.score(features)
            else:
                step: Any = head
                scores[name], kept[name] = step.advance(features, memories and memories[name])
            _check_finite(scores[name], f"head {name!r}")
        return scores, kept

    def encode(self, frames: Tensor) -> Float[Tensor, "N D"]:
        """The features of any frames, (N, H, W, 3) uint8 -> (N, D) float32, unit length."""
        return self.encoder.encode_images(frames)

    def potentials(self, features: Features) -> dict[str, Float[Tensor, "B T"]]:
        """What each head says.

        Raises:
            FloatingPointError: a head gave NaN or infinity; names the head.
        """
        scores = {name: head.score(features) for name, head in self.heads.items()}
        for name, score in scores.items():
            _check_finite(score, f"head {name!r}")
        return scores

    def combined(self, potentials: Mapping[str, Float[Tensor, "B T"]], features: Features) -> Float[Tensor, "B T"]:
        """The one potential that is shaped.

        Raises:
            FloatingPointError: the combination gave NaN or infinity.
        """
        total = self.combine(potentials, features)
        _check_finite(total, f"combination {type(self.combine).__name__}")
        return total

    def parts(
        self, potentials: Mapping[str, Float[Tensor, "B T"]], features: Features
    ) -> dict[str, Float[Tensor, "B T"]]:
        """What the combination is made of beside the heads, by name, for the log; {} where it tells nothing."""
        tell = getattr(self.combine, "parts", None)
        return {} if tell is None else tell(potentials, features)

    def rewards(self, features: Features, terminated: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The rewards of B windows of T transitions.

        Args:
            features: of T + 1 frames per window: the one before the first action, then one after each.
            terminated: (B, T), True where the task itself ended; a time limit is not a termination.
        """
        potential = self.combined(self.potentials(features), features)
        return self.shaping(potential[:, :-1], potential[:, 1:], terminated)

    def score(self, frames: Tensor, signals: Mapping[str, Float[Tensor, " T"]] | None = None) -> Float[Tensor, " T"]:
        """The combined potential of each frame of one episode, (T, H, W, 3) uint8 -> (T,)."""
        features = Features(
            views={"main": self.encode(frames)[None]},
            signals={name: values[None] for name, values in (signals or {}).items()},
        )
        return self.combined(self.potentials(features), features)[0]


def check_frames(frames: Tensor, where: str) -> None:
    """Refuse anything but a (B, H, W, 3) uint8 tensor.

    Args:
        frames: what came.
        where: begins the error's text.

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: another shape.
    """
    advice = "Pass unresized RGB frames, channels last; the encoder resizes and normalises."
    if not isinstance(frames, Tensor):
        raise TypeError(f"{where}: frames must be a torch.Tensor; got {type(frames).__name__}. Use torch.from_numpy.")
    got = f"{str(frames.dtype).removeprefix('torch.')} {tuple(frames.shape)}"
    if frames.dtype != torch.uint8:
        raise TypeError(f"{where}: frames must be uint8 (B, H, W, 3); got {got}. {advice}")
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape[1:]:
        raise ValueError(f"{where}: frames must be uint8 (B, H, W, 3); got {got}. {advice}")


@contextmanager
def unchecked() -> Iterator[None]:
    """Within it, numbers that are not finite are not looked for: on an accelerator, looking waits for the device."""
    token = _checks.set(False)
    try:
        yield
    finally:
        _checks.reset(token)


def _check_finite(values: Tensor, what: str) -> None:
    if not _checks.get():
        return
    bad = ~torch.isfinite(values)
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise FloatingPointError(
            f"Scorer: {what} must give finite numbers; got {values[first].item()} at (batch, step) {first}, "
            f"{int(bad.sum())} of {values.numel()} in all. Check its frames, signals and weights."
        )
