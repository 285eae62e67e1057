"""Worlds, cameras, data and the commands that join them to `rewards` and `policies`."""

from embodied import gl

gl.choose()  # before anything imports mujoco, which reads MUJOCO_GL once
