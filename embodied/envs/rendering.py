"""Frames for the reward model (fast) and pictures for people (good) from one MuJoCo model."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Sequence

import mujoco
import numpy as np

from embodied import gl
from embodied.errors import UserError

PICTURE_SIZE = 480  # pixels
FINE = 96  # pixels, below which frames are rendered larger and averaged: a thin pole would fall between the samples


def free_camera(
    model: mujoco.MjModel,
    *,
    distance: float | None = None,
    lookat: Sequence[float] | None = None,
    elevation: float | None = None,
    azimuth: float | None = None,
) -> mujoco.MjvCamera:
    """A camera that is not part of the model; what is not given is the model's own default view.

    Args:
        model: the scene.
        distance: from the point looked at, metres.
        lookat: the point looked at, (3,) metres.
        elevation: degrees; negative looks down.
        azimuth: degrees around the vertical; 0 looks along x, 90 along y.
    """
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    given = {"distance": distance, "elevation": elevation, "azimuth": azimuth}
    for key, value in given.items():
        if value is not None:
            setattr(camera, key, value)
    if lookat is not None:
        camera.lookat[:] = lookat
    return camera


def times_finer(height: int, width: int) -> int:
    """How many samples a side a frame's pixel is averaged from: 1 from `FINE` pixels on.

    Args:
        height, width: of the frame, pixels.
    """
    return -(-FINE // min(height, width, FINE))


def averaged(frame: np.ndarray, times: int) -> np.ndarray:
    """(H, W, 3) uint8, each pixel the mean of a square of a frame.

    Args:
        frame: (times · H, times · W, 3) uint8.
        times: ≥ 1; 1 gives the frame itself.
    """
    if times == 1:
        return frame
    height, width = (side // times for side in frame.shape[:2])
    squares = frame.reshape(height, times, width, times, 3)
    return np.round(squares.mean((1, 3))).astype(np.uint8)


class FrameRenderer:
    """Renders one model at any size.

    Frames turn shadows, reflections and multisampling off and draw coarser spheres: many times faster in
    software and, to a reward model, the same scene. Pictures keep them. Small frames are averaged from larger ones.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self._renderers: dict[tuple[int, int, bool], mujoco.Renderer] = {}
        _open.add(self)

    def frame(self, data: mujoco.MjData, camera: str | mujoco.MjvCamera, height: int, width: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, contiguous."""
        times = times_finer(height, width)
        return averaged(self._render(data, camera, times * height, times * width, fast=True), times)

    def depth(self, data: mujoco.MjData, camera: str | mujoco.MjvCamera, height: int, width: int) -> np.ndarray:
        """(H, W) float32, metres along the optical axis, contiguous."""
        renderer = self._renderer(height, width, fast=True)
        renderer.enable_depth_rendering()
        try:
            renderer.update_scene(data, camera)
            return np.ascontiguousarray(renderer.render())
        finally:
            renderer.disable_depth_rendering()

    def geoms(self, data: mujoco.MjData, camera: str | mujoco.MjvCamera, height: int, width: int) -> np.ndarray:
        """(H, W) int32: which geom each pixel of `frame` shows, -1 where it shows none."""
        renderer = self._renderer(height, width, fast=True)
        renderer.enable_segmentation_rendering()
        try:
            renderer.update_scene(data, camera)
            index, kind = np.moveaxis(renderer.render(), -1, 0)
            return np.where(kind == mujoco.mjtObj.mjOBJ_GEOM, index, -1)
        finally:
            renderer.disable_segmentation_rendering()

    def picture(self, data: mujoco.MjData, camera: str | mujoco.MjvCamera, size: int = PICTURE_SIZE) -> np.ndarray:
        """(size, size, 3) uint8 RGB, contiguous."""
        return self._render(data, camera, size, size, fast=False)

    def _render(
        self, data: mujoco.MjData, camera: str | mujoco.MjvCamera, height: int, width: int, *, fast: bool
    ) -> np.ndarray:
        renderer = self._renderer(height, width, fast=fast)
        renderer.update_scene(data, camera)
        return np.ascontiguousarray(renderer.render())

    def _renderer(self, height: int, width: int, *, fast: bool) -> mujoco.Renderer:
        if _is_fork():
            raise UserError(
                f"a process that renders must not be a fork of one that has rendered; got process {os.getpid()}, of "
                f"{_rendered_in}. Start it by spawn: multiprocessing.get_context('spawn')."
            )
        key = (height, width, fast)
        if key not in self._renderers:
            self._renderers[key] = self._make(height, width, fast=fast)
        return self._renderers[key]

    def _make(self, height: int, width: int, *, fast: bool) -> mujoco.Renderer:
        screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if gl.asked() in gl.OFF or (gl.asked() == "glfw" and not screen):
            raise UserError(gl.advice())
        quality, offscreen = self.model.vis.quality, self.model.vis.global_
        quality.offsamples = 0 if fast else 4
        quality.numslices, quality.numstacks = (12, 8) if fast else (28, 16)
        offscreen.offheight, offscreen.offwidth = height, width
        try:
            renderer = mujoco.Renderer(self.model, height, width)
        except (mujoco.FatalError, RuntimeError, ImportError) as error:
            raise UserError(gl.advice(error)) from error
        global _rendered_in
        _rendered_in = os.getpid()
        # MuJoCo ends EGL at exit, and a context freed after that prints errors: be registered later, run earlier.
        atexit.unregister(_close_all)
        atexit.register(_close_all)
        flags = renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = not fast
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = not fast
        return renderer

    def close(self) -> None:
        """Free the OpenGL contexts; safe to call twice. In a fork they are left, for they are the first process's."""
        if _is_fork():
            return
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()


_rendered_in: int | None = None  # the process that has rendered: in a fork of it OpenGL waits for threads that are gone


def _is_fork() -> bool:
    return _rendered_in not in (None, os.getpid())


_open: weakref.WeakSet[FrameRenderer] = weakref.WeakSet()


def _close_all() -> None:
    for renderer in list(_open):
        renderer.close()
