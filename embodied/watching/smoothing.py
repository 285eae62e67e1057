"""Raw scores of a stream as a person reads them: in [0, 1], and as a success that does not flicker."""

from __future__ import annotations

import math
from collections.abc import Mapping

# Heads whose potential is a probability or a progress.
_BOUNDED = ("success", "process", "softmax", "keypoint", "topreward_chat", "gvl_chat", "grm_vlm")
_PUBLISHED = ("robometer", "rewind", "roboreward", "topreward", "sole_r1")
KNOWN_RANGES = dict.fromkeys((*_BOUNDED, *_PUBLISHED), (0.0, 1.0))


class PotentialRanges:
    """Each head's potential in [0, 1]: by its known range, else by the extremes it has had so far.

    By extremes the same potential can mean less later, when a higher one has been seen: for reading a picture, never
    for learning. Where a head has not varied yet it is 0.5.

    Args:
        ranges: head -> (low, high), beside and above `KNOWN_RANGES`.

    Raises:
        ValueError: a range that is none.
    """

    def __init__(self, ranges: Mapping[str, tuple[float, float]] | None = None) -> None:
        for name, (low, high) in (ranges or {}).items():
            if not low < high:
                raise ValueError(
                    f"PotentialRanges: ranges[{name!r}] must be (low, high), low < high; got ({low}, {high})."
                )
        self._known = KNOWN_RANGES | dict(ranges or {})
        self._seen: dict[str, tuple[float, float]] = {}

    def restart(self) -> None:
        """Forget the extremes: another goal has others."""
        self._seen.clear()

    def __call__(self, potentials: Mapping[str, float]) -> dict[str, float]:
        """The potentials in [0, 1], this moment's extremes counted in."""
        found = {}
        for name, value in potentials.items():
            if name in self._known:
                low, high = self._known[name]
            else:
                low, high = self._seen.get(name, (value, value))
                low, high = self._seen[name] = min(low, value), max(high, value)
            found[name] = min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5
        return found


class SuccessSmoothing:
    """Success from one noisy number a moment.

        s ← s + (1 − e^(−Δt/τ))·(x − s), s = x at an episode's first reading

    Success comes on where s ≥ threshold and goes off where s < threshold − hysteresis. Δt is between captures, so that
    a slow model smooths over the same seconds as a fast one, and a long gap forgets what was before it.

    Args:
        threshold: in the units of x; None: success is not told.
        hysteresis: ≥ 0, in the same units.
        time_constant_s: τ ≥ 0; 0: no smoothing.

    Raises:
        ValueError: a negative or non-finite setting.
    """

    def __init__(
        self, threshold: float | None = None, *, hysteresis: float = 0.0, time_constant_s: float = 0.5
    ) -> None:
        for name, value in (("hysteresis", hysteresis), ("time_constant_s", time_constant_s)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"SuccessSmoothing: {name} must be a finite number ≥ 0; got {value}.")
        if threshold is not None and not math.isfinite(threshold):
            raise ValueError(f"SuccessSmoothing: threshold must be finite; got {threshold}.")
        self.threshold, self.hysteresis, self.time_constant_s = threshold, hysteresis, time_constant_s
        self._smoothed: float | None = None
        self._at_s = 0.0
        self._on = False

    def restart(self) -> None:
        """The next number begins an episode."""
        self._smoothed, self._on = None, False

    def update(self, value: float, at_s: float) -> tuple[bool | None, float]:
        """Whether success holds, and s.

        Args:
            value: x.
            at_s: when the frame was captured; a clock that falls counts as one that stood still.
        """
        elapsed = max(at_s - self._at_s, 0.0)
        if self._smoothed is None or not self.time_constant_s:
            self._smoothed = value
        else:
            self._smoothed += -math.expm1(-elapsed / self.time_constant_s) * (value - self._smoothed)
        self._at_s = at_s
        if self.threshold is None:
            return None, self._smoothed
        self._on = self._smoothed >= self.threshold - (self.hysteresis if self._on else 0.0)
        return self._on, self._smoothed
