"""A policy of chunks: network, normalisation and what it was trained for, in one object and one folder.

    FOLDER/policy.json  policy.safetensors

Of a pretrained body (`policies.vla.pretrained`) the folder holds what was learned, and its name and hash.
Shape letters: B batch, H actions of a chunk, A action, S own readings, C, h, w a camera's map, P its channels before
they are compressed.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from policies.vla.embedded import ChunkObservation, Fusion
from policies.vla.execute import GoingOn
from policies.vla.heads import HEADS, FlowHead
from policies.vla.pretrained import Backbone
from policies.vla.sources import Chosen
from policies.vla.stats import Normaliser
from policies.vla.tokens import TokenHead

CONFIG, WEIGHTS = "policy.json", "policy.safetensors"
TOKENS = "tokens"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a policy reads and gives; JSON values alone.

    Attributes:
        cameras: name -> channels of its maps; 3 where it reads pictures.
        states: names of own readings, in order.
        actions: names of the action's entries, in order.
        text: width of the sentence's vector; 0 where it reads tokens.
        horizon: H.
        fps: actions a second.
        head: one of `HEADS`; "tokens", one after another, for a pretrained body.
        width, places: of `Fusion`.
        frames: camera -> [H, W] of the pictures it was trained on.
        encoder: whose maps it reads: name, layer, and a probe that tells its weights.
        backbone: a pretrained body in place of `Fusion`, see `policies.vla.sources.Chosen`; empty: none.
    """

    cameras: Mapping[str, int]
    states: tuple[str, ...]
    actions: tuple[str, ...]
    text: int
    horizon: int
    fps: float
    head: str = "l1"
    width: int = 128
    places: int = 24
    frames: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        heads = (*HEADS, TOKENS) if self.backbone else tuple(HEADS)
        if self.head not in heads:
            raise ValueError(f"Spec: head must be one of {', '.join(heads)}; got {self.head!r}.")
        if self.horizon < 1 or self.width < 2 or self.width % 2:
            raise ValueError(
                f"Spec: horizon must be at least 1 and width an even number; got {self.horizon} and {self.width}."
            )


