"""Cameras of the past: video files, folders of images, dataset episodes. Every image in turn, the same each time.

H, W: height and width of an image, pixels.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
import numpy as np

from embodied.cameras.camera import (
    EVENTS_KEPT,
    BrokenImage,
    CameraError,
    CameraEvent,
    CameraTimeout,
    Frame,
    decoded,
)
from embodied.cameras.decoding import STRICT, Believed, check_stream, reason, without_password
from embodied.cameras.transforms import Transform, resized
from embodied.errors import UserError, nearest
from embodied.pixels import to_rgb

CHUNK = 64  # rows of an episode that are held at a time
FOLDER_FPS = 30.0  # of a folder of images that nobody gave a rate
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
_EPSILON_S = 1e-6


class Shot(NamedTuple):
    """One image of a record.

    Attributes:
        image: (H, W, 3) uint8 RGB; None where it cannot be used.
        time_s: its place in the record.
        problem: why there is no image; "" where there is one.
    """

    image: np.ndarray | None
    time_s: float
    problem: str = ""


Shots = Generator[Shot, None, None]


class RecordedCamera:
    """A record as `Camera` has it: `read` gives every image in turn, then EOFError.

    Args:
        shots: begins the record.
        label: what it is, for texts.
        name: of the view.
        fps: images a second of the record; None: unknown.
        resample: images a second of what is read: moment k is the newest image at k / resample; None: all of them.
        transform: done to each image.

    Attributes:
        live: False.
        events: broken images and changes of size met so far.
        broken: images that could not be used.
    """

    live = False

    def __init__(
        self,
        shots: Callable[[], Shots],
        *,
        label: str,
        name: str = "main",
        fps: float | None = None,
        resample: float | None = None,
        transform: Transform | None = None,
    ) -> None:
        if resample is not None and not resample > 0:
            raise UserError(f"fps must be above 0, or null; got {resample}.")
        self.name, self.fps = name, resample or fps
        self.width: int | None = None
        self.height: int | None = None
        self.events: deque[CameraEvent] = deque(maxlen=EVENTS_KEPT)
        self.broken = 0
        self._begin, self._label, self._resample, self._transform = shots, label, resample, transform or Transform()
        self._shots: Shots | None = None
        self._moments: Iterator[Shot] = iter(())
        self._ahead: Shot | None = None  # read when connecting, not handed out yet
        self._first: tuple[int, int] | None = None
        self._last: np.ndarray | None = None
        self._index = 0

    def connect(self, warmup: bool = True) -> None:
        """Open it and read its first image.

        Raises:
            CameraError: it cannot be opened, or holds no image.
        """
        if self._shots is not None:
            return
        self._shots = self._begin()
        self._moments = self._shots if self._resample is None else resampled(self._shots, self._resample)
        self._index, self._first = 0, None
        self._ahead = next(self._moments, None)
        if self._ahead is None:
            self.disconnect()
            raise CameraError(f"{self._label}: holds no picture.")

    def next_frame(self) -> Frame | None:
        """The next image as a frame; None where it cannot be used, which the events tell. EOFError at the end."""
        if self._shots is None:
            raise CameraError(f"{self._label}: is not connected.")
        shot, self._ahead = self._ahead or next(self._moments, None), None
        if shot is None:
            raise EOFError(f"{self._label}: has ended after {self._index} pictures.")
        index, self._index = self._index, self._index + 1
        if shot.image is None:
            self.broken += 1
            self._tell("broken", shot.problem)
            return None
        size = shot.image.shape[:2]
        if self._first is not None and size != self._first:
            was = "x".join(map(str, self._first))
            self._tell("resized", f"picture {index} is {size[0]}x{size[1]}, brought to the first one's {was}")
        self._first = self._first or size
        self._last = self._transform(resized(shot.image, self._first))
        self.height, self.width = self._last.shape[:2]
        return Frame(image=self._last, captured_s=shot.time_s, index=index)

    def read(self) -> np.ndarray:
        """The next image that can be used; EOFError at the end."""
        while (frame := self.next_frame()) is None:
            pass
        return frame.image

    def async_read(self, timeout_ms: float = 200) -> np.ndarray:
        """As `read`: a record never makes one wait."""
        return self.read()

    def read_latest(self, max_age_ms: float = 500) -> np.ndarray:
        """The image that was read last; a record does not age."""
        if self._last is None:
            raise CameraTimeout(f"{self._label}: nothing was read yet.")
        return self._last

    def disconnect(self) -> None:
        """Close it; `connect` begins anew."""
        if self._shots is not None:
            self._shots.close()
        self._shots, self._moments, self._ahead = None, iter(()), None

    def _tell(self, kind: str, text: str) -> None:
        self.events.append(CameraEvent(at_s=time.monotonic(), camera=self.name, kind=kind, text=text))


def resampled(shots: Iterator[Shot], fps: float) -> Iterator[Shot]:
    """Moments k / fps up to the last shot's time, each the newest shot that is not after it."""
    current, k = next(shots, None), 0
    for following in shots:
        while current is not None and k / fps < following.time_s - _EPSILON_S:
            if k / fps >= current.time_s - _EPSILON_S:
                yield current._replace(time_s=k / fps)
            k += 1
        current = following
    if current is not None and k / fps <= current.time_s + _EPSILON_S:
        yield current._replace(time_s=k / fps)


