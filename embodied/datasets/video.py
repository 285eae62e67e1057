"""Camera episodes as H.264, and exactly the frames of given times back from any video file.

Shape letters: N frames; H, W image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
from av.video.stream import VideoStream

from embodied.pixels import ACCURATE, lack_of_colours, threads, to_rgb
from rewards.pictures import REPEATABLE

SHARE = 0.25  # of a frame's period: how far its own time may lie from the time asked for
MAX_S, MAX_PIXELS = 1e8, 64_000_000
CRF, GOP = 18, 2  # a key frame every other frame makes random access cheap
TICKS = 90_000  # per second, of our files: every common frame rate divides it
_BACK_S = (0.0, 2.0, 20.0)  # how far before the first frame decoding starts, until one reaches it
_COLOURS = 5  # BT.601, what readers take for granted at these sizes


class VideoError(ValueError):
    """A video file that cannot be read; the text names the file."""


def write_video(path: Path, frames: np.ndarray, fps: int | float) -> None:
    """Encode one episode of one camera: H.264, yuv420p, no reordered frames; the same frames give the same bytes.

    Args:
        path: the mp4 file.
        frames: (N, H, W, 3) uint8 RGB, H and W even.
        fps: frame t is shown at t / fps seconds.
    """
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        options = {"crf": str(CRF), "g": str(GOP), "bf": "0", "preset": "medium", "colorprim": "smpte170m"} | REPEATABLE
        stream = container.add_stream("libx264", rate=exact(fps), options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.time_base = Fraction(1, TICKS)
        stream.codec_context.colorspace = _COLOURS
        stream.codec_context.thread_count = 1
        for t, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            how = {"dst_colorspace": _COLOURS, "interpolation": ACCURATE, "threads": threads(picture)}
            picture = picture.reformat(format="yuv420p", **how)
            picture.pts, picture.time_base = round(t * TICKS / exact(fps)), Fraction(1, TICKS)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def exact(fps: int | float) -> Fraction:
    """The rate that a person wrote, as a fraction: 29.97 is 2997 / 100."""
    return Fraction(fps).limit_denominator(10_000)


def concatenate(parts: Sequence[Path], path: Path, frames: Sequence[int], fps: int | float) -> None:
    """Episodes back to back in one file, without encoding again.

    Args:
        parts: files of `write_video`, of one camera.
        path: the mp4 file.
        frames: how many frames each part holds.
        fps: of all parts.
    """
    start = 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as out:
        stream: Any = None
        for part, count in zip(parts, frames, strict=True):
            with _opened(part) as (container, source):
                if stream is None:
                    stream = out.add_stream_from_template(source)
                    stream.time_base = Fraction(1, TICKS)
                for packet in container.demux(source):
                    if packet.dts is None:  # the demuxer's end mark
                        continue
                    assert packet.time_base is not None
                    for name in ("pts", "dts"):
                        own = round(getattr(packet, name) * packet.time_base * exact(fps))  # in frames
                        setattr(packet, name, round((start + own) * TICKS / exact(fps)))
                    packet.time_base, packet.duration = Fraction(1, TICKS), round(TICKS / exact(fps))
                    packet.stream = stream
                    out.mux(packet)
            start += count


def read_frames(path: Path, times_s: Sequence[float] | np.ndarray, tolerance_s: float | None = None) -> np.ndarray:
    """The frames shown at given times, in their order.

    Args:
        path: a video file.
        times_s: N seconds from the file's start.
        tolerance_s: how far the nearest frame's own time may lie from one of them; None: `SHARE` of a frame's period.

    Returns:
        (N, H, W, 3) uint8 RGB.

    Raises:
        VideoError: the file is broken or truncated, has no colours, or has no frame near one of the times.
        FileNotFoundError: there is no such file.
    """
    times = np.asarray(times_s, np.float64)
    ascending, place = np.unique(times, return_inverse=True)
    frames: np.ndarray | None = None
    for n, image in enumerate(frames_at(path, ascending, tolerance_s)):
        if frames is None:
            frames = np.empty((len(ascending), *image.shape), np.uint8)
        if image.shape != frames.shape[1:]:
            raise VideoError(f"{path}: frames must be of one size; got {image.shape[:2]} at {ascending[n]:.4f} s.")
        frames[n] = image
    if frames is None:
        raise VideoError(f"{path}: no time was asked for.")
    return frames if np.array_equal(place, np.arange(len(times))) else frames[place]


def frames_at(path: Path, times: np.ndarray, tolerance_s: float | None = None) -> Iterator[np.ndarray]:
    """As `read_frames`, one (H, W, 3) image after another, of times that ascend; only the current one is held."""
    if not len(times):
        return
    if not np.isfinite(times).all() or times[0] < -MAX_S or times[-1] > MAX_S:
        raise VideoError(f"{path}: times must be seconds within the film; got {times[0]} to {times[-1]}.")
    with _opened(path) as (container, stream):
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        if tolerance_s is None:
            tolerance_s = SHARE / float(stream.average_rate or 30)
        for back in _BACK_S:
            walk = _walk(container, stream, path, times, back, tolerance_s)
            first = next(walk)
            if first is not None:
                yield first
                yield from (image for image in walk if image is not None)
                return
    raise VideoError(f"{path}: no frame at {times[0]:.4f} s. The file does not belong to this dataset, or was cut.")


def sampled(path: Path, most: int) -> np.ndarray:
    """Evenly spaced frames of a whole film, its first and last among them; one frame at a time is decoded.

    Args:
        path: a video file.
        most: how many, at most; fewer of a shorter film.

    Returns:
        (N, H, W, 3) uint8 RGB.

    Raises:
        VideoError: the file is broken, holds no frame, or has no colours.
        FileNotFoundError: there is no such file.
    """
    count = film(path).frames or _counted(path)
    while True:
        wanted = set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist())
        frames = []
        with _opened(path) as (container, stream):
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            for n, frame in enumerate(_decoded(container, stream, path)):
                if n in wanted:
                    frames.append(_image(frame, path))
        if len(frames) == len(wanted) and frames:
            return np.stack(frames)
        if (found := _counted(path)) == count or not found:
            raise VideoError(f"{path}: must hold frames; got {found}. The file is damaged or cut short.")
        count = found  # the file's head told another number


def _counted(path: Path) -> int:
    with _opened(path) as (container, stream):
        return sum(1 for _ in _decoded(container, stream, path))


def _walk(
    container: Any, stream: VideoStream, path: Path, times: np.ndarray, back: float, tolerance_s: float
) -> Iterator[np.ndarray | None]:
    """Decode from a key frame on, the frame nearest to each time; None first where decoding began after the first."""
    begin = times[0] - back if back < _BACK_S[-1] else 0.0
    assert stream.time_base is not None
    try:
        container.seek(int(max(begin, 0.0) / float(stream.time_base)), stream=stream, backward=True)
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: no frame at {times[0]:.4f} s ({error.strerror}). The file was cut short.") from error
    n, before, image = 0, None, None  # `image`: of the frame before, once it was asked for
    for frame in _decoded(container, stream, path):
        if frame.time is None:
            continue
        if before is None and n == 0 and frame.time > times[0] + tolerance_s and back < _BACK_S[-1]:
            yield None
            return
        while n < len(times) and frame.time >= times[n]:
            if before is not None and times[n] - before.time < frame.time - times[n]:
                near, image = before, _image(before, path) if image is None else image
            else:
                near, before, image = frame, frame, _image(frame, path) if before is not frame else image
            if abs(near.time - times[n]) > tolerance_s:
                close = f"{frame.time:.4f} s" if before is None or before is frame else (
                    f"{before.time:.4f} and {frame.time:.4f} s")  # fmt: skip
                raise VideoError(
                    f"{path}: no frame at {times[n]:.4f} s; the nearest are at {close}. Times must lie within "
                    f"{1e3 * tolerance_s:.3g} ms of a frame's own; if these are only uneven, raise tolerance=."
                )
            assert image is not None
            yield image
            n += 1
        if n == len(times):
            return
        if frame is not before:
            before, image = frame, None
    while n < len(times) and before is not None and abs(before.time - times[n]) <= tolerance_s:
        image = _image(before, path) if image is None else image
        yield image
        n += 1
    if n == len(times):
        return
    end = "none" if before is None else f"{before.time:.4f} s"
    raise VideoError(f"{path}: no frame at {times[n]:.4f} s; the last is at {end}. The file was cut short.")


def _image(frame: Any, path: Path) -> np.ndarray:
    if lack := lack_of_colours(frame.format.name):
        raise VideoError(f"{path}: {lack}. It is no camera's.")
    if frame.width * frame.height > MAX_PIXELS:
        raise VideoError(
            f"{path}: a frame must have at most {MAX_PIXELS:,} pixels; got {frame.width} x {frame.height}."
        )
    try:
        return to_rgb(frame)
    except ValueError as error:
        raise VideoError(f"{path}: {error}. The file is damaged.") from error


def _decoded(container: Any, stream: VideoStream, path: Path) -> Iterator[av.VideoFrame]:
    try:
        yield from container.decode(stream)
    except (av.error.FFmpegError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise VideoError(f"{path}: cannot be decoded ({told}). The file is damaged.") from error


class FilmInfo(NamedTuple):
    """What the head of a video file says.

    Attributes:
        pix_fmt: FFmpeg's name of its pixels.
        frames: how many there are; 0 where it does not say.
        length_s: until the last one's end.
    """

    pix_fmt: str
    frames: int
    length_s: float


def film(path: Path) -> FilmInfo:
    """The head of a video file.

    Raises:
        VideoError: it is broken or no video.
        FileNotFoundError: there is no such file.
    """
    with _opened(path) as (_, stream):
        rate = float(stream.average_rate or 0)
        # Not `pix_fmt`, which ends PyAV 17 where a damaged head says none.
        pixels = stream.codec_context.format
        return FilmInfo(pixels.name if pixels else "", stream.frames, stream.frames / rate if rate else 0.0)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, VideoStream]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file.")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise VideoError(f"{path}: cannot be opened ({told}). The file is damaged or cut short.") from error
    with container:
        if not container.streams.video or container.streams.video[0].codec_context is None:
            raise VideoError(f"{path}: holds no video that can be decoded.")
        yield container, container.streams.video[0]
