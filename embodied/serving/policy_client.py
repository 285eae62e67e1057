"""A policy that answers from another computer: observations out, actions back in their time or not at all.

Shape letters: H actions of a chunk, A action, S own readings; n actions under way; H, W image.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from embodied.serving import protocol
from embodied.serving.http_client import Client
from embodied.serving.peer import ServerLostError
from policies.vla.queue import ChunkQueue


class RemotePolicy:
    """`act` gives the action of this moment at once; chunks are asked for behind its back, by one thread.

    Rules for answers that are late, lost, doubled or in another order: `policies.vla.queue.ChunkQueue`. Limits of speed
    and place are the robot's own (`RobotEnv`), whatever a server says.

    Args:
        url: of `embodied serve policy=…`.
        instruction: what is to be done.
        refill: share of a chunk that is left when the next one is asked for.
        patience_s: after which a request is given up, and another one made.
        longest_s: age of pictures beyond which no action is done; None: that of a chunk's last action.
        go_on: whether chunks go on from the one under way, where the policy can (head=flow).
        token_env, token_file: see `Client`.
        form: how images travel: "raw", "png" (lossless) or "jpeg".

    Attributes:
        about: what the server says of its policy.
        queue: the rules, and what was done with answers (`queue.counts`).

    Raises:
        ServerError: no server there, or it refuses.
        UserError: a bad address, token or setting.
    """

    def __init__(
        self,
        url: str,
        *,
        instruction: str,
        refill: float = 0.5,
        patience_s: float = 1.0,
        longest_s: float | None = None,
        go_on: bool = True,
        token_env: str | None = protocol.TOKEN_VARIABLE,
        token_file: str | Path | None = None,
        form: str = "jpeg",
    ) -> None:
        self._client = Client(url, token_env=token_env, token_file=token_file, timeout_s=patience_s, patience_s=0.0)
        self.about = self._client.about()
        horizon, fps = int(self.about["horizon"]), float(self.about["fps"])
        self.queue = ChunkQueue(
            horizon, len(self.about["actions"]), fps=fps, refill=math.ceil(refill * horizon), patience_s=patience_s,
            longest_s=longest_s,
        )  # fmt: skip
        self._instruction, self._form, self._go_on = instruction, form, go_on and bool(self.about["going_on"])
        self._delays: deque[float] = deque([0.0], maxlen=10)  # s, of the last answers
        self._lock, self._wanted = threading.Lock(), queue.Queue[Any](1)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="policy client", daemon=True)
        self._thread.start()

    def act(
        self, images: Mapping[str, UInt8[np.ndarray, "H W 3"]], state: Float[np.ndarray, " S"]
    ) -> Float[np.ndarray, " A"] | None:
        """The action of this moment, in the robot's units; None: there is none in its time, hold still.

        Args:
            images: of every camera of `about`, as they are now.
            state: own readings, as `about` names them.

        Raises:
            ServerRefusedError: the server will not (a wrong token, another policy, a bad message); trying again is in
                vain.
        """
        if self._failure is not None:
            raise self._failure
        now_s = time.monotonic()
        with self._lock:
            request = self.queue.ask(now_s)
            rest = self.queue.under_way(now_s)
            action = self.queue.act(now_s)
        if request is not None:
            message: dict[str, Any] = {
                "images": {name: protocol.encode_image(frame, self._form) for name, frame in images.items()},
                "state": protocol.encode_array(np.asarray(state, np.float32)),
                "instruction": self._instruction,
                "id": request,
            }
            if self._go_on and len(rest):
                steps = math.ceil(max(self._delays) * self.queue.fps)
                message["going_on"] = {"actions": protocol.encode_array(rest), "delay": min(steps, len(rest))}
            self._want((message, now_s))
        return action

    def reset(self) -> None:
        """An episode begins: what was planned and asked for is forgotten."""
        with self._lock:
            self.queue.reset()

    def close(self) -> None:
        """End the thread; safe to call twice."""
        self._want(None)
        self._thread.join()
        self._client.close()

    def _want(self, wanted: Any) -> None:
        """In place of what was given up before it was sent, if the thread does not take that just now."""
        with suppress(queue.Empty):
            self._wanted.get_nowait()
        self._wanted.put(wanted)

    def _work(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            message, sent_s = wanted
            try:
                answer = self._client.ask("POST", protocol.ACT, message)
                actions = protocol.decode_array(answer.get("actions"), "actions", ndim=2)
                request = int(answer["id"])
            except ServerLostError:
                continue  # the queue gives it up in time
            except BaseException as error:
                self._failure = error
                return
            now_s = time.monotonic()
            self._delays.append(now_s - sent_s)
            with self._lock:
                self.queue.answer(request, actions, now_s)
