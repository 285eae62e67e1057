"""Films with the reward drawn in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from embodied.files import whole
from rewards.pictures import REPEATABLE

STRIP = 112  # height of the reward strip below a video frame, px
MIN_WIDTH = 320  # smaller frames are enlarged, px
OUTCOME = {True: "success", False: "failure", None: "episode"}  # of an episode, in the name of its film
INK, SOFT, LINE, FAINT, GROUND = (232, 235, 240), (152, 162, 176), (94, 161, 255), (52, 60, 74), (14, 17, 22)


def write_video(
    path: Path | str,
    frames: Iterable[np.ndarray],
    rewards: Sequence[float] | np.ndarray,
    *,
    title: str = "",
    fps: int = 20,
) -> None:
    """Write an H.264 mp4 with the reward curve and its current value below the picture.

    Args:
        path: the file; nothing appears there before it is complete.
        frames: T pictures, (H, W, 3) uint8 RGB, of one size.
        rewards: (T,) one per frame, or (T - 1,) one per action: then the first frame has none.
        title: drawn above the curve, in one line.
        fps: frames a second.

    Raises:
        ValueError: no frames, another number of rewards, or a reward that is not finite.
        TypeError: frames that are not uint8 (H, W, 3).
    """
    path, pictures = Path(path), list(frames)
    values = np.asarray(rewards, np.float64).ravel()
    if not pictures or len(values) not in (len(pictures), len(pictures) - 1):
        raise ValueError(
            f"write_video: rewards must be one per frame or one fewer; got {len(values)} for {len(pictures)}."
        )
    if not np.isfinite(values).all():
        raise ValueError("write_video: rewards must be finite.")
    for picture in pictures:
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape != (*pictures[0].shape[:2], 3):
            raise TypeError(
                f"write_video: frames must be uint8 (H, W, 3) of one size; got {picture.dtype} {picture.shape}."
            )
    height, width = pictures[0].shape[:2]
    scale = max(1, math.ceil(MIN_WIDTH / width))
    height, width = height * scale // 2 * 2, width * scale // 2 * 2  # H.264 wants even sizes
    strip = _RewardStrip(values, len(pictures), width, " ".join(title.split()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part, av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "23", "preset": "veryfast"} | REPEATABLE)
        stream.width, stream.height, stream.pix_fmt = width, height + STRIP, "yuv420p"
        canvas = Image.new("RGB", (width, height + STRIP), GROUND)
        for index, picture in enumerate(pictures):
            image = Image.fromarray(picture)
            canvas.paste(image if image.size == (width, height) else image.resize((width, height)), (0, 0))
            canvas.paste(strip.draw(index), (0, height))
            container.mux(stream.encode(av.VideoFrame.from_image(canvas)))
        container.mux(stream.encode(None))


class _RewardStrip:
    """The curve below a video: all of it faintly, the part so far brightly."""

    def __init__(self, values: np.ndarray, frames: int, width: int, title: str) -> None:
        self._values, self._skip = values, frames - len(values)
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        span = high - low if high - low > 1e-9 else 1.0
        x = 14 + np.arange(len(values)) / max(len(values) - 1, 1) * (width - 28)
        y = STRIP - 16 - (values - low) / span * (STRIP - 70)
        self._points = list(zip(x.tolist(), y.tolist(), strict=True))
        self._value_font, small = ImageFont.load_default(19), ImageFont.load_default(13)
        self._base = Image.new("RGB", (width, STRIP), GROUND)
        draw = ImageDraw.Draw(self._base)
        room = width - 28 - 110
        while title and draw.textlength(title, small) > room:
            title = title[:-2].rstrip() + "…"
        draw.text((14, 10), title, SOFT, small)
        draw.text((width - 14, 32), "reward", SOFT, ImageFont.load_default(11), anchor="rt")
        if len(self._points) > 1:
            draw.line(self._points, FAINT, 2)

    def draw(self, index: int) -> Image.Image:
        """The strip at one frame."""
        image, at = self._base.copy(), index - self._skip
        if at >= 0:
            draw = ImageDraw.Draw(image)
            if at:
                draw.line(self._points[: at + 1], LINE, 3, joint="curve")
            x, y = self._points[at]
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), INK)
            draw.text((image.width - 14, 8), f"{self._values[at]:.3f}", INK, self._value_font, anchor="rt")
        return image
