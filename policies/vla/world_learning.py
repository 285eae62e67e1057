"""Teaching a world: members, the action-blind control and the reflector, step by step, from the same episodes.

Shape letters: B batch, U model steps, M members.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from policies.saving import pack, unpack
from policies.vla.imitation import scheduled
from policies.vla.world import Dynamics, Reflector, Segment, Tracks, WorldEnsemble


class WorldLearning:
    """Gradient steps on segments of episodes, each member on batches of its own.

        L = Σ_u mean (ẑ_u − z_u)² / c_z + mean (ŝ_u − s_u)² / c_s,   ẑ_0 = z_0, ẑ_{u+1} = f(ẑ_u, …),

    over the moments that are real; c_z and c_s are the error of "nothing changes" one model step later, so that 1 is
    as good as that. Predictions follow predictions for U steps, as they will in imagination. The reflector is taught
    the data's targets on the real tokens, and on members' predictions of them.

    Where it stands depends on the seed and the number of steps alone.

    Args:
        world, blind, reflector: learn in place.
        tracks: episodes.
        starts: rows that segments may begin at.
        steps: of the whole schedule.
        unroll: U.
        batch_size: B.
        learning_rate: its highest; warmed up over a tenth of the steps, it ends at a hundredth, by a cosine.
        seed: of batches.

    Raises:
        ValueError: no row to begin at.
    """

    def __init__(
        self,
        world: WorldEnsemble,
        blind: WorldEnsemble,
        reflector: Reflector,
        tracks: Tracks,
        starts: Int64[np.ndarray, " n"],
        *,
        steps: int,
        unroll: int = 4,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        if not len(starts):
            raise ValueError(f"WorldLearning: an episode must have more than {world.spec.stride} rows; none has.")
        self.world, self.blind, self.reflector, self.tracks = world, blind, reflector, tracks
        self._starts, self.steps, self._unroll, self._batch = starts, steps, unroll, batch_size
        self._rate, self._seed, self.done = learning_rate, seed, 0
        self._parts: dict[str, nn.Module] = {f"member{m}": each for m, each in enumerate(world.members)}
        self._parts |= {"blind": blind.members[0], "reflector": reflector}
        self._adam = {
            name: torch.optim.AdamW(part.parameters(), lr=learning_rate, weight_decay=1e-3)
            for name, part in self._parts.items()
        }
        some = tracks.segment(starts, world.spec.stride, 1)
        self._unit = [
            each[some.real[:, 0]].square().mean().clamp_min(1e-8)
            for each in (some.tokens[:, 1] - some.tokens[:, 0], some.state[:, 1] - some.state[:, 0])
        ]

    def step(self) -> dict[str, float]:
        """One update of each part; returns their losses.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        losses: dict[str, list[float]] = {}
        predicted: list[tuple[Tensor, Tensor]] = []
        for k, (name, part) in enumerate(self._parts.items()):
            draw = np.random.default_rng((self._seed, self.done, k))
            rows = draw.choice(self._starts, self._batch)
            if isinstance(part, Dynamics):
                segment = self.tracks.segment(rows, self.world.spec.stride, self._unroll)
                loss, tokens = self._error(part, segment)
                if name != "blind":
                    u = int(draw.integers(self._unroll))
                    there = segment.real[:, u]
                    ends = torch.from_numpy(rows)[there] + self.world.spec.stride * (u + 1)
                    predicted.append((tokens[there, u].detach(), ends))
            else:
                loss = self._reflection(torch.from_numpy(draw.choice(len(self.tracks.tokens), self._batch)), predicted)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"WorldLearning: {name}'s loss must be finite; got {loss.item()}.")
            self._descend(name, part, loss)
            losses.setdefault(name.rstrip("0123456789"), []).append(float(loss.detach()))
        self.done += 1
        return {name: float(np.mean(each)) for name, each in losses.items()}

    def _error(self, part: Dynamics, segment: Segment) -> tuple[Tensor, Float[Tensor, "B U L D"]]:
        tokens, state = segment.tokens[:, 0], segment.state[:, 0]
        rolled, errors = [], []
        for u in range(segment.actions.shape[1]):
            tokens, state = part(tokens, state, segment.actions[:, u])
            rolled.append(tokens)
            off = (tokens - segment.tokens[:, u + 1]).square().mean((1, 2)) / self._unit[0]
            lost = (state - segment.state[:, u + 1]).square().sum(1) / max(state.shape[1], 1) / self._unit[1]
            errors.append(off + lost)
        real = segment.real.float()
        return (torch.stack(errors, 1) * real).sum() / real.sum().clamp_min(1), torch.stack(rolled, 1)

    def _reflection(self, rows: Tensor, predicted: list[tuple[Tensor, Tensor]]) -> Tensor:
        tokens = torch.cat([self.tracks.tokens[rows].float(), *(found for found, _ in predicted)])
        rows = torch.cat([rows, *(ends for _, ends in predicted)])
        said = self.reflector(tokens, self.tracks.text[rows])
        return nn.functional.binary_cross_entropy_with_logits(said, self.tracks.targets[rows])

    def _descend(self, name: str, part: nn.Module, loss: Tensor) -> None:
        adam = self._adam[name]
        for group in adam.param_groups:
            group["lr"] = self._rate * scheduled(self.done, self.steps, max(self.steps // 10, 1))
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        adam.step()

    def _saved(self) -> dict[str, Any]:
        parts: dict[str, Any] = dict(self._parts) | {f"adam/{name}": each for name, each in self._adam.items()}
        return parts

    def get_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values from which `load_state` goes on."""
        return pack(self._saved()), {"done": self.done}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on where `get_state` was called; the codec is fitted anew, from the same data."""
        unpack("WorldLearning.load_state", self._saved(), tensors)
        self.done = int(values["done"])
