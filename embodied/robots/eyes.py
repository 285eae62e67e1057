"""What a robot's cameras have shown, and whether it is new: a frame that comes again is not.

Shape letters: S proprioception; V views; H, W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from PIL import Image

from embodied.cameras.camera import Frame

OBS_FORMS = ("state", "pixels", "mixed")


class _Seen(NamedTuple):
    """One camera's newest frame, and the newest whose picture differed from the one before."""

    newest: Frame
    changed: Frame


class Eyes:
    """The newest frame of every camera.

    Args:
        compare: whether a picture that equals the last one byte for byte counts as old, as from a driver or network
            that repeats its last frame. Real cameras have noise, so two of theirs differ; a simulator's may not.
    """

    def __init__(self, *, compare: bool) -> None:
        self._compare = compare
        self._seen: dict[str, _Seen] = {}

    def take(self, images: Mapping[str, Frame], now: float) -> dict[str, float]:
        """Remember an observation's frames.

        Returns:
            When each was new, for the watchdog: "camera NAME", and with `compare` also "camera NAME picture". Stamps of
            the future would never grow old: they count as now.
        """
        stamps: dict[str, float] = {}
        for name, frame in images.items():
            known = self._seen.get(name)
            changed = frame if known is None or self._differs(known.changed, frame) else known.changed
            self._seen[name] = _Seen(frame, changed)
            stamps[f"camera {name}"] = min(frame.captured_s, now)
            if self._compare:
                stamps[f"camera {name} picture"] = min(changed.captured_s, now)
        return stamps

    def _differs(self, old: Frame, new: Frame) -> bool:
        if not self._compare:
            return new.captured_s > old.captured_s
        return old.image is not new.image and not np.array_equal(old.image, new.image)

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
            if name not in self._seen or self._seen[name].newest.captured_s < since:
                found.append(f"no new frame of camera {name}")
            elif self._seen[name].changed.captured_s < since:
                found.append(f"camera {name} repeats one picture (MaxAge.frozen_s=None lets it)")
        return found


def observed(form: str, proprio: np.ndarray, pixels: np.ndarray | None) -> Any:
    """What a policy sees: (S,) float32 for "state", (H, W, 3) uint8 for "pixels", a dict of both for "mixed"."""
    if form == "state":
        return proprio
    return pixels if form == "pixels" else {"pixels": pixels, "agent_pos": proprio}


def observed_space(obs: Any) -> spaces.Space:
    """The space of observations that look like one."""
    if isinstance(obs, dict):
        return spaces.Dict({name: observed_space(each) for name, each in obs.items()})
    if obs.dtype == np.uint8:
        return spaces.Box(0, 255, obs.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, obs.shape, np.float32)


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
