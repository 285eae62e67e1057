"""A vision-language model behind an OpenAI-compatible chat endpoint (vLLM, Ollama, SGLang, or a vendor's)."""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import numpy as np
from PIL import Image

from rewards.chat.messages import Message, Video, VLMError, digest, excerpt
from rewards.chat.tokens import TOP, answer_logprobs
from rewards.pictures import REPEATABLE

TRANSIENT = (408, 429, 500, 502, 503, 504)  # worth another try
CRF = 8  # of a film's H.264: pixels within a few grey levels
BACKOFF_S, BACKOFF_MAX_S = 0.5, 30.0  # first wait, doubled each time; never longer, whatever a server asks for


class ChatEndpoint:
    """Asks over HTTP: POST {url}/chat/completions, images and films inside as data URLs.

    A film is an H.264 file in a part `video_url`, which vLLM, SGLang and Qwen's own API take; its frame rate tells the
    times. A turn left open asks for `continue_final_message`, which vLLM and SGLang know. Where answers are sampled,
    the seed is the question's: of a server that keeps to seeds, the same question has the same answer.

    Args:
        url: where the API starts, such as http://localhost:8000/v1 (vLLM), http://localhost:11434/v1 (Ollama).
        model: the name under which the server knows the model.
        api_key_env: the environment variable that holds the key, read at each request and never kept; None sends
            none. Redirects are not followed, so the key goes to `url` alone.
        timeout_s: of one request, from its start to the last byte of its answer.
        retries: further tries after a transient failure (429, 408, 5xx, a timeout, a broken connection), with waits
            that double from 0.5 s, or as long as the server asks for, 30 s at most.
        max_tokens: of an answer; one that is cut off is an error.
        temperature: of sampling; 0 is greedy.
        image_format: "png" (exact) or "jpeg" (smaller).
        max_body_mb: a larger request is refused here, a larger answer not read.
        extra: further fields of the request, such as {"seed": 0}, or `mm_processor_kwargs` for vLLM's bounds on pixels;
            null leaves one of ours out.

    Raises:
        ValueError: an address that is not http(s), a number out of range, or an unknown format.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 3,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        image_format: str = "png",
        max_body_mb: float = 32.0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        where = "ChatEndpoint"
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname or address.username is not None:
            raise ValueError(f"{where}: url must be http(s)://HOST[:PORT]/v1, with no name or key in it; got another.")
        if image_format not in ("png", "jpeg"):
            raise ValueError(f"{where}: image_format must be png or jpeg; got {image_format!r}.")
        limits = {"timeout_s": timeout_s, "max_tokens": max_tokens, "max_body_mb": max_body_mb}
        for name, value in limits.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{where}: {name} must be > 0; got {value}.")
        if retries < 0 or temperature < 0:
            raise ValueError(f"{where}: retries and temperature must be ≥ 0; got {retries} and {temperature}.")
        self.name = model
        self._extra = dict(extra or {})
        self._url = url.rstrip("/") + "/chat/completions"
        self._api_key_env, self._timeout, self._retries = api_key_env, timeout_s, retries
        self._format, self._max_body = image_format, int(max_body_mb * 2**20)
        self._fields = {"temperature": temperature, "max_tokens": max_tokens, **(extra or {}), "model": model}
        proxies = ProxyHandler({}) if _loopback(address.hostname) else ProxyHandler()
        self._opener = build_opener(_NoRedirect, proxies)

    def ask(self, messages: Sequence[Message]) -> str:
        """See `ChatModel.ask`."""
        choice = self._choice(messages, {})
        reason, text = choice.get("finish_reason"), _text(choice["message"].get("content"))
        if reason == "length":
            raise VLMError(self._asked, "a whole answer", f"one cut off: {excerpt(text or '')}", "Raise max_tokens.")
        if not isinstance(text, str) or not text.strip():
            raise VLMError(self._asked, "an answer", f"an empty one (finish_reason {reason!r})")
        return text

    def logprobs(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """See `rewards.chat.asking.token_logprob`: from the first token's `top_logprobs` (`rewards.chat.tokens`)."""
        choice = self._choice(messages, {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP})
        advice = "The server must support logprobs and top_logprobs."
        try:
            top = [
                (str(each["token"]), float(each["logprob"]))
                for each in choice["logprobs"]["content"][0]["top_logprobs"]
            ]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise VLMError(
                self._asked, "top_logprobs of its first token", "an answer without", advice, answered=False
            ) from error
        if not top or not all(value <= 1e-6 for _, value in top):
            raise VLMError(self._asked, "log-probabilities", f"{top[:3]}", advice)
        return answer_logprobs(self._asked, top, answers)

    @property
    def asked_by(self) -> str:
        """What an answer depends on beside the model and the question; "" where nothing was set."""
        told = {**self._extra, "temperature": self._fields.get("temperature")}
        told = {name: value for name, value in told.items() if value}
        return json.dumps(told, sort_keys=True, default=str) if told else ""

    @property
    def _asked(self) -> str:
        return f"ChatEndpoint: {self.name} at {self._url}"

    def _choice(self, messages: Sequence[Message], fields: Mapping[str, Any]) -> dict[str, Any]:
        """The first choice of an answer, with a message in it that is no refusal."""
        own: dict[str, Any] = {}
        if self._fields.get("temperature"):
            own["seed"] = int.from_bytes(digest(messages)[:4], "big") >> 1
        if messages[-1].open:
            own |= {"add_generation_prompt": False, "continue_final_message": True}
        fields = {key: value for key, value in {**own, **self._fields, **fields}.items() if value is not None}
        said = [{"role": message.role, "content": self._content(message)} for message in messages]
        body = json.dumps({**fields, "messages": said}).encode()
        if len(body) > self._max_body:
            raise VLMError(
                self._asked,
                f"an answer to at most {self._max_body / 2**20:.3g} MB",
                f"a request of {len(body) / 2**20:.3g} MB",
                "Send fewer or smaller images, use image_format=jpeg, or raise max_body_mb.",
                answered=False,
            )
        text = self._post(body)
        try:
            choice = json.loads(text)["choices"][0]
            refusal, reason = choice["message"].get("refusal"), choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            advice = "Is this an OpenAI-compatible endpoint?"
            got = excerpt(self._clean(text))
            raise VLMError(self._asked, "a chat completion", got, advice, answered=False) from error
        if refusal or reason == "content_filter":
            got = f"a refusal: {excerpt(str(refusal or reason))}"
            raise VLMError(self._asked, "an answer", got, "Nothing was scored.", refused=True)
        return choice

    def _content(self, message: Message) -> str | list[dict[str, Any]]:
        if not message.images and not message.videos:
            return message.text  # some servers take parts from users alone
        return [self._part(part) for part in message.parts]

    def _part(self, part: str | np.ndarray | Video) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if isinstance(part, Video):
            return {"type": "video_url", "video_url": {"url": _film_url(part)}}
        return {"type": "image_url", "image_url": {"url": _data_url(part, self._format)}}

    def _post(self, body: bytes) -> str:
        """Send, again after transient failures; the answer's text."""
        headers = {"Content-Type": "application/json"}
        if (key := self._key()) is not None:
            headers["Authorization"] = f"Bearer {key}"
        wait = BACKOFF_S
        for left in range(self._retries, -1, -1):
            asked_for = 0.0
            try:
                return self._once(Request(self._url, body, headers))
            except HTTPError as error:
                got = f"HTTP {error.code} {excerpt(self._clean(_words(error)))}"
                asked_for = _seconds(error.headers.get("Retry-After"))
                transient = error.code in TRANSIENT
            except (TimeoutError, ConnectionResetError, BrokenPipeError, http.client.HTTPException) as error:
                got, transient = _failure(error, self._timeout), True
            except URLError as error:
                got = _failure(error.reason, self._timeout)
                transient = isinstance(error.reason, TimeoutError | ConnectionResetError | BrokenPipeError)
            if not transient or not left:
                tries = self._retries + 1 - left
                advice = "Check url, model and key." if not transient else "Try later, or raise timeout_s or retries."
                got += f", {tries} times" if tries > 1 else ""
                raise VLMError(self._asked, "an answer", got, advice, answered=False)
            time.sleep(min(max(wait, asked_for), BACKOFF_MAX_S))
            wait *= 2
        raise AssertionError("unreachable: the last try returns or raises")

    def _once(self, request: Request) -> str:
        until = time.monotonic() + self._timeout
        received = bytearray()
        with self._opener.open(request, timeout=self._timeout) as response:
            while part := response.read1(65536):
                received += part
                if len(received) > self._max_body:
                    raise VLMError(self._asked, f"at most {self._max_body / 2**20:.3g} MB", "more")
                if time.monotonic() > until:  # a server that drips would pass every wait for its next byte
                    raise TimeoutError
            if response.length:  # of what it announced, this never came
                raise http.client.IncompleteRead(bytes(received), response.length)
        return received.decode("utf-8", "replace")

    def _key(self) -> str | None:
        if self._api_key_env is None:
            return None
        key = os.environ.get(self._api_key_env, "").strip()
        if not key:
            got = f"no key: the environment variable {self._api_key_env} is empty"
            raise VLMError(self._asked, "an answer", got, "Set it.", answered=False)
        return key

    def _clean(self, text: str) -> str:
        """A server's words, without the key if it repeats it."""
        key = os.environ.get(self._api_key_env, "").strip() if self._api_key_env else ""
        return text.replace(key, "[key]") if key else text


def _text(content: Any) -> Any:
    """A message's text: some servers give it in parts."""
    if not isinstance(content, list):
        return content
    return "".join(
        str(part["text"]) for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
    )


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


def _data_url(image: np.ndarray, kind: str) -> str:
    buffer = io.BytesIO()
    options = {"quality": 90} if kind == "jpeg" else {"compress_level": 1}
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _film_url(film: Video) -> str:
    """An mp4 whose frame k is shown at k / fps seconds; odd sides repeat their last row or column."""
    import av  # half a second, which those who show no film save

    frames = np.stack(film.frames)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"crf": str(CRF), "bf": "0", "preset": "fast"} | REPEATABLE
        stream = container.add_stream("libx264", rate=Fraction(film.fps).limit_denominator(10_000), options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return f"data:video/mp4;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _words(error: HTTPError) -> str:
    """What a server says beside its status, as far as it comes."""
    try:
        with error:
            return error.read(2000).decode("utf-8", "replace")
    except OSError:
        return ""


def _seconds(header: str | None) -> float:
    """Of a Retry-After header; 0 where it is a date or absent."""
    return float(header) if header and header.strip().isdigit() else 0.0


def _failure(error: Any, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _loopback(host: str) -> bool:
    """This machine itself, which no proxy reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
