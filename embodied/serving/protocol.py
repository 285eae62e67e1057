"""What goes over the wire between a reward server and its clients. No pickle; every size is checked before it is used.

A request says who asks by `Authorization: Bearer TOKEN`, where the server has a token; its user is told where to find
it when it starts. The shortest request there is:

    curl -H "Authorization: Bearer $EMBODIED_TOKEN" -H 'Content-Type: image/jpeg' --data-binary @photo.jpg …/v1/score

Bodies are maps: msgpack (`Content-Type: application/msgpack`), or JSON (`application/json`), in which bytes are base64
text. An answer comes as its request came. Every answer, errors too, has `model_id` and `version`.

    Image   {"jpeg": bytes} | {"png": bytes} | {"raw": bytes, "shape": [H, W, 3]}     raw: uint8 RGB, row by row
    Images  Image | [Image, …] | {"raw": bytes, "shape": [N, H, W, 3]}
    Array   {"data": bytes, "shape": [...], "dtype": "float32" | "uint8" | "bool"}    little-endian, C order
            where an Array is wanted, a list of numbers (of lists …) is taken as float32

    GET  /healthz       {"status": "ok" | "draining"}; no token; /health too
    GET  /docs          this text; no token
    GET  /v1/model      {"heads": [name, …], "encoder": {"name", "dim", "image_size": [H, W]}, "pointwise": bool,
                        "frames_read": "none" | "first" | "all", "shaping": {"kind", "gamma", …} | null,
                        "goals": bool, "limits": {name: number}}
    GET  /metrics       Prometheus text
    POST /v1/encode     {"images": Images} → {"features": Array (N, D)}
                        {"texts": [text, …]} → {"features": Array (M, D)}
    POST /v1/potentials {"views": {name: Array (B, T, D)}, "signals"?: {name: Array (B, T)}, "goal"?: text,
                        "frames"?: {name: Array uint8 (B, N, H, W, 3)}, "depth"?: {name: Array (B, H, W)}}
                        → {"potentials": {head: Array (B, T)}, "combined": Array (B, T)}
    POST /v1/score      {"images": {view: Images of T}, "signals"?: {name: Array (T,)}, "goal"?: text}, or a JPEG or PNG
                        itself as the body (`Content-Type: image/jpeg`), one episode
                        → {"potentials": {head: [T numbers]}, "combined": [T], "rewards": [T - 1]}

    A policy's server (`embodied serve policy=…`) has /healthz, /docs, /metrics and
    GET  /v1/model      {"cameras": {name: [H, W]}, "states": [name, …], "actions": [name, …], "horizon", "execute",
                        "fps", "going_on": bool, "limits"}
    POST /v1/act        {"images": {camera: Image}, "state": Array (S,), "instruction": text, "going_on"?: {"actions":
                        Array (n, A) under way from now on, "delay": actions done before the answer comes}, "id"?: any,
                        "captured_s"?: number}
                        → {"actions": Array (H, A) in the robot's units, "latency_ms", "id" and "captured_s" as they
                        came}. Nothing is kept of a client: a request may be sent again, an answer come late or twice;
                        which of its actions may still be done is the client's to say (policies/vla/queue.py).

    Refused: 4xx or 503, JSON {"error": text, "expected": text, "got": text, "code": code}; `Retry-After` (seconds)
    with 429 and 503.

    WS /v1/stream       binary messages, msgpack maps; one session, one episode after another. The client's first is
      {"type": "open", "views"?: [name, …] (["main"]), "signals"?: [name, …], "goal"?: text | null}
                        → {"type": "opened", "session": text, and what /v1/model says}
      {"type": "frames", "images": {view: Image}, "signals"?: {name: number}, "captured_s"?: number, "id"?: any}
                        → {"type": "reading", "episode", "row", "potentials": {head: number}, "combined", "reward":
                        number | null, "latency_ms": from the message's arrival to this answer; "captured_s" and "id"
                        as they came}
      … several moments in one message: Images of T for every view, signals of T numbers
                        → {"type": "readings", "readings": [{"episode", "row", "potentials", "combined", "reward"}
                        | {"error", "code": "unscorable"}, T of them], "latency_ms", "captured_s", "id"}
      {"type": "restart"} → {"type": "restarted", "episode": number}; the next row begins a new episode
      {"type": "goal", "text": text} → {"type": "goal", "text", "past": {head: Array (rows so far,)}}
      {"type": "close"}   → close code 1000
      A bad message → {"type": "error", "code", "error", "expected", "got", "retry_after_s"?, "id"?}; the session goes
      on as it was. A handshake is refused as any request is, by an HTTP status and JSON: 401 or 403 (token, origin),
      503 (no room for another session, or draining). Close codes: 1000 after close; 1001 the server stops; 1008 a
      session that never opened, or too many bad messages, pings or fragments; 1009 a message above `body_bytes`; 1013
      no room for a large one now; 4408 idle. A client that sends faster than `requests_per_s` is not refused but read
      more slowly.

Codes: bad_message, bad_image, bad_text, too_large, unscorable, unauthorised, forbidden, not_found, rate, busy, timeout,
draining, internal.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from embodied.serving.limits import RequestLimits

MSGPACK, JSON = "application/msgpack", "application/json"
ENCODE, POTENTIALS, SCORE, MODEL = "/v1/encode", "/v1/potentials", "/v1/score", "/v1/model"
ACT, STREAM, HEALTH, METRICS, DOCS = "/v1/act", "/v1/stream", "/healthz", "/metrics", "/docs"
TOKEN_VARIABLE = "EMBODIED_TOKEN"
IDLE, GOING_AWAY, POLICY = 4408, 1001, 1008  # close codes
DTYPES = ("float32", "uint8", "bool")
ADVICE = "See embodied/serving/protocol.py for the format."
_SHOWN = 80  # characters of what a client sent, in an answer


class _Short(reprlib.Repr):
    """`repr` of anything, however deep or large, without writing out what is then cut."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxstring = 4, 8, 6, _SHOWN

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value[:_SHOWN])


