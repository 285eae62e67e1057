"""A session with a reward server, for a stream of frames: it comes back by itself when the server does."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from embodied.errors import UserError
from embodied.scoring.streaming import Reading
from embodied.serving import protocol
from embodied.serving.peer import (
    FIRST_WAIT_S,
    LONGEST_WAIT_S,
    Address,
    ServerLostError,
    ServerRefusedError,
    check_model,
    check_version,
    headers,
    refusal,
    token_for,
)

MAX_ANSWER = 64 << 20  # bytes
LATER = ("busy", "crowded", "rate", "timeout", "draining")  # codes of errors that may pass
REFUSING = (1003, 1008, 1009)  # close codes of a session that would end so again


class RemoteStream:
    """A moment's frames in, its reading out; one episode after another.

    A session that ends (server killed, network gone, no answer in time) is opened again by the next call, after waits
    that double while the server is away. What the server knew of the episode is lost by then, so the next reading
    begins another one: `Reading.episode` counts on, and `lost` says how often that was. Not for several threads at
    once.

    Args:
        url: see `Address`.
        views: names of the cameras, the first being the main one.
        signals: names of the readings that come with every moment.
        goal: in place of the server's own; None: that.
        token_env: the environment variable that holds the token, if it is set.
        token_file: a file that holds it, in its place.
        timeout_s: to open a session, and for an answer.
        form: how images travel: "raw", "png" (lossless) or "jpeg".
        quality: of JPEG, 1 to 95.

    Attributes:
        about: what the server said of its model when the session began.
        lost: sessions that ended other than by `close`.
        latency_ms: from the last moment's arrival at the server to its answer.

    Raises:
        UserError: a bad address or token; no server there, one of another version, or one that refuses.
    """

    def __init__(
        self,
        url: str,
        *,
        views: Sequence[str] = ("main",),
        signals: Sequence[str] = (),
        goal: str | None = None,
        token_env: str | None = protocol.TOKEN_VARIABLE,
        token_file: str | Path | None = None,
        timeout_s: float = 5.0,
        form: str = "raw",
        quality: int = 90,
    ) -> None:
        if not timeout_s > 0:
            raise UserError(f"timeout_s must be > 0; got {timeout_s}.")
        if form not in ("raw", "png", "jpeg"):
            raise UserError(f"form must be raw, png or jpeg; got {form!r}.")
        self.address = Address.parse(url)
        self.about: dict[str, Any] = {}
        self.lost, self.latency_ms = 0, 0.0
        self._token_from = (token_env, token_file)
        self._token = token_for(self.address, token_env, token_file)
        self._opening: dict[str, Any] = {"type": "open", "views": list(views), "signals": list(signals), "goal": goal}
        self._timeout_s, self._form, self._quality = timeout_s, form, quality
        self._session: ClientConnection | None = None
        self._exit = contextlib.ExitStack()
        self._model_id: str | None = None
        self._first = self._next = 0  # the session's first episode, and that of a session after it
        self._not_before_s, self._wait_s = 0.0, FIRST_WAIT_S
        self._open()

    def push(
        self,
        frames: Mapping[str, np.ndarray],
        signals: Mapping[str, float] | None = None,
        *,
        captured_s: float | None = None,
    ) -> Reading:
        """The reading of one more moment.

        Args:
            frames: view -> (H, W, 3) uint8 RGB, unresized.
            signals: name -> reading.
            captured_s: when the frames were taken, for the server's records.

        Raises:
            ServerLostError: no answer, for now; there is no need to wait before the next call.
            ServerRefusedError: the server does not take it, or not from us.
            FloatingPointError: a head there gave NaN or infinity; the episode is as before.
        """
        images = {view: protocol.encode_image(frame, self._form, self._quality) for view, frame in frames.items()}
        message: dict[str, Any] = {"type": "frames", "images": images}
        if signals:
            message["signals"] = {name: float(value) for name, value in signals.items()}
        if captured_s is not None:
            message["captured_s"] = float(captured_s)
        answer = self._ask(message, "reading")
        episode = self._first + int(answer["episode"])
        self._next, self.latency_ms = episode + 1, float(answer["latency_ms"])
        potentials = {name: float(value) for name, value in answer["potentials"].items()}
        reward = None if answer["reward"] is None else float(answer["reward"])
        return Reading(episode, int(answer["row"]), potentials, float(answer["combined"]), reward)

    def restart(self) -> None:
        """The next moment begins a new episode, in a new session where the server is away or too busy to say so."""
        try:
            self._ask({"type": "restart"}, "restarted")
        except ServerLostError:
            self._drop()

    def set_goal(self, text: str) -> dict[str, np.ndarray]:
        """Go on with another goal, in later sessions too; nothing is encoded again.

        Returns:
            What its heads say of the rows kept of this episode: head name -> (T,), oldest first.

        Raises:
            ServerError: see `push`; the goal is as before.
        """
        answer = self._ask({"type": "goal", "text": text}, "goal")
        self._opening["goal"] = text
        return {name: protocol.decode_array(values, name) for name, values in answer["past"].items()}

    def close(self) -> None:
        """End the session; safe to call twice."""
        if self._session is not None:
            with contextlib.suppress(OSError, WebSocketException):
                self._session.send(protocol.pack({"type": "close"}))
        self._drop()

    # Sessions -------------------------------------------------------------------------------------------

    def _ask(self, message: Mapping[str, Any], wanted: str) -> dict[str, Any]:
        """One message, answered; if its session has ended meanwhile, by a new one."""
        once_more = self._session is not None
        while True:
            if self._session is None:
                self._open()
            try:
                return self._answer(message, wanted)
            except _EndedError as ended:
                self._end(ended)
                if ended.code in REFUSING:
                    raise ServerRefusedError(f"{self.address} ended the session: {ended}.") from ended
                if not (once_more and ended.hung_up):
                    raise ServerLostError(f"{self.address} is lost: {ended}.") from ended
            once_more = False

    def _open(self) -> None:
        """Begin a session.

        Raises:
            ServerError: there is none to be had now; the next attempt waits twice as long.
        """
        left = self._not_before_s - time.monotonic()
        if left > 0:
            raise ServerLostError(f"{self.address} is lost; the next attempt is in {left:.1f} s.")
        try:
            self._session = self._connected()
            self.about = self._answer(self._opening, "opened")
            check_version(self.about.get("version"), self.address)
        except (OSError, WebSocketException, _EndedError, ServerLostError) as error:
            self._drop()
            self._not_before_s = time.monotonic() + self._wait_s
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
            if isinstance(error, _EndedError) and error.code in REFUSING:
                raise ServerRefusedError(f"{self.address} ended the session: {error}.") from error
            reason = "nothing came in time" if isinstance(error, TimeoutError) else str(error)
            raise ServerLostError(f"{self.address} gave no session: {reason}. Is it running?") from error
        except BaseException:
            self._drop()
            raise
        self._first, self._wait_s = self._next, FIRST_WAIT_S

    def _connected(self) -> ClientConnection:
        """A connection whose handshake is done."""
        address = self.address
        self._token = token_for(address, *self._token_from)
        sock = socket.create_connection((address.host, address.port), timeout=self._timeout_s)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Reading waits in a thread of its own, with no limit; sending has one, or a server that stops reading
            # would hold the caller for ever.
            sock.settimeout(None)
            limit = struct.pack("ll", int(self._timeout_s), int(self._timeout_s % 1 * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            sent = headers(self._token)  # anew: a server that was started again may have made another
            opened = connect(
                f"{'wss' if address.tls else 'ws'}://{address.netloc}{address.path}{protocol.STREAM}",
                sock=sock,
                compression=None,
                additional_headers={key: value for key, value in sent.items() if key != "User-Agent"},
                user_agent_header=sent["User-Agent"],
                open_timeout=self._timeout_s,
                ping_interval=None,  # every message is answered in time or the session ends
                close_timeout=1.0,
                max_size=MAX_ANSWER,
            )
            return self._exit.enter_context(opened)
        except InvalidStatus as error:
            sock.close()
            self._refused(error)
        except BaseException:
            sock.close()
            raise

    def _refused(self, error: InvalidStatus) -> NoReturn:
        """What an HTTP answer in place of a session means."""
        status, message = error.response.status_code, {}
        with contextlib.suppress(ValueError, TypeError):
            message = dict(json.loads(error.response.body))
        told = str(message.get("error") or f"HTTP {status}")
        if message.get("code") in LATER or status >= 500:
            raise ServerLostError(told.rstrip(".")) from error
        raise refusal(self.address, status, message, told, has_token=self._token is not None) from error

    def _answer(self, message: Mapping[str, Any], wanted: str) -> dict[str, Any]:
        """The answer to one message of the session.

        Raises:
            _EndedError: the session ended, or nothing came in time and must not come later.
            ServerError, FloatingPointError: the server refused; the session goes on.
        """
        assert self._session is not None
        try:
            self._session.send(protocol.pack(message))
            data = self._session.recv(timeout=self._timeout_s)
            answer = protocol.unpack(data if isinstance(data, bytes) else data.encode())
        except ConnectionClosed as error:
            if isinstance(error.__cause__, BlockingIOError):
                raise _EndedError(f"it read nothing for {self._timeout_s:g} s") from error
            received = error.rcvd
            why = f"{received.code} {received.reason}".strip() if received else "it hung up"
            raise _EndedError(why, code=received.code if received else None, hung_up=True) from error
        except TimeoutError as error:
            raise _EndedError(f"no answer in {self._timeout_s:g} s") from error
        except (OSError, WebSocketException, protocol.RefusedError) as error:
            raise _EndedError(str(error)) from error
        if answer.get("type") == "error":
            told = str(answer.get("error"))
            if answer.get("code") in LATER:
                raise ServerLostError(f"{self.address}: {told}")
            raise refusal(self.address, 400, answer, told, has_token=self._token is not None)
        if answer.get("type") != wanted:
            raise _EndedError(f"it answered {answer.get('type')!r} where {wanted!r} was due")
        self._model_id = check_model(answer.get("model_id"), self._model_id, self.address)
        return answer

    def _end(self, ended: _EndedError) -> None:
        """The session has ended by itself."""
        self._drop()
        self.lost += 1

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(OSError, WebSocketException):
                self._exit.close()


class _EndedError(Exception):
    """The session is over.

    Args:
        reason: without a full stop.
        code: the close code, where one came.
        hung_up: the connection was closed, by the other side or the network.
    """

    def __init__(self, reason: str, *, code: int | None = None, hung_up: bool = False) -> None:
        super().__init__(reason)
        self.code, self.hung_up = code, hung_up
