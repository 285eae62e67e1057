"""Steering a running watch: keys in its terminal, and a small HTTP API on this machine.

    GET  /status                     the run so far
    POST /goal    {"goal": "text"}   another goal; the past is rescored, nothing is encoded again
    POST /episode {}                 a new episode begins
    POST /mark    {"text": "…"}      a mark in the record

Answers are JSON: {"done": "…"} or {"error": "…"}. Only this machine is listened to, and a POST must say
`Content-Type: application/json`, which no web page of another origin can without asking first. Where there is a token,
each request bears it (`Authorization: Bearer TOKEN`), so that other users of this machine steer nothing.
"""

from __future__ import annotations

import codecs
import contextlib
import hmac
import json
import os
import select
import socket
import sys
import termios
import threading
import tty
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from embodied.errors import UserError
from embodied.serving import tokens
from embodied.watching.live_scoring import MAX_GOAL

Ask = Callable[[str, str], "Future[str]"]  # `Pipeline.ask`

HOST = "127.0.0.1"
MAX_BODY = 16_384  # bytes
SOCKET_S = 5.0  # for a request to come in whole
MOST = 16  # connections at a time; beyond it the oldest is closed
ANSWER_S = 30.0  # for the pipeline to come round to it
LEGEND = "n new episode · g new goal · space mark · q quit"
ESCAPE, ENTER, ERASE, CTRL_U = "\x1b", "\r\n", "\x7f\b", "\x15"


# Keys ---------------------------------------------------------------------------------------------------


class Keys:
    """Hot keys of a terminal, read without waiting.

    `n` begins an episode, `g` asks for a goal's text (Enter takes it, Escape forgets it), space marks, `q` quits.
    Ctrl-C keeps its meaning. In the background the terminal is somebody else's, and touching it would stop the process:
    keys are read once it is in front.

    Args:
        ask: what a key does, as `Pipeline.ask`.
        descriptor: of a terminal; its settings are put back by `close`.

    Raises:
        UserError: not a terminal.
    """

    def __init__(self, ask: Ask, descriptor: int) -> None:
        if not os.isatty(descriptor):
            raise UserError("hot keys need a terminal; give keys=false.")
        self.typed: str | None = None  # of a goal so far; None while no goal is being typed
        self._ask, self._descriptor = ask, descriptor
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._before: list[Any] | None = None  # the terminal's settings; None until they are others
        self._take()

    def poll(self) -> None:
        """Do what the keys pressed since last time say."""
        if not self._take():
            return
        while select.select([self._descriptor], [], [], 0)[0]:
            try:
                pressed = os.read(self._descriptor, 1024)
            except OSError:
                pressed = b""
            if not pressed:  # the terminal went away
                return
            text = self._decode(pressed)
            if text.startswith(ESCAPE):  # Escape itself, or an arrow and the like
                self.typed = None
                continue
            for key in text:
                self._press(key)

    def close(self) -> None:
        """Put the terminal back as it was, if it is still there."""
        if self._before is not None and self._in_front():
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def _take(self) -> bool:
        """Whether keys can be read."""
        if not self._in_front():
            return False
        if self._before is None:
            try:
                before = termios.tcgetattr(self._descriptor)
                tty.setcbreak(self._descriptor)
            except termios.error:  # it went away
                return False
            self._before = before
        return True

    def _in_front(self) -> bool:
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:  # not the terminal that we were started in, so nobody stops us
            return True

    def _press(self, key: str) -> None:
        if self.typed is None:
            if key == "g":
                self.typed = ""
            elif what := {"n": "episode", " ": "mark", "q": "quit"}.get(key):
                self._ask(what, "")
        elif key in ENTER:
            if self.typed.strip():
                self._ask("goal", self.typed)
            self.typed = None
        elif key in ERASE:
            self.typed = self.typed[:-1]
        elif key == CTRL_U:
            self.typed = ""
        elif key.isprintable() and len(self.typed) <= MAX_GOAL:  # one too many, so that it is refused and not cut
            self.typed += key


# HTTP ---------------------------------------------------------------------------------------------------


class ControlServer:
    """The HTTP API, on a thread of its own.

    Args:
        ask: as `Pipeline.ask`.
        status: as `Pipeline.status`.
        port: on 127.0.0.1; 0: any free one (`self.port`).
        private: whether every request must bear a token; made here, in a file that only this user can read.

    Attributes:
        token_file: where it is; None: there is none.

    Raises:
        UserError: the port is taken or may not be used, or there is no place for the token.
    """

    def __init__(self, ask: Ask, status: Callable[[], dict[str, Any]], port: int, *, private: bool = False) -> None:
        try:
            self._server = _Server(ask, status, port)
        except (OSError, OverflowError) as error:
            raise UserError(f"control={port} cannot be listened on: {error}. Choose another port.") from error
        self.port: int = self._server.server_address[1]
        self.token_file: Path | None = None
        self._stack = ExitStack()
        if private:
            try:
                self._server.token, self.token_file = self._stack.enter_context(tokens.made(tokens.CONTROL, self.port))
            except UserError:
                self._server.server_close()
                raise
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._stack.close()


