"""Images that came over the wire: checked by their headers, then decoded."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embodied.serving.headers import stripped
from embodied.serving.limits import RequestLimits
from embodied.serving.protocol import ADVICE, RefusedError, kind_of, octets, sides, too_large
from rewards.pictures import lack_of_colours, rgb

FORMS = "{jpeg: bytes}, {png: bytes} or {raw: bytes, shape: [H, W, 3]}"


@dataclass(frozen=True)
class Chunk:
    """Images of one size, checked but not decoded.

    Attributes:
        kind: "jpeg", "png" or "raw".
        data: as they came.
        shape: (N, H, W, 3).
    """

    kind: str
    data: bytes | memoryview
    shape: tuple[int, int, int, int]

    @property
    def pixels(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    def decode(self) -> np.ndarray:
        """(N, H, W, 3) uint8; of raw ones without a copy, read-only. EXIF rotation is not applied.

        Raises:
            RefusedError: broken data.
        """
        if self.kind == "raw":
            return np.frombuffer(self.data, np.uint8).reshape(self.shape)
        try:
            with _opened(self.kind, self.data) as image:
                pixels = rgb(image)
        except Exception as error:  # decoders of broken data raise anything
            raise _broken(self.kind, error) from error
        return pixels[None]


def read_images(value: Any, name: str, limits: RequestLimits) -> list[Chunk]:
    """What a message calls Images, with every size checked and nothing decoded.

    Raises:
        RefusedError: another form, a zero-size or broken image, or more pixels or images than allowed.
    """
    parts = value if isinstance(value, list) else [value]
    if not 0 < len(parts) <= limits.message_frames:
        wanted = f"1 to {limits.message_frames} images"
        raise RefusedError("bad_image", f"{name} must hold {wanted}.", expected=wanted, got=len(parts))
    chunks = [_read_image(part, name, limits) for part in parts]
    check_total(chunks, limits)
    return chunks


def check_total(chunks: Sequence[Chunk], limits: RequestLimits) -> None:
    """Refuse more images or pixels than one message may hold."""
    frames, pixels = sum(chunk.shape[0] for chunk in chunks), sum(chunk.pixels for chunk in chunks)
    if frames > limits.message_frames:
        raise too_large("images in one message", limits.message_frames, frames)
    if pixels > limits.message_pixels:
        raise too_large("pixels in one message", limits.message_pixels, pixels)


def _read_image(value: Any, name: str, limits: RequestLimits) -> Chunk:
    forms = [form for form in ("raw", "jpeg", "png") if isinstance(value, dict) and form in value]
    if len(forms) != 1:
        raise RefusedError("bad_image", f"{name} must be an image. {ADVICE}", expected=FORMS, got=kind_of(value))
    kind, data = forms[0], octets(value[forms[0]], f"{name}.{forms[0]}")
    if kind == "raw":
        shape = sides(value.get("shape"), name, "bad_image")
        if len(shape) not in (3, 4) or shape[-1] != 3 or 0 in shape:
            wanted = "[H, W, 3] or [N, H, W, 3], none of them 0"
            raise RefusedError("bad_image", f"{name}.shape must be {wanted}.", expected=wanted, got=shape)
        n, height, width = (1, *shape[:2]) if len(shape) == 3 else shape[:3]
        check_size(height, width, limits)
        if len(data) != math.prod(shape):
            wanted = f"{math.prod(shape)} bytes for shape {shape}"
            raise RefusedError(
                "bad_image", f"{name}.raw must have {wanted}.", expected=wanted, got=f"{len(data)} bytes"
            )
        return Chunk(kind, data, (n, height, width, 3))
    data = stripped(kind, bytes(data), scans=limits.jpeg_scans)
    try:
        with _opened(kind, data) as image:
            width, height = image.size
            lack = lack_of_colours(image)
    except Exception as error:  # decoders of broken data raise anything
        raise _broken(kind, error) from error
    if lack:
        raise RefusedError("bad_image", f"{name}: {lack}.", expected="8-bit greys or colours", got="deeper pixels")
    check_size(height, width, limits)
    return Chunk(kind, data, (1, height, width, 3))


def _opened(kind: str, data: bytes | memoryview) -> Any:
    """Pillow's image with only the header read. Not by `Image.open`, which would try other formats."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    return (JpegImageFile if kind == "jpeg" else PngImageFile)(io.BytesIO(data))


def check_size(height: int, width: int, limits: RequestLimits) -> None:
    """Refuse an image without pixels, with too many, or so narrow that resizing it would make far more of them.

    Raises:
        RefusedError: naming the limit.
    """
    if height * width == 0:
        raise RefusedError("bad_image", "An image must have pixels.", expected="H, W ≥ 1", got=f"{height} by {width}")
    if height * width > limits.image_pixels:
        raise too_large("pixels in one image", limits.image_pixels, height * width)
    if max(height, width) > limits.image_aspect * min(height, width):
        wanted = f"a long side of at most {limits.image_aspect} times the short one"
        got = f"{height} by {width}"
        raise RefusedError("too_large", f"An image must have {wanted}.", expected=wanted, got=got, status=413)


def _broken(kind: str, error: Exception) -> RefusedError:
    reason = str(error) or type(error).__name__
    return RefusedError("bad_image", f"An image is not {kind.upper()}, or broken.", expected=kind.upper(), got=reason)
