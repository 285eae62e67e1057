"""Where a reward server is, how to be let in, and what its refusals mean: what every connection to one needs."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from embodied.errors import UserError
from embodied.serving import protocol, tokens

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0  # between attempts to reach a server; doubles from one to the other


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, which no other can reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ServerError(UserError):
    """A reward server did not do what it was asked."""


class ServerLostError(ServerError):
    """No answer, for now: the server is away, too slow or too busy. The same request may succeed later."""


class ServerRefusedError(ServerError):
    """The server will not: a wrong token, another version, another model, a bad request. Trying again is in vain.

    Attributes:
        code: what kind of refusal the server's answer says it is; None where it says nothing.
    """

    code: str | None = None


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


def token_for(address: Address, token_env: str | None, token_file: str | Path | None) -> str | None:
    """As `read_token`; where nothing is given, that of this user's own server on this machine.

    Raises:
        UserError: see `read_token`.
    """
    token = read_token(token_env, token_file)
    if token is None and is_loopback(address.host):
        token = tokens.found(tokens.SERVE, address.port)
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
    if status < 300 or status == 404:
        return ServerRefusedError(f"{address} must be a reward server (embodied serve); it answers {told}")
    detail = "".join(f" {key}: {message[key]}." for key in ("expected", "got") if message.get(key) not in (None, ""))
    refused = ServerRefusedError(f"{address} refused: {told}{detail}")
    refused.code = str(message["code"]) if "code" in message else None
    return refused


def check_model(found: object, known: str | None, where: Address) -> str:
    """The model an answer comes from, which must be that of every other: what two models say must not mix.

    Raises:
        ServerRefusedError: it is another, or none.
    """
    if not isinstance(found, str):
        raise ServerRefusedError(f"{where} must be a reward server (embodied serve); it names no model.")
    if known is not None and found != known:
        raise ServerRefusedError(
            f"{where} must serve the model it served before, {known}; got {found}. Start the server as it was, or "
            "begin anew."
        )
    return found
