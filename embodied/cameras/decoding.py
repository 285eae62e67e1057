"""What live streams and films share: what FFmpeg is told, which pictures can be believed, and its errors in words."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import av
import av.error

from embodied.cameras.camera import MAX_PIXELS, BrokenImage, CameraError, check_size
from embodied.pixels import lack_of_colours

STRICT = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}  # by default FFmpeg guesses what is missing
HEALED_S = 10.0  # after a damaged picture, at the latest: streams without key frames refresh themselves by then


class Believed:
    """Keeps out damaged pictures, and those that are coded as changes of a damaged one, up to the next key frame.

    Args:
        label: of the stream, for texts.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._damaged_s: float | None = None

    def damaged(self, at_s: float, why: str) -> BrokenImage:
        """Take note of a picture that could not be decoded; the error to raise."""
        self._damaged_s = at_s
        return BrokenImage(f"{self._label}: a picture cannot be decoded ({why}).")

    def check(self, picture: av.VideoFrame, at_s: float) -> None:
        """BrokenImage where it cannot be believed, is empty, huge or no colours; `at_s` on the clock of `damaged`."""
        if picture.is_corrupt:
            raise self.damaged(at_s, "parts of it are missing")
        if picture.key_frame or (self._damaged_s is not None and at_s - self._damaged_s > HEALED_S):
            self._damaged_s = None
        if self._damaged_s is not None:
            raise BrokenImage(f"{self._label}: a picture follows a damaged one, without a key frame between.")
        check_size(picture.width, picture.height, self._label)
        if lack := lack_of_colours(picture.format.name):
            raise BrokenImage(f"{self._label}: {lack}. It is no camera's.")


def check_stream(container: Any, label: str) -> None:
    """Close the container and raise CameraError where it holds no video that can be decoded, or depth."""
    streams = container.streams.video
    if streams and streams[0].codec_context is not None:
        pixels = streams[0].codec_context.format  # not `pix_fmt`, which ends PyAV 17 where a damaged head says none
        lack = lack_of_colours(pixels.name if pixels else "")
        if not lack:
            return
        container.close()
        raise CameraError(f"{label}: {lack}. Give the stream of a colour camera.")
    container.close()
    lack = "its video's codec is not known here" if streams else "it holds no video"
    raise CameraError(f"{label}: {lack}. Give a stream or file of H.264, H.265, MJPEG, VP9 or AV1.")


def reason(error: BaseException) -> str:
    """FFmpeg's words for what happened, without the URL and its password."""
    if isinstance(error, av.error.ExitError | TimeoutError):
        return "nothing came in time"
    return str(getattr(error, "strerror", None) or type(error).__name__)


def without_password(url: str) -> str:
    """The URL with `***` where its password was."""
    parts = urlsplit(url) if "://" in url else None
    if parts is None or parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username}:***@{host}").geturl()
