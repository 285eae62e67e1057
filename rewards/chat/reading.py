"""What readers of progress from a chat VLM share: questions counted, bounded and remembered; rows chosen and filled.

A row is asked about or not by its number alone (0, stride, 2·stride, …), and its answer depends on nothing after it:
so a frame has the same progress whether an episode is scored step by step or at its end. Shape letters: B episodes,
T rows, K rows asked.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rewards.chat.asking import chat_model, content_key, read_cache, token_logprob, write_cache
from rewards.chat.messages import IMAGE, VIDEO, ChatModel, Message, VLMError
from rewards.chat.tokens import LEAST_MASS, check_mass
from rewards.core import Features

BETWEEN = ("hold", "linear")
REMEMBERED = 100_000  # answers in memory; the oldest go first
JUDGED_AFTER = 10  # answers, before a share of missing ones means anything

log = logging.getLogger(__name__)
Reader = TypeVar("Reader")


class Questions:
    """Asks a model about frames, each question once; an answer that cannot be read is missing.

    Args:
        model: who is asked.
        max_calls: of the model, in this object's life; remembered answers are free. None: no bound.
        max_missing: share of answers that may be missing, once ten were asked for: a model that cannot do the task
            must not become a flat reward in silence.
        cache: a folder where readable answers are kept; None keeps them in memory alone.
        trace: a file to which every answer is added as it came, reasoning included, one JSON object a line: `call`,
            `said` and `read`, the numbers in it, null where there are none.

    Raises:
        ValueError: a number out of range.

    Attributes:
        calls: how often the model was asked.
        remembered: how often it did not have to be.
        missing: how many of its answers could not be read.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        max_calls: int | None = 20_000,
        max_missing: float = 0.5,
        cache: str | Path | None = None,
        trace: str | Path | None = None,
    ) -> None:
        if (max_calls is not None and max_calls < 1) or not 0 <= max_missing <= 1:
            raise ValueError(
                f"Questions: max_calls must be ≥ 1 and max_missing in [0, 1]; got {max_calls} and {max_missing}."
            )
        self.model, self.max_calls, self.max_missing = model, max_calls, max_missing
        self._folder = None if cache is None else Path(cache)
        self._trace = None if trace is None else Path(trace)
        self._memory: OrderedDict[str, list[float]] = OrderedDict()
        self.calls = self.remembered = self.missing = 0

    def numbers(self, messages: Sequence[Message], parse: Callable[[str], list[float]], form: str) -> list[float]:
        """What `parse` reads in the answer; [NaN] where there is none to be read.

        Args:
            messages: the question.
            parse: raises ValueError for an answer that cannot be read.
            form: names what `parse` reads, for the cache.

        Raises:
            VLMError: the model was not reached, max_calls is spent, or too many answers are missing.
        """
        return self._once(messages, form, lambda: self._read(self.model.ask(messages), parse))

    def logprob(
        self, messages: Sequence[Message], answer: str, others: Sequence[str], *, least_mass: float = LEAST_MASS
    ) -> list[float]:
        """[log P(answer)]; [NaN] where it and the others have less than `least_mass` in all. Raises: as `numbers`."""
        answers = [answer, *others]

        def ask() -> list[float]:
            values = token_logprob(self.model, messages, answers)
            check_mass(self.model.name, sum(math.exp(value) for value in values), answers, least=least_mass)
            return values[:1]

        return self._once(messages, f"logprob {answers}", ask)

    def _read(self, text: str, parse: Callable[[str], list[float]]) -> list[float]:
        """The numbers in an answer, which is kept in the trace whether it has any or not."""
        values: list[float] = []
        try:
            values = parse(text)
        finally:
            if self._trace is not None:
                self._trace.parent.mkdir(parents=True, exist_ok=True)
                with self._trace.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"call": self.calls, "said": text, "read": values or None}) + "\n")
        return values

    def report(self) -> str:
        """One line on what was asked so far."""
        return (
            f"{self.model.name}: {self.calls} calls, {self.remembered} answers remembered, {self.missing} missing, "
            f"bound {self.max_calls or 'none'}"
        )

    def _once(self, messages: Sequence[Message], form: str, ask: Callable[[], list[float]]) -> list[float]:
        key = content_key(self.model, messages, form)
        kept = self._memory.get(key)
        if kept is None and _numbers(found := read_cache(self._folder, key)):
            kept = found
        if kept is not None:
            self.remembered += 1
        else:
            kept = self._ask(messages, ask)
            if not math.isnan(kept[0]):
                write_cache(self._folder, key, kept)
        self._memory[key] = kept
        self._memory.move_to_end(key)
        if len(self._memory) > REMEMBERED:
            self._memory.popitem(last=False)
        return kept

    def _ask(self, messages: Sequence[Message], ask: Callable[[], list[float]]) -> list[float]:
        if self.max_calls is not None and self.calls >= self.max_calls:
            advice = "Raise max_calls or stride, or keep answers in a cache."
            expected = f"no more than {self.max_calls} answers"
            raise VLMError(self.model.name, expected, "one more question", advice, answered=False)
        self.calls += 1
        try:
            return ask()
        except VLMError as error:
            if not error.answered:
                raise
            reason: Exception = error
        except ValueError as error:
            reason = error
        self.missing += 1
        log.warning("%s: an answer is missing (%s)", self.model.name, reason)
        if self.calls >= JUDGED_AFTER and self.missing > self.max_missing * self.calls:
            raise VLMError(
                f"{self.model.name}, asked {self.calls} questions,",
                f"readable answers to at least {1 - self.max_missing:.0%}",
                f"{self.missing} that were not, the last because: {reason}",
                "Try a larger model.",
            ) from reason
        return [math.nan]


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, int | float) for each in value)


