"""SARM: progress by the stages of a task, from pictures around a moment and own readings (arXiv 2509.25358).

LeRobot's own class and its own processor do the work, on a checkpoint that LeRobot trained; they are imported when one
is loaded. Shape letters: B episodes, T rows, S own readings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rewards.chat.reading import asked_rows, check_reading, images, toward
from rewards.core import Features
from rewards.encoders.foreign_weights import fetched, read_configs
from rewards.encoders.frozen import _device
from rewards.encoders.loading import cure_torchvision, explain_missing

PLACE = "lerobot.rewards.sarm"  # since LeRobot 0.6
CLIP = "openai/clip-vit-base-patch32"  # which LeRobot's processor loads by this name
PROCESSOR = "policy_preprocessor.json"
OUTPUTS = {"progress": "sparse", "dense": "dense"}  # what a person asks for -> LeRobot's head


class Sarm:
    """A checkpoint of SARM, with LeRobot's class and its processor.

    Args:
        weights: the `pretrained_model` folder that LeRobot's training wrote, or a hub id.
        device: see `LocalChat`.

    Raises:
        FileNotFoundError: a checkpoint, or the CLIP that its processor loads, that is not here; says what to put where.
        ValueError: LeRobot is not installed, or the folder holds no checkpoint of SARM.
    """

    def __init__(self, weights: str, *, device: str = "auto") -> None:
        self.name, self.device = weights, str(_device(device, "SARM"))
        modeling, processing = _lerobot()
        folder = fetched(weights)
        kind = read_configs(folder)[0].get("type")
        if kind != "sarm":
            raise ValueError(
                f"SARM: {folder} must hold a config.json of type sarm, as LeRobot writes it; got {kind!r}."
            )
        stats = _scales(folder)
        with redirect_stdout(sys.stderr):
            try:
                self._model = modeling.SARMRewardModel.from_pretrained(str(folder), strict=True)
            except (OSError, RuntimeError, SafetensorError) as error:
                raise ValueError(f"SARM: {folder} must hold the weights of its config ({error}).") from error
        self.config = self._model.config
        self.config.device = self.device
        self._model.to(self.device).eval()
        self._state = stats[self.config.state_key]["mean"].numel() if self.config.state_key in stats else 0
        if not self._state:
            raise ValueError(f"SARM: {folder} must say how {self.config.state_key} was scaled; {PROCESSOR} does not.")
        put = f"Run `hf download {CLIP}` where there is a network, and copy its folder of the hub's cache here."
        with explain_missing("SARM: the encoder", CLIP, put):
            self._processor, _ = processing.make_sarm_pre_post_processors(self.config, dataset_stats=stats)
        for step in self._processor.steps:
            if hasattr(step, "eval"):
                step.eval()  # as it is made it perturbs pictures and texts, for training

    @torch.no_grad()
    def judge(
        self, frames: UInt8[Tensor, "T H W 3"], states: Float[Tensor, "T S"], task: str, row: int, output: str
    ) -> float:
        """Progress at one row of an episode, in [0, 1], as LeRobot's `compute_rabc_weights` asks for it.

        Args:
            frames: of the whole episode.
            states: the robot's own readings at each.
            task: the instruction.
            row: which is judged; frames before the episode are its first, those after it its last.
            output: a key of `OUTPUTS`.

        Raises:
            ValueError: readings of another number than the checkpoint was trained with.
        """
        if states.shape[1] != self._state:
            raise ValueError(
                f"sarm: the robot's own readings must be the {self._state} that {self.name} was trained with; got "
                f"{states.shape[1]}."
            )
        rows = torch.tensor(self.config.observation_delta_indices).add(row).clamp(0, len(frames) - 1)
        made = self._processor({
            self.config.image_key: frames[rows].permute(0, 3, 1, 2).float() / 255,
            self.config.state_key: states[rows],
            "task": task,
            "index": row,
            "episode_index": 0,
        })  # fmt: skip
        said = self._model.calculate_rewards(
            text_embeddings=made["text_features"],
            video_embeddings=made["video_features"],
            state_features=made["state_features"],
            lengths=made["lengths"],
            return_all_frames=True,
            head_mode=OUTPUTS[output],
        )
        return float(said[0, self.config.n_obs_steps // 2])


class SarmHead:
    """Progress at each row, which reads the frames and the robot's readings around it, later ones too.

    Every `stride`-th row and the last are asked about, the others are interpolated, as by LeRobot's `--stride`.

    Args:
        instruction: the task.
        model: the checkpoint.
        views: cameras; the first that is there is shown. None: the one that the checkpoint names, or the only one.
        stride: every so many rows are asked about, from 0.
        output: "progress" (of the whole task), or "dense" for the fine stages of a checkpoint that has them.

    Raises:
        ValueError: no instruction, or a setting out of range; (score) frames or readings missing.
    """

    name = "sarm"
    frames_read = "all"
    reads_ahead = True

    def __init__(
        self,
        instruction: str,
        *,
        model: Sarm,
        views: Sequence[str] | None = None,
        stride: int = 5,
        output: str = "progress",
    ) -> None:
        check_reading("SarmHead", instruction, stride, "linear")
        if output not in OUTPUTS:
            raise ValueError(f"SarmHead: output must be {' or '.join(OUTPUTS)}; got {output!r}.")
        if output == "dense" and not model.config.uses_dual_heads:
            raise ValueError(f"SarmHead: output must be progress for {model.name}, which has no dense stages.")
        self.model, self.views, self.stride, self.output = model, views, stride, output
        self._instruction = instruction

    def toward(self, goal: str) -> SarmHead:
        """The same model, judging another task."""
        return toward(self, goal)

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """Progress of each row, in [0, 1]."""
        if not features.signals:
            raise ValueError(
                "sarm: the robot's own readings must be there beside the frames, as a dataset's observation.state; got "
                "none."
            )
        views = self.views
        if views is None and len(features.frames) != 1:
            views = [self.model.config.image_key.rpartition(".")[2]]
        shown = features.frames[next(iter(images(features, self.name, views)))].cpu()
        states = torch.stack(list(features.signals.values()), -1).float().cpu()
        count = features.main.shape[1]
        at = sorted({*asked_rows(count, self.stride), count - 1})
        said = [
            [self.model.judge(frames, own, self._instruction, row, self.output) for row in at]
            for frames, own in zip(shown, states, strict=True)
        ]
        filled = np.stack([np.interp(np.arange(count), at, values) for values in said])
        return torch.from_numpy(filled).float().to(features.main.device)


def _lerobot() -> tuple[Any, Any]:
    """LeRobot's modules of SARM: the model and its processor."""
    cure_torchvision()
    try:
        return import_module(f"{PLACE}.modeling_sarm"), import_module(f"{PLACE}.processor_sarm")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"SARM is run by LeRobot's own class, in the package lerobot, version 0.6 or newer; {error.name} is not "
            "installed. Install it (Python 3.12 or newer): pip install 'lerobot[sarm]'."
        ) from error


def _scales(folder: Path) -> dict[str, dict[str, Tensor]]:
    """feature -> statistic -> value, by which training scaled what the model reads."""
    try:
        steps = json.loads((folder / PROCESSOR).read_text("utf-8"))["steps"]
        file = next(each["state_file"] for each in steps if each.get("registry_name") == "normalizer_processor")
        tensors = load_file(folder / Path(file).name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration, SafetensorError) as error:
        raise ValueError(
            f"SARM: {folder} must hold {PROCESSOR} and the scales of its normalizer_processor, as LeRobot's training "
            f"writes them into pretrained_model; got {error or type(error).__name__}."
        ) from error
    stats: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        feature, _, statistic = name.rpartition(".")
        stats.setdefault(feature, {})[statistic] = value
    return stats
