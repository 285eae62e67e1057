"""Cameras that give one picture a request: an address of a JPEG, asked for again and again."""

from __future__ import annotations

import base64
import http.client
import time
import urllib.error
import urllib.request
from urllib.parse import unquote, urlsplit

from embodied.cameras.camera import CameraError, decoded
from embodied.cameras.live import Grab
from embodied.serving.peer import is_loopback

PERIOD_S = 0.1  # between requests: small cameras take as long for a picture
MAX_BYTES = 64 * 2**20  # of one picture
FORMATS = ("jpeg_pipe", "png_pipe", "webp_pipe", "bmp_pipe")  # what FFmpeg calls a stream that is one such picture


class Snapshots:
    """One picture a request.

    Args:
        url: of http or https; its user and password are sent as Basic authentication.
        name: for texts.
        timeout_s: of a request.
    """

    def __init__(self, url: str, name: str, timeout_s: float) -> None:
        self._name, self._timeout_s, self._due_s = name, timeout_s, 0.0
        parts = urlsplit(url)
        self._request = urllib.request.Request(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
        proxies = urllib.request.ProxyHandler({} if no_proxy_reaches(url) else None)
        self._opener = urllib.request.build_opener(proxies)
        if parts.username is not None:
            told = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._request.add_header("Authorization", f"Basic {base64.b64encode(told).decode()}")

    def grab(self) -> Grab:
        """The next picture, as old as its request; CameraError where none came."""
        time.sleep(max(self._due_s - time.monotonic(), 0.0))
        asked = time.monotonic()
        self._due_s = asked + PERIOD_S
        try:
            with self._opener.open(self._request, timeout=self._timeout_s) as answer:
                data = answer.read(MAX_BYTES + 1)
        except (OSError, http.client.HTTPException, urllib.error.URLError) as error:
            raise CameraError(f"{self._name}: lost ({error}).") from error
        if len(data) > MAX_BYTES:
            raise CameraError(f"{self._name}: a picture must have at most {MAX_BYTES} bytes.")
        return Grab(decoded(data, self._name), asked)


def no_proxy_reaches(url: str) -> bool:
    """Whether a camera's address is of http(s) on this machine itself, where a proxy would look on its own."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and is_loopback(parts.hostname or "")
