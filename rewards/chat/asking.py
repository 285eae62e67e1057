"""Asking a vision-language model: for JSON of a given form, or for the probability of an answer.

    model = chat_model({"url": "http://localhost:8000/v1", "model": "Qwen/Qwen2.5-VL-7B-Instruct"})
    plan = ask_json(model, [Message("user", "Where is the cup?", [frame])], Plan, cache=Path("runs/vlm"))

A refusal or nonsense raises `VLMError`; it never becomes a value. Who answers is pluggable: any OpenAI-compatible
endpoint (`ChatEndpoint`), or a transformers image-text model on this machine (`LocalChat`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from pydantic import BaseModel, ValidationError

from rewards.chat.endpoint import ChatEndpoint
from rewards.chat.local import LocalChat
from rewards.chat.messages import (
    IMAGE,
    VIDEO,
    ChatModel,
    LogprobModel,
    Message,
    Video,
    VLMError,
    answered,
    digest,
    excerpt,
    unmarked,
)

__all__ = [
    "IMAGE",
    "ChatEndpoint",
    "ChatModel",
    "LocalChat",
    "LogprobModel",
    "Message",
    "VLMError",
    "Video",
    "ask_json",
    "chat_model",
    "token_logprob",
]

_here: WeakValueDictionary[str, LocalChat] = WeakValueDictionary()
LONGEST = 100_000  # characters of an answer that are searched: looking at every brace of more takes too long
Answer = TypeVar("Answer", bound=BaseModel)
REFUSAL = re.compile(  # how models decline in words
    r"\b(?:I['\u2019]?m|I am)\s+(?:\w+\s+)?(?:sorry|unable)\b|\bI\s+(?:can(?:no|['\u2019])t|cannot|won['\u2019]t)\s+"
    r"(?:\w+\s+)?(?:help|assist|comply|provide|do|answer|fulfil|identify|process|view|see)",
    re.IGNORECASE,
)


def chat_model(config: Mapping[str, Any] | ChatModel) -> ChatModel:
    """A model from plain values: with a `url`, `ChatEndpoint`; without, `LocalChat`, loaded once while anyone has it.

    Args:
        config: arguments of one of the two; or a model, which is given back.

    Raises:
        TypeError: an argument that it does not take.
    """
    if not isinstance(config, Mapping):
        return config
    given = {str(key): value for key, value in config.items() if value is not None}
    if "model" not in given:
        raise ValueError(
            "chat_model: vlm.model must name a model; got none. Give vlm.url and vlm.model of an OpenAI-compatible "
            "endpoint, or vlm.model alone: a hub id or folder of a transformers image-text model."
        )
    if "url" in given:
        return ChatEndpoint(**given)
    key = json.dumps(given, sort_keys=True, default=str)
    model = _here.get(key)
    if model is None:
        model = _here[key] = LocalChat(**given)
    return model


def ask_json(
    model: ChatModel,
    messages: Sequence[Message],
    schema: type[Answer],
    *,
    attempts: int = 3,
    cache: Path | None = None,
    check: Callable[[Answer], None] | None = None,
) -> Answer:
    """What the model answers, as an object of `schema`.

    The schema is told with the question. An answer that does not fit is told what was wrong with it, and asked again.
    The last JSON object of an answer counts, so a model may reason first.

    Args:
        model: who is asked.
        messages: the question.
        schema: the form of the answer, a pydantic model.
        attempts: how often to ask at most, ≥ 1.
        cache: a folder where answers that fitted are kept, by a hash of model, messages, images and schema; None
            keeps none.
        check: raises ValueError for an answer that fits the schema and is still wrong (an index too large, say); its
            text is told to the model. Answers from the cache are checked too, and asked anew if they fail.

    Raises:
        VLMError: no fitting answer in `attempts`, a refusal, or no answer at all.
        ValueError: attempts < 1.
    """
    if attempts < 1:
        raise ValueError(f"ask_json: attempts must be ≥ 1; got {attempts}.")

    def fit(text: str) -> Answer:
        answer = schema.model_validate(_last_object(answered(text)))
        if check is not None:
            check(answer)
        return answer

    form = json.dumps(schema.model_json_schema(), sort_keys=True)
    key = content_key(model, messages, f"json {form}")
    if (kept := read_cache(cache, key)) is not None:
        try:
            return fit(json.dumps(kept))
        except ValueError:
            pass  # kept by an older check: asked anew below
    asked = [
        *messages,
        Message("user", f"Answer with one JSON object that fits this JSON schema, last in your answer:\n{form}"),
    ]
    problem = text = ""
    for _ in range(attempts):
        text = model.ask(_merged(asked))
        try:
            answer = fit(text)
        except (ValueError, RecursionError) as error:  # pydantic's ValidationError and JSONDecodeError are ValueErrors
            problem = _problem(error)
            if REFUSAL.search(text) and not any(_objects(text)):
                raise VLMError(
                    _asked(model, messages), f"JSON of {schema.__name__}", f"a refusal: {excerpt(text)}", refused=True
                ) from error
            # a fake mark in what it said would count as an image
            said = unmarked(text) or "(nothing)"
            again = f"That does not fit: {unmarked(problem)}\nAnswer again, with one JSON object."
            asked += [Message("assistant", said), Message("user", again)]
            continue
        write_cache(cache, key, answer.model_dump(mode="json", by_alias=True))
        return answer
    raise VLMError(
        _asked(model, messages),
        f"JSON of {schema.__name__} within {attempts} attempts",
        f"{problem} in {excerpt(text)}",
        "Try a larger model, or a simpler instruction.",
    )


def token_logprob(
    model: ChatModel, messages: Sequence[Message], answers: Sequence[str], *, cache: Path | None = None
) -> list[float]:
    """log P(answer | messages) of each answer: how likely the model holds it, before it says anything else.

    Args:
        model: who is asked.
        messages: the question.
        answers: short, such as "True" and "False".
        cache: as in `ask_json`.
    Returns:
        one natural logarithm per answer, ≤ 0. Of an endpoint, an answer outside its most likely tokens gets what they
        leave over, or the least of theirs, which bounds it from above.

    Raises:
        VLMError: the model gives no probabilities, or mostly says something else than these answers.
    """
    if not isinstance(model, LogprobModel):
        got = "a model that only answers in text"
        raise VLMError(_asked(model, messages), "log-probabilities", got, answered=False)
    key = content_key(model, messages, f"logprobs {json.dumps(list(answers))}")
    kept = read_cache(cache, key)
    if isinstance(kept, list) and len(kept) == len(answers) and all(isinstance(each, float) for each in kept):
        return kept
    values = model.logprobs(messages, answers)
    write_cache(cache, key, values)
    return values


# The cache: one small JSON file an answer; it holds no image and no key ------------------------------------------


def content_key(model: ChatModel, messages: Sequence[Message], purpose: str) -> str:
    """A hash of all that an answer depends on, how the model is asked included (`asked_by`, where it has one).

    Args:
        model: that is asked.
        messages: what is asked.
        purpose: tells questions apart that look alike.
    """
    asked_by = str(getattr(model, "asked_by", ""))
    return digest(messages, model.name, purpose, *([asked_by] if asked_by else [])).hex()


def read_cache(folder: Path | None, key: str) -> Any:
    """What was kept under a key; None where nothing was, or its file is damaged.

    Args:
        folder: of the answers; None: none are kept.
        key: of `content_key`.
    """
    if folder is None:
        return None
    try:
        return json.loads((folder / f"{key}.json").read_text("utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def write_cache(folder: Path | None, key: str, value: Any) -> None:
    """Keep a JSON value under a key, whole or not at all.

    Args:
        folder: of the answers; None: none are kept.
        key: of `content_key`.
    """
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{key}.part{os.getpid()}"
    part.write_text(json.dumps(value), "utf-8")
    part.replace(folder / f"{key}.json")


# Parsing ---------------------------------------------------------------------------------------------------------


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every outermost JSON object in the last `LONGEST` characters of a text, in order."""
    text = text[-LONGEST:]
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except RecursionError:
            return  # nested beyond all sense, as is what is inside it
        except json.JSONDecodeError:
            end = at + 1
        else:
            yield value
        at = text.find("{", end)


def _refuse_constant(name: str) -> None:
    raise json.JSONDecodeError(f"{name} is not JSON", name, 0)


def _last_object(text: str) -> dict[str, Any]:
    found = list(_objects(text))
    if not found:
        raise ValueError("there is no JSON object in it")
    return found[-1]


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or 'the object'}: {each['msg']}" for each in error.errors(include_url=False)
    )


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role as one message, which many chat templates demand."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role:
            before = merged.pop()
            texts = [
                m.text if m.marked else VIDEO * len(m.videos) + IMAGE * len(m.images) + m.text
                for m in (before, message)
            ]
            images, videos = [*before.images, *message.images], [*before.videos, *message.videos]
            message = Message(message.role, "\n\n".join(texts), images, videos, open=message.open)
        merged.append(message)
    return merged


def _asked(model: ChatModel, messages: Sequence[Message]) -> str:
    images = sum(len(message.images) for message in messages)
    return f"{model.name}, asked {excerpt(messages[-1].text, 80)} with {images} images,"
