"""Requests to a reward server, sent again until they are answered: whole and in time, or an error that says why."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embodied.errors import UserError
from embodied.serving import protocol
from embodied.serving.peer import (
    FIRST_WAIT_S,
    LONGEST_WAIT_S,
    Address,
    ServerLostError,
    check_model,
    check_version,
    headers,
    refusal,
    token_for,
)

TRANSIENT = (408, 429, 502, 503, 504)  # statuses of a server that may answer the same request later
MAX_ANSWER = 1 << 30  # bytes
CHUNK = 1 << 20  # bytes read at once
START_IT = "Start it again, or raise patience_s."


class Client:
    """Requests to one server, from any thread, over connections that are kept.

    Nothing the server answers over HTTP changes it, so a request without a whole answer is sent again: at once, then
    after waits that double, until `patience_s` have passed. The model found at first must stay: features and
    potentials of two models would mix unseen.

    Args:
        url: see `Address`.
        token_env: the environment variable that holds the token, if it is set.
        token_file: a file that holds it, in its place.
        timeout_s: for one attempt.
        patience_s: for one request, all attempts together; 0: one attempt.

    Raises:
        UserError: a bad address, token or time.
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
        if not (timeout_s > 0 and patience_s >= 0):
            raise UserError(f"timeout_s must be > 0 and patience_s ≥ 0; got {timeout_s} and {patience_s}.")
        self.address = Address.parse(url)
        self.model_id: str | None = None
        self._token_from = (token_env, token_file)
        self._headers = headers(token_for(self.address, *self._token_from))
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._tls = ssl.create_default_context() if self.address.tls else None
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._idle)  # whoever holds a scorer has no need to know of connections

    def about(self) -> dict[str, Any]:
        """What the server says of its model, `/v1/model`; the version is checked and the model noted.

        Raises:
            ServerError: no answer, or another version.
        """
        found = self.ask("GET", protocol.MODEL)
        check_version(found.get("version"), self.address)
        return found

    def ask(self, method: str, path: str, message: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One request, answered.

        Args:
            method: GET or POST.
            path: below the address.
            message: of a POST.

        Raises:
            ServerLostError: no whole answer in `patience_s`.
            ServerRefusedError: the server will not, or serves another model than before.
            FloatingPointError: a head there gave NaN or infinity.
        """
        body = None if message is None else protocol.pack(message)
        ends, wait, told = time.monotonic() + self._patience_s, 0.0, False
        while True:
            try:
                answer = self._checked(*self._exchange(method, path, body))
                break
            except _LaterError as failure:
                self.close()  # the other kept connections lead to the same dead end
                wait = max(wait, failure.wait_s)
                if time.monotonic() + wait >= ends:
                    raise ServerLostError(
                        f"{self.address} gave no answer in {self._patience_s:g} s: {failure}. {failure.advice}"
                    ) from failure
                if wait and not told:
                    told = True
                    print(f"Waiting for {self.address} (up to {self._patience_s:g} s): {failure}.", file=sys.stderr)
            time.sleep(wait * random.uniform(0.5, 1.0))  # many clients wait for one server: not all at once
            wait = min(max(2 * wait, FIRST_WAIT_S), LONGEST_WAIT_S)
        if told:
            print(f"{self.address} answers again.", file=sys.stderr)
        return answer

    def close(self) -> None:
        """Close the connections that nothing is under way on; the client can be used again."""
        with self._lock:
            _close(self._idle)

    # One attempt ----------------------------------------------------------------------------------------

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of one attempt.

        Raises:
            _LaterError: no whole answer in time.
        """
        with self._lock:
            connection = self._idle.pop() if self._idle else self._connection()
        ends = time.monotonic() + self._timeout_s
        try:
            sent = self._headers if body is None else self._headers | {"Content-Type": protocol.MSGPACK}
            connection.request(method, self.address.path + path, body, sent)
            assert connection.sock is not None
            sock = connection.sock
            response = connection.getresponse()
            content = _body(response, sock, ends)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _LaterError(_reason(error, self._timeout_s)) from error
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            sock.settimeout(self._timeout_s)
            with self._lock:
                self._idle.append(connection)
        return response.status, response.headers, content

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self.address.host, self.address.port
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=self._timeout_s)

    def _checked(self, status: int, head: http.client.HTTPMessage, content: bytes) -> dict[str, Any]:
        """The answer's message.

        Raises:
            _LaterError, ServerRefusedError, FloatingPointError: see `ask`.
        """
        kind = head.get_content_type()
        try:
            message = protocol.unpack(content) if kind == protocol.MSGPACK else json.loads(content)
            if not isinstance(message, dict):
                raise ValueError(f"a {type(message).__name__}")
        except (protocol.RefusedError, ValueError) as error:
            if status == 200 and kind in (protocol.MSGPACK, protocol.JSON):
                raise _LaterError(f"its answer cannot be read ({error})") from error
            message = {}
        if status == 200:
            self.model_id = check_model(message.get("model_id"), self.model_id, self.address)
            return message
        told = str(message.get("error") or f"HTTP {status} {http.client.responses.get(status, '')}".strip())
        if status in TRANSIENT:
            busy = "Give the server more room, or ask it less often." if status in (429, 503) else START_IT
            raise _LaterError(told, wait_s=_seconds(head.get("Retry-After")), advice=busy)
        if status == 401 and self._headers != (now := headers(token_for(self.address, *self._token_from))):
            self._headers = now  # a server that was started again made another
            raise _LaterError(told)
        raise refusal(self.address, status, message, told, has_token="Authorization" in self._headers)


