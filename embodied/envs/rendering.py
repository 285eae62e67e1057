"""Frames for the reward model (fast) and pictures for people (good) from one MuJoCo model."""

from __future__ import annotations

import atexit
import os
import threading
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


class _OpenGL:
    """A thread's OpenGL, which all its canvases share: the first picture of another takes a fifth of a second."""

    def __init__(self) -> None:
        global _rendered_in
        self._context = mujoco.gl_context.GLContext(PICTURE_SIZE, PICTURE_SIZE)
        _rendered_in = os.getpid()
        self._unused: list[mujoco.MjrContext] = []
        _open.add(self)
        # MuJoCo ends EGL at exit, and a context freed after that prints errors: be registered later, run earlier.
        atexit.unregister(_close_all)
        atexit.register(_close_all)

    def take(self) -> None:
        """Draw with it from now on, and free what is no longer used; its own thread calls it."""
        self._context.make_current()
        while self._unused:
            self._unused.pop().free()

    def leave(self, context: mujoco.MjrContext) -> None:
        """Have what a canvas used freed when the thread draws again: any thread may say so, and at any time.

        Args:
            context: its names mean others' things to another thread's OpenGL.
        """
        self._unused.append(context)

    def close(self) -> None:
        """Free it, and all that was drawn with it; safe to call twice. In a fork it is left."""
        if _is_fork():
            return
        self._context.free()
        self._unused.clear()  # after it: with no context there is nothing to free by mistake

    def __del__(self) -> None:
        self.close()


class _Canvas:
    """What one model is drawn on in one size."""

    def __init__(self, opengl: _OpenGL, model: mujoco.MjModel, height: int, width: int, *, fast: bool) -> None:
        self._opengl, self._model, self._size = opengl, model, (height, width)
        quality, offscreen = model.vis.quality, model.vis.global_
        quality.offsamples = 0 if fast else 4
        quality.numslices, quality.numstacks = (12, 8) if fast else (28, 16)
        offscreen.offheight, offscreen.offwidth = height, width
        shadows = quality.shadowsize
        quality.shadowsize = 0 if fast else shadows
        opengl.take()
        try:
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        finally:
            quality.shadowsize = shadows
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._option = mujoco.MjvOption()
        self.scene = mujoco.MjvScene(model, maxgeom=10_000)
        self.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = not fast
        self.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = not fast

    def draw(
        self, data: mujoco.MjData, camera: str | mujoco.MjvCamera, *, numbers: bool = False, depth: bool = False
    ) -> np.ndarray:
        """(H, W, 3) uint8 RGB, contiguous.

        Args:
            data: the state.
            camera: one of the model's, or a free one.
            numbers: of the segments, as colours, in the place of what is seen.
            depth: (H, W) float32 instead, as OpenGL has it: 1 near, 0 far.
        """
        view = camera
        if isinstance(view, str):
            view = mujoco.MjvCamera()
            view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._model.camera(camera).id
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, view, mujoco.mjtCatBit.mjCAT_ALL.value, self.scene
        )
        for flag in (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR):
            self.scene.flags[flag] = numbers
        height, width = self._size
        image = np.empty((height, width), np.float32) if depth else np.empty((height, width, 3), np.uint8)
        everything = mujoco.MjrRect(0, 0, width, height)
        self._opengl.take()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        mujoco.mjr_render(everything, self.scene, self._context)
        mujoco.mjr_readPixels(None if depth else image, image if depth else None, everything, self._context)
        return np.ascontiguousarray(image[::-1])

    def __del__(self) -> None:
        if hasattr(self, "_context"):
            self._opengl.leave(self._context)


class FrameRenderer:
    """Renders one model at any size.

    Frames turn shadows, reflections and multisampling off and draw coarser spheres: many times faster in
    software and, to a reward model, the same scene. Pictures keep them. Small frames are averaged from larger ones.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self._canvases: dict[tuple[_OpenGL, int, int, bool], _Canvas] = {}

    def frame(self, data: mujoco.MjData, camera: str | mujoco.MjvCamera, height: int, width: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, contiguous."""
        times = times_finer(height, width)
        return averaged(self._canvas(times * height, times * width, fast=True).draw(data, camera), times)

    def depth(self, data: mujoco.MjData, camera: str | mujoco.MjvCamera, height: int, width: int) -> np.ndarray:
        """(H, W) float32, metres along the optical axis, contiguous."""
        depth = self._canvas(height, width, fast=True).draw(data, camera, numbers=True, depth=True)  # finer far away
        near, far = (plane * self.model.stat.extent for plane in (self.model.vis.map.znear, self.model.vis.map.zfar))
        return (near * far / (near + depth.astype(np.float64) * (far - near))).astype(np.float32)

    def geoms(self, data: mujoco.MjData, camera: str | mujoco.MjvCamera, height: int, width: int) -> np.ndarray:
        """(H, W) int32: which geom each pixel of `frame` shows, -1 where it shows none."""
        canvas = self._canvas(height, width, fast=True)
        colours = canvas.draw(data, camera, numbers=True)
        shown = np.full(canvas.scene.ngeom + 1, -1, np.int32)  # 0 is the background
        for geom in canvas.scene.geoms[: canvas.scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                shown[geom.segid + 1] = geom.objid
        return shown[colours.astype(np.int32) @ [1, 1 << 8, 1 << 16]]

    def picture(self, data: mujoco.MjData, camera: str | mujoco.MjvCamera, size: int = PICTURE_SIZE) -> np.ndarray:
        """(size, size, 3) uint8 RGB, contiguous."""
        return self._canvas(size, size, fast=False).draw(data, camera)

    def _canvas(self, height: int, width: int, *, fast: bool) -> _Canvas:
        if _is_fork():
            raise UserError(
                f"a process that renders must not be a fork of one that has rendered; got process {os.getpid()}, of "
                f"{_rendered_in}. Start it by spawn: multiprocessing.get_context('spawn')."
            )
        screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if gl.asked() in gl.OFF or (gl.asked() == "glfw" and not screen):
            raise UserError(gl.advice())
        try:
            if not hasattr(_of_thread, "opengl"):
                _of_thread.opengl = _OpenGL()
            key = (_of_thread.opengl, height, width, fast)
            if key not in self._canvases:
                self._canvases[key] = _Canvas(_of_thread.opengl, self.model, height, width, fast=fast)
        except (mujoco.FatalError, RuntimeError, ImportError) as error:
            raise UserError(gl.advice(error)) from error
        return self._canvases[key]

    def close(self) -> None:
        """Free what it draws on; safe to call twice. In a fork it is left, for it is the first process's."""
        self._canvases.clear()
        opengl = getattr(_of_thread, "opengl", None)
        if opengl is not None and not _is_fork():
            opengl.take()


_of_thread = threading.local()  # .opengl
_open: weakref.WeakSet[_OpenGL] = weakref.WeakSet()
_rendered_in: int | None = None  # the process that has rendered: in a fork of it OpenGL waits for threads that are gone


def _is_fork() -> bool:
    return _rendered_in not in (None, os.getpid())


def _close_all() -> None:
    for opengl in list(_open):
        opengl.close()
