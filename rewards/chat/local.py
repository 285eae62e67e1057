"""A vision-language model on this machine: any transformers image-text model, by hub id or folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rewards.chat.messages import Message, Video, VLMError, broken, digest, excerpt
from rewards.encoders.frozen import PRECISIONS, _device, fast_precision
from rewards.encoders.loading import explain_missing, import_transformers

SAMPLING = ("temperature", "top_p", "top_k")


class LocalChat:
    """Any transformers model of the image-text-to-text kind (Qwen-VL, SmolVLM, InternVL, …).

    Args:
        model: hub id (`Qwen/Qwen2.5-VL-3B-Instruct`) or a folder as `save_pretrained` writes it, processor and chat
            template included.
        device: "auto" (CUDA if there is one), or a torch device.
        precision: "auto" (bf16 where that is faster, else fp32), "fp32", "bf16", "fp16".
        max_tokens: of an answer; one that is cut off is an error.
        sampling: `temperature`, `top_p` and `top_k` of a model that was published with them; None: greedy. Draws are
            seeded by the question, so that the same question has the same answer.
        pixels: (least, most) pixels that an image has once the processor has resized it; None: the processor's own.

    Raises:
        ValueError: no chat template, an unknown device, precision or sampling, max_tokens < 1, or pixels that are not
            two whole numbers, the smaller first.
        FileNotFoundError: weights that are neither here nor to be downloaded; says what to put where.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        precision: str = "auto",
        max_tokens: int = 1024,
        sampling: Mapping[str, float] | None = None,
        pixels: Sequence[int] | None = None,
    ) -> None:
        where = "LocalChat"
        if precision != "auto" and precision not in PRECISIONS:
            raise ValueError(f"{where}: precision must be auto, {', '.join(PRECISIONS)}; got {precision!r}.")
        if max_tokens < 1:
            raise ValueError(f"{where}: max_tokens must be ≥ 1; got {max_tokens}.")
        if pixels is not None and not (len(pixels) == 2 and 1 <= pixels[0] <= pixels[1]):
            raise ValueError(f"{where}: pixels must be [least, most], 1 ≤ least ≤ most; got {list(pixels)}.")
        self._sampling = _check_sampling(sampling or {}, where)
        self._pixels = None if pixels is None else (int(pixels[0]), int(pixels[1]))
        self.name, self.device, self._max_tokens = model, _device(device, where), max_tokens
        dtype = PRECISIONS[fast_precision(self.device) if precision == "auto" else precision]
        transformers = import_transformers()
        with explain_missing(f"{where}: model", model, put_model(model)):
            self._processor = transformers.AutoProcessor.from_pretrained(model, trust_remote_code=False)
            network: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                model, dtype=dtype, trust_remote_code=False
            )
        if not getattr(self._processor, "chat_template", None):
            raise ValueError(f"{where}: model must come with a chat template; got {model!r}, which has none.")
        self._network = network.to(self.device).eval().requires_grad_(False)

    @property
    def asked_by(self) -> str:
        """What an answer depends on beside the model and the question; "" where nothing was set."""
        told = {"sampling": self._sampling, "pixels": self._pixels}
        return " ".join(f"{name}={value}" for name, value in told.items() if value)

    @torch.inference_mode()
    def ask(self, messages: Sequence[Message]) -> str:
        """See `ChatModel.ask`."""
        inputs = self._inputs(messages, "")
        length = inputs["input_ids"].shape[1]
        # the config that ships with a model may ask for sampling
        options: dict[str, Any] = dict.fromkeys(SAMPLING) | {"do_sample": bool(self._sampling)} | self._sampling
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            if self._sampling:
                torch.manual_seed(int.from_bytes(digest(messages)[:7], "big"))
            made = self._network.generate(**inputs, max_new_tokens=self._max_tokens, **options)[0, length:]
        text = self._processor.decode(made, skip_special_tokens=True)
        ends = self._network.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        if len(made) >= self._max_tokens and int(made[-1]) not in ends:
            raise VLMError(self._asked, "a whole answer", f"one cut off: {excerpt(text)}", "Raise max_tokens.")
        if not text.strip():
            raise VLMError(self._asked, "an answer", "an empty one")
        return text

    @torch.inference_mode()
    def logprobs(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """See `rewards.chat.asking.token_logprob`: Σ log p of each answer's tokens after the generation prompt."""
        bare = self._inputs(messages, "")
        start = bare["input_ids"].shape[1]
        wholes = [self._inputs(messages, answer) for answer in answers]
        tails = []
        for answer, whole in zip(answers, wholes, strict=True):
            ids = whole["input_ids"][0]
            if len(ids) <= start or not torch.equal(ids[:start], bare["input_ids"][0]):
                raise VLMError(self._asked, "an answer apart from its prompt", f"tokens that merge {answer!r} with it")
            tails.append(ids[start:])
        if all(len(tail) == 1 for tail in tails):  # one pass for all
            last = self._logits(bare)[-1]
            return [float(last[tail[0]]) for tail in tails]
        values = []
        for tail, whole in zip(tails, wholes, strict=True):
            before = self._logits(whole)[start - 1 : -1]  # what each token of the answer was predicted from
            values.append(float(before.gather(1, tail[:, None]).sum()))
        return values

    @property
    def _asked(self) -> str:
        return f"LocalChat: {self.name}"

    def _logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(T, vocabulary) log-probabilities of the next token."""
        return self._network(**inputs).logits[0].float().log_softmax(-1)

    def _inputs(self, messages: Sequence[Message], answer: str) -> dict[str, Any]:
        said = [
            {"role": message.role, "content": [self._part(part, message.marks) for part in message.parts]}
            for message in messages
        ]
        is_open = messages[-1].open
        prompt = self._processor.apply_chat_template(said, tokenize=False, add_generation_prompt=not is_open)
        if is_open:
            prompt = self._opened(prompt)
        shown = [part for message in messages for part in message.parts]
        if hasattr(self._processor, "_calculate_timestamps"):  # Qwen3-VL's: it marks each moment of a film itself,
            # and transformers 5, unlike 4.57 with which those models were made, leaves the template's marks around all
            begin, end = self._processor.vision_start_token, self._processor.vision_end_token
            film = self._processor.video_token
            prompt = prompt.replace(f"{begin}{film}{end}", film)
        images = [Image.fromarray(part) for part in shown if isinstance(part, np.ndarray)]
        films = [part for part in shown if isinstance(part, Video)]
        options: dict[str, Any] = film_options(self._processor, films)
        if self._pixels and images:
            low, high = self._pixels
            options["images_kwargs"] = {"size": {"shortest_edge": low, "longest_edge": high}}
        made = self._processor(text=[prompt + answer], images=images or None, return_tensors="pt", **options)
        return {
            key: value.to(self.device, self._network.dtype if value.is_floating_point() else None)
            for key, value in made.items()
            if isinstance(value, Tensor)
        }

    def _part(self, part: str | np.ndarray | Video, marks: Sequence[str]) -> dict[str, str]:
        if isinstance(part, str):
            return {"type": "text", "text": defused(self._processor, part, marks)}
        return {"type": "video" if isinstance(part, Video) else "image"}

    def _opened(self, prompt: str) -> str:
        """A prompt without the mark that ends its last turn."""
        end = getattr(self._processor, "tokenizer", self._processor).eos_token
        if not end or end not in prompt:
            got = f"a chat template that does not end turns by {end!r}"
            raise VLMError(self._asked, "a turn that can be left open", got, answered=False)
        return prompt.rpartition(end)[0]


def put_model(model: str) -> str:
    """What to do where weights are missing.

    Args:
        model: its hub id or folder.
    """
    put = f"Run `hf download {model} --local-dir FOLDER` where there is a network"
    return f"{put}, copy FOLDER here, and give model=FOLDER."


def defused(processor: Any, text: str, kept: Sequence[str] = ()) -> str:
    """A text in which no mark of the model's own (`<|im_end|>`) is one but those kept: it may come from a dataset.

    Args:
        processor: the model's own, whose tokenizer knows the marks.
        text: that a stranger may have written.
        kept: marks that stay marks.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    added = (token.content for token in tokenizer.added_tokens_decoder.values())  # those not called special too
    return broken(text, set(filter(None, {*tokenizer.all_special_tokens, *added})) - set(kept))


def film_options(processor: Any, films: Sequence[Video]) -> dict[str, Any]:
    """A processor's arguments for films whose frames are chosen already, with their times; none without films."""
    if not films:
        return {}
    told = [
        {"total_num_frames": len(film.frames), "fps": float(film.fps), "frames_indices": list(range(len(film.frames)))}
        for film in films
    ]
    options: dict[str, Any] = {
        "videos": [np.stack(film.frames) for film in films], "video_metadata": told, "do_sample_frames": False,
    }  # fmt: skip
    if getattr(getattr(processor, "video_processor", None), "cap_pixels_per_frame", False) is None:
        options["cap_pixels_per_frame"] = False  # what was the case when the models here were published
    return options


def _check_sampling(sampling: Mapping[str, float], where: str) -> dict[str, float]:
    if unknown := set(sampling) - set(SAMPLING):
        raise ValueError(f"{where}: sampling must be of {', '.join(SAMPLING)}; got {', '.join(sorted(unknown))}.")
    for name, value in sampling.items():
        if not (math.isfinite(value) and value > 0 and (name != "top_p" or value <= 1)):
            raise ValueError(f"{where}: sampling.{name} must be > 0{' and ≤ 1' * (name == 'top_p')}; got {value}.")
    return dict(sampling)