# Files --------------------------------------------------------------------------------------------------


def video_fps(path: str) -> float | None:
    """Images a second of a video file, on average.

    Raises:
        CameraError: it is missing, damaged, or holds no video that can be decoded.
    """
    with _opened(path) as container:
        rate = container.streams.video[0].average_rate
        return float(rate) if rate else None


def video(path: str) -> Shots:
    """Every frame of a video file or of a film behind a URL, in the order they are shown."""
    label = without_password(path)
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.options = STRICT
        start, time_s, count, step_s = None, 0.0, 0, float(1 / (stream.average_rate or FOLDER_FPS))
        packets, believed = container.demux(stream), Believed(label)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError) as error:
                yield Shot(None, time_s, f"{label}: cannot be read beyond {time_s:.3f} s ({reason(error)})")
                return
            if packet is None:
                break
            try:
                pictures = packet.decode()
            except av.error.EOFError:
                continue
            except av.error.FFmpegError as error:
                count += 1
                yield Shot(None, time_s, str(believed.damaged(time_s, f"after {time_s:.3f} s: {reason(error)}")))
                continue
            for picture in pictures:
                if picture.time is not None:
                    start = picture.time if start is None else start
                    time_s = picture.time - start
                yield _shot(picture, time_s, believed)
                time_s += step_s
                count += 1
        if count < stream.frames:
            yield Shot(None, time_s, f"{label}: must hold {stream.frames} pictures; got {count}. It was cut short.")


def folder_images(folder: Path) -> list[Path]:
    """The images of a folder, in the order a person counts: 2 before 10."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in IMAGES and not path.name.startswith("."))
    return sorted(found, key=lambda path: [(part.isdigit(), int(part) if part.isdigit() else 0, part)
                                           for part in re.split(r"(\d+)", path.name)])  # fmt: skip


def images(path: Path, fps: float) -> Shots:
    """Every image of a folder, or the one of an image file, `fps` a second."""
    for i, file in enumerate(folder_images(path) if path.is_dir() else [path]):
        try:
            yield Shot(decoded(file.read_bytes(), str(file)), i / fps)
        except (BrokenImage, OSError) as error:
            yield Shot(None, i / fps, str(error))


def episode(dataset: Any, index: int, camera: str) -> Shots:
    """Every frame of an episode of an `embodied.datasets.Dataset`, by the episode's number in its files."""
    i = dataset.position(index)
    if camera not in dataset.cameras:
        raise UserError(f"{dataset.root}: no camera {camera!r}. {nearest(camera, dataset.cameras)}")
    row = 0
    for images in dataset.batches(i, camera, CHUNK):
        for image in images:
            yield Shot(np.ascontiguousarray(image), row / dataset.fps)
            row += 1


def _opened(path: str) -> Any:
    """The container of a file that holds video."""
    label = without_password(path)
    try:
        container: Any = av.open(path, timeout=(10.0, 10.0) if "://" in path else None)
    except FileNotFoundError as error:
        raise CameraError(f"{label}: no such file.") from error
    except (av.error.FFmpegError, OSError) as error:
        raise CameraError(f"{label}: cannot be opened ({reason(error)}). No video, or a damaged one.") from error
    check_stream(container, label)
    return container


def _shot(picture: av.VideoFrame, time_s: float, believed: Believed) -> Shot:
    try:
        believed.check(picture, time_s)
        image = to_rgb(picture)
    except (BrokenImage, ValueError) as error:
        return Shot(None, time_s, str(error))
    return Shot(np.ascontiguousarray(np.rot90(image, round(picture.rotation / 90))), time_s)