_SHORT = _Short()


class RefusedError(Exception):
    """A request that is not served; told to the client, who can mend it.

    Args:
        code: one of the module's codes.
        error: what is wrong, a sentence.
        expected, got: what was wanted and what came.
        status: of the HTTP answer.
        retry_after_s: after which the same request may be served.
    """

    def __init__(
        self,
        code: str,
        error: str,
        *,
        expected: str = "",
        got: object = "",
        status: int = 400,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(error)
        self.code, self.error, self.status, self.retry_after_s = code, error, status, retry_after_s
        self.expected, self.got = expected, shown(got)

    def body(self) -> dict[str, Any]:
        """What the client is told."""
        told: dict[str, Any] = {"error": self.error, "expected": self.expected, "got": self.got, "code": self.code}
        return told if self.retry_after_s is None else told | {"retry_after_s": self.retry_after_s}


# Bytes to maps and back ---------------------------------------------------------------------------------


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as msgpack; numpy numbers must have been made Python's."""
    return msgpack.packb(message)  # pyright: ignore[reportReturnType]


def unpack(data: bytes, limits: RequestLimits | None = None) -> dict[str, Any]:
    """A msgpack map; `limits` None: of a server that is trusted.

    Raises:
        RefusedError: not msgpack, not a map, or more elements than allowed.
    """
    bound = limits.elements if limits else len(data) + 1
    left = [bound]

    def count(made: Any) -> Any:
        left[0] -= len(made)
        if left[0] < 0:
            raise _TooManyError
        return made

    try:
        # Both lengths are bounded too, since the hooks see a list only once it is whole.
        message = msgpack.unpackb(
            data, object_hook=count, list_hook=count, max_array_len=bound, max_map_len=bound, ext_hook=_no_extension
        )
    except _TooManyError as error:
        raise _too_many(bound) from error
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise RefusedError(
            "bad_message", f"The message is not msgpack: {reason}. {ADVICE}", expected="msgpack"
        ) from error
    return mapping(message, "message")


def from_json(data: bytes, limits: RequestLimits) -> dict[str, Any]:
    """A JSON map, its bytes still base64.

    Raises:
        RefusedError: not JSON, not a map, or more elements than allowed.
    """
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > limits.elements:  # before it is parsed: far cheaper
        raise _too_many(limits.elements)
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RefusedError("bad_message", f"The body is not JSON: {error}.", expected="JSON") from error
    return mapping(message, "body")


def to_json(message: Mapping[str, Any]) -> bytes:
    """A message as JSON, bytes as base64 text."""
    return json.dumps(message, default=_base64, allow_nan=False).encode()


# Images -------------------------------------------------------------------------------------------------


def encode_image(frame: np.ndarray, form: str = "raw", quality: int = 90) -> dict[str, Any]:
    """One image, or with form "raw" several, for a message.

    Args:
        frame: (H, W, 3) uint8 RGB; for "raw" (N, H, W, 3) too.
        form: "raw", "png" (lossless) or "jpeg".
        quality: of JPEG, 1 to 95.

    Raises:
        ValueError: another form, dtype or shape.
    """
    if frame.dtype != np.uint8 or frame.ndim not in ((3, 4) if form == "raw" else (3,)) or frame.shape[-1] != 3:
        got = f"{frame.dtype} {frame.shape}"
        raise ValueError(f"encode_image: frame must be uint8 (H, W, 3); got {got}. Pass RGB, channels last.")
    if form == "raw":
        return {"raw": np.ascontiguousarray(frame).tobytes(), "shape": list(frame.shape)}
    if form not in ("jpeg", "png"):
        raise ValueError(f"encode_image: form must be raw, png or jpeg; got {form!r}.")
    from PIL import Image

    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": quality} if form == "jpeg" else {"compress_level": 1}
    Image.fromarray(frame).save(buffer, form.upper(), **options)
    return {form: buffer.getvalue()}


def encode_images(frames: np.ndarray, form: str = "raw") -> Any:
    """Images of (N, H, W, 3) uint8, for a message."""
    return encode_image(frames, form) if form == "raw" else [encode_image(each, form) for each in frames]


# Arrays and values --------------------------------------------------------------------------------------


def encode_array(values: np.ndarray) -> dict[str, Any]:
    """An Array of a message.

    Raises:
        ValueError: a dtype other than `DTYPES`.
    """
    if values.dtype.name not in DTYPES:
        raise ValueError(f"encode_array: values must be of {', '.join(DTYPES)}; got {values.dtype}.")
    data = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return {"data": data, "shape": list(values.shape), "dtype": values.dtype.name}


def decode_array(value: Any, name: str = "array", *, ndim: int | None = None, dtype: str = "float32") -> np.ndarray:
    """An Array of a message, without a copy, read-only; or nested lists of numbers.

    Raises:
        RefusedError: another form, dtype, number of axes or of bytes.
    """
    if isinstance(value, list) and dtype == "float32":
        try:
            made = np.array(value, np.float32)
        except (ValueError, TypeError, OverflowError) as error:
            raise RefusedError("bad_message", f"{name} must hold numbers.", expected="numbers", got=value) from error
    else:
        fields = mapping(value, name)
        if fields.get("dtype", "float32") != dtype:
            got = fields.get("dtype")
            raise RefusedError("bad_message", f"{name}.dtype must be {dtype}.", expected=dtype, got=got)
        data, shape = octets(fields.get("data"), f"{name}.data"), sides(fields.get("shape"), name, "bad_message")
        kind = np.dtype(dtype).newbyteorder("<")
        if len(data) != math.prod(shape) * kind.itemsize:
            wanted = f"{math.prod(shape) * kind.itemsize} bytes for shape {shape}"
            raise RefusedError(
                "bad_message", f"{name}.data must have {wanted}.", expected=wanted, got=f"{len(data)} bytes"
            )
        made = np.frombuffer(data, kind).reshape(shape)
    if ndim is not None and made.ndim != ndim:
        raise RefusedError(
            "bad_message", f"{name} must have {ndim} axes.", expected=f"{ndim} axes", got=list(made.shape)
        )
    return made


def mapping(value: Any, name: str) -> dict[str, Any]:
    """A map with text keys.

    Raises:
        RefusedError: anything else.
    """
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RefusedError("bad_message", f"The {name} must be a map. {ADVICE}", expected="a map", got=kind_of(value))
    return value


def text(value: Any, name: str, limits: RequestLimits, *, empty: bool = False) -> str:
    """A text of at most `text_chars` characters.

    Args:
        value: of the message.
        name: its key, for errors.
        limits: of the server.
        empty: whether it may be.

    Raises:
        RefusedError: no text, an empty one, or a longer one.
    """
    if not isinstance(value, str) or not (empty or value.strip()):
        raise RefusedError("bad_text", f"{name} must be a text.", expected="a text", got=kind_of(value))
    if len(value) > limits.text_chars:
        wanted = f"at most {limits.text_chars} characters"
        raise RefusedError("bad_text", f"{name} must have {wanted}.", expected=wanted, got=f"{len(value)} characters")
    return value


def octets(value: Any, name: str) -> bytes | memoryview:
    """Bytes, or JSON's base64 of them.

    Raises:
        RefusedError: anything else.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RefusedError("bad_message", f"{name} must be base64.", expected="base64", got=str(error)) from error
    raise RefusedError(
        "bad_message", f"{name} must be bytes.", expected="bytes (JSON: base64 text)", got=kind_of(value)
    )


def shown(value: object) -> str:
    """What a client sent, short enough to say."""
    told = value if isinstance(value, str) else _SHORT.repr(value)
    return told if len(told) <= _SHOWN else told[: _SHOWN - 1] + "…"


def sides(value: Any, name: str, code: str = "bad_message") -> list[int]:
    """A shape of a message; what is wrong with it is refused by `code`."""
    if (
        not isinstance(value, list)
        or len(value) > 5
        or not all(type(side) is int and 0 <= side < 1 << 40 for side in value)
    ):
        wanted = "a list of at most 5 whole numbers"
        raise RefusedError(code, f"{name}.shape must be {wanted}.", expected=wanted, got=value)
    return value


def kind_of(value: Any) -> str:
    """What came in place of what was wanted, in short."""
    if isinstance(value, dict):
        return f"a map of {', '.join(map(shown, list(value)[:6])) or 'nothing'}"
    return value if isinstance(value, str) else type(value).__name__


def too_large(what: str, most: int, got: object) -> RefusedError:
    """More of something than the limits allow."""
    wanted = f"at most {most} {what}"
    return RefusedError("too_large", f"There must be {wanted}.", expected=wanted, got=got, status=413)


def _too_many(most: int) -> RefusedError:
    wanted = f"at most {most} list items and map entries"
    return RefusedError(
        "too_large", f"A message must hold {wanted}. Send numbers as an Array.", expected=wanted, status=413
    )


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not used")


def _base64(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"to_json: values must be JSON's or bytes; got {type(value).__name__}.")


class _TooManyError(Exception):
    """More elements than a message may hold."""
