"""One client's WebSocket: a stream of frames in, a reading each out, one episode after another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from embodied.scoring import Layout
from embodied.serving import protocol
from embodied.serving.gate import BYTES_PER_REQUEST, Gate
from embodied.serving.images import check_total, read_images
from embodied.serving.protocol import RefusedError
from embodied.serving.service import Service
from embodied.serving.streams import UNSCORABLE, Outcome, SessionStream, push_each, reason

MAX_NAMES = 16  # views, and signals, of a session
LONGEST_DEBT_S = 2.0  # of bad messages, after which a session is closed
log = logging.getLogger(__name__)


class Session:
    """Answers one socket's messages in order.

    Args:
        socket: accepted.
        service: the server's.

    Attributes:
        host: whose it is.
    """

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket, self._service = socket, service
        self.host = socket.client.host if socket.client else ""
        self._rate = service.rate(socket.client or self)
        self._stream: SessionStream | None = None
        self._kept = (0, 0)  # episode, pixels of its images that are kept
        self._busy = self._leaving = False
        self._heard_s = time.monotonic()
        self._leaver: asyncio.Future[None] | None = None  # asyncio keeps no reference of its own

    async def run(self) -> None:
        """Until the client goes, is idle, or the server stops."""
        limits = self._service.limits
        try:
            while not self._leaving:
                patience = limits.session_idle_s if self._stream else limits.header_s
                try:
                    async with asyncio.timeout(patience):
                        message = await self._socket.receive()
                except TimeoutError:
                    code, why = (protocol.IDLE, "idle") if self._stream else (protocol.POLICY, "never opened")
                    await self._close(code, why)
                    return
                if message["type"] == "websocket.disconnect":
                    return
                self._busy = True
                self._service.answering += 1
                try:
                    async with asyncio.timeout(2 * limits.answer_s):  # the answer may find a client that does not read
                        if not await self._answer(message.get("bytes"), time.monotonic()):
                            return
                finally:
                    self._busy, self._heard_s = False, time.monotonic()
                    self._service.answering -= 1
            await self._close(protocol.GOING_AWAY, "the server stops")
        except (WebSocketDisconnect, TimeoutError):  # gone, or not reading
            return

    def idle_s(self) -> float:
        """Seconds since the last message was answered; 0 while one is in hand."""
        return 0.0 if self._busy else time.monotonic() - self._heard_s

    def leave(self, code: int = protocol.GOING_AWAY, why: str = "the server stops") -> None:
        """Close, once what is in hand is answered."""
        self._leaving = True
        if not self._busy:
            self._leaver = asyncio.ensure_future(self._close(code, why))

    async def _close(self, code: int, why: str) -> None:
        if self._socket.application_state is WebSocketState.CONNECTED:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it has gone meanwhile
                await self._socket.close(code, why)

    async def _answer(self, data: bytes | None, came_s: float) -> bool:
        """Answer one message; whether the session goes on."""
        service, message = self._service, {}
        try:
            if data is None:
                raise RefusedError("bad_message", "Messages must be binary.", expected="msgpack", got="a text message")
            self._rate.take(came_s, 1 + len(data) / BYTES_PER_REQUEST)
            with service.bodies.holding(len(data)):
                message = protocol.unpack(data, service.limits)
                async with asyncio.timeout(service.limits.answer_s):
                    answer = await self._handle(message, came_s)
        except RefusedError as error:
            service.refused(error, self._rate, self.host)
            answer = {"type": "error", **error.body()}
        except TimeoutError:
            wanted = f"an answer within {service.limits.answer_s:g} s"
            error = RefusedError("timeout", "It took too long.", expected=wanted, status=503, retry_after_s=1.0)
            service.refused(error, self._rate, self.host)
            answer = {"type": "error", **error.body()}
        except Exception:
            log.exception("A session's message was not answered.")
            answer = {"type": "error", **RefusedError("internal", "The server failed; see its log.").body()}
        if answer is None:
            await self._close(1000, "closed")
            return False
        if "id" in message:
            answer["id"] = message["id"]
        await self._socket.send_bytes(protocol.pack(answer | service.stamp))
        service.metrics.seconds.labels(protocol.STREAM).observe(time.monotonic() - came_s)
        if debt := self._rate.wait(time.monotonic()):
            if answer["type"] == "error" and debt > LONGEST_DEBT_S:
                await self._close(protocol.POLICY, "too many bad messages")
                return False
            await asyncio.sleep(min(debt, LONGEST_DEBT_S))
        return True

    async def _handle(self, message: dict[str, Any], came_s: float) -> dict[str, Any] | None:
        kind = message.get("type")
        if kind == "open":
            return await self._open(message)
        if kind == "close":
            return None
        if kind not in ("frames", "restart", "goal"):
            wanted = "open, frames, restart, goal or close"
            raise RefusedError("bad_message", f"type must be {wanted}.", expected=wanted, got=kind)
        if self._stream is None:
            raise RefusedError("bad_message", "The first message must be open.", expected="open", got=kind)
        if kind == "frames":
            return await self._frames(self._stream, message, came_s)
        if kind == "goal":
            return await self._goal(self._stream, message)
        self._stream.restart()
        self._kept = (self._stream.episode, 0)
        return {"type": "restarted", "episode": self._stream.episode}

    async def _open(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._stream is not None:
            raise RefusedError("bad_message", "The session is open.", expected="frames, restart, goal or close")
        layout = Layout(_names(message, "views", ["main"]), _names(message, "signals", []))
        if not layout.views:
            raise RefusedError("bad_message", "views must name at least one.", expected="a list of names", got=[])
        scorer = await self._service.with_goal(self._goal_text(message.get("goal")))
        self._stream = SessionStream(scorer, layout, max_rows=self._service.limits.rows)
        return {"type": "opened", "session": secrets.token_hex(8), **self._service.describe()}

    async def _goal(self, stream: SessionStream, message: dict[str, Any]) -> dict[str, Any]:
        text = protocol.text(message.get("text"), "text", self._service.limits)
        scorer = await self._service.with_goal(text)
        try:
            past = await self._service.on_heads(stream.rescored, scorer)
        except UNSCORABLE as error:
            raise RefusedError("unscorable", reason(error), got=text, status=422) from error
        arrays = {name: np.array([each[name] for each in past], np.float32) for name in scorer.heads}
        return {
            "type": "goal",
            "text": text,
            "past": {name: protocol.encode_array(values) for name, values in arrays.items()},
        }

    def _goal_text(self, value: Any) -> str | None:
        return None if value is None else protocol.text(value, "goal", self._service.limits)

    async def _frames(self, stream: SessionStream, message: dict[str, Any], came_s: float) -> dict[str, Any]:
        views = stream.layout.views
        images = protocol.mapping(message.get("images"), "images")
        if set(images) != set(views):
            wanted = f"images of {', '.join(views)}"
            raise RefusedError("bad_message", f"There must be {wanted}.", expected=wanted, got=list(images))
        moments, frames = await read_moments(self._service, images, views)
        several = isinstance(images[views[0]], list) or len(images[views[0]].get("shape") or ()) == 4
        stream.moments = _signals(message.get("signals"), stream.layout.signals, moments)
        outcomes = await self._score(stream, frames, moments)
        answers = [_told(outcome) for outcome in outcomes]
        if not several and "error" in answers[0]:
            raise RefusedError("unscorable", answers[0]["error"], expected="finite potentials", status=422)
        body: dict[str, Any] = {"type": "readings", "readings": answers} if several else answers[0]
        if not several:
            body["type"] = "reading"
        if "captured_s" in message:
            body["captured_s"] = message["captured_s"]
        body["latency_ms"] = 1000 * (time.monotonic() - came_s)
        return body

    async def _score(self, stream: SessionStream, frames: list[np.ndarray], moments: int) -> Sequence[Outcome]:
        batcher = self._service.batcher
        if stream.alone:
            return await batcher.submit(self, frames, stream)
        views = len(stream.layout.views)
        images = None
        if stream.scorer.frames_read != "none":
            if len({frame.shape for frame in frames}) > 1:
                got = sorted({frame.shape[:2] for frame in frames})
                wanted = "images of one size: this reward reads them"
                raise RefusedError("bad_image", f"There must be {wanted}.", expected=wanted, got=got)
            images = [np.stack(frames[k * views : (k + 1) * views]) for k in range(moments)]
            self._keep(stream, sum(image.size // 3 for image in images))
        features = await batcher.submit(self, frames)
        rows = stream.layout.rows(features, stream.moments)
        return await self._service.on_heads(push_each, stream, rows, images)

    def _keep(self, stream: SessionStream, pixels: int) -> None:
        """Count the images that heads will be shown again, which are then kept until the episode ends."""
        most = self._service.limits.episode_pixels
        kept = pixels + (self._kept[1] if self._kept[0] == stream.episode else 0)
        if stream.scorer.frames_read == "all" and not stream.scorer.advances:
            if kept > most:
                raise protocol.too_large("pixels in one episode; send restart", most, kept)
            self._kept = (stream.episode, kept)


async def read_moments(service: Gate, images: dict[str, Any], views: Sequence[str]) -> tuple[int, list[np.ndarray]]:
    """Every view's images, checked and decoded.

    Returns:
        T, and T·V of (H, W, 3) uint8, view by view within a moment.

    Raises:
        RefusedError: images that are refused, or not as many of every view.
    """
    chunks = {view: read_images(images[view], f"images.{view}", service.limits) for view in views}
    check_total([chunk for each in chunks.values() for chunk in each], service.limits)
    counts = {view: sum(chunk.shape[0] for chunk in each) for view, each in chunks.items()}
    moments = counts[views[0]]
    if len(set(counts.values())) > 1:
        raise RefusedError("bad_image", "Views must have as many images each.", expected="one number", got=counts)
    decoded = await service.decode([chunk for view in views for chunk in chunks[view]])
    return moments, [decoded[v * moments + t] for t in range(moments) for v in range(len(views))]


def _names(message: dict[str, Any], key: str, default: list[str]) -> tuple[str, ...]:
    value = message.get(key)
    names = default if value is None else value
    if (
        not isinstance(names, list)
        or len(names) > MAX_NAMES
        or not all(isinstance(name, str) and 0 < len(name) <= 100 for name in names)
        or len(set(names)) < len(names)
    ):
        wanted = f"a list of at most {MAX_NAMES} different names"
        raise RefusedError("bad_message", f"{key} must be {wanted}.", expected=wanted, got=names)
    return tuple(names)


def _signals(value: Any, names: Sequence[str], moments: int) -> list[dict[str, float]]:
    """The session's signals of each moment; others are left out."""
    given = protocol.mapping(value or {}, "signals")
    columns: dict[str, list[float]] = {}
    for name in names:
        values = given.get(name)
        listed: list[Any] = values if isinstance(values, list) else [values] * (moments == 1)
        if len(listed) != moments or not all(isinstance(each, int | float) and math.isfinite(each) for each in listed):
            wanted = "a finite number" if moments == 1 else f"{moments} finite numbers"
            raise RefusedError("bad_message", f"signals.{name} must be {wanted}.", expected=wanted, got=values)
        columns[name] = [float(each) for each in listed]
    return [{name: column[t] for name, column in columns.items()} for t in range(moments)]


def _told(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Exception):
        return {"error": reason(outcome), "code": "unscorable"}
    return outcome._asdict()
