"""The nouns of asking a vision-language model: messages with pictures, the two protocols, and the one error."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

IMAGE = "<image>"  # where in a message's text an image goes
VIDEO = "<video>"  # and a film
MARKS = re.compile(f"({IMAGE}|{VIDEO})")
ROLES = ("system", "user", "assistant")
THOUGHT = re.compile(r"<think(?:ing)?>|\[THINK\]|◁think▷", re.IGNORECASE)  # where a model's reasoning begins
THOUGHT_ENDS = re.compile(r"</think(?:ing)?>|\[/THINK\]|◁/think▷", re.IGNORECASE)


@dataclass(frozen=True)
class Video:
    """A film that a model is shown as one, with the times at which its frames were taken.

    Args:
        frames: T ≥ 1 of (H, W, 3) uint8 RGB, of one size.
        fps: frames a second, > 0: frame k is told to be of second k / fps.

    Raises:
        ValueError: no frames, frames of several sizes or of another type, or fps ≤ 0.
    """

    frames: Sequence[np.ndarray]
    fps: float = 1.0

    def __post_init__(self) -> None:
        for frame in self.frames:
            _check_image(frame, "Video: frames")
        sizes = sorted({frame.shape[:2] for frame in self.frames})
        if len(sizes) != 1:
            raise ValueError(f"Video: frames must be one or more of one size (H, W); got {sizes or 'none'}.")
        if not self.fps > 0:
            raise ValueError(f"Video: fps must be > 0; got {self.fps}.")


@dataclass(frozen=True)
class Message:
    """One turn of a chat.

    Args:
        role: "system", "user" or "assistant".
        text: what is said. Each `<image>` in it marks the place of one image, each `<video>` that of a film, in order;
            without any, films and images come first. What stands before a mark is the label of what follows.
        images: (H, W, 3) uint8 RGB each, any size.
        videos: films, for models that take them.
        marks: marks of the model's own that the text really has, as `<think>` in a published prompt: a model on this
            machine takes any other for words. Whoever fills in a text from outside breaks them in it (`broken`).
        open: the turn is not ended: the model goes on from its last word, without a template's close or an answer's
            head. Of the last message alone.

    Raises:
        ValueError: an unknown role, marks that are not as many as images and films, or an image of another shape or
            type.
    """

    role: str
    text: str
    images: Sequence[np.ndarray] = ()
    videos: Sequence[Video] = ()
    marks: Sequence[str] = ()
    open: bool = False

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"Message: role must be one of {', '.join(ROLES)}; got {self.role!r}.")
        for mark, shown, what in ((IMAGE, self.images, "images"), (VIDEO, self.videos, "films")):
            marks = self.text.count(mark)
            if marks != len(shown) and self.marked:
                raise ValueError(f"Message: text must mark {len(shown)} {what} by {mark}, or none; got {marks}.")
        for image in self.images:
            _check_image(image, "Message: images")

    @property
    def marked(self) -> bool:
        """Whether the text says where its images and films go."""
        return MARKS.search(self.text) is not None

    @property
    def parts(self) -> list[str | np.ndarray | Video]:
        """Texts, images and films in the order in which they are shown; empty texts left out."""
        if not self.marked:
            return [*self.videos, *self.images, *([self.text] if self.text else [])]
        images, videos = iter(self.images), iter(self.videos)
        shown: list[str | np.ndarray | Video] = []
        for part in MARKS.split(self.text):
            if part == IMAGE:
                shown.append(next(images))
            elif part == VIDEO:
                shown.append(next(videos))
            elif part.strip():
                shown.append(part)
        return shown


def _check_image(image: np.ndarray, where: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        got = f"{image.dtype} {image.shape}"
        raise ValueError(f"{where} must be uint8 (H, W, 3); got {got}. Pass RGB, channels last.")


def digest(messages: Sequence[Message], *about: str) -> bytes:
    """SHA-256 of what is asked, and of other texts that an answer depends on; images by their pixels.

    Args:
        messages: what is asked.
        about: other texts that the answer depends on.
    """
    made = hashlib.sha256()

    def add(*values: str) -> None:
        for value in values:
            data = value.encode()
            made.update(len(data).to_bytes(8, "big") + data)  # lengths keep neighbours apart

    add(*about)
    for message in messages:
        add(message.role, message.text, str(len(message.images)))
        for image in message.images:
            add(str(image.shape))
            made.update(image.tobytes())
        for video in message.videos:
            add(f"video {video.fps} {len(video.frames)}")
            for frame in video.frames:
                add(str(frame.shape))
                made.update(frame.tobytes())
        if message.open:
            add("open")
    return made.digest()


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

    Args:
        advice: what to do, a sentence; "" where there is nothing to say.
    """

    def __init__(
        self, asked: str, expected: str, got: str, advice: str = "", *, refused: bool = False, answered: bool = True
    ) -> None:
        super().__init__(f"{asked} must give {expected}; got {got}.{' ' if advice else ''}{advice}")
        self.asked, self.expected, self.got = asked, expected, got
        self.refused, self.answered = refused, answered


def excerpt(text: str, limit: int = 200) -> str:
    """The beginning of a text, on one line, quoted.

    Args:
        text: of any length.
        limit: characters that are kept.
    """
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else line[: limit - 1] + "…")


def filled(template: str, **values: str | int) -> str:
    """A prompt with its places filled in one pass, so that nothing in a value is a place itself.

    Args:
        template: text with `{name}`; braces around anything else stay as they are.
        **values: what goes into each place: a text, in which `<image>` and `<video>` are no marks, or a number of
            images.
    """

    def put(found: re.Match[str]) -> str:
        value = values[found[1]]
        return IMAGE * value if isinstance(value, int) else unmarked(value)

    return re.sub(rf"\{{({'|'.join(map(re.escape, values))})\}}", put, template)


def unmarked(text: str) -> str:
    """A text from outside, in which no word is the place of an image or a film."""
    return text.replace(IMAGE, "[image]").replace(VIDEO, "[video]")


def broken(text: str, marks: Iterable[str]) -> str:
    """A text in which these marks are words, as a space follows their first letter."""
    for mark in sorted(marks, key=len, reverse=True):
        text = text.replace(mark, f"{mark[0]} {mark[1:]}") if len(mark) > 1 else text
    return text


def answered(text: str) -> str:
    """An answer without the reasoning before it; "" where the reasoning never ends.

    Models put their thoughts between marks (`<think>` … `</think>`); of some, the first mark is part of the prompt.

    Args:
        text: a model's whole answer.
    """
    after = THOUGHT_ENDS.split(text)[-1]
    return THOUGHT.split(after)[0].strip()


def plain(text: str) -> str:
    """An answer's words and numbers as ASCII has them: no Markdown, no LaTeX, no typographic minus or wide digits.

    Args:
        text: an answer.
    """
    text = unicodedata.normalize("NFKC", html.unescape(text)).replace("\N{MINUS SIGN}", "-")
    text = re.sub(r"\\(?:boxed|text|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"[*_`$\\#\"\u201c\u201d]", "", text)
