"""A vision-language model on this machine: any transformers image-text model, by hub id or folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rewards.chat import Message, VLMError, excerpt
from rewards.encoders import _explain_missing, import_transformers
from rewards.frozen import PRECISIONS, _device, _fast_precision


class LocalChat:
    """Any transformers model of the image-text-to-text kind (Qwen-VL, SmolVLM, InternVL, …), greedy.

    Args:
        model: hub id (`Qwen/Qwen2.5-VL-3B-Instruct`) or a folder as `save_pretrained` writes it, processor and chat
            template included.
        device: "auto" (CUDA if there is one), or a torch device.
        precision: "auto" (bf16 where that is faster, else fp32), "fp32", "bf16", "fp16".
        max_tokens: of an answer; one that is cut off is an error.

    Raises:
        ValueError: no chat template, an unknown device or precision, or max_tokens < 1.
        FileNotFoundError: weights that are neither here nor to be downloaded; says what to put where.
    """

    def __init__(self, model: str, *, device: str = "auto", precision: str = "auto", max_tokens: int = 1024) -> None:
        where = "LocalChat"
        if precision != "auto" and precision not in PRECISIONS:
            raise ValueError(f"{where}: precision must be auto, {', '.join(PRECISIONS)}; got {precision!r}.")
        if max_tokens < 1:
            raise ValueError(f"{where}: max_tokens must be ≥ 1; got {max_tokens}.")
        self.name, self.device, self._max_tokens = model, _device(device, where), max_tokens
        dtype = PRECISIONS[_fast_precision(self.device) if precision == "auto" else precision]
        transformers = import_transformers()
        put = (
            f"Run `hf download {model} --local-dir FOLDER` where there is a network, copy FOLDER here, "
            "and give model=FOLDER."
        )
        with _explain_missing(f"{where}: model", model, put):
            self._processor = transformers.AutoProcessor.from_pretrained(model, trust_remote_code=False)
            network: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                model, dtype=dtype, trust_remote_code=False
            )
        if not getattr(self._processor, "chat_template", None):
            raise ValueError(f"{where}: model must come with a chat template; got {model!r}, which has none.")
        self._network = network.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def ask(self, messages: Sequence[Message]) -> str:
        """See `ChatModel.ask`."""
        inputs = self._inputs(messages, "")
        length = inputs["input_ids"].shape[1]
        # the config that ships with a model may ask for sampling
        options = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
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
        """See `rewards.vlm.token_logprob`: Σ log p of each answer's tokens, right after the generation prompt."""
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

    def _defused(self, text: str) -> str:
        """A text in which no mark of the model's own (`<|im_end|>`) is one: it may come from a dataset."""
        tokenizer = getattr(self._processor, "tokenizer", self._processor)
        added = (token.content for token in tokenizer.added_tokens_decoder.values())  # those not called special too
        for mark in sorted(filter(None, {*tokenizer.all_special_tokens, *added}), key=len, reverse=True):
            text = text.replace(mark, f"{mark[0]} {mark[1:]}") if len(mark) > 1 else text
        return text

    def _inputs(self, messages: Sequence[Message], answer: str) -> dict[str, Any]:
        said = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in message.parts
                ],
            }
            for message in messages
        ]
        for part in (part for message in said for part in message["content"] if part["type"] == "text"):
            part["text"] = self._defused(part["text"])
        prompt = self._processor.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        images = [Image.fromarray(part) for message in messages for part in message.images]
        made = self._processor(text=[prompt + answer], images=images or None, return_tensors="pt")
        return {
            key: value.to(self.device, self._network.dtype if value.is_floating_point() else None)
            for key, value in made.items()
        }
