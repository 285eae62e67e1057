"""What a pipeline reads: one camera or several at once, one moment after another."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace

from embodied.cameras.camera import CameraEvent, Frame
from embodied.cameras.live import LiveCamera
from embodied.cameras.recorded import RecordedCamera
from embodied.errors import UserError

SAME_RATE = 0.03  # share by which rates of records may differ: a short film tells 10 as 10.15, but 24 are not 25
KEPT = 4  # newest frames of each camera of a rig, to match them in time


class Source:
    """Cameras, connected, by the names of their views.

    Live: a moment has every view's newest frames, matched by capture time, and is handed out once every view that is
    not stale has news; it never waits for a stale one. Recorded: moment i has every view's image i, and all ends with
    the shortest; a moment with an image that cannot be used in any view is left out.

    Args:
        cameras: view name -> camera, all live or all recorded.
        changed: what the live cameras notify.

    Attributes:
        live: whether this is now; otherwise a record.
        names: of the views.
        dropped: frames that nobody got because newer ones came, of all views together; 0 for a record.

    Raises:
        UserError: no camera, live and recorded ones together, or records of different rates.
        CameraError: one cannot be opened; the others are closed again.
    """

    def __init__(
        self,
        cameras: Mapping[str, LiveCamera] | Mapping[str, RecordedCamera],
        *,
        changed: threading.Condition | None = None,
    ) -> None:
        kinds = {camera.live for camera in cameras.values()}
        if len(kinds) != 1:
            raise UserError(f"source must be all live or all recorded; got {', '.join(cameras) or 'nothing'}.")
        self.live, self.names, self.dropped = kinds.pop(), tuple(cameras), 0
        self._live = {name: camera for name, camera in cameras.items() if isinstance(camera, LiveCamera)}
        self._recorded = {name: camera for name, camera in cameras.items() if isinstance(camera, RecordedCamera)}
        rates = {name: camera.fps for name, camera in self._recorded.items() if camera.fps}
        if rates and max(rates.values()) > (1 + SAME_RATE) * min(rates.values()):  # image i of each is of another time
            told = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
            raise UserError(
                f"source: records that are read together must have one rate; got {told} images a second. Give "
                "fps=, at which all are read; images in a folder have that rate, 30 unless it is given."
            )
        self._changed = changed or threading.Condition()
        self._handed = dict.fromkeys(self.names, -1)  # view -> index of the frame that was handed out last
        try:
            for camera in cameras.values():
                camera.connect()
        except BaseException:
            self.close()
            raise

    def news(self) -> list[CameraEvent]:
        """What happened to the cameras since the last call, oldest first; of each the last `EVENTS_KEPT`."""
        told = []
        for camera in self._all():
            while camera.events:  # which its thread may be adding to
                told.append(camera.events.popleft())
        return sorted(told, key=lambda event: event.at_s)

    @property
    def broken(self) -> int:
        """Images that could not be used, of all views together."""
        return sum(camera.broken for camera in self._all())

    @property
    def fps(self) -> float | None:
        """Moments a second, as the slowest camera says; None where none says."""
        told = [camera.fps for camera in self._all() if camera.fps]
        return min(told) if told else None

    @property
    def max_age_s(self) -> float | None:
        """Seconds up to which a frame of every live view counts as fresh, the longest of them; None for a record."""
        return max((camera.max_age_s for camera in self._live.values()), default=None)

    def next(self, timeout_s: float | None = None) -> dict[str, Frame] | None:
        """The next moment.

        Args:
            timeout_s: live: how long to wait; None: the longest `max_age_s` of the views. A record does not wait.

        Returns:
            view -> frame. Live: the newest moment not handed out yet; a view that is too old is in it, marked stale.
            After the timeout every view's newest frame, all marked stale, whether it was handed out before or not;
            None where a view has had none.

        Raises:
            EOFError: a record has ended.
        """
        if self._recorded:
            return self._following()
        if timeout_s is None:
            timeout_s = self.max_age_s or 0.0
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                now = time.monotonic()
                for camera in self._live.values():
                    camera.watch(now)
                moment = self._moment(now)
                if moment is not None:
                    return moment
                if now >= deadline:
                    return self._again()
                self._changed.wait(min([deadline - now, *self._until_stale(now)]))

    def close(self) -> None:
        """Disconnect every camera."""
        for camera in self._all():
            camera.disconnect()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # Inside ---------------------------------------------------------------------------------------------

    def _all(self) -> list[LiveCamera | RecordedCamera]:
        return [*self._live.values(), *self._recorded.values()]

    def _following(self) -> dict[str, Frame]:
        while True:
            frames = {name: camera.next_frame() for name, camera in self._recorded.items()}
            whole = {name: frame for name, frame in frames.items() if frame is not None}
            if len(whole) == len(frames):
                return whole

    def _until_stale(self, now: float) -> list[float]:
        """Seconds until each view that is fresh will not be."""
        left = (camera.max_age_s - camera.age_s(now) for camera in self._live.values())
        return [max(each, 0.001) for each in left if each >= 0]

    def _moment(self, now: float) -> dict[str, Frame] | None:
        """A moment that is news: every fresh view has a frame not handed out, and there is a fresh view."""
        fresh = {name: c for name, c in self._live.items() if c.age_s(now) <= c.max_age_s}
        if not fresh or any(c.frames[-1].index <= self._handed[name] for name, c in fresh.items()):
            return None
        if any(not c.frames for c in self._live.values()):
            return None
        anchor = min(c.frames[-1].captured_s for c in fresh.values())
        moment = {}
        for name, camera in self._live.items():
            if name in fresh:
                unseen = [frame for frame in camera.frames if frame.index > self._handed[name]]
                frame = min(unseen, key=lambda each: abs(each.captured_s - anchor))
                moment[name] = replace(frame, stale=now - frame.captured_s > camera.max_age_s)
            else:
                frame = camera.frames[-1]
                moment[name] = replace(frame, stale=True)
            self._hand_out(name, frame)
        return moment

    def _again(self) -> dict[str, Frame] | None:
        if any(not camera.frames for camera in self._live.values()):
            return None
        return {name: replace(camera.frames[-1], stale=True) for name, camera in self._live.items()}

    def _hand_out(self, name: str, frame: Frame) -> None:
        if frame.index > self._handed[name]:
            self.dropped += frame.index - self._handed[name] - 1
            self._handed[name] = frame.index
