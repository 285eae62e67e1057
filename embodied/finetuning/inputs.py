"""What a fine-tuning reads: demonstrations of any LeRobot folders, checked, encoded once, as windows.

Shape letters: T rows of an episode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from embodied.building.build import build
from embodied.collecting.opening import open_dataset
from embodied.datasets import Dataset, layout
from embodied.datasets.maps import Eye, check_maps, fit_eye
from embodied.datasets.windows import EncodedEpisode, Names, Windows, names_of, ordered, read_episode
from embodied.errors import UserError, nearest
from embodied.finetuning import backbones
from policies.vla.choosing import BestOfN
from policies.vla.core import ChunkPolicy, Spec
from policies.vla.pretrained import Backbone
from policies.vla.stats import Normaliser
from rewards.progress import tqdm
from rewards.storage import SAME, picture_probe

MISSING = ("refuse", "zeros")


@dataclass(frozen=True)
class DataSource:
    """One dataset, with what its names mean.

    Attributes:
        dataset, names: so.
        chosen: episodes that are read; None: all.
    """

    dataset: Dataset
    names: Names
    chosen: Sequence[int] | None = None

    @property
    def episodes(self) -> Sequence[int]:
        """Those that are read."""
        return range(len(self.dataset)) if self.chosen is None else self.chosen


@dataclass(frozen=True)
class PolicyPlan:
    """What the policy will read and give, settled before a frame is decoded.

    Attributes:
        sources: of the demonstrations.
        cameras: the policy's, in order.
        states, actions: entries, in order.
        fps: actions a second.
        frames: camera -> (H, W) of the pictures.
    """

    sources: tuple[DataSource, ...]
    cameras: tuple[str, ...]
    states: tuple[str, ...]
    actions: tuple[str, ...]
    fps: float
    frames: dict[str, tuple[int, int]]


def plan(config: DictConfig) -> PolicyPlan:
    """Open the datasets of a config and settle names, order and rate.

    Raises:
        UserError: no data, a name that is not there, different rates without policy.fps, a camera that one lacks.
    """
    policy = config.policy
    if policy.missing not in MISSING:
        raise UserError(f"policy.missing must be one of {', '.join(MISSING)}; got {policy.missing!r}.")
    given = list(config.data) if isinstance(config.data, ListConfig) else [config.data]
    if config.data is None or not given:
        raise UserError("data must be a LeRobot folder, or a list of them. Collect one: embodied collect")
    sources = [open_source(config, str(each)) for each in given]
    if not sum(len(source.dataset) for source in sources):
        raise UserError("data must hold at least one episode; it holds none.")
    if isinstance(policy.cameras, str):
        raise UserError(
            f"policy.cameras must be a list; got {policy.cameras}. Write policy.cameras=[{policy.cameras}]."
        )
    known = list(dict.fromkeys(name for source in sources for name in source.names.cameras))
    cameras = known if policy.cameras is None else [str(name) for name in policy.cameras]
    for name in cameras:
        if name not in known:
            raise UserError(f"policy.cameras: {name!r} is none of the data's. {nearest(name, known)}")
        for source in sources:
            if name not in source.names.cameras and policy.missing == "refuse":
                have = source.names.cameras
                raise UserError(
                    f"{source.dataset.root}: must have the camera {name!r}; it has {', '.join(have) or 'none'}. "
                    f"{nearest(name, have)} Say policy.names={{observation.images.{name}: NAME}}, or "
                    "policy.missing=zeros to go without it."
                )
    if not cameras:
        raise UserError("data must have a camera that the policy reads; it has none.")
    rates = sorted({source.dataset.fps for source in sources})
    if policy.fps is None and len(rates) > 1:
        raise UserError(
            f"data must have one rate; got {', '.join(f'{rate:g}' for rate in rates)} fps. Say "
            f"policy.fps={rates[0]:g}: rows are then taken by the nearest time."
        )
    fps = float(rates[0] if policy.fps is None else policy.fps)
    if fps <= 0:
        raise UserError(f"policy.fps must be more than 0; got {policy.fps}.")
    first = sources[0].names
    for source in sources[1:]:  # order and units are the first dataset's
        where = f"{source.dataset.root}"
        ordered(source.names.states, first.states, f"{where}: {source.names.state or 'observation.state'}")
        ordered(source.names.actions, first.actions, f"{where}: {source.names.action}")
    frames = {}
    for name in cameras:
        source = next(source for source in sources if name in source.names.cameras)
        frames[name] = _size(source, name)
    return PolicyPlan(tuple(sources), tuple(cameras), first.states, first.actions, fps, frames)


def open_source(config: DictConfig, data: str, *, setting: str = "data") -> DataSource:
    """A dataset with the policy's names for what it holds.

    Args:
        config: of the run, whose `policy.names` counts.
        data: see `open_dataset`.
        setting: that asks, for errors.

    Raises:
        UserError: no such dataset, or a name that it does not have.
    """
    mapping: Any = OmegaConf.to_container(config.policy.names)
    dataset = open_dataset(data, setting=setting)
    return DataSource(dataset, names_of(dataset, mapping))


def _size(source: DataSource, camera: str) -> tuple[int, int]:
    short = source.names.cameras[camera]
    key = next(k for k in source.dataset.features if short in (k, layout.short_name(k)))
    return layout.image_shape(source.dataset.features[key])


def make_eyes(planned: PolicyPlan, encoder: Any, *, layer: str | None, channels: int) -> dict[str, Eye]:
    """An eye a camera, fitted to the plan's datasets.

    Raises:
        UserError: an encoder without maps.
    """
    check_maps(encoder, layer)
    eyes = {}
    for name in planned.cameras:
        having = [
            (source.dataset, source.names.cameras[name], source.episodes)
            for source in planned.sources
            if name in source.names.cameras and len(source.episodes)
        ]
        eyes[name] = fit_eye(having, encoder, layer=layer, channels=channels)
    return eyes


def senses(policy: ChunkPolicy | BestOfN, encoder_config: DictConfig) -> tuple[Mapping[str, Any], Any]:
    """How a saved policy sees (by camera) and is spoken to.

    Args:
        policy: that was saved.
        encoder_config: of the run; not built where the policy brings a body of its own.

    Raises:
        UserError: another encoder, or other weights of it.
    """
    if isinstance(policy, ChunkPolicy) and isinstance(policy.fusion, Backbone):
        return backbones.eyes(tuple(policy.spec.cameras), policy.fusion.chosen.size), policy.fusion.prompts
    encoder = build(encoder_config)
    return kept_eyes(policy, encoder), Sentences(encoder)


def kept_eyes(policy: ChunkPolicy | BestOfN, encoder: Any) -> dict[str, Eye]:
    """The eyes of a policy that was saved.

    Raises:
        UserError: another encoder, or other weights of it.
    """
    about = policy.spec.encoder
    same = float(torch.tensor(about["probe"]) @ picture_probe(encoder)) if len(about["probe"]) == encoder.dim else 0.0
    if same < SAME:
        raise UserError(
            f"encoder must be the one that the policy was trained with, {about['name']}; got {encoder.name}."
        )
    return {
        name: Eye(encoder, about["layer"], weight, offset, about["mark"])
        for name, (weight, offset) in policy.compress.items()
    }


def read(planned: PolicyPlan, eyes: Mapping[str, Any], *, desc: str = "encoding") -> list[EncodedEpisode]:
    """Every episode of the plan's datasets, encoded; what was encoded before is read again."""

    def look(name: str) -> Any:
        return lambda dataset, i, camera: eyes[name].of(dataset, i, camera)

    episodes = []
    total = sum(len(source.episodes) for source in planned.sources)
    with tqdm(total=total, desc=desc, unit="episode", leave=False, delay=2) as bar:
        for source in planned.sources:
            for i in source.episodes:
                episodes.append(
                    read_episode(
                        source.dataset, i, source.names, eyes={name: look(name) for name in planned.cameras},
                        states=planned.states, actions=planned.actions, fps=planned.fps,
                    )
                )  # fmt: skip
                bar.update()
    return episodes