@dataclass(frozen=True)
class ChunkBatch:
    """Rows to learn from.

    Attributes:
        obs: as the robot saw it; `state` not normalised.
        chunk: (B, H, A) in the robot's units.
        pad: (B, H) bool, where there is no action to learn from: after an episode's end, or not finite.
        context: what `ChunkPolicy.look` makes of `obs`, where it was kept; None: it is looked at again.
    """

    obs: ChunkObservation
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
        sizes: dict[str, Any] = {
            "state": len(spec.states), "actions": len(spec.actions), "horizon": spec.horizon,
            "mend": spec.head in ("flow", "diffusion"),
        }  # fmt: skip
        self.fusion: Fusion | Backbone
        if spec.backbone:
            self.fusion = Backbone(Chosen(**spec.backbone), cameras=tuple(spec.cameras), **sizes)
            self.spec = replace(spec, backbone=asdict(self.fusion.chosen))  # its hash is known now
        else:
            self.fusion = Fusion(
                cameras=spec.cameras, text=spec.text, width=spec.width, places=spec.places, **sizes,
            )  # fmt: skip
        self.head = (TokenHead if spec.head == TOKENS else HEADS[spec.head])(self.fusion.width, len(spec.actions))

    @property
    def device(self) -> torch.device:
        return next(self.fusion.parameters()).device

    def loss(self, batch: ChunkBatch, random: torch.Generator) -> Float[Tensor, " B"]:
        """Each row's error, in normalised units."""
        context: Any = batch.context
        if context is None:
            context = self.look(batch.obs, random if self.training else None)
        chunk = self.action.forward(torch.nan_to_num(batch.chunk.cpu())).to(self.device)
        if isinstance(self.head, TokenHead):
            assert isinstance(self.fusion, Backbone), "Spec sees to it"
            return self.head.loss(self.fusion, context, chunk, batch.pad)
        return self.head.loss(lambda noisy, time: self.fusion.slot(context, noisy, time), chunk, batch.pad, random)

    @torch.no_grad()
    def predict_chunk(
        self, obs: ChunkObservation, random: torch.Generator | None = None, going_on: GoingOn | None = None
    ) -> Float[Tensor, "B H A"]:
        """Actions in the robot's units, on the CPU.

        Args:
            obs: `state` not normalised.
            random: where heads that start from noise draw it; None: they start from its mean, so that they are
                deterministic.
            going_on: with an action still under way, in the robot's units: the chunk goes on from it (head=flow).

        Raises:
            ValueError: `going_on` with a head that does not start from noise by flow matching.
        """
        self.eval()
        return self.action.backward(self.decide(self.look(obs), random, going_on).cpu())

    def look(self, obs: ChunkObservation, random: torch.Generator | None = None) -> Any:
        """What the slots read of what is seen; a pretrained body's pictures are augmented with a generator."""
        obs = self._normal(obs)
        if isinstance(self.fusion, Backbone):
            return self.fusion.look(self.fusion.see(obs, random))
        return self.fusion.look(obs)

    def decide(
        self, context: Any, random: torch.Generator | None = None, going_on: GoingOn | None = None
    ) -> Float[Tensor, "B H A"]:
        """A chunk of normalised actions for a context of `look`; arguments and errors as of `predict_chunk`."""
        if isinstance(self.head, TokenHead):
            assert isinstance(self.fusion, Backbone), "Spec sees to it"
            return self.head.sample(self.fusion, context, self.spec.horizon)
        shape = (len(context[0]), self.spec.horizon, len(self.spec.actions))
        noise = torch.zeros(shape) if random is None else torch.randn(shape, generator=random)

        def slots(noisy: Tensor | None, time: Tensor | None) -> Tensor:
            return self.fusion.slot(context, noisy, time)

        if going_on is None:
            return self.head.sample(slots, noise.to(self.device))
        if not isinstance(self.head, FlowHead):
            raise ValueError(f"ChunkPolicy: to go on from a chunk needs head=flow; this policy's is {self.spec.head}.")
        before, weights = self.action.forward(going_on.chunk), going_on.weights(self.spec.horizon)
        return self.head.go_on(slots, noise.to(self.device), before.to(self.device), weights.to(self.device))

    def _normal(self, obs: ChunkObservation) -> ChunkObservation:
        device = self.device
        return ChunkObservation(
            {name: value.to(device) for name, value in obs.maps.items()},
            {name: value.to(device) for name, value in obs.seen.items()},
            obs.text.to(device),
            self.state.forward(torch.nan_to_num(obs.state.cpu())).to(device),
        )

    # What is learned -------------------------------------------------------------------------------------

    def learned(self) -> dict[str, Tensor]:
        """What training changes, by name: everything, but for the frozen part of a pretrained body."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    @torch.no_grad()
    def learn(self, values: Mapping[str, Tensor]) -> None:
        """Take over what `learned` gave, of this policy or one like it.

        Raises:
            ValueError: other names or shapes.
        """
        own = self.learned()
        if own.keys() != values.keys():
            odd = sorted(own.keys() ^ values.keys())
            raise ValueError(f"ChunkPolicy: what was learned must be of the same parts; {odd[0]} is of one alone.")
        for name, value in own.items():
            if value.shape != values[name].shape:
                raise ValueError(f"ChunkPolicy: {name} must be {tuple(value.shape)}; got {tuple(values[name].shape)}.")
            value.copy_(values[name])

    def twin(self) -> ChunkPolicy:
        """A copy; what is frozen is shared."""
        return copy.deepcopy(self, {id(p): p for p in self.parameters() if not p.requires_grad})

    # On disk --------------------------------------------------------------------------------------------

    def save(self, folder: Path, beside: Callable[[Path], object] = lambda folder: None) -> None:
        """Write a folder that `load` reads, whole or not at all; an older policy there is replaced.

        Args:
            folder: new, or a policy's.
            beside: writes what belongs to the policy into the folder that it is given.

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
        tensors = {f"network/{name}": value for name, value in self.learned().items()}
        for camera, (weight, mean) in self.compress.items():
            tensors |= {f"compress/{camera}/weight": weight, f"compress/{camera}/mean": mean}
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part / WEIGHTS)
        beside(part)
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
            policy.learn({name.removeprefix("network/"): value for name, value in tensors.items()})
        except (json.JSONDecodeError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"ChunkPolicy: {folder} is damaged ({error}). Train it again.") from error
        return policy.eval()


def _tuples(name: str, value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    if name == "frames":
        return {camera: tuple(size) for camera, size in value.items()}
    return tuple(value) if isinstance(value, list) else value
