"""Which OpenGL a machine without a screen can render with; decided when `embodied` is imported."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

HELP = (
    "MuJoCo has no way to render here: neither EGL nor OSMesa works and there is no display. "
    "Install one: `apt-get install libegl1 libgl1-mesa-dri` (or your GPU driver's EGL) or `apt-get install libosmesa6`."
)

OFF = ("disable", "disabled", "off", "false", "0")  # MUJOCO_GL as MuJoCo reads it: no rendering


def _egl_works() -> bool:
    """Whether an EGL device can be initialised."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        query = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
        get = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    except (OSError, AttributeError):
        return False
    if not query or not get:
        return False
    devices, count = (ctypes.c_void_p * 16)(), ctypes.c_int(0)
    ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query)(
        16, devices, ctypes.byref(count)
    )
    display_of = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(get)
    egl.eglInitialize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    platform_device = 0x313F
    return any(
        (display := display_of(platform_device, devices[i], None)) and egl.eglInitialize(display, None, None)
        for i in range(count.value)
    )


def _osmesa_works() -> bool:
    for name in ("libOSMesa.so.8", "libOSMesa.so"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def _load_triton() -> None:
    """Load the LLVM of triton, which torch for CUDA brings, before Mesa's; the other way round the process dies.

    torch imports triton when the first optimizer is made, wherever pictures were rendered in software before.
    """
    try:
        spec = importlib.util.find_spec("triton")
    except ValueError:  # somebody has put another module in its place
        spec = None
    for folder in (spec and spec.submodule_search_locations) or ():
        library = Path(folder, "_C", "libtriton.so")
        if library.is_file():
            with suppress(OSError):  # what cannot be loaded now is not imported later either
                ctypes.CDLL(str(library))


def choose() -> str | None:
    """Set `MUJOCO_GL` unless the user did: EGL, else OSMesa, else what a display gives; None if nothing works."""
    if sys.platform == "linux":
        _load_triton()
    if asked() or sys.platform != "linux":
        return asked() or "native"
    if _egl_works():
        os.environ["MUJOCO_GL"] = "egl"
    elif _osmesa_works():
        os.environ["MUJOCO_GL"] = "osmesa"
    elif os.environ.get("DISPLAY"):
        os.environ["MUJOCO_GL"] = "glfw"
    else:
        os.environ["MUJOCO_GL"] = "disable"  # physics still works; rendering says what to install
    chosen = os.environ["MUJOCO_GL"]
    if "mujoco.gl_context" in sys.modules and chosen != "disable":
        importlib.reload(sys.modules["mujoco.gl_context"])  # imported before us, it has settled on a screen
    return None if chosen == "disable" else chosen


def asked() -> str:
    """What `MUJOCO_GL` asks for, as MuJoCo reads it; "" where it asks for nothing."""
    return os.environ.get("MUJOCO_GL", "").lower().strip()


def advice(error: BaseException | None = None) -> str:
    """What a person can do where nothing can be rendered.

    Args:
        error: with which it failed; None: it was not tried.
    """
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (_egl_works() or _osmesa_works() or screen):
        return HELP
    reason = "" if error is None else f" ({' '.join(str(error).split()) or type(error).__name__})"
    return (
        f"MUJOCO_GL={os.environ.get('MUJOCO_GL', '')} renders nothing here{reason}. "
        "Leave MUJOCO_GL and PYOPENGL_PLATFORM unset, and what works here is taken."
    )


def failed(error: BaseException) -> bool:
    """Whether an error is that MuJoCo cannot load what `MUJOCO_GL` asks for, which it does when it is imported."""
    files = (Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(file.name == "gl_context.py" and file.parent.name == "mujoco" for file in files)