class Sentences:
    """Instructions to vectors, each embedded once; where there is none, zeros."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(n, D)."""
        rows = [self._encoder.encode_texts([t])[0] if t.strip() else torch.zeros(self._encoder.dim) for t in texts]
        return torch.stack(rows)


def windows(
    episodes: Sequence[EncodedEpisode], planned: PolicyPlan, horizon: int, say: Callable[[Sequence[str]], Tensor]
) -> Windows:
    """The episodes as windows."""
    sentences = list(dict.fromkeys(episode.instruction for episode in episodes))
    texts = dict(zip(sentences, say(sentences), strict=True))
    return Windows(episodes, horizon=horizon, cameras=planned.cameras, texts=texts)


def new_policy(
    config: DictConfig, planned: PolicyPlan, eyes: Mapping[str, Any], encoder: Any, rows: Windows
) -> ChunkPolicy:
    """A policy that knows nothing yet but how to normalise, and what its backbone knows; the same for one seed."""
    policy = config.policy
    keep = [str(name) for name in policy.keep]
    if unknown := [name for name in keep if name not in planned.actions]:
        raise UserError(f"policy.keep must be entries of the action; got {unknown[0]!r}. "
                        f"{nearest(unknown[0], planned.actions)}")  # fmt: skip
    known: dict[str, Any] = {
        "states": planned.states, "actions": planned.actions, "horizon": policy.horizon, "fps": planned.fps,
        "head": policy.head, "frames": planned.frames,
    }  # fmt: skip
    compress: dict[str, tuple[Tensor, Tensor]] = {}
    if policy.backbone is not None:
        made = backbones.chosen(config, backbones.device_of(config))
        spec = Spec(cameras=dict.fromkeys(eyes, 3), text=0, backbone=asdict(made), **known)
    else:
        about = {"name": encoder.name, "layer": policy.layer, "probe": picture_probe(encoder).tolist()}
        about["mark"] = next(iter(eyes.values())).mark
        spec = Spec(
            cameras={name: len(eye.offset) for name, eye in eyes.items()}, text=encoder.dim, width=policy.width,
            places=policy.places, encoder=about, **known,
        )  # fmt: skip
        compress = {name: (eye.weight, eye.offset) for name, eye in eyes.items()}
    torch.manual_seed(config.seed)
    with backbones.explained(), backbones.within_memory(config):
        return ChunkPolicy(
            spec,
            Normaliser.fit(rows.states(), policy.normalisation, names=planned.states),
            Normaliser.fit(rows.actions(), policy.normalisation, names=planned.actions, keep=keep),
            compress,
        )
