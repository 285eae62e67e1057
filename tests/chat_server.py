"""An OpenAI-compatible chat endpoint on this machine's loopback, whose answers a test writes."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image


@dataclass
class Served:
    """What a server was asked: bodies parsed, headers and paths beside them."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


def completion(text: str | None, **choice: Any) -> dict[str, Any]:
    """The body of an ordinary answer; `choice` overrides fields of its only choice."""
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}]}


def probabilities(**tokens: float) -> dict[str, Any]:
    """The body of an answer whose first token has these log-probabilities."""
    top = [{"token": token.replace("_", " "), "logprob": value, "bytes": None} for token, value in tokens.items()]
    return completion(top[0]["token"], finish_reason="length", logprobs={"content": [{**top[0], "top_logprobs": top}]})


def images(body: dict[str, Any]) -> list[np.ndarray]:
    """The images of a request, decoded, in the order in which they are shown."""
    parts = [part for m in body["messages"] if isinstance(m["content"], list) for part in m["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]


def films(body: dict[str, Any]) -> list[tuple[list[np.ndarray], list[float]]]:
    """The films of a request: their frames, decoded, and the seconds at which each is shown."""
    import av

    parts = [part for m in body["messages"] if isinstance(m["content"], list) for part in m["content"]]
    found = []
    for part in parts:
        if part["type"] == "video_url":
            data = base64.b64decode(part["video_url"]["url"].removeprefix("data:video/mp4;base64,"))
            with av.open(io.BytesIO(data)) as container:
                frames = list(container.decode(video=0))
            found.append(
                ([each.to_ndarray(format="rgb24") for each in frames], [float(each.time or 0) for each in frames])
            )
    return found


def text(body: dict[str, Any]) -> str:
    """The texts of a request, images left out."""
    contents = [m["content"] for m in body["messages"]]
    listed = [[{"type": "text", "text": c}] if isinstance(c, str) else c for c in contents]
    return "\n".join(part["text"] for parts in listed for part in parts if part["type"] == "text")


@contextmanager
def chat_server(answer: Callable[[dict[str, Any]], Any]) -> Iterator[Served]:
    """Serve while the block runs.

    Args:
        answer: a request's body -> the answer's: a dict as JSON, bytes as they are, (status, body, headers), or a
            text as an ordinary completion.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.bodies.append(body)
            served.headers.append(dict(self.headers.items()))
            served.paths.append(self.path)
            said = answer(body)
            status, said, extra = said if isinstance(said, tuple) else (200, said, {})
            if isinstance(said, str):
                said = completion(said)
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **extra}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the asker has stopped waiting, as a test meant it to

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = Served(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
