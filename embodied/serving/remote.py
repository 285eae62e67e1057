"""A server's reward model as one of ours: frames go to its encoder, features to its heads, potentials come back.

Everything that takes a `Scorer` takes this one: training, relabelling, evaluation, `label`.

Shape letters: B episodes, T time, N frames, D feature width, M texts; H, W image.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from embodied.errors import UserError
from embodied.serving import protocol
from embodied.serving.http_client import Client
from embodied.serving.peer import Address, ServerLostError, ServerRefusedError
from rewards.core import Encoder, Features, Scorer, Shaping, check_frames
from rewards.keypoint.rule import KeypointShaping
from rewards.shaping import PotentialShaping

REACH_S = 10.0  # for the first connection
BODY_SHARE = 0.9  # of the server's largest body that the arrays of one request may fill


class RemoteEncoder:
    """The encoder of a server, as `rewards.core.Encoder`; see `Client` for the arguments.

    Attributes:
        name: the server's encoder's.
        model: the server's model; features that are kept are kept by it.
        about: what `/v1/model` says.

    Raises:
        UserError: no server there, told at once, or not one of ours.
    """

    def __init__(
        self,
        url: str,
        *,
        token_env: str | None = protocol.TOKEN_VARIABLE,
        token_file: str | Path | None = None,
        timeout_s: float = 30.0,
        patience_s: float = 120.0,
    ) -> None:
        self.client = Client(
            url, token_env=token_env, token_file=token_file, timeout_s=timeout_s, patience_s=patience_s
        )
        _reach(self.client.address, timeout_s)
        self.about = self.client.about()
        try:
            encoder = self.about["encoder"]
            self.name, self.dim = str(encoder["name"]), int(encoder["dim"])
            self._image_size = int(encoder["image_size"][0]), int(encoder["image_size"][1])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ServerRefusedError(f"{url} must describe its encoder; {protocol.MODEL} lacks {error}.") from error
        self.model = str(self.client.model_id)

    @property
    def image_size(self) -> tuple[int, int]:
        return self._image_size

    def encode_images(self, frames: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B D"]:
        """In as few requests as the server's limits allow.

        Raises:
            ServerError: no features.
        """
        check_frames(frames, "RemoteEncoder.encode_images")
        if not len(frames):
            return torch.empty(0, self.dim)
        images = frames.cpu().numpy()
        _, height, width, _ = images.shape
        most = min(
            int(self.limit("message_frames")),
            int(self.limit("message_pixels") // (height * width)),
            int(BODY_SHARE * self.limit("body_bytes") // (height * width * 3)),
        )
        parts = np.array_split(images, math.ceil(len(images) / max(most, 1)))
        return torch.cat([self._features({"images": protocol.encode_image(part)}, len(part)) for part in parts])

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "M D"]:
        """In as few requests as the server's limits allow.

        Raises:
            ServerError: no features.
        """
        most = int(min(self.limit("texts"), len(texts)))
        parts = [list(texts[i : i + most]) for i in range(0, len(texts), most)]
        return torch.cat([self._features({"texts": part}, len(part)) for part in parts])

    def _features(self, message: Mapping[str, Any], count: int) -> Tensor:
        answer = self.client.ask("POST", protocol.ENCODE, message)
        return _array(answer.get("features"), "features", (count, self.dim))

    def limit(self, name: str) -> float:
        """One of the server's limits; none where it tells of none."""
        return float(self.about.get("limits", {}).get(name, math.inf))


def _reach(address: Address, timeout_s: float) -> None:
    """Find somebody at an address: patience is for a server that was there, not for a wrong address.

    Raises:
        ServerLostError: nobody listens there.
    """
    try:
        socket.create_connection((address.host, address.port), timeout=min(timeout_s, REACH_S)).close()
    except OSError as error:
        reason = (
            f"it took more than {min(timeout_s, REACH_S):g} s" if isinstance(error, TimeoutError) else error.strerror
        )
        raise ServerLostError(
            f"{address} gave no answer: {reason}. No reward server listens there: start one with embodied serve, or "
            "correct url."
        ) from error


class Answer(NamedTuple):
    """What a server says of B windows.

    Attributes:
        potentials: head name -> (B, T) float32.
        combined: (B, T) float32.
    """

    potentials: dict[str, Tensor]
    combined: Tensor


