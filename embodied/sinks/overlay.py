"""A video of what was seen, with what it was worth drawn below it.

The mp4 is fragmented: every half second of it stands by itself, so that it plays as far as it goes however the
recording ends. Moments keep their own times; a gap of the camera is a gap here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.video.frame import PictureType
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageDraw import ImageDraw as Draw

from embodied.sinks.files import Appended
from embodied.watching.watched import Watched
from rewards.pictures import REPEATABLE

HEIGHT, PANEL, MIN_WIDTH, MAX_WIDTH = 360, 132, 640, 1600  # px: views, the strip below, the whole picture
SPAN_S = 20.0  # that the curve shows
BARS = 4  # heads that are drawn; further ones are counted
TICKS = 90_000  # a second, of the video
STEP = TICKS // 1000  # between moments, at least
FRAGMENT_S, KEY_S = 0.5, 1.0
CRF, PRESET = "26", "veryfast"
MAX_POINTS = 1200  # of the curve
BACK, INK, DIM, GRID = (18, 20, 24), (235, 238, 242), (130, 136, 146), (52, 56, 64)
CURVE, BAR, GOOD, BAD = (94, 176, 255), (94, 176, 255), (72, 199, 116), (240, 84, 84)


class Overlay:
    """Writes `….mp4`.

    Args:
        path: made anew.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file = Appended(path)
        self._video: _Video | None = None
        self._painter = Painter()
        self._start_s: float | None = None

    def write(self, watched: Watched) -> None:
        if not watched.frames:  # nothing to show yet; the lines have it
            return
        picture = self._painter.paint(watched)
        if self._video is None:
            self._video, self._start_s = _Video(self._file, *picture.shape[:2]), watched.at_s
        assert self._start_s is not None
        self._video.add(picture, watched.at_s - self._start_s)

    def close(self) -> None:
        video, self._video = self._video, None
        try:
            if video is not None:
                video.close()
        finally:
            self._file.close()


