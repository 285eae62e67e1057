"""Where frames come from when no simulator makes them: live cameras and recorded ones, by one name each."""

from __future__ import annotations

from embodied.cameras.camera import Camera, CameraError, CameraEvent, CameraTimeout, Frame

__all__ = ["Camera", "CameraError", "CameraEvent", "CameraTimeout", "Frame"]
