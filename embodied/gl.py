"""Which OpenGL a machine without a screen can render with; decided when `embodied` is imported."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
from contextlib import suppress
from pathlib import Path

HELP = (
    "MuJoCo has no way to render here: neither EGL nor OSMesa works and there is no display. "
    "Install one: `apt-get install libegl1 libgl1-mesa-dri` (or your GPU driver's EGL) or `apt-get install libosmesa6`."
)


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
    spec = importlib.util.find_spec("triton")
    for folder in (spec and spec.submodule_search_locations) or ():
        library = Path(folder, "_C", "libtriton.so")
        if library.is_file():
            with suppress(OSError):  # what cannot be loaded now is not imported later either
                ctypes.CDLL(str(library))


def choose() -> str | None:
    """Set `MUJOCO_GL` unless the user did: EGL, else OSMesa, else what a display gives; None if nothing works."""
    if sys.platform == "linux":
        _load_triton()
    if "MUJOCO_GL" in os.environ or sys.platform != "linux":
        return os.environ.get("MUJOCO_GL", "native")
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
