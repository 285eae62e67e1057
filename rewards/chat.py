"""The nouns of asking a vision-language model: messages with images, the two protocols, and the one error."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

IMAGE = "<image>"  # where in a message's text an image goes
ROLES = ("system", "user", "assistant")
THOUGHT = re.compile(r"<think(?:ing)?>|\[THINK\]|◁think▷", re.IGNORECASE)  # where a model's reasoning begins
THOUGHT_ENDS = re.compile(r"</think(?:ing)?>|\[/THINK\]|◁/think▷", re.IGNORECASE)


@dataclass(frozen=True)
class Message:
    """One turn of a chat.

    Args:
        role: "system", "user" or "assistant".
        text: what is said. Each `<image>` in it marks the place of one image, in order; without any, the images come
            first.
        images: (H, W, 3) uint8 RGB each, any size.

    Raises:
        ValueError: an unknown role, marks that are not as many as the images, or an image of another shape or type.
    """

    role: str
    text: str
    images: Sequence[np.ndarray] = ()

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"Message: role must be one of {', '.join(ROLES)}; got {self.role!r}.")
        marks = self.text.count(IMAGE)
        if marks not in (0, len(self.images)):
            raise ValueError(f"Message: text must mark {len(self.images)} images by {IMAGE}, or none; got {marks}.")
        for image in self.images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                got = f"{image.dtype} {image.shape}"
                raise ValueError(f"Message: images must be uint8 (H, W, 3); got {got}. Pass RGB, channels last.")

    @property
    def parts(self) -> list[str | np.ndarray]:
        """Texts and images in the order in which they are shown; empty texts left out."""
        if IMAGE not in self.text:
            return [*self.images, *([self.text] if self.text else [])]
        texts = self.text.split(IMAGE)
        shown: list[str | np.ndarray] = [texts[0]]
        for image, text in zip(self.images, texts[1:], strict=True):
            shown += [image, text]
        return [part for part in shown if not (isinstance(part, str) and not part.strip())]


@runtime_checkable
class ChatModel(Protocol):
    """A vision-language model that answers in text."""

    name: str

    def ask(self, messages: Sequence[Message]) -> str:
        """The answer, whole.

        Raises:
            VLMError: no answer, a refusal, or one that was cut off.
        """
        ...


@runtime_checkable
class LogprobModel(ChatModel, Protocol):
    """One that also says how likely it holds given answers."""

    def logprobs(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """log P(answer | messages) of each, natural logarithm, ≤ 0.

        Raises:
            VLMError: the model does not say.
        """
        ...


class VLMError(RuntimeError):
    """A model that gave no usable answer; no value may be made of it.

    Attributes:
        asked: who was asked what, in short.
        expected: what an answer had to be.
        got: what came instead.
        refused: whether the model declined to answer.
        answered: whether it said anything at all; False where it was not reached.
    """

    def __init__(
        self, asked: str, expected: str, got: str, advice: str = "", *, refused: bool = False, answered: bool = True
    ) -> None:
        super().__init__(f"{asked} must give {expected}; got {got}.{' ' if advice else ''}{advice}")
        self.asked, self.expected, self.got = asked, expected, got
        self.refused, self.answered = refused, answered


def excerpt(text: str, limit: int = 200) -> str:
    """The beginning of a text, on one line, quoted."""
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else line[: limit - 1] + "…")


def filled(template: str, **values: str | int) -> str:
    """A prompt with its places filled in one pass, so that nothing in a value is a place itself.

    Args:
        template: text with `{name}`; braces around anything else stay as they are.
        **values: what goes into each place: a text, in which an `<image>` is no mark, or a number of images.
    """

    def put(found: re.Match[str]) -> str:
        value = values[found[1]]
        return IMAGE * value if isinstance(value, int) else value.replace(IMAGE, "[image]")

    return re.sub(rf"\{{({'|'.join(map(re.escape, values))})\}}", put, template)


def answered(text: str) -> str:
    """An answer without the reasoning before it; "" where the reasoning never ends.

    Models put their thoughts between marks (`<think>` … `</think>`); of some, the first mark is part of the prompt.
    """
    after = THOUGHT_ENDS.split(text)[-1]
    return THOUGHT.split(after)[0].strip()


def plain(text: str) -> str:
    """An answer's words and numbers as ASCII has them: no Markdown, no LaTeX, no typographic minus or wide digits."""
    text = unicodedata.normalize("NFKC", html.unescape(text)).replace("\N{MINUS SIGN}", "-")
    text = re.sub(r"\\(?:boxed|text|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"[*_`$\\#\"\u201c\u201d]", "", text)