def _close(connections: list[http.client.HTTPConnection]) -> None:
    """Close and forget them."""
    while connections:
        connections.pop().close()


def _body(response: http.client.HTTPResponse, sock: socket.socket, ends: float) -> bytes:
    """The whole body, by a monotonic time.

    Raises:
        TimeoutError, http.client.IncompleteRead: there was less.
    """
    wanted, content = response.length, bytearray()  # None: chunked, or until it hangs up
    if wanted is not None and wanted > MAX_ANSWER:
        raise http.client.HTTPException(f"its answer has {wanted} bytes")
    while wanted is None or len(content) < wanted:
        sock.settimeout(max(ends - time.monotonic(), 0.001))  # for this piece: a drip of bytes wins no time
        part = response.read1(CHUNK if wanted is None else min(CHUNK, wanted - len(content)))
        content += part
        if not part:
            break
        if len(content) > MAX_ANSWER:
            raise http.client.HTTPException(f"its answer has more than {MAX_ANSWER} bytes")
    if wanted is not None and len(content) < wanted:
        raise http.client.IncompleteRead(bytes(content), wanted - len(content))
    response.close()
    return bytes(content)


class _LaterError(Exception):
    """One attempt failed in a way that another may not.

    Args:
        reason: without a full stop.
        wait_s: that the server asked for.
        advice: to the person, if it stays so.
    """

    def __init__(self, reason: str, *, wait_s: float = 0.0, advice: str = START_IT) -> None:
        super().__init__(reason.rstrip("."))
        self.wait_s, self.advice = wait_s, advice


def _reason(error: Exception, timeout_s: float) -> str:
    """A failed attempt in a few words."""
    if isinstance(error, TimeoutError):
        return f"its answer took more than {timeout_s:g} s"
    if isinstance(error, http.client.RemoteDisconnected | BrokenPipeError | ConnectionResetError):
        return "it hung up"
    if isinstance(error, http.client.IncompleteRead):
        return "it hung up in the middle of its answer"
    return str(error) or type(error).__name__


def _seconds(value: str | None) -> float:
    """Of a Retry-After header; 0 where there is none that can be read."""
    with contextlib.suppress(TypeError, ValueError):
        return min(max(float(value), 0.0), LONGEST_WAIT_S)  # pyright: ignore[reportArgumentType]
    return 0.0
