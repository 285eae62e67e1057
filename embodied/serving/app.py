"""The reward server as a FastAPI application; what it takes and gives is fixed in `embodied.serving.protocol`.

Handlers read bodies themselves: limits are checked before a body is parsed, and an answer comes as its request came.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request, Response, WebSocket
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from embodied.serving import protocol
from embodied.serving.bodies import linger, media
from embodied.serving.connections import LONGEST_PAUSE_S
from embodied.serving.gate import BYTES_PER_REQUEST, VERSION, Gate
from embodied.serving.images import check_size, read_images
from embodied.serving.limits import RequestLimits
from embodied.serving.protocol import JSON, MSGPACK, RefusedError, decode_array, encode_array, mapping
from embodied.serving.service import Service
from embodied.serving.sessions import MAX_NAMES, Session, read_moments
from rewards.core import Features, Scorer

IMAGES = {"image/jpeg": "jpeg", "image/png": "png"}
log = logging.getLogger(__name__)

Work = Callable[[Any, Any, dict[str, Any]], Awaitable[dict[str, Any]]]


def make_app(
    scorer: Scorer,
    *,
    model_id: str,
    limits: RequestLimits | None = None,
    token: str | None = None,
    goal_scorer: Callable[[str], Scorer] | None = None,
    max_batch: int = 64,
    max_wait_ms: float = 2.0,
) -> FastAPI:
    """The application; its threads end with its lifespan.

    Args:
        scorer: what is served.
        model_id: in every answer.
        limits: on every request; None: the defaults.
        token: that every request must bear but /healthz and /docs; None: none, and it answers to names of this
            machine alone.
        goal_scorer: text -> a scorer of the same encoder with that goal, where clients may choose one.
        max_batch: frames encoded together.
        max_wait_ms: how long a frame waits for others.

    Returns:
        The application; `state.service` is the `Service` behind it.
    """
    service = Service(
        scorer,
        model_id=model_id,
        limits=limits or RequestLimits(),
        token=token,
        goal_scorer=goal_scorer,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
    )

    app = application(service)
    for path, handler in ((protocol.ENCODE, encode), (protocol.POTENTIALS, potentials), (protocol.SCORE, score)):
        app.add_api_route(path, handler, methods=["POST"], response_class=Response)
    app.add_api_websocket_route(protocol.STREAM, stream)
    return app


def application(service: Gate) -> FastAPI:
    """An application with what every server here answers; its service's threads end with its lifespan."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.drain()
        service.close()

    app = FastAPI(title="embodied", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    plain = ((protocol.HEALTH, health), ("/health", health), (protocol.DOCS, docs), (protocol.METRICS, metrics))
    for path, handler in (*plain, (protocol.MODEL, model)):
        app.add_api_route(path, handler, methods=["GET"], response_class=Response)
    app.add_exception_handler(HTTPException, _not_found)
    return app


async def health(request: Request) -> Response:
    """Whether the server takes requests; needs no token."""
    service: Gate = request.app.state.service
    status = "draining" if service.draining else "ok"
    return _reply(request, {"status": status, **service.stamp}, 503 if service.draining else 200)


async def model(request: Request) -> Response:
    """What is served, and its limits."""

    async def work(service: Service, client: Any, message: dict[str, Any]) -> dict[str, Any]:
        return service.describe()

    return await serve(request, work)


async def docs(request: Request) -> Response:
    """How to ask: the wire format, as text; needs no token, and tells nothing of what is served."""
    return Response(protocol.__doc__, media_type="text/plain; charset=utf-8")


async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    service: Gate = request.app.state.service
    try:
        service.check_caller(request.headers)
    except RefusedError as error:
        service.refused(error, service.rate(request.client or request), _host(request))
        return _refuse(request, error)
    service.metrics.sessions.set(len(service.sessions))
    service.metrics.queued.set(service.queued)
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def encode(request: Request) -> Response:
    """Features of images or of texts."""

    async def work(service: Service, client: Any, message: dict[str, Any]) -> dict[str, Any]:
        texts = message.get("texts")
        if texts is None:
            chunks = read_images(message.get("images"), "images", service.limits)
            return {"features": encode_array(await service.encode(client, await service.decode(chunks)))}
        if not isinstance(texts, list) or not 0 < len(texts) <= service.limits.texts:
            wanted = f"1 to {service.limits.texts} texts"
            raise RefusedError("bad_text", f"texts must be {wanted}.", expected=wanted, got=texts)
        checked = [protocol.text(each, "texts", service.limits) for each in texts]
        return {"features": encode_array(await service.encode_texts(checked))}

    return await serve(request, work)


async def potentials(request: Request) -> Response:
    """What the heads say of features."""

    async def work(service: Service, client: Any, message: dict[str, Any]) -> dict[str, Any]:
        features = _features(message, service)
        each, combined, _ = await service.potentials(features, _goal(message, service.limits))
        arrays = {name: encode_array(values) for name, values in each.items()}
        return {"potentials": arrays, "combined": encode_array(combined)}

    return await serve(request, work)


async def score(request: Request) -> Response:
    """Potentials and rewards of one episode's images."""

    async def work(service: Service, client: Any, message: dict[str, Any]) -> dict[str, Any]:
        images = mapping(message.get("images"), "images")
        views = _view_names(images)
        moments, frames = await read_moments(service, images, views)
        if moments > service.limits.rows:
            wanted = f"at most {service.limits.rows} moments"
            raise RefusedError("too_large", f"There must be {wanted}.", expected=wanted, got=moments, status=413)
        signals = {
            name: torch.from_numpy(np.array(decode_array(values, f"signals.{name}", ndim=1)))[None]
            for name, values in mapping(message.get("signals") or {}, "signals").items()
        }
        if wrong := {name: values.shape[1] for name, values in signals.items() if values.shape[1] != moments}:
            wanted = f"{moments} numbers each"
            raise RefusedError("bad_message", f"signals must have {wanted}.", expected=wanted, got=wrong)
        encoded = torch.from_numpy(await service.encode(client, frames)).view(moments, len(views), -1)
        features = Features(
            views={view: encoded[None, :, v] for v, view in enumerate(views)},
            signals=signals,
            frames=_episode_frames(service.scorer.frames_read, frames, views),
        )
        each, combined, rewards = await service.potentials(features, _goal(message, service.limits))
        listed = {name: values[0].tolist() for name, values in each.items()}
        return {"potentials": listed, "combined": combined[0].tolist(), "rewards": rewards[0].tolist()}

    return await serve(request, work)


async def stream(socket: WebSocket) -> None:
    """A session; see `embodied.serving.sessions`."""
    service: Service = socket.app.state.service
    host = _host(socket)
    try:
        service.check_caller(socket.headers)
        service.check_open()
        service.make_room(host)
    except RefusedError as error:
        service.refused(error, service.rate(socket.client or socket), host)
        await socket.send_denial_response(_refuse(socket, error))
        return
    session = Session(socket, service)
    service.sessions.add(session)
    try:
        await socket.accept()
        await session.run()
    finally:
        service.sessions.discard(session)


# Requests and answers -----------------------------------------------------------------------------------


async def serve(request: Request, work: Work) -> Response:
    """Check, read, work, answer; whatever happens the answer is JSON or msgpack that says so."""
    service: Gate = request.app.state.service
    client = request.client or request
    host = _host(request)
    rate, came_s = service.rate(client), time.monotonic()
    whole = False
    service.answering += 1
    try:
        service.check_caller(request.headers)
        service.check_open()
        if wait := rate.wait(came_s):
            await asyncio.sleep(min(wait, LONGEST_PAUSE_S))  # one that does not heed the answer asks more slowly
            wanted = f"at most {service.limits.requests_per_s:g} requests a second"
            raise RefusedError("rate", "Too many requests.", expected=wanted, status=429, retry_after_s=wait)
        async with service.bodies.of(request, host) as body:
            whole = True
            rate.take(time.monotonic(), 1 + len(body) / BYTES_PER_REQUEST)
            async with asyncio.timeout(service.limits.answer_s):
                answer = await work(service, client, _message(request, body, service.limits))
        response = _reply(request, answer | service.stamp)
    except RefusedError as error:
        service.refused(error, rate, host)
        whole = whole or (error.status != 408 and await linger(request, service.limits))
        response = _refuse(request, error, close=not whole)
    except TimeoutError:
        wanted = f"an answer within {service.limits.answer_s:g} s"
        error = RefusedError("timeout", "It took too long.", expected=wanted, status=503, retry_after_s=1.0)
        service.refused(error, rate, host)
        response = _refuse(request, error)
    except ClientDisconnect:
        response = Response(status_code=400)  # nobody reads it
    except Exception:
        log.exception("A request was not answered.")
        error = RefusedError("internal", "The server failed; see its log.", status=500)
        response = _refuse(request, error, close=True)
    finally:
        service.answering -= 1
    path = request.scope["path"]  # not of an URL, which a stranger's Host can break
    service.metrics.requests.labels(path, response.status_code).inc()
    service.metrics.seconds.labels(path).observe(time.monotonic() - came_s)
    return response


def _message(request: Request, body: bytes, limits: RequestLimits) -> dict[str, Any]:
    kind = media(request)
    if request.method == "GET":
        return {}
    if kind in IMAGES:
        return {"images": {"main": {IMAGES[kind]: body}}}
    if kind == MSGPACK:
        return protocol.unpack(body, limits)
    if kind == JSON:
        return protocol.from_json(body, limits)
    wanted = f"{MSGPACK}, {JSON}, {', '.join(IMAGES)}"
    raise RefusedError("bad_message", "Content-Type is not known.", expected=wanted, got=kind or "none", status=415)


def _host(request: Any) -> str:
    """Whom it is held against."""
    return request.client.host if request.client else ""


def _reply(request: Request, answer: dict[str, Any], status: int = 200) -> Response:
    if media(request) == MSGPACK or request.headers.get("accept") == MSGPACK:
        return Response(protocol.pack(answer), status, media_type=MSGPACK)
    return Response(protocol.to_json(answer), status, media_type=JSON)


def _refuse(request: Any, error: RefusedError, *, close: bool = False) -> Response:
    headers = {"connection": "close"} if close else {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = error.body() | request.app.state.service.stamp
    return Response(protocol.to_json(body), error.status, headers, media_type=JSON)


async def _not_found(request: Request, error: Any) -> Response:
    got = f"{request.method} {request.scope['path']}"
    service: Gate = request.app.state.service
    refused = RefusedError("not_found", str(error.detail), expected=service.paths, got=got, status=error.status_code)
    service.refused(refused, service.rate(request.client or request), _host(request))
    return _refuse(request, refused, close=request.method != "GET")


# What messages hold -------------------------------------------------------------------------------------


def _goal(message: dict[str, Any], limits: RequestLimits) -> str | None:
    return None if message.get("goal") is None else protocol.text(message["goal"], "goal", limits)


def _view_names(images: dict[str, Any]) -> list[str]:
    if not 0 < len(images) <= MAX_NAMES:
        wanted = f"1 to {MAX_NAMES} views"
        raise RefusedError("bad_message", f"There must be {wanted}.", expected=wanted, got=len(images))
    return list(images)


def _episode_frames(read: str, frames: list[np.ndarray], views: list[str]) -> dict[str, torch.Tensor]:
    """view -> (1, N, H, W, 3) uint8, as many as the heads read."""
    if read == "none":
        return {}
    found = {view: frames[v :: len(views)] for v, view in enumerate(views)}
    if any(frame.shape != each[0].shape for each in found.values() for frame in each):
        wanted = "one size in each view: this reward reads images"
        raise RefusedError("bad_image", f"Images must have {wanted}.", expected=wanted)
    return {
        view: torch.from_numpy(np.stack(each[:1] if read == "first" else each))[None] for view, each in found.items()
    }


def _features(message: dict[str, Any], service: Service) -> Features:
    """Features of a message, their axes agreeing."""

    def tensors(key: str, ndim: int, dtype: str = "float32") -> dict[str, torch.Tensor]:
        given = mapping(message.get(key) or {}, key)
        arrays = {name: decode_array(each, f"{key}.{name}", ndim=ndim, dtype=dtype) for name, each in given.items()}
        return {name: torch.from_numpy(np.array(each)) for name, each in arrays.items()}  # torch wants to write

    views, signals = tensors("views", 3), tensors("signals", 2)
    frames, depth = tensors("frames", 5, "uint8"), tensors("depth", 3)
    _view_names(views)
    episodes, rows, _ = next(iter(views.values())).shape
    dim = service.scorer.encoder.dim
    if rows > service.limits.rows or 0 in (episodes, rows):
        wanted = f"1 to {service.limits.rows} rows of at least 1 episode"
        raise RefusedError("bad_message", f"views must hold {wanted}.", expected=wanted, got=[episodes, rows])
    wanted = {key: f"({episodes}, {rows}{end})" for key, end in (("views", f", {dim}"), ("signals", ""))}
    for key, made, shape in (("views", views, (episodes, rows, dim)), ("signals", signals, (episodes, rows))):
        for name, each in made.items():
            if tuple(each.shape) != shape:
                got = list(each.shape)
                raise RefusedError("bad_message", f"{key}.{name} must be {wanted[key]}.", expected=wanted[key], got=got)
    for name, each in frames.items():
        if len(each) != episodes or each.shape[1] not in (1, rows) or each.shape[-1] != 3 or 0 in each.shape:
            asked = f"({episodes}, 1 or {rows}, H, W, 3)"
            got = list(each.shape)
            raise RefusedError("bad_image", f"frames.{name} must be {asked}.", expected=asked, got=got)
        check_size(each.shape[2], each.shape[3], service.limits)
    for name, each in depth.items():
        if len(each) != episodes:
            asked = f"({episodes}, H, W)"
            raise RefusedError("bad_image", f"depth.{name} must be {asked}.", expected=asked, got=list(each.shape))
    return Features(views=views, signals=signals, frames=frames, depth=depth)
