"""A client of Robometer's evaluation server, which RynnValue ships too: frames and a task out, a number a frame back.

The models stay where they are served, with code of their own that is not run here.
"""

from __future__ import annotations

import io
import json
import math
import secrets
from collections.abc import Sequence
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rewards.chat.endpoint import _failure, _loopback, _NoRedirect, _words
from rewards.chat.messages import VLMError, excerpt

MOST_BYTES = 2**20  # of an answer: a number a frame
FRAMES = "sample_0_trajectory_frames"


class ValueServer:
    """Asks over HTTP: POST {url}/evaluate_batch_npy, the frames as one .npy array.

    Args:
        url: of the server, such as http://gpu:8001.
        kind: of the model, for logs: "rynnvalue" or "robometer".
        frames: of a window, at most.
        timeout_s: of one request.

    Raises:
        ValueError: an address that is not http(s), or a number out of range.
    Source: robometer/robometer c7f38e2, scripts/example_inference.py (the request); alibaba-damo-academy/RynnValue
        10e0d33, robometer/robometer/evals (the answer: with `mode: absolute` minus the seconds that remain, -100 where
        the film does not match the task).
    """

    def __init__(self, url: str, *, kind: str = "rynnvalue", frames: int = 8, timeout_s: float = 120.0) -> None:
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname or address.username is not None:
            raise ValueError("ValueServer: url must be http(s)://HOST[:PORT], with no name or key in it; got another.")
        if frames < 2 or not (math.isfinite(timeout_s) and timeout_s > 0):
            raise ValueError(f"ValueServer: frames must be ≥ 2 and timeout_s > 0; got {frames} and {timeout_s}.")
        self.kind, self.frames, self._timeout = kind, frames, timeout_s
        self._url = url.rstrip("/") + "/evaluate_batch_npy"
        proxies = ProxyHandler({}) if _loopback(address.hostname) else ProxyHandler()
        self._opener = build_opener(_NoRedirect, proxies)

    def judge(self, frames: Sequence[np.ndarray], task: str) -> dict[str, Float[Tensor, " N"]]:
        """`progress` at each frame of a window, in the server's units, and `success` where it says so.

        Raises:
            VLMError: the server was not reached, or its answer is not a number a frame.
        """
        said = self._post(*_multipart(np.stack(frames), task))
        found = {"progress": self._numbers(said.get("outputs_progress"), "progress_pred", len(frames))}
        if said.get("outputs_success"):
            found["success"] = self._numbers(said["outputs_success"], "success_probs", len(frames))
        return found

    def judge_windows(self, windows: Sequence[Sequence[np.ndarray]], task: str) -> list[dict[str, Float[Tensor, " N"]]]:
        """As `judge`, one window after another."""
        return [self.judge(frames, task) for frames in windows]

    def _numbers(self, said: Any, name: str, count: int) -> Float[Tensor, " N"]:
        try:
            values = torch.tensor(said[name][0], dtype=torch.float32)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise VLMError(self._asked, f"{name} of {count} frames", excerpt(json.dumps(said))) from error
        if values.shape != (count,) or not torch.isfinite(values).all():
            raise VLMError(self._asked, f"{name} of {count} frames", excerpt(json.dumps(said)))
        return values

    @property
    def _asked(self) -> str:
        return f"ValueServer: {self.kind} at {self._url}"

    def _post(self, body: bytes, kind: str) -> dict[str, Any]:
        try:
            with self._opener.open(Request(self._url, body, {"Content-Type": kind}), timeout=self._timeout) as response:
                data = response.read(MOST_BYTES + 1)
        except HTTPError as error:
            got = f"HTTP {error.code} {excerpt(_words(error))}"
            raise VLMError(self._asked, "an answer", got, "Check url.", answered=False) from error
        except (OSError, URLError) as error:
            got = _failure(getattr(error, "reason", error), self._timeout)
            raise VLMError(self._asked, "an answer", got, "Check url.", answered=False) from error
        try:
            said = json.loads(data) if len(data) <= MOST_BYTES else None
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            got = excerpt(data[:200].decode("utf-8", "replace"))
            raise VLMError(self._asked, "JSON of names and values", got, "Is this Robometer's server?", answered=False)
        return said


def _multipart(frames: np.ndarray, task: str) -> tuple[bytes, str]:
    """The body of a request and its type: one sample as JSON, and its frames (N, H, W, 3) as a .npy file."""
    array = io.BytesIO()
    np.save(array, np.ascontiguousarray(frames), allow_pickle=False)
    trajectory = {
        "frames": {"__numpy_file__": FRAMES},
        "frames_shape": list(frames.shape),
        "task": task,
        "id": "0",
        "metadata": {"subsequence_length": len(frames)},
        "video_embeddings": None,
    }
    sample = json.dumps({"sample_type": "progress", "trajectory": trajectory}).encode()
    parts = [('name="sample_0"', sample), ('name="use_frame_steps"', b"false")]
    parts += [(f'name="{FRAMES}"; filename="{FRAMES}.npy"\r\nContent-Type: application/octet-stream', array.getvalue())]
    edge = f"embodied{secrets.token_hex(16)}"
    body = b"".join(
        f"--{edge}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts
    )
    return body + f"--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"