class _Server(ThreadingHTTPServer):
    """What handlers find at `server`."""

    daemon_threads = True

    def __init__(self, ask: Ask, status: Callable[[], dict[str, Any]], port: int) -> None:
        self.ask, self.status = ask, status
        self.token: str | None = None
        self._open: dict[Any, None] = {}  # sockets, oldest first
        self._lock = threading.Lock()
        super().__init__((HOST, port), _Handler)

    def server_bind(self) -> None:
        """As `HTTPServer`, which asks for this machine's name, and waits long where a name server does not answer."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Each connection is a thread, so there are few."""
        with self._lock:
            oldest = next(iter(self._open)) if len(self._open) >= MOST else None
            self._open.pop(oldest, None)
            self._open[request] = None
        if oldest is not None:
            _end(oldest, socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle is its own affair."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    server_version, sys_version = "embodied", ""

    def setup(self) -> None:
        """A request comes in whole in so long, however it drips."""
        super().setup()
        self._patience = threading.Timer(SOCKET_S, _end, (self.connection, socket.SHUT_RD))
        self._patience.daemon = True
        self._patience.start()

    def finish(self) -> None:
        self._patience.cancel()
        super().finish()

    def do_GET(self) -> None:
        if self._may_ask():
            if self.path == "/status":
                self._answer(200, self.server.status())
            else:
                self._answer(404, {"error": f"no {self.path[:80]}; there is GET /status."})

    def do_POST(self) -> None:
        if not self._may_ask():
            return
        what, key = self.path.removeprefix("/"), {"/goal": "goal", "/episode": "", "/mark": "text"}.get(self.path)
        if key is None:
            return self._answer(404, {"error": f"no {self.path[:80]}; there are POST /goal, /episode and /mark."})
        body = self._body()
        self._patience.cancel()
        if body is None:
            return None
        text = body.get(key, "") if key else ""
        if not isinstance(text, str) or (what == "goal" and not text.strip()):
            return self._answer(400, {"error": f'body must be {{"{key}": "a text"}}; got {json.dumps(body)[:80]}.'})
        if len(text) > MAX_GOAL:
            told = f"{key} must be at most {MAX_GOAL} characters; got {len(text)}. Say it shorter."
            return self._answer(400, {"error": told})
        wish = self.server.ask(what, text)
        try:
            self._answer(200, {"done": wish.result(ANSWER_S)})
        except (UserError, ValueError, TypeError, FloatingPointError, KeyError) as error:
            self._answer(400, {"error": str(error)})
        except CancelledError:
            self._answer(503, {"error": "the run is over."})
        except (TimeoutError, RuntimeError, OSError) as error:
            wish.cancel()  # whoever is told that it was not done may ask again
            self._answer(503, {"error": str(error) or f"not done within {ANSWER_S:.0f} s."})

    def _may_ask(self) -> bool:
        """Not a page of another origin that resolves its own name to this machine, nor who does not know the token."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in (HOST, "localhost"):
            self._answer(403, {"error": f"host must be {HOST} or localhost; got {host[:80]!r}."})
            return False
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        token = self.server.token
        if token is not None and not (
            scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
        ):
            self._answer(401, {"error": "Authorization must be Bearer TOKEN, as the watch's first lines say."})
            return False
        return True

    def _body(self) -> dict[str, Any] | None:
        """The JSON object that was sent; None once it has been refused."""
        if self.headers.get_content_type() != "application/json":
            return self._answer(415, {"error": "Content-Type must be application/json."})
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return self._answer(411, {"error": "Content-Length must be given."})
        if len(length) > len(str(MAX_BODY)) or int(length) > MAX_BODY:  # thousands of digits are no number to Python
            return self._answer(413, {"error": f"body must be at most {MAX_BODY} bytes; got {length[:20]}."})
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            return self._answer(408, {"error": f"body must come within {SOCKET_S:g} s."})
        try:
            body = json.loads(data or b"{}")
        except (ValueError, RecursionError):
            return self._answer(400, {"error": "body must be JSON."})
        if not isinstance(body, dict):
            return self._answer(400, {"error": "body must be a JSON object."})
        return body

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode() + b"\n"
        self.close_connection = True  # what is left of a refused body is not read as the next request
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Standard error is the view's."""


def _end(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        connection.shutdown(how)
