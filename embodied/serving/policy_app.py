"""A policy of action chunks as a FastAPI application: the reward server's door, one more path behind it.

Shape letters: H actions of a chunk, A action, S own readings; n actions under way.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request, Response
from jaxtyping import Float
from torch import Tensor

from embodied.serving import protocol
from embodied.serving.app import application, serve
from embodied.serving.gate import Gate
from embodied.serving.limits import RequestLimits
from embodied.serving.protocol import RefusedError, decode_array, encode_array, mapping
from embodied.serving.sessions import read_moments
from policies.vla.actor import Deciding
from policies.vla.core import ChunkPolicy
from policies.vla.embedded import ChunkObservation
from policies.vla.execute import GoingOn


class PolicyService(Gate):
    """One policy and everyone's claims on it; it keeps nothing of a client, so a request may be lost or sent again.

    Args:
        policy: what answers.
        see: camera -> frames to what the policy reads.
        say: sentences to what it reads.
        execute: how many actions of a chunk are worth executing, told to clients.
        model_id, limits, token: see `Gate`.
    """

    paths = "/healthz, /docs, /metrics, /v1/model, /v1/act"

    def __init__(
        self,
        policy: Deciding,
        see: Mapping[str, Callable[[np.ndarray], Tensor]],
        say: Callable[[Sequence[str]], Tensor],
        *,
        execute: int,
        model_id: str,
        limits: RequestLimits,
        token: str | None = None,
    ) -> None:
        super().__init__(model_id=model_id, limits=limits, token=token)
        self.policy, self._see, self._say, self._execute = policy, see, say, execute
        self._goes_on = isinstance(policy, ChunkPolicy) and policy.spec.head == "flow"

    def describe(self) -> dict[str, Any]:
        """What /v1/model says."""
        spec = self.policy.spec
        return {
            "cameras": {name: list(spec.frames[name]) for name in spec.cameras},
            "states": list(spec.states),
            "actions": list(spec.actions),
            "horizon": spec.horizon,
            "execute": self._execute,
            "fps": spec.fps,
            "going_on": self._goes_on,
            "limits": dataclasses.asdict(self.limits),
            **self.stamp,
        }

    async def act(self, message: dict[str, Any]) -> dict[str, Any]:
        """What /v1/act says.

        Raises:
            RefusedError: a camera, a reading or the sentence is missing or no such, or the actions are not finite.
        """
        spec, came_s = self.policy.spec, time.monotonic()
        images = mapping(message.get("images"), "images")
        if set(images) != set(spec.cameras):
            wanted = f"images of {', '.join(spec.cameras)}"
            raise RefusedError("bad_message", f"There must be {wanted}.", expected=wanted, got=list(images))
        cameras = list(spec.cameras)
        moments, frames = await read_moments(self, images, cameras)
        if moments != 1:
            wanted = "one image of each camera"
            raise RefusedError("bad_message", f"There must be {wanted}.", expected=wanted, got=moments)
        state = decode_array(message.get("state", []), "state", ndim=1)
        if state.shape != (len(spec.states),) or not np.isfinite(state).all():
            wanted = f"{len(spec.states)} finite numbers: {', '.join(spec.states)}"
            raise RefusedError("bad_message", f"state must be {wanted}.", expected=wanted, got=list(state.shape))
        instruction = protocol.text(message.get("instruction"), "instruction", self.limits, empty=True)
        going_on = self._going_on(message.get("going_on"))

        def decide() -> Float[np.ndarray, "H A"]:
            obs = ChunkObservation(
                {name: self._see[name](np.array(frame[None])) for name, frame in zip(cameras, frames, strict=True)},
                {name: torch.ones(1, dtype=torch.bool) for name in cameras},
                self._say([instruction]),
                torch.from_numpy(np.array(state))[None],
            )
            if going_on is None or not isinstance(self.policy, ChunkPolicy):
                return self.policy.predict_chunk(obs)[0].numpy()
            return self.policy.predict_chunk(obs, None, going_on)[0].numpy()

        actions = await self.on_heads(decide)
        if not np.isfinite(actions).all():
            raise RefusedError("unscorable", "The policy gave NaN or infinity.", expected="finite actions", status=422)
        told = {key: message[key] for key in ("id", "captured_s") if key in message}
        return {"actions": encode_array(actions), "latency_ms": 1000 * (time.monotonic() - came_s), **told}

    def _going_on(self, value: Any) -> GoingOn | None:
        """The chunk under way that a client tells of."""
        if value is None:
            return None
        spec, given = self.policy.spec, mapping(value, "going_on")
        if not self._goes_on:
            raise RefusedError("bad_message", "This policy cannot go on from a chunk.", expected="no going_on")
        rest, delay = decode_array(given.get("actions"), "going_on.actions", ndim=2), given.get("delay")
        wanted = f"1 to {spec.horizon} finite actions of {len(spec.actions)}, and a delay within them"
        known = len(rest)
        fits = 0 < known <= spec.horizon and rest.shape[1] == len(spec.actions) and np.isfinite(rest).all()
        if not fits or type(delay) is not int or not 0 <= delay <= known:
            got = {"actions": list(rest.shape), "delay": delay}
            raise RefusedError("bad_message", f"going_on must have {wanted}.", expected=wanted, got=got)
        chunk = np.pad(rest, ((0, spec.horizon - known), (0, 0)))
        return GoingOn(torch.from_numpy(chunk).float()[None], known, delay)


def make_policy_app(service: PolicyService) -> FastAPI:
    """The application; its threads end with its lifespan."""
    app = application(service)
    app.add_api_route(protocol.ACT, act, methods=["POST"], response_class=Response)
    return app


async def act(request: Request) -> Response:
    """A chunk of actions for what a robot sees."""

    async def work(service: PolicyService, client: Any, message: dict[str, Any]) -> dict[str, Any]:
        return await service.act(message)

    return await serve(request, work)


def policy_id(folder: Path) -> str:
    """A policy's name and a hash of its files."""
    found = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        found.update(file.name.encode() + file.read_bytes())
    return f"policy-{found.hexdigest()[:12]}"
