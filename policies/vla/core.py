"""A policy of chunks: network, normalisation and what it was trained for, in one object and one folder.

    FOLDER/policy.json  policy.safetensors

Shape letters: B batch, H actions of a chunk, A action, S own readings, C, h, w a camera's map, P its channels before
they are compressed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from policies.vla.embedded import Fusion, Observation
from policies.vla.heads import HEADS
from policies.vla.stats import Normaliser

CONFIG, WEIGHTS = "policy.json", "policy.safetensors"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a policy reads and gives; JSON values alone.

    Attributes:
        cameras: name -> channels of its maps.
        states: names of own readings, in order.
        actions: names of the action's entries, in order.
        text: width of the sentence's vector.
        horizon: H.
        fps: actions a second.
        head: one of `HEADS`.
        width, places, layers, heads: of `Fusion`.
        frames: camera -> [H, W] of the pictures it was trained on.
        encoder: whose maps it reads: name, layer, and a probe that tells its weights.
    """

    cameras: Mapping[str, int]
    states: tuple[str, ...]
    actions: tuple[str, ...]
    text: int
    horizon: int
    fps: float
    head: str = "l1"
    width: int = 128
    places: int = 16
    layers: tuple[int, int] = (2, 2)
    heads: int = 4
    frames: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise ValueError(f"Spec: head must be one of {', '.join(HEADS)}; got {self.head!r}.")
        if self.horizon < 1 or self.width % (2 * self.heads):
            raise ValueError(
                f"Spec: horizon must be at least 1 and width a multiple of 2 * heads ({2 * self.heads}); "
                f"got {self.horizon} and {self.width}."
            )


@dataclass(frozen=True)
class Batch:
    """Rows to learn from.

    Attributes:
        obs: as the robot saw it; `state` not normalised.
        chunk: (B, H, A) in the robot's units.
        pad: (B, H) bool, where there is no action to learn from: after an episode's end, or not finite.
        context: what `ChunkPolicy.look` makes of `obs`, where it was kept; None: it is looked at again.
    """

    obs: Observation
    chunk: Float[Tensor, "B H A"]
    pad: Bool[Tensor, "B H"]
    context: tuple[Float[Tensor, "B L W"], Bool[Tensor, "B L"]] | None = None


class ChunkPolicy(nn.Module):
    """Observations in, H actions out.

    Args:
        spec: what it reads and gives.
        state: normalises own readings; named as `spec.states`.
        action: normalises actions; named as `spec.actions`.
        compress: camera -> (C, P) and its (P,) mean, which turned an encoder's maps into those it reads; kept here so
            that the folder is all that is needed.

    Raises:
        ValueError: normalisers of other names.
    """

    def __init__(
        self,
        spec: Spec,
        state: Normaliser,
        action: Normaliser,
        compress: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        for given, wanted in ((state, spec.states), (action, spec.actions)):
            if given.names != tuple(wanted):
                raise ValueError(f"ChunkPolicy: normalised entries must be {list(wanted)}; got {list(given.names)}.")
        self.spec, self.state, self.action = spec, state, action
        self.compress = dict(compress or {})
        self.fusion = Fusion(
            cameras=spec.cameras, text=spec.text, state=len(spec.states), actions=len(spec.actions),
            horizon=spec.horizon, width=spec.width, places=spec.places, layers=spec.layers, heads=spec.heads,
        )  # fmt: skip
        self.head = HEADS[spec.head](spec.width, len(spec.actions))

    @property
    def device(self) -> torch.device:
        return self.fusion.slots.device

    def loss(self, batch: Batch, random: torch.Generator) -> Float[Tensor, " B"]:
        """Each row's error, in normalised units."""
        context = self.look(batch.obs) if batch.context is None else batch.context
        chunk = self.action.forward(torch.nan_to_num(batch.chunk.cpu())).to(self.device)
        return self.head.loss(lambda noisy, time: self.fusion.slot(context, noisy, time), chunk, batch.pad, random)

    @torch.no_grad()
    def predict_chunk(self, obs: Observation, random: torch.Generator | None = None) -> Float[Tensor, "B H A"]:
        """Actions in the robot's units, on the CPU.

        Args:
            obs: `state` not normalised.
            random: where heads that start from noise draw it; None: they start from its mean, so that they are
                deterministic.
        """
        self.eval()
        return self.action.backward(self.decide(self.look(obs), random).cpu())

    def look(self, obs: Observation) -> tuple[Float[Tensor, "B L W"], Bool[Tensor, "B L"]]:
        """The tokens of what is seen, and which of them exist."""
        return self.fusion.look(self._normal(obs))

    def decide(
        self, context: tuple[Float[Tensor, "B L W"], Bool[Tensor, "B L"]], random: torch.Generator | None = None
    ) -> Float[Tensor, "B H A"]:
        """A chunk of normalised actions for a context of `look`; `random` as in `predict_chunk`."""
        shape = (len(context[0]), self.spec.horizon, len(self.spec.actions))
        noise = torch.zeros(shape) if random is None else torch.randn(shape, generator=random)
        return self.head.sample(lambda noisy, time: self.fusion.slot(context, noisy, time), noise.to(self.device))

    def _normal(self, obs: Observation) -> Observation:
        device = self.device
        return Observation(
            {name: value.to(device) for name, value in obs.maps.items()},
            {name: value.to(device) for name, value in obs.seen.items()},
            obs.text.to(device),
            self.state.forward(torch.nan_to_num(obs.state.cpu())).to(device),
        )

    # On disk --------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write a folder that `load` reads, whole or not at all; an older policy there is replaced.

        Raises:
            FileExistsError: the folder holds something else.
        """
        if folder.exists() and not (folder / CONFIG).is_file() and any(folder.iterdir()):
            raise FileExistsError(f"ChunkPolicy: {folder} must be new or hold a policy; it holds something else.")
        part = folder.with_name(f".{folder.name}.part{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        about = {"spec": asdict(self.spec), "state": self.state.as_dict(), "action": self.action.as_dict()}
        (part / CONFIG).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
        tensors = {f"network/{name}": value for name, value in self.state_dict().items()}
        for camera, (weight, mean) in self.compress.items():
            tensors |= {f"compress/{camera}/weight": weight, f"compress/{camera}/mean": mean}
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part / WEIGHTS)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)

    @classmethod
    def load(cls, folder: str | Path) -> ChunkPolicy:
        """The policy that `save` wrote; nothing is unpickled.

        Raises:
            FileNotFoundError: no such policy.
            ValueError: a damaged one.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(f"ChunkPolicy: must be a folder with {CONFIG} and {WEIGHTS}; got {folder}.")
        try:
            about = json.loads((folder / CONFIG).read_text("utf-8"))
            tensors = load_file(folder / WEIGHTS)
            spec = Spec(**{name: _tuples(name, value) for name, value in about["spec"].items()})
            compress = {
                camera: (tensors.pop(f"compress/{camera}/weight"), tensors.pop(f"compress/{camera}/mean"))
                for camera in spec.cameras
                if f"compress/{camera}/weight" in tensors
            }
            state, action = Normaliser.from_dict(about["state"]), Normaliser.from_dict(about["action"])
            policy = cls(spec, state, action, compress)
            policy.load_state_dict({name.removeprefix("network/"): value for name, value in tensors.items()})
        except (json.JSONDecodeError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"ChunkPolicy: {folder} is damaged ({error}). Train it again.") from error
        return policy.eval()


def _tuples(name: str, value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    if name == "frames":
        return {camera: tuple(size) for camera, size in value.items()}
    return tuple(value) if isinstance(value, list) else value
