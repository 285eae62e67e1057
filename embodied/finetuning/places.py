"""The places that imitation found to matter in each camera, for another learner to read.

What the demonstrated actions depend on decides what is looked at, and how finely: the fingers and the cube between
them, not the middle of each thing that a sentence names. Shape letters: N moments, V views, K places of a view, P
numbers of a moment's places, D feature width; H, W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor

from embodied.errors import UserError
from embodied.finetuning import inputs
from policies.vla.core import ChunkPolicy
from policies.vla.embedded import Fusion


class PlaceReader:
    """Frames to the places that a fine-tuned policy looks for.

    Args:
        policy: with the embedded body.
        encoder: the one that the policy was trained with.
        sentence: what the policy is told.
        views: names of what it will be shown, in order.

    Raises:
        UserError: another encoder, a body that looks for no places, or one that looks at none of the views.
    """

    def __init__(self, policy: ChunkPolicy, encoder: Any, sentence: str, views: Sequence[str]) -> None:
        if not isinstance(policy.fusion, Fusion) or not policy.fusion.cameras:
            raise UserError("env.places must be a policy that looks for places; this one has a body of its own.")
        known = policy.fusion.cameras
        self._seen = {v: name for v, name in enumerate(views) if name in known}
        if not self._seen:
            raise UserError(
                f"env.places looks at {', '.join(known)}; the world shows {', '.join(views)}. Set env.policy_cameras."
            )
        self.policy, self.encoder = policy.eval().cpu(), encoder
        self._fusion, self._eyes = policy.fusion, inputs.kept_eyes(policy, encoder)
        self._text = inputs.Sentences(encoder)([sentence])
        self._layer = policy.spec.encoder["layer"]

    @property
    def names(self) -> list[str]:
        """What each of the P numbers is."""
        places = range(self.policy.spec.places)
        return [
            name
            for view in self._seen.values()
            for name in (
                *(f"{view}, place {k}: {axis}" for k in places for axis in "uv"),
                *(f"{view}, place {k}: seen" for k in places),
            )
        ]

    def context(self, state: Float[Tensor, "N S"], places: Float[Tensor, "N P"]) -> Any:
        """What the policy's slots read of own readings, in its order, and of places that `read` gave."""
        each = dict(zip(self._seen.values(), places.split(len(self.names) // len(self._seen), 1), strict=True))
        blank = torch.zeros(len(places), 3 * self.policy.spec.places)
        found = {name: each.get(name, blank) for name in self._fusion.cameras}
        return self._fusion.mix(self.policy.state.forward(state), found, self._text.expand(len(places), -1))

    @torch.no_grad()
    def read(self, frames: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """The frames' vectors (N·V, D) and the places of each moment (N, P), of one pass through the encoder.

        Args:
            frames: (N, V, H, W, 3) uint8.
        """
        count, views = frames.shape[:2]
        images = torch.from_numpy(frames.reshape(-1, *frames.shape[2:]))
        vectors, maps = self.encoder.encode_both(images, self._layer)
        maps, text = maps.unflatten(0, (count, views)), self._text.expand(count, -1)
        found = [self._fusion.find(name, self._eyes[name].compress(maps[:, v]), text) for v, name in self._seen.items()]
        return vectors, torch.cat(found, 1).numpy()


class PlaceActor:
    """The fine-tuned policy itself, on observations that are made of its places: a chunk's first action, every step.

    Args:
        reader: what makes the places.
        signals: names of the own readings, which come first in an observation.
        space: of the worlds' actions.

    Raises:
        UserError: a reading that the policy wants and the worlds do not tell, or other actions.
    """

    def __init__(self, reader: PlaceReader, signals: Sequence[str], space: spaces.Box) -> None:
        spec = reader.policy.spec
        if missing := [name for name in spec.states if name not in signals]:
            raise UserError(f"env.places reads {missing[0]!r}, which the world does not tell. It tells {signals}.")
        if space.shape != (len(spec.actions),):
            raise UserError(f"env.places gives {len(spec.actions)} actions; the world wants {space.shape}.")
        self._reader, self._readings = reader, len(signals)
        self._order = [list(signals).index(name) for name in spec.states]
        self._low, self._high = (torch.from_numpy(bound.astype(np.float64)) for bound in (space.low, space.high))

    def begin(self, count: int) -> dict[str, np.ndarray]:
        """Nothing is remembered."""
        return {}

    @torch.no_grad()
    def act(
        self, obs: np.ndarray, memory: dict[str, np.ndarray], first: np.ndarray, *, explore: bool
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(E, A) in [-1, 1]; it never explores."""
        policy, x = self._reader.policy, torch.from_numpy(np.asarray(obs, np.float32))
        action = policy.action.backward(policy.decide(self._reader.context(x[:, self._order], x[:, self._readings :])))
        unit = 2 * (action[:, 0].double() - self._low) / (self._high - self._low) - 1
        return unit.clamp(-1, 1).float().numpy(), memory
