"""What a policy and a reward model see of a moment: every frame is encoded once, for both.

A *row* is what a reward model reads of one moment (see `embodied.scoring`). The policy's observation is the world's own
(`obs=state`, `pixels`, `mixed`), or it is made of what a robot has:

    points     own readings, and where named things are in each camera: (u, v, peak)
    features   own readings, and the encoder's vector of each camera
    places     own readings, and where a fine-tuned policy looks in each camera

Shape letters: N moments, V views, D feature width, S readings, M named things, P numbers of places; H, W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from embodied.building.worlds import SEEN
from embodied.finetuning.places import PlaceReader
from embodied.scoring import Layout
from rewards.core import Encoder
from rewards.points import PointMemory, PointReader


class Perceived(NamedTuple):
    """N moments.

    Attributes:
        rows: (N, V·D + S) float32, what a reward model reads.
        points: (N, V, M, 3) float32, where named things are; None unless the policy reads them.
        places: (N, P) float32, where a fine-tuned policy looks; None unless the policy reads them.
    """

    rows: np.ndarray
    points: np.ndarray | None = None
    places: np.ndarray | None = None

    def take(self, moments: np.ndarray) -> Perceived:
        """Some of them, by index."""
        return Perceived(*(None if each is None else each[moments] for each in self))  # pyright: ignore[reportArgumentType]


class Perception:
    """One encoder for reward and policy.

    Args:
        encoder: frames to features.
        layout: the views and readings, in order.
        form: "points", "features", "places", or any other word for the world's own observation.
        things: what `form="points"` looks for, at least one.
        places: what `form="places"` reads.

    Raises:
        ValueError: no things to look for, or nothing that reads places.
    """

    def __init__(
        self,
        encoder: Encoder,
        layout: Layout,
        form: str,
        things: Sequence[str] = (),
        places: PlaceReader | None = None,
    ) -> None:
        if form == "points" and not things:
            raise ValueError("Perception: things must name what to look for; got none. Set env.points=[a thing, …].")
        if (form == "places") != (places is not None):
            raise ValueError(f"Perception: places must be given for form='places' alone; got {places} for {form!r}.")
        self.encoder, self.layout, self.form, self.things, self.places = encoder, layout, form, tuple(things), places
        self._reader = PointReader(encoder, self.things) if form == "points" else None

    @property
    def makes_observations(self) -> bool:
        """Whether the policy's observation waits for the encoder."""
        return self.form in SEEN

    def observation_space(self, own: spaces.Space) -> spaces.Space:
        """The policy's; `own` is the world's."""
        readings, views = len(self.layout.signals), len(self.layout.views)
        widths = {"points": 3 * views * len(self.things), "features": views * self.encoder.dim}
        width = widths.get(self.form) if self.places is None else len(self.places.names)
        return own if width is None else spaces.Box(-np.inf, np.inf, (readings + width,), np.float32)

    def see(self, frames: np.ndarray, signals: Sequence[Mapping[str, float]]) -> Perceived:
        """(N, V, H, W, 3) uint8 and the N moments' readings, encoded now."""
        images, points, places = torch.from_numpy(frames.reshape(-1, *frames.shape[-3:])), None, None
        if self.places is not None:
            vectors, places = self.places.read(frames)
        elif self._reader is None:
            vectors = self.encoder.encode_images(images)
        else:
            vectors, found = self._reader.read(images)
            points = found.numpy().reshape(len(frames), frames.shape[1], len(self.things), 3)
        return Perceived(np.stack(self.layout.rows(vectors.float().cpu().numpy(), signals)), points, places)

    def observe(self, seen: Perceived, first: np.ndarray, memory: PointMemory | None) -> np.ndarray:
        """The policy's observations of N moments, (N, …); things too faint to be seen are where `memory` had them."""
        vectors, readings = np.split(seen.rows, [seen.rows.shape[1] - len(self.layout.signals)], axis=1)
        if self.form == "features":
            return np.concatenate([readings, vectors], axis=1)
        if seen.places is not None:
            return np.concatenate([readings, seen.places], axis=1)
        assert seen.points is not None
        assert memory is not None
        count, views = seen.points.shape[:2]
        flat = torch.from_numpy(seen.points.reshape(count * views, -1, 3))
        held = memory.update(flat, torch.from_numpy(np.repeat(first, views)))
        return np.concatenate([readings, held.numpy().reshape(count, -1)], axis=1).astype(np.float32)

    def remember(self) -> PointMemory | None:
        """A fresh memory of where things were, for one set of worlds."""
        return PointMemory() if self.form == "points" else None
