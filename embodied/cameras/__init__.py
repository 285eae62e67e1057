"""Where frames come from when no simulator makes them: live cameras and recorded ones, by one name each.

with open_source("rtsp://host/stream", crop=[0, 0, 480, 480]) as source:    # or 0, film.mp4, folder/, env:desk-drawer
    moment = source.next(timeout_s=0.5)                                     # {"main": Frame}
    moment["main"].stale                                                    # never pass this off as fresh
"""

from __future__ import annotations

from embodied.cameras.camera import BrokenImage, Camera, CameraError, CameraEvent, CameraTimeout, Frame
from embodied.cameras.live import LiveCamera
from embodied.cameras.opening import open_camera, open_source
from embodied.cameras.recorded import RecordedCamera
from embodied.cameras.source import Source

__all__ = [
    "BrokenImage",
    "Camera",
    "CameraError",
    "CameraEvent",
    "CameraTimeout",
    "Frame",
    "LiveCamera",
    "RecordedCamera",
    "Source",
    "open_camera",
    "open_source",
]