class RemoteHeads:
    """The heads of a server and their combination, one request for all of them.

    Args:
        encoder: of the same server.
        goal: in place of the server's own; "": that.

    Raises:
        UserError: a goal that the server does not take.
    """

    def __init__(self, encoder: RemoteEncoder, goal: str = "") -> None:
        about, where = encoder.about, encoder.client.address
        if goal and not about.get("goals"):
            raise UserError(f"reward.goal must be left out: the reward at {where} takes none; got {goal!r}.")
        if len(goal) > encoder.limit("text_chars"):
            most = int(encoder.limit("text_chars"))
            raise UserError(f"reward.goal must have at most {most} characters; got {len(goal)}.")
        self._encoder, self._goal = encoder, goal
        self._last: tuple[Features, Answer] | None = None

    def ask(self, features: Features) -> Answer:
        """All potentials of some features; asked once of one object, which several heads read.

        Raises:
            ServerError: no answer.
            FloatingPointError: a head of the server gave NaN or infinity.
        """
        last = self._last
        if last is not None and last[0] is features:
            return last[1]
        batch, steps, _ = features.main.shape
        sent = {name: _arrays(getattr(features, name)) for name in ("views", "signals", "frames", "depth")}
        size = sum(values.nbytes for group in sent.values() for values in group.values())
        parts = min(math.ceil(size / (BODY_SHARE * self._encoder.limit("body_bytes"))) or 1, batch)
        made = []
        for chosen in np.array_split(np.arange(batch), parts):
            message = {
                kind: {name: protocol.encode_array(values[chosen]) for name, values in group.items()}
                for kind, group in sent.items()
                if group
            }
            asked = message | ({"goal": self._goal} if self._goal else {})
            made.append(self._read(self._encoder.client.ask("POST", protocol.POTENTIALS, asked), len(chosen), steps))
        names = made[0].potentials
        answer = Answer(
            {name: torch.cat([each.potentials[name] for each in made]) for name in names},
            torch.cat([each.combined for each in made]),
        )
        self._last = features, answer
        return answer

    def _read(self, message: Mapping[str, Any], batch: int, steps: int) -> Answer:
        given = message.get("potentials")
        potentials = {
            name: _array(given.get(name) if isinstance(given, dict) else None, name, (batch, steps))
            for name in self._encoder.about["heads"]
        }
        return Answer(potentials, _array(message.get("combined"), "combined", (batch, steps)))


class RemoteHead:
    """One head of a server, as `rewards.core.Head`."""

    def __init__(self, name: str, heads: RemoteHeads, *, pointwise: bool, frames_read: str) -> None:
        self.name, self.pointwise, self.frames_read = name, pointwise, frames_read
        self._heads = heads

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        return self._heads.ask(features).potentials[self.name]


class RemoteCombination:
    """A server's combination of its heads, as `rewards.core.Combine`."""

    def __init__(self, heads: RemoteHeads) -> None:
        self._heads = heads

    def __call__(self, potentials: Mapping[str, Float[Tensor, "B T"]], features: Features) -> Float[Tensor, "B T"]:
        """What the server made of its own potentials; those given are the same."""
        return self._heads.ask(features).combined


def remote_scorer(
    *,
    url: str,
    goal: str = "",
    token_env: str | None = protocol.TOKEN_VARIABLE,
    token_file: str | Path | None = None,
    timeout_s: float = 30.0,
    patience_s: float = 120.0,
    shaping: Mapping[str, Any] | None = None,
    encoder: Encoder | None = None,
) -> Scorer:
    """A server's whole reward, encoder and heads, as a scorer of ours.

    Args:
        url, token_env, token_file, timeout_s, patience_s: see `Client`.
        goal: in place of the server's own, where its reward takes one; "": that.
        shaping: arguments of `PotentialShaping` in place of the server's, None being the server's.
        encoder: the server's, where it is there already; None: made here.

    Raises:
        UserError: no server there, one of another version, a goal or a shaping that it does not have, or an encoder
            that is not its own.
    """
    if encoder is None:
        encoder = RemoteEncoder(
            url, token_env=token_env, token_file=token_file, timeout_s=timeout_s, patience_s=patience_s
        )
    elif not isinstance(encoder, RemoteEncoder) or encoder.client.address != Address.parse(url):
        raise UserError(
            f"reward=remote must read the features of its own server, {url}; got those of {encoder.name}. "
            f"Beside other rewards, add encoder=remote encoder.url={url}."
        )
    about = encoder.about
    heads = RemoteHeads(encoder, goal)
    try:
        pointwise, frames_read = bool(about["pointwise"]), str(about["frames_read"])
        made = {n: RemoteHead(n, heads, pointwise=pointwise, frames_read=frames_read) for n in map(str, about["heads"])}
    except (KeyError, TypeError) as error:
        raise ServerRefusedError(f"{url} must describe its heads; {protocol.MODEL} lacks {error}.") from error
    return Scorer(encoder, made, RemoteCombination(heads), _shaping(about.get("shaping"), shaping or {}, url))


def _shaping(theirs: Mapping[str, Any] | None, ours: Mapping[str, Any], url: str) -> Shaping:
    """The server's shaping, with what is given here in its place."""
    given = {key: value for key, value in ours.items() if value is not None}
    for kind in (PotentialShaping, KeypointShaping):
        names = {field.name for field in fields(kind)}
        if theirs is not None and set(theirs) == names and set(given) <= names:
            return kind(**{**theirs, **given})
    if "kind" not in given:
        raise UserError(f"reward.shaping.kind must be given: the reward at {url} has another shaping, {theirs}.")
    return PotentialShaping(**given)


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """On the CPU, as the wire has them: images uint8, all else float32."""
    return {
        name: (each if each.dtype == torch.uint8 else each.float()).detach().cpu().numpy()
        for name, each in tensors.items()
    }


def _array(value: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    """A float32 Array of an answer.

    Raises:
        ServerRefusedError: another form or shape.
    """
    try:
        values = protocol.decode_array(value, name, ndim=len(shape))
    except protocol.RefusedError as error:
        raise ServerRefusedError(f"The server's answer must hold {name} as an array; {error}") from error
    if values.shape != shape:
        raise ServerRefusedError(f"The server's {name} must be {shape}; got {values.shape}.")
    return torch.from_numpy(values.astype(np.float32))  # a copy: what came is read-only
