"""Worlds, cameras, data and the commands that join them to `rewards` and `policies`."""

import os

from embodied import gl

gl.choose()  # before anything imports mujoco, which reads MUJOCO_GL once
# Intel's matrix library, torch's on x86, else adds up in an order that depends on where in memory numbers lie, and the
# same seed would not always give the same curve. It reads this once, and is no slower for it.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