def images(features: Features, head: str, views: Sequence[str] | None = None) -> dict[str, list[list[np.ndarray]]]:
    """Camera name -> each episode's frames, from `Features.frames`, in the order of `views`.

    Args:
        features: with all frames.
        head: who asks, for errors.
        views: cameras to take, those of them that are there; None: all.

    Raises:
        ValueError: no frames, none of these views, or not a frame a row.
    """
    wanted_views = features.frames if views is None else views
    chosen = {name: features.frames[name] for name in wanted_views if name in features.frames}
    rows = features.main.shape[1]
    if not chosen or any(each.shape[1] != rows for each in chosen.values()):
        got = {name: tuple(each.shape) for name, each in features.frames.items()} or "none"
        wanted = "one view" if views is None else f"one of {', '.join(views)}"
        raise ValueError(f"{head}: frames must be all {rows} of at least {wanted}; got {got}.")
    return {name: [list(episode) for episode in each.cpu().numpy()] for name, each in chosen.items()}


def asked_rows(rows: int, stride: int) -> list[int]:
    """0, stride, 2·stride, … below T; not the last for being last, or its answer would change as time goes on.

    Args:
        rows: T.
        stride: of the rows that are asked about.
    """
    return list(range(0, rows, stride))


def thinned(rows: Sequence[int], count: int) -> list[int]:
    """At most `count` ≥ 2 of these, evenly spread, the first and the last among them.

    Args:
        rows: in order.
    """
    if len(rows) <= count:
        return list(rows)
    return [rows[round(k * (len(rows) - 1) / (count - 1))] for k in range(count)]


def fill(values: Sequence[float], at: Sequence[int], rows: int, between: str) -> Float[Tensor, " T"]:
    """Progress of every row from that of rows asked.

    Args:
        values: of each asked row; NaN where it is missing.
        at: the rows asked, ascending.
        rows: T.
        between: "hold" keeps the last known value, 0 before the first; "linear" interpolates between known ones,
            which reads the future and is for offline use alone.
    """
    known = [(row, value) for row, value in zip(at, values, strict=True) if not math.isnan(value)]
    if not known:
        return torch.zeros(rows)
    x, y = np.array([row for row, _ in known]), np.array([value for _, value in known])
    if between == "linear":
        return torch.from_numpy(np.interp(np.arange(rows), x, y)).float()
    last = np.searchsorted(x, np.arange(rows), side="right") - 1
    return torch.from_numpy(np.where(last >= 0, y[last], 0.0)).float()


def check_reading(head: str, instruction: str, stride: int, between: str, max_frames: int = 2) -> None:
    """Refuse an instruction, a stride, a filling or a number of frames that cannot be.

    Args:
        head: its name, for errors.
        instruction: of the task.
        stride: ≥ 1.
        between: "hold" or "linear".
        max_frames: of one question, ≥ 2.

    Raises:
        ValueError: names it.
    """
    if not instruction.strip() or IMAGE in instruction or VIDEO in instruction:
        raise ValueError(f"{head}: instruction must be a text without {IMAGE} or {VIDEO}; got {instruction!r}.")
    if stride < 1:
        raise ValueError(f"{head}: stride must be ≥ 1; got {stride}.")
    if between not in BETWEEN:
        raise ValueError(f"{head}: between must be hold or linear (offline only); got {between!r}.")
    if max_frames < 2:
        raise ValueError(f"{head}: max_frames must be ≥ 2; got {max_frames}.")


def toward(head: Reader, goal: str) -> Reader:
    """A head that reads progress, with another task; model and settings are shared.

    Args:
        goal: the other task's text.

    Raises:
        ValueError: no task.
    """
    check_reading(type(head).__name__, goal, 1, "hold")
    other: Any = copy.copy(head)
    other._instruction = goal
    return other


def questions(vlm: Mapping[str, Any] | ChatModel, asking: Mapping[str, Any] | None) -> Questions:
    """From plain values: arguments of `rewards.chat.asking.chat_model`, and of `Questions`.

    Args:
        vlm: a chat model, or arguments of `rewards.chat.asking.chat_model`.
        asking: arguments of `Questions`; None: its defaults.
    """
    return Questions(chat_model(vlm), **(asking or {}))
