"""Pictures that came over the wire, made safe to decode: what cannot be seen is left out, what is made slow is refused.

A decoder reads every segment of a JPEG's head and every chunk of a PNG in Python, metadata by metadata: a few megabytes
of empty ones hold it for many seconds. A progressive JPEG is gone through once a scan, and may say that it has
thousands. So both are walked here first, by their lengths alone.
"""

from __future__ import annotations

from embodied.serving.protocol import RefusedError, too_large

SEGMENTS = 1024  # of a JPEG before its first scan
CHUNKS, BYTES_A_CHUNK = 1000, 1000  # of a PNG: so many, and one more for so many bytes
SHOWN_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # what a PNG's pixels come from
START, FILL, SCAN = b"\xff\xd8", 0xFF, b"\xff\xda"
JFIF, ADOBE = 0xE0, 0xEE  # tell how colours are coded; other APPn segments and comments do not
ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a length
PNG = b"\x89PNG\r\n\x1a\n"


def stripped(kind: str, data: bytes, *, scans: int) -> bytes:
    """A JPEG or PNG without metadata; its pixels are the same.

    Args:
        kind: "jpeg" or "png".
        data: the file.
        scans: that a JPEG may have.

    Raises:
        RefusedError: it is cut short, or has more scans, segments or chunks than a picture needs.
    """
    return _jpeg(data, scans) if kind == "jpeg" else _png(data)


def _jpeg(data: bytes, scans: int) -> bytes:
    # Within a scan FF is followed by 00, so every FF DA is a scan's start, or lies in metadata, which holds a few.
    if (found := data.count(SCAN)) > scans:
        raise too_large("scans in one JPEG", scans, found)
    if not data.startswith(START):
        raise _broken("jpeg", "no start")
    kept, place = [START], 2
    for _ in range(SEGMENTS):
        if place + 4 > len(data) or data[place] != FILL:
            raise _broken("jpeg", "a segment is missing")
        marker = data[place + 1]
        if marker == FILL:  # padding
            place += 1
            continue
        if marker == SCAN[1]:
            return b"".join([*kept, data[place:]])
        end = place + 2 if marker in ALONE else place + 2 + int.from_bytes(data[place + 2 : place + 4])
        if marker in (JFIF, ADOBE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[place:end])
        place = end
    raise too_large("segments before the picture of a JPEG", SEGMENTS, "more")


def _png(data: bytes) -> bytes:
    if not data.startswith(PNG):
        raise _broken("png", "no signature")
    kept, place = [PNG], len(PNG)
    most = CHUNKS + len(data) // BYTES_A_CHUNK
    for _ in range(most):
        if place + 12 > len(data):  # the decoder says what of its pixels is missing
            return b"".join(kept)
        end = place + 12 + int.from_bytes(data[place : place + 4])
        kind = data[place + 4 : place + 8]
        if kind in SHOWN_CHUNKS:
            kept.append(data[place:end])
        if kind == b"IEND":
            return b"".join(kept)
        place = end
    raise too_large("chunks in one PNG", most, "more")


def _broken(kind: str, reason: str) -> RefusedError:
    return RefusedError("bad_image", f"An image is not {kind.upper()}, or broken.", expected=kind.upper(), got=reason)
