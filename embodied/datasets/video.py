"""Camera episodes as H.264, and exactly the frames of given times back from any video file.

Shape letters: N frames; H, W image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.video.stream import VideoStream

TOLERANCE_S = 1e-4  # between the time asked for and the frame's own
CRF, GOP = 18, 2  # a key frame every other frame makes random access cheap
TICKS = 90_000  # per second, of our files: every common frame rate divides it
_BACK_S = (0.0, 2.0, 20.0)  # how far before the first frame decoding starts, until one reaches it
_COLOURS = 5  # BT.601, what readers take for granted at these sizes
# swscale's bicubic, full_chroma_int, full_chroma_inp, accurate_rnd: without them colours come out a level darker.
_ACCURATE = 4 | 0x2000 | 0x4000 | 0x40000


class VideoError(ValueError):
    """A video file that cannot be read; the text names the file."""


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """Encode one episode of one camera: H.264, yuv420p, no reordered frames.

    Args:
        path: the mp4 file.
        frames: (N, H, W, 3) uint8 RGB, H and W even.
        fps: frame t is shown at t / fps seconds.
    """
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        options = {"crf": str(CRF), "g": str(GOP), "bf": "0", "preset": "medium", "colorprim": "smpte170m"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.time_base = Fraction(1, TICKS)
        stream.codec_context.colorspace = _COLOURS
        stream.codec_context.thread_count = 1
        for t, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=_COLOURS, interpolation=_ACCURATE)
            picture.pts, picture.time_base = t * TICKS // fps, Fraction(1, TICKS)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def concatenate(parts: Sequence[Path], path: Path, frames: Sequence[int], fps: int) -> None:
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
                        own = round(getattr(packet, name) * packet.time_base * fps)  # in frames
                        setattr(packet, name, (start + own) * TICKS // fps)
                    packet.time_base, packet.duration = Fraction(1, TICKS), TICKS // fps
                    packet.stream = stream
                    out.mux(packet)
            start += count


def read_frames(path: Path, times_s: Sequence[float] | np.ndarray) -> np.ndarray:
    """The frames shown at given times.

    Args:
        path: a video file.
        times_s: N seconds from the file's start, ascending; each must meet a frame's own time within `TOLERANCE_S`.

    Returns:
        (N, H, W, 3) uint8 RGB.

    Raises:
        VideoError: the file is broken, truncated, or has no frame at one of the times.
        FileNotFoundError: there is no such file.
    """
    times = np.asarray(times_s, np.float64)
    with _opened(path) as (container, stream):
        for back in _BACK_S:
            frames = _walk(container, stream, path, times, back)
            if frames is not None:
                return np.stack(frames)
    raise VideoError(f"{path}: no frame at {times[0]:.4f} s. The file does not belong to this dataset, or was cut.")


def _walk(container: Any, stream: VideoStream, path: Path, times: np.ndarray, back: float) -> list[np.ndarray] | None:
    """Decode from a key frame on; None where decoding began after the first time asked for."""
    begin = times[0] - back if back < _BACK_S[-1] else 0.0
    assert stream.time_base is not None
    container.seek(int(max(begin, 0.0) / float(stream.time_base)), stream=stream, backward=True)
    found: list[np.ndarray] = []
    last = -np.inf
    for frame in _decoded(container, stream, path):
        if frame.time is None or frame.time < times[len(found)] - TOLERANCE_S:
            last = frame.time if frame.time is not None else last
            continue
        if abs(frame.time - times[len(found)]) > TOLERANCE_S:
            if not found and last == -np.inf:
                return None
            raise VideoError(
                f"{path}: no frame at {times[len(found)]:.4f} s; the nearest are at {last:.4f} and {frame.time:.4f} s. "
                "Timestamps must be frame_index / fps."
            )
        image = frame.reformat(format="rgb24", interpolation=_ACCURATE).to_ndarray()
        while len(found) < len(times) and abs(frame.time - times[len(found)]) <= TOLERANCE_S:
            found.append(image)
        last = frame.time
        if len(found) == len(times):
            return found
    end = "none" if last == -np.inf else f"{last:.4f} s"
    raise VideoError(f"{path}: no frame at {times[len(found)]:.4f} s; the last is at {end}. The file was cut short.")


def _decoded(container: Any, stream: VideoStream, path: Path) -> Iterator[av.VideoFrame]:
    try:
        yield from container.decode(stream)
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: cannot be decoded ({error.strerror}). The file is damaged.") from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, VideoStream]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file.")
    try:
        container = av.open(str(path))
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: cannot be opened ({error.strerror}). The file is damaged or cut short.") from error
    with container:
        if not container.streams.video:
            raise VideoError(f"{path}: holds no video.")
        yield container, container.streams.video[0]
