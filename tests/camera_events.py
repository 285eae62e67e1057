"""What the cameras of a source have told so far; the source itself tells each event once."""

from weakref import WeakKeyDictionary

from embodied.cameras import Source
from embodied.cameras.camera import CameraEvent

_TOLD: WeakKeyDictionary[Source, list[CameraEvent]] = WeakKeyDictionary()


def events(source: Source) -> list[CameraEvent]:
    told = _TOLD.setdefault(source, [])
    told += source.news()
    return told


def kinds(source: Source) -> list[str]:
    return [event.kind for event in events(source)]
