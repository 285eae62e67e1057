"""Robometer: a vision-language model with heads for progress and success at a token of its own after each frame.

    hidden states at <|prog_token|>  ->  progress: softmax over bins · their centres in [0, 1];  success: sigmoid

Weights are safetensors in one of two layouts, the authors' (`config.yaml` beside the backbone's `config.json`) or
LeRobot's (one `config.json` with `vlm_config`); both are read as data. Shape letters: N frames, D hidden width, K bins.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rewards.chat.film import Film, FilmHead, first_view
from rewards.chat.local import defused, put_model
from rewards.chat.messages import Message, digest
from rewards.chat.reading import REMEMBERED, images
from rewards.core import Features
from rewards.encoders.foreign_weights import (
    fetched,
    from_logits,
    mapping,
    prediction_head,
    read_configs,
    read_tensors,
    whole_number,
)
from rewards.encoders.frozen import PRECISIONS, _device, fast_precision
from rewards.encoders.loading import explain_missing, import_transformers
from rewards.pictures import fitting

PROMPT = (
    "The task for the robot is '{task}'. Given the trajectory video, predict the task progress at each frame, how far "
    "along the robot is towards completing the task, a float between 0 and 1, where 0 is the starting state and 1 is "
    "when the task is completed. If the robot is not performing the same task, predict 0 progress."
)
TOKENS = ("<|split_token|>", "<|reward_token|>", "<|pref_token|>", "<|sim_token|>", "<|prog_token|>")  # in this order
BASE = "Qwen/Qwen3-VL-4B-Instruct"
BACKBONE = "qwen3_vl"
LEAST_TOKENS, MOST_TOKENS = 4, 16384  # of an image, each a square of merged patches: qwen-vl-utils' bounds
OUTPUTS = ("progress", "success")


@dataclass(frozen=True)
class CheckpointSettings:
    """What a checkpoint says of itself.

    Attributes:
        backbone: the config of its vision-language model, plain.
        base: where its processor comes from, where it has none beside it.
        frames: of a window, at most.
    """

    backbone: Mapping[str, Any]
    base: str
    frames: int


class VLMWithHeads:
    """A backbone with a progress and a success head, asked about windows of frames.

    Args:
        weights: a folder, or a hub id.
        processor: folder or hub id of tokenizer and image processor; None: those beside the weights, else the base
            model's that the weights name.
        device, precision: see `LocalChat`.

    Raises:
        FileNotFoundError: weights or processor that are neither here nor to be downloaded; says what to put where.
        ValueError: a checkpoint of another form, or damaged, or one whose tokens do not fit its processor.

    Attributes:
        name: the weights, as they were given.
        frames: of a window, at most.
    Source: arXiv 2603.02115; robometer/robometer c7f38e2, and huggingface/lerobot 7427f31, lerobot/rewards/robometer.
        Departs: the tokens alone are read, no pooled frames; of two films no preference.
    """

    kind = "robometer"

    def __init__(
        self, weights: str, *, processor: str | None = None, device: str = "auto", precision: str = "auto"
    ) -> None:
        where = "VLMWithHeads"
        if precision != "auto" and precision not in PRECISIONS:
            raise ValueError(f"{where}: precision must be auto, {', '.join(PRECISIONS)}; got {precision!r}.")
        self.name, self.device = weights, _device(device, where)
        dtype = PRECISIONS[fast_precision(self.device) if precision == "auto" else precision]
        transformers = import_transformers()
        folder = fetched(weights)
        settings = read_settings(folder)
        tensors = read_tensors(folder)
        self.heads = {name: prediction_head(tensors, name, weights)[0].to(self.device, dtype) for name in OUTPUTS}
        self.frames = settings.frames
        base = processor or (str(folder) if (folder / "tokenizer.json").is_file() else settings.base)
        with explain_missing(f"{where}: the processor of", base, put_model(base).replace("model=", "processor=")):
            self._processor = transformers.AutoProcessor.from_pretrained(base, trust_remote_code=False)
        tokenizer = self._processor.tokenizer
        tokenizer.add_tokens([token for token in TOKENS if token not in tokenizer.get_vocab()], special_tokens=True)
        self._token = int(tokenizer.convert_tokens_to_ids(TOKENS[-1]))
        self._network = _backbone(transformers, settings, tensors, dtype, weights).to(self.device)
        rows = self._network.get_input_embeddings().weight.shape[0]
        if rows != len(tokenizer):
            raise ValueError(
                f"{where}: the processor must have as many tokens as {weights} has rows for them, {rows}; {base} has "
                f"{len(tokenizer)} with Robometer's five. Give the one it was trained with: processor=."
            )

    def inputs(self, *windows: Sequence[np.ndarray], task: str) -> dict[str, Tensor]:
        """What the backbone reads of windows of one length and size: text, its tokens, and pixels, on the CPU.

        Args:
            windows: B of N frames, (H, W, 3) uint8.
            task: the instruction; marks of the model's own in it are words.
        """
        content: list[dict[str, str]] = [
            {"type": "text", "text": PROMPT.replace("{task}", defused(self._processor, task))}
        ]
        for _ in windows[0]:
            content += [{"type": "image"}, {"type": "text", "text": TOKENS[-1]}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=False, add_vision_id=True
        )
        images = self._processor.image_processor
        square = (images.patch_size * images.merge_size) ** 2
        side = images.patch_size * images.merge_size
        shown = []
        for frame in chain(*windows):
            height, width = fitting(frame.shape[0], frame.shape[1], side, LEAST_TOKENS * square, MOST_TOKENS * square)
            shown.append(Image.fromarray(frame).resize((width, height)))
        texts = [text] * len(windows)
        return dict(self._processor(text=texts, images=shown, return_tensors="pt", do_resize=False))

    def judge(self, frames: Sequence[np.ndarray], task: str) -> dict[str, Float[Tensor, " N"]]:
        """Progress and success at each frame of a window, each in [0, 1], float32 on the CPU."""
        return self.judge_windows([frames], task)[0]

    @torch.inference_mode()
    def judge_windows(self, windows: Sequence[Sequence[np.ndarray]], task: str) -> list[dict[str, Float[Tensor, " N"]]]:
        """As `judge`, of windows of one length and size, which pass through the network together."""
        given = self.inputs(*windows, task=task)
        moved = {
            name: value.to(self.device, self._network.dtype if value.is_floating_point() else None)
            for name, value in given.items()
        }
        hidden = self._network(**moved).last_hidden_state
        states = hidden[(given["input_ids"] == self._token).to(hidden.device)]
        logits = {name: head(states).float().cpu() for name, head in self.heads.items()}
        progress, success = from_logits(logits["progress"]).clamp(0, 1), logits["success"][:, 0].sigmoid()
        parts = (said.view(len(windows), -1) for said in (progress, success))
        return [{"progress": one, "success": other} for one, other in zip(*parts, strict=True)]


@runtime_checkable
class WindowModel(Protocol):
    """A network that judges every frame of a window.

    Attributes:
        kind: of it, for logs: "robometer" or "rewind".
        frames: of a window, at most.
    """

    kind: str
    frames: int

    def judge_windows(
        self, windows: Sequence[Sequence[np.ndarray]], task: str
    ) -> list[dict[str, Float[Tensor, " N"]]]: ...


class WindowHead(FilmHead):
    """Progress, or the probability of success, at the newest frame of a window over the film so far.

    Args:
        instruction, views, stride: see `FilmHead`; the first view is shown. Robometer was made for about 3 frames a
            second.
        model: the network.
        output: "progress" or "success".
        max_frames: of a window, evenly spread over the film; None: as many as the checkpoint was trained with.
        windows: that are judged together at most, where the network can; only those of one length and size are, so
            none is padded.

    Raises:
        ValueError: no instruction, or a setting out of range; (score) frames missing.
    Source: the window is that of Robometer's evaluation (robometer/robometer c7f38e2): first and newest frame, and an
        even choice between. Departs: the film is every `stride`-th frame of the episode.
    """

    def __init__(
        self,
        instruction: str,
        *,
        model: WindowModel,
        views: Sequence[str] | None = None,
        stride: int = 5,
        output: str = "progress",
        max_frames: int | None = None,
        windows: int = 8,
    ) -> None:
        super().__init__(instruction, views=views, stride=stride)
        if output not in OUTPUTS:
            raise ValueError(f"WindowHead: output must be {' or '.join(OUTPUTS)}; got {output!r}.")
        self.model, self.output, self.max_frames = model, output, max_frames or model.frames
        self.name = model.kind
        self._judged: OrderedDict[bytes, float] = OrderedDict()
        if not 2 <= self.max_frames <= model.frames:
            raise ValueError(f"WindowHead: max_frames must be 2 to {model.frames}; got {self.max_frames}.")
        if windows < 1:
            raise ValueError(f"WindowHead: windows must be >= 1; got {windows}.")
        self.windows = windows

    def advance(
        self, features: Features, memory: Sequence[Film] | None = None
    ) -> tuple[Float[Tensor, "B T"], list[Film]]:
        """See `FilmHead`; what the rows at hand will ask is asked before, several windows at a time."""
        shown = images(features, self.name, self.views)
        groups: dict[tuple[int, ...], dict[bytes, list[np.ndarray]]] = {}
        for b, film in enumerate(memory or [Film()] * features.main.shape[0]):
            for t in range(features.main.shape[1]):
                film, asked = self.seen(film, tuple(episodes[b][t] for episodes in shown.values()))
                if not asked:
                    continue
                window = first_view(film, self.max_frames)
                key = self._key(window)
                if key not in self._judged:
                    groups.setdefault((len(window), *window[0].shape), {})[key] = window
        for new in groups.values():
            for start in range(0, len(new), self.windows):
                self._ask(dict(islice(new.items(), start, start + self.windows)))
        return super().advance(features, memory)

    def judge(self, film: Film) -> float:
        """See `FilmHead`; a window that was judged before is not judged again."""
        window = first_view(film, self.max_frames)
        key = self._key(window)
        if key not in self._judged:
            self._ask({key: window})
        return self._judged[key]

    def _key(self, window: Sequence[np.ndarray]) -> bytes:
        return digest([Message("user", self._instruction, window)], self.output)

    def _ask(self, windows: Mapping[bytes, Sequence[np.ndarray]]) -> None:
        said = self.model.judge_windows(list(windows.values()), self._instruction)
        for key, values in zip(windows, said, strict=True):
            self._judged[key] = float(values[self.output][-1])
        while len(self._judged) > REMEMBERED:
            self._judged.popitem(last=False)


# A checkpoint, as data ------------------------------------------------------------------------------------------


def read_settings(folder: Path) -> CheckpointSettings:
    """What a checkpoint says of itself, in either layout.

    Args:
        folder: of the checkpoint.

    Raises:
        ValueError: not a checkpoint of this kind, or one that reads progress elsewhere than at its tokens.
    """
    config, said = read_configs(folder)
    backbone = config["vlm_config"] if isinstance(config.get("vlm_config"), dict) else config
    model = {**config, **mapping(said.get("model"))}
    if (kind := backbone.get("model_type")) != BACKBONE:
        raise ValueError(f"Robometer: {folder} must hold a backbone of {BACKBONE}; got {kind!r}.")
    if not model.get("use_per_frame_progress_token", bool(config.get("vlm_config"))):
        raise ValueError(
            f"Robometer: {folder} must read progress at its tokens; it pools frames, which is not done here."
        )
    frames = whole_number({**config, **mapping(said.get("data"))}, "max_frames", 2, folder, default=8)
    return CheckpointSettings(backbone, str(model.get("base_model_id") or BASE), frames)


def _backbone(
    transformers: Any, settings: CheckpointSettings, tensors: Mapping[str, Tensor], dtype: torch.dtype, weights: str
) -> Any:
    left = ("model_type", "auto_map", "quantization_config", "vlm_config")
    config = {name: value for name, value in settings.backbone.items() if name not in left}
    state = dict(_backbone_state(tensors))
    rows = state.get("language_model.embed_tokens.weight")
    if rows is None:
        raise ValueError(f"Robometer: {weights} must hold language_model.embed_tokens.weight; it does not.")
    config["text_config"] = {**mapping(config.get("text_config")), "vocab_size": rows.shape[0]}
    made = transformers.AutoConfig.for_model(BACKBONE, **config)
    network, info = transformers.Qwen3VLModel.from_pretrained(
        None, config=made, state_dict=state, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    wrong = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if wrong:
        raise ValueError(
            f"Robometer: {weights} must hold every weight of its backbone; {len(wrong)} are missing or of another "
            f"shape, the first {wrong[0]}."
        )
    return network.eval().requires_grad_(False)


def _backbone_state(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The backbone's own names: without the wrappers' `model.`, once or twice."""
    for name, value in tensors.items():
        own = name.removeprefix("model.").removeprefix("model.")
        if own.startswith(("language_model.", "visual.")):
            yield own, value
