"""Heads as a reward, and several whole rewards as one: each becomes a head named after its part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rewards.combine import WeightedSum
from rewards.core import Combine, Encoder, Features, Head, Scorer
from rewards.shaping import PotentialShaping


def as_scorer(
    encoder: Encoder,
    heads: Mapping[str, Head],
    shaping: Mapping[str, Any] | None = None,
    combine: Combine | None = None,
) -> Scorer:
    """A scorer of some heads.

    Args:
        encoder: whose features they read.
        heads: name -> head.
        shaping: arguments of `PotentialShaping`.
        combine: their potentials -> the potential that is shaped; None: their mean.
    """
    return Scorer(encoder, heads, combine or WeightedSum(), PotentialShaping(**(shaping or {})))


@dataclass
class Part:
    """A scorer as a head: its heads' potentials by its own combination; its shaping is not used.

    Attributes:
        name: of the head, as it is logged.
    """

    name: str
    scorer: Scorer

    @property
    def frames_read(self) -> str:
        return self.scorer.frames_read

    @property
    def pointwise(self) -> bool:
        return self.scorer.pointwise

    @property
    def advances(self) -> bool:
        return self.scorer.advances

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        return self.scorer.combined(self.scorer.potentials(features), features)

    def advance(
        self, features: Features, memory: Mapping[str, Any] | None = None
    ) -> tuple[Float[Tensor, "B T"], Mapping[str, Any]]:
        potentials, memory = self.scorer.advance(features, memory)
        return self.scorer.combined(potentials, features), memory


def composed_scorer(
    *,
    encoder: Encoder,
    parts: Mapping[str, Scorer],
    combine: Combine | None = None,
    shaping: Mapping[str, Any] | None = None,
) -> Scorer:
    """One scorer of several, on one feature stream.

    Args:
        encoder: the one that every part was made with.
        parts: name -> scorer; the names appear in logs and in the combination.
        combine: the parts' potentials, in their own units, -> the potential that is shaped; None: their mean.
        shaping: arguments of `PotentialShaping`.

    Raises:
        ValueError: no parts, or a part made with another encoder.
    """
    if not parts:
        raise ValueError("composed_scorer: parts must hold at least one scorer; got none.")
    for name, part in parts.items():
        if part.encoder is not encoder:
            raise ValueError(
                f"composed_scorer: parts must read the features of {encoder.name}; {name} was made with "
                f"{part.encoder.name}. Make every part with the same encoder."
            )
    return as_scorer(encoder, {name: Part(name, part) for name, part in parts.items()}, shaping, combine)
