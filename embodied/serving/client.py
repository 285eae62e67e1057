"""The other end of a reward server: requests that are sent again until they are answered, and sessions that come back.

The token is read from an environment variable or a file and travels in a header, never in the address. An answer is
whole and in time, or an error that says which server, what happened and what to do.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import socket
import ssl
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from embodied.errors import UserError
from embodied.serving import protocol

TRANSIENT = (429, 502, 503, 504)  # statuses of a server that may answer the same request later
MAX_ANSWER = 1 << 30  # bytes
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0  # between attempts; doubles from one to the other
CHUNK = 1 << 20  # bytes read at once
START_IT = "Start it again, or raise patience_s."


class ServerError(UserError):
    """A reward server did not do what it was asked."""


class ServerLostError(ServerError):
    """No answer, for now: the server is away, too slow or too busy. The same request may succeed later."""


class ServerRefusedError(ServerError):
    """The server will not: a wrong token, another version, another model, a bad request. Trying again is in vain."""


@dataclass(frozen=True)
class Address:
    """Where a server is: http://HOST:PORT, or https, perhaps with a path before /v1."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """The parts of an address.

        Raises:
            UserError: not an http(s) address, or one that holds more than that, such as a password.
        """
        where = "http://HOST:PORT or https://HOST:PORT"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UserError(f"url must be {where}: {error}.") from error
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise UserError(
                f"url must be {where} and nothing more. A token belongs into {protocol.TOKEN_VARIABLE} or token_file."
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"url must be {where}; got {url!r}.")
        default = 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, parts.hostname, port or default, parts.path.rstrip("/"))

    @property
    def tls(self) -> bool:
        return self.scheme == "https"

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.path}"


def read_token(token_env: str | None = protocol.TOKEN_VARIABLE, token_file: str | Path | None = None) -> str | None:
    """The token of a file, else of an environment variable; None where there is neither.

    Raises:
        UserError: the file cannot be read, or what is there is no token.
    """
    if token_file is not None:
        try:
            token, where = Path(token_file).expanduser().read_text("utf-8").strip(), str(token_file)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"token_file must be a file that holds the token; {token_file}: {error}.") from error
    else:
        token, where = os.environ.get(token_env or "", "").strip(), str(token_env)
        if not token:
            return None
    if not token or not all("!" <= letter <= "~" for letter in token):
        raise UserError(f"{where} must hold one line of printable ASCII without spaces, the token.")
    return token


def headers(token: str | None) -> dict[str, str]:
    """What every request carries."""
    sent = {"User-Agent": f"embodied-rewards/{own_version()}"}
    return sent if token is None else sent | {"Authorization": f"Bearer {token}"}


def own_version() -> str:
    """Of this package, as the server would name its own."""
    return metadata.version("embodied-rewards")


def check_version(theirs: object, where: Address) -> None:
    """Refuse a server whose version speaks otherwise: another major or minor number.

    Raises:
        ServerRefusedError: it does.
    """
    ours = own_version()
    if str(theirs).split(".")[:2] != ours.split(".")[:2]:
        raise ServerRefusedError(
            f"{where} must serve embodied-rewards {'.'.join(ours.split('.')[:2])}, as here; got {theirs}. "
            "Install the same version at both ends."
        )


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
        self._headers = headers(read_token(token_env, token_file))
        self._has_token = "Authorization" in self._headers
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._tls = ssl.create_default_context() if self.address.tls else None
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

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
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

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
            self._note_model(message)
            return message
        told = str(message.get("error") or f"HTTP {status} {http.client.responses.get(status, '')}".strip())
        if status in TRANSIENT:
            busy = "Give the server more room, or ask it less often." if status in (429, 503) else START_IT
            raise _LaterError(told, wait_s=_seconds(head.get("Retry-After")), advice=busy)
        raise refusal(self.address, status, message, told, has_token=self._has_token)

    def _note_model(self, message: Mapping[str, Any]) -> None:
        """The model of the first answer must be that of every other."""
        found = message.get("model_id")
        if not isinstance(found, str):
            raise ServerRefusedError(f"{self.address} must be a reward server (embodied serve); it names no model.")
        if self.model_id is None:
            self.model_id = found
        elif found != self.model_id:
            raise ServerRefusedError(
                f"{self.address} must serve the model it served before, {self.model_id}; got {found}. "
                "Start the server as it was, or begin anew: what two models say must not mix."
            )


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


def refusal(
    address: Address, status: int, message: Mapping[str, Any], told: str, *, has_token: bool
) -> ServerRefusedError | FloatingPointError:
    """What a server's refusal means here."""
    if message.get("code") == "unscorable":
        return FloatingPointError(f"{address}: {told}")
    if status in (401, 403):
        advice = "Its token is another." if has_token else "Give its token."
        how = f"Put it into the environment variable {protocol.TOKEN_VARIABLE}, or a file named by token_file."
        return ServerRefusedError(f"{address} refused the token: {told} {advice} {how}")
    if status == 404:
        return ServerRefusedError(f"{address} must be a reward server (embodied serve); it answers {told}")
    detail = "".join(f" {key}: {message[key]}." for key in ("expected", "got") if message.get(key) not in (None, ""))
    return ServerRefusedError(f"{address} refused: {told}{detail}")


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
        return f"nothing came in {timeout_s:g} s"
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