class Painter:
    """Moments into pictures of one size; remembers the curve of the last `SPAN_S`."""

    def __init__(self) -> None:
        self._size: tuple[int, int] | None = None  # (H, W) of the views together
        self._curve: deque[tuple[float, float | None, bool]] = deque(maxlen=MAX_POINTS)  # at_s, combined, success
        self._fonts = {size: ImageFont.load_default(size) for size in (13, 15, 20)}

    def paint(self, watched: Watched) -> np.ndarray:
        """(H, W, 3) uint8, H and W even and the same in every call."""
        combined = watched.reading.combined if watched.reading else None
        self._curve.append((watched.at_s, combined, bool(watched.success)))
        while self._curve[0][0] < watched.at_s - SPAN_S:
            self._curve.popleft()
        views = side_by_side([frame.image for frame in watched.frames.values()], HEIGHT)
        if self._size is None:
            width = min(max(views.width, MIN_WIDTH), MAX_WIDTH) // 2 * 2
            self._size = (max(round(views.height * min(width / views.width, 1)), 2) // 2 * 2, width)
        height, width = self._size
        canvas = Image.new("RGB", (width, height + PANEL), BACK)
        fit = min(width / views.width, height / views.height)
        if fit != 1:
            views = views.resize((max(round(views.width * fit), 1), max(round(views.height * fit), 1)))
        canvas.paste(views, ((width - views.width) // 2, (height - views.height) // 2))
        draw = ImageDraw.Draw(canvas)
        self._marks(draw, watched, width, height)
        self._bars(draw, watched, height)
        self._plot(draw, watched.at_s, (240, height + 26, width - 10, height + PANEL - 30))
        self._words(draw, watched, width, height)
        return np.asarray(canvas)

    def _marks(self, draw: Draw, watched: Watched, width: int, height: int) -> None:
        """What a person must not overlook: old pictures, and success."""
        if watched.stale:
            draw.rectangle((0, 0, width - 1, height - 1), outline=BAD, width=6)
            self._tag(draw, (12, 12), f"STALE {watched.age_s:.1f} s", BAD)
        elif watched.reading is None:
            self._tag(draw, (12, 12), "NOT SCORED", BAD)
        if watched.success and not watched.stale:
            draw.rectangle((0, 0, width - 1, height - 1), outline=GOOD, width=4)
            self._tag(draw, (12, 44), "SUCCESS", GOOD)

    def _tag(self, draw: Draw, at: tuple[int, int], words: str, colour: tuple[int, int, int]) -> None:
        left, top, right, bottom = draw.textbbox(at, words, font=self._fonts[20])
        draw.rectangle((left - 6, top - 4, right + 6, bottom + 4), fill=colour)
        draw.text(at, words, fill=BACK, font=self._fonts[20])

    def _bars(self, draw: Draw, watched: Watched, top: int) -> None:
        """Each head's potential, raw and as a bar over [0, 1]."""
        potentials = watched.reading.potentials if watched.reading else dict.fromkeys(watched.normalised)
        for k, (name, raw) in enumerate(list(potentials.items())[:BARS]):
            y = top + 8 + 22 * k
            draw.text((10, y), name[:11], fill=INK, font=self._fonts[13])
            draw.rectangle((92, y + 2, 171, y + 13), fill=GRID)
            share = watched.normalised.get(name)
            if raw is not None and share is not None and np.isfinite(share):
                draw.rectangle((92, y + 2, 92 + round(79 * min(max(share, 0), 1)), y + 13), fill=BAR)
            draw.text((178, y), "-" if raw is None else f"{raw:+.3f}", fill=INK, font=self._fonts[13])
        if len(potentials) > BARS:
            draw.text((10, top + 8 + 22 * BARS), f"and {len(potentials) - BARS} more", fill=DIM, font=self._fonts[13])

    def _plot(self, draw: Draw, now_s: float, box: tuple[int, int, int, int]) -> None:
        """The combined potential of the last `SPAN_S`, broken where there was none, green while successful."""
        left, top, right, bottom = box
        draw.rectangle(box, outline=GRID)
        values = [value for _, value, _ in self._curve if value is not None]
        if not values:
            return
        low, high = min(values), max(values)
        span = max(high - low, 1e-6)
        before: tuple[float, float] | None = None
        for at_s, value, success in self._curve:
            if value is None:
                before = None
                continue
            x = right - (now_s - at_s) / SPAN_S * (right - left)
            y = bottom - 4 - (value - low) / span * (bottom - top - 8)
            draw.line((*(before or (x - 1, y)), x, y), fill=GOOD if success else CURVE, width=2)
            before = (x, y)
        draw.text((left + 4, top + 1), f"{high:.3f}", fill=DIM, font=self._fonts[13])
        draw.text((left + 4, bottom - 16), f"{low:.3f}", fill=DIM, font=self._fonts[13])

    def _words(self, draw: Draw, watched: Watched, width: int, top: int) -> None:
        reward = watched.reading.reward if watched.reading else None
        latency = f"{1000 * watched.latency_s:.0f} ms" if watched.latency_s is not None else "-"
        figures = f"reward {'-' if reward is None else f'{reward:+.4f}'}   latency {latency}"
        figures += f"   {watched.model_hz:.1f} Hz   dropped {watched.dropped}"
        draw.text((240, top + 6), figures, fill=INK, font=self._fonts[13])
        note = f"{watched.event}  |  " if watched.event else ""
        words = f"{note}{watched.goal or ''}".replace("\n", " ")
        draw.text((10, top + PANEL - 24), words[: width // 7], fill=INK, font=self._fonts[15])


def side_by_side(images: list[np.ndarray], height: int) -> Image.Image:
    """Several views in a row, each scaled to `height`."""
    pictures = [Image.fromarray(each) for each in images]
    pictures = [each.resize((max(round(each.width * height / each.height), 1), height)) for each in pictures]
    if len(pictures) == 1:
        return pictures[0]
    row = Image.new("RGB", (sum(each.width for each in pictures), height))
    x = 0
    for each in pictures:
        row.paste(each, (x, 0))
        x += each.width
    return row


class _Video:
    """H.264 in fragments, written through `Appended` so that a full disk leaves whole ones."""

    def __init__(self, file: Appended, height: int, width: int) -> None:
        flags = "empty_moov+default_base_moof+skip_trailer"
        options = {"movflags": flags, "frag_duration": str(int(FRAGMENT_S * 1e6)), "flush_packets": "1"}
        self._container = av.open(file, "w", format="mp4", container_options=options)
        coding = {"crf": CRF, "preset": PRESET, "tune": "zerolatency", "forced-idr": "1", "colorprim": "smpte170m"}
        coding |= REPEATABLE
        self._stream = self._container.add_stream("libx264", rate=30, options=coding)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, TICKS)
        self._stream.codec_context.thread_count = 1
        self._last, self._key_s = -STEP, -KEY_S

    def add(self, picture: np.ndarray, at_s: float) -> None:
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = max(round(at_s * TICKS), self._last + STEP), Fraction(1, TICKS)
        self._last = frame.pts
        if at_s - self._key_s >= KEY_S:
            frame.pict_type, self._key_s = PictureType.I, at_s
        with _as_oserror():
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        with _as_oserror():
            try:
                self._container.mux(self._stream.encode())
            finally:
                self._container.close()


@contextmanager
def _as_oserror() -> Iterator[None]:
    """PyAV tells a failed write as itself only the first time."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise OSError(f"the video cannot be written: {error}") from error
