"""Scripted cameras, and what the cameras of a source have told so far."""

import threading
import time
from weakref import WeakKeyDictionary

from embodied.cameras import CameraTimeout, Source
from embodied.cameras.camera import CameraEvent
from embodied.cameras.live import Grab
from tests.mjpeg_server import picture
from tests.waiting import until

_TOLD: WeakKeyDictionary[Source, list[CameraEvent]] = WeakKeyDictionary()


def events(source: Source) -> list[CameraEvent]:
    """All so far; the source itself tells each once."""
    told = _TOLD.setdefault(source, [])
    told += source.news()
    return told


def kinds(source: Source) -> list[str]:
    return [event.kind for event in events(source)]


def fresh(source: Source, view="main"):
    """The next frame that is not stale."""
    return until(lambda: (m := source.next(0.2)) and not m[view].stale and m[view])


class Script:
    """A driver that does what it is told: images, exceptions to raise, or "wait" for a poll that brings nothing."""

    def __init__(self, *steps, opens=(), clock=time.monotonic):
        self.name, self.fps = "script", 30.0
        self.steps, self.opens, self.clock = list(steps), list(opens), clock
        self.opened = self.closed = 0
        self.more = threading.Event()

    def open(self):
        self.opened += 1
        if self.opens and (error := self.opens.pop(0)) is not None:
            raise error

    def grab(self):
        while not self.steps:
            self.more.wait(0.01)
            raise CameraTimeout("script: nothing")
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, Grab) else Grab(step, self.clock())

    def close(self):
        self.closed += 1


def image(number=0, height=32, width=64):
    return picture(number, height, width)
