"""Cameras on a network for LeRobot, which finds this package by its name."""

from lerobot_camera_embodied.config_embodied import EmbodiedCameraConfig
from lerobot_camera_embodied.embodied_camera import EmbodiedCamera

__all__ = ["EmbodiedCamera", "EmbodiedCameraConfig"]
