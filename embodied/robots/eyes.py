"""What a robot's cameras have shown, and whether it is new: a frame that comes again is not.

Shape letters: S proprioception; V views; H, W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from PIL import Image

from embodied.cameras.camera import MAX_PIXELS, Frame
from embodied.robots.checks import is_finite

OBS_FORMS = ("state", "pixels", "mixed")


class _Seen(NamedTuple):
    """One camera's newest frame, and the newest whose picture differed from the one before."""

    newest: Frame
    changed: Frame


class Eyes:
    """The newest frame of every camera.

    A frame is news when its stamp is later than that of the one before; one that is ahead of the clock, or whose
    picture is not (H, W, 3) uint8, is refused: it changes nothing, so its camera grows old.

    Args:
        compare: whether a picture that equals the last one byte for byte counts as old, as from a driver or network
            that repeats its last frame. Real cameras have noise, so two of theirs differ; a simulator's may not.

    Attributes:
        depth: cameras whose first picture had one channel: depth is not looked at by anything here.
        refused: camera name -> why its last frame was; missing where it was not.
    """

    def __init__(self, *, compare: bool) -> None:
        self._compare = compare
        self._seen: dict[str, _Seen] = {}
        self.depth: set[str] = set()
        self.refused: dict[str, str] = {}

    def take(self, images: Mapping[str, Frame], now: float) -> dict[str, float]:
        """Remember an observation's frames.

        Returns:
            When each was new, for the watchdog: "camera NAME", and with `compare` also "camera NAME picture".
        """
        stamps: dict[str, float] = {}
        for name, frame in images.items():
            known = self._seen.get(name)
            if known is None and _has_one_channel(frame):
                self.depth.add(name)
            if name in self.depth:
                continue
            if why := _fault(frame, now):
                self.refused[name] = why
                continue
            self.refused.pop(name, None)
            if known is None or frame.captured_s > known.newest.captured_s:
                frame = replace(
                    frame, captured_s=float(frame.captured_s), image=np.array(frame.image, order="C")
                )  # a driver may write over its own
                changed = frame if known is None or self._differs(known.changed, frame) else known.changed
                known = self._seen[name] = _Seen(frame, changed)
            stamps[f"camera {name}"] = known.newest.captured_s
            if self._compare:
                stamps[f"camera {name} picture"] = known.changed.captured_s
        return stamps

    def _differs(self, old: Frame, new: Frame) -> bool:
        return not self._compare or not np.array_equal(old.image, new.image)

    def image(self, camera: str | None, image_size: int | None = None) -> np.ndarray:
        """A camera's newest picture, (H, W, 3) uint8, resized to a square of `image_size` if that is given.

        Raises:
            ValueError: no such camera.
        """
        if camera is None or camera not in self._seen:
            raise ValueError(f"Eyes.image: camera must be one of {', '.join(self._seen)}; got {camera!r}.")
        image = self._seen[camera].newest.image
        return image if image_size is None else _resized(image, image_size, image_size)

    def pictures(self, views: Sequence[str]) -> np.ndarray:
        """(V, H, W, 3) uint8: the newest of each view, at the first one's size."""
        images = [self._seen[view].newest.image for view in views]
        return np.stack([_resized(image, *images[0].shape[:2]) for image in images])

    def new_s(self, views: Sequence[str]) -> list[float]:
        """When each view's picture was new, seconds."""
        return [self._seen[view].changed.captured_s for view in views]

    def ages(self, now: float) -> dict[str, float]:
        """ "camera NAME" -> how old its newest frame is, seconds."""
        return {f"camera {name}": now - seen.newest.captured_s for name, seen in self._seen.items()}

    def missing(self, cameras: Sequence[str], since: float) -> list[str]:
        """The cameras that have shown nothing new since then, in words."""
        found = []
        for name in cameras:
            if name in self.refused:
                found.append(f"camera {name}: {self.refused[name]}")
            elif name not in self._seen or self._seen[name].newest.captured_s <= since:
                found.append(f"no new frame of camera {name}")
            elif self._seen[name].changed.captured_s <= since:
                found.append(f"camera {name} repeats one picture (MaxAge.frozen_s=None lets it)")
        return found


def _has_one_channel(frame: Any) -> bool:
    shape = getattr(getattr(frame, "image", None), "shape", ())
    return len(shape) == 2 or (len(shape) == 3 and shape[-1] == 1)


def _fault(frame: Any, now: float) -> str | None:
    """Why a frame cannot be used; None where it can."""
    if not isinstance(frame, Frame):
        return f"it gave {type(frame).__name__}, not a Frame"
    image = frame.image
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        return f"its picture must be (H, W, 3) uint8; it is {what}"
    if not 0 < image.size <= 3 * MAX_PIXELS:
        return f"its picture must have 1 to {MAX_PIXELS} pixels; it is {image.shape}"
    if not is_finite(frame.captured_s):
        return f"its time is {frame.captured_s}"
    if not frame.captured_s <= now:
        return f"its time is {frame.captured_s - now:.3f} s ahead of the robot's clock"
    return None


def observed(form: str, proprio: np.ndarray, pixels: np.ndarray | None) -> Any:
    """What a policy sees: (S,) float32 for "state", (H, W, 3) uint8 for "pixels", a dict of both for "mixed".

    Args:
        form: of those.
        proprio: (S,) own readings.
        pixels: (H, W, 3) uint8; None only for "state".
    """
    if form == "state":
        return proprio
    return pixels if form == "pixels" else {"pixels": pixels, "agent_pos": proprio}


def observed_space(obs: Any) -> spaces.Space:
    """The space of observations that look like one.

    Args:
        obs: of `observed`.
    """
    if isinstance(obs, dict):
        return spaces.Dict({name: observed_space(each) for name, each in obs.items()})
    if obs.dtype == np.uint8:
        return spaces.Box(0, 255, obs.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, obs.shape, np.float32)


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
