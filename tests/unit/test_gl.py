import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest

from embodied import gl
from embodied.envs import rendering
from embodied.errors import UserError


@pytest.fixture
def _linux_without_choice(monkeypatch):
    monkeypatch.setattr(gl.importlib, "reload", lambda module: module)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", "")  # so that it is restored afterwards
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.delenv("DISPLAY", raising=False)


@pytest.mark.parametrize(
    ("egl", "osmesa", "display", "chosen"),
    [(True, True, ":0", "egl"), (False, True, ":0", "osmesa"), (False, False, ":0", "glfw"), (False, False, "", None)],
)
@pytest.mark.usefixtures("_linux_without_choice")
def test_best_that_works_is_chosen(monkeypatch, egl, osmesa, display, chosen):
    monkeypatch.setattr(gl, "_egl_works", lambda: egl)
    monkeypatch.setattr(gl, "_osmesa_works", lambda: osmesa)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setenv("MUJOCO_GL", "")  # asks for nothing
    assert gl.choose() == chosen
    assert os.environ["MUJOCO_GL"] == (chosen or "disable")


def test_the_users_choice_stands(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(gl, "_egl_works", lambda: pytest.fail("must not look"))
    assert gl.choose() == "osmesa"


@pytest.mark.parametrize("order", ["mujoco, embodied", "embodied, mujoco"])
def test_it_does_not_matter_who_imports_mujoco_first(order):
    code = f"import {order}; print(mujoco.gl_context.GLContext.__module__)"
    env = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.stdout.strip() in ("mujoco.egl", "mujoco.osmesa"), done.stderr


def test_missing_libraries_do_not_work(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not gl._egl_works()
    assert not gl._osmesa_works()


@pytest.mark.parametrize("asked", ["disable", "Off", "glfw"])
def test_without_opengl_rendering_says_what_to_install(monkeypatch, asked):
    monkeypatch.setenv("MUJOCO_GL", asked)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    renderer = rendering.FrameRenderer(model)
    with pytest.raises(UserError, match=f"MUJOCO_GL={asked} renders nothing here. Leave MUJOCO_GL and "):
        renderer.frame(mujoco.MjData(model), "free", 8, 8)
    for way in ("_egl_works", "_osmesa_works"):
        monkeypatch.setattr(gl, way, lambda: False)
    with pytest.raises(UserError, match="apt-get install libegl1"):
        renderer.frame(mujoco.MjData(model), "free", 8, 8)


def test_what_mujoco_cannot_load_is_told_in_a_line(tmp_path):
    command = [sys.executable, "-m", "embodied", "collect", "env=desk-reach", "episodes=1", f"out={tmp_path / 'data'}"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MUJOCO_GL": "nonsense"})
    assert done.returncode == 2
    assert re.fullmatch(r"embodied collect: MUJOCO_GL=nonsense renders nothing here \(.*\)\. Leave .*\n", done.stderr)


def test_frames_are_right_side_up_contiguous_and_follow_the_asked_size():
    xml = """<mujoco><worldbody>
      <light directional="true" dir="0 1 0"/>
      <camera name="front" pos="0 -3 0" xyaxes="1 0 0 0 0 1"/>
      <geom type="box" size=".3 .1 .3" pos="0 0 .6" rgba="1 0 0 1"/>
      <geom type="box" size=".3 .1 .3" pos="-.6 0 -.6" rgba="0 0 1 1"/>
    </worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = rendering.FrameRenderer(model)
    try:
        frame = renderer.frame(data, "front", 60, 40)
        assert frame.shape == (60, 40, 3)
        assert frame.dtype == np.uint8
        assert frame.flags.c_contiguous
        red, blue = (np.argwhere(frame[..., c].astype(int) > frame.sum(-1) - frame[..., c] + 40) for c in (0, 2))
        assert red[:, 0].mean() < 30 < blue[:, 0].mean()  # up is up
        assert blue[:, 1].mean() < red[:, 1].mean()  # left is left
        again = renderer.frame(
            data,
            rendering.free_camera(model, distance=3.0, lookat=(0.0, 0.0, 0.0), azimuth=90.0, elevation=0.0),
            60,
            40,
        )
        np.testing.assert_array_equal(frame, again)
    finally:
        renderer.close()
        renderer.close()


def ball(colour):
    """A model, its state, and what renders it."""
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco><worldbody><geom size='.3' rgba='{colour} 1'/></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    view = rendering.free_camera(model)
    return rendering.FrameRenderer(model), data, view


def test_worlds_share_the_opengl_of_their_thread_and_are_drawn_apart(monkeypatch):
    """A context for each took a fifth of a second a world, and a world that another thread had drawn raised."""
    made, context = [], mujoco.gl_context.GLContext
    monkeypatch.setattr(mujoco.gl_context, "GLContext", lambda *size: made.append(size) or context(*size))

    def frames(*balls):
        return [renderer.frame(data, view, 32, 32) for renderer, data, view in balls]

    def draw():
        red, blue = ball("1 0 0"), ball("0 0 1")
        alone = frames(red) + frames(blue)
        assert alone[0][..., 0].max() > 100 > alone[0][..., 2].max()
        assert alone[1][..., 2].max() > 100 > alone[1][..., 0].max()
        red[0].picture(*red[1:], 48)
        np.testing.assert_array_equal(frames(red, blue), alone)
        with ThreadPoolExecutor(1) as elsewhere:
            np.testing.assert_array_equal(elsewhere.submit(frames, red, blue).result(), alone)
            elsewhere.submit(red[0].close).result()  # what it drew here must go, and nothing of blue's
            del red
            green = ball("0 1 0")
            assert frames(green)[0][..., 1].max() > 100
            np.testing.assert_array_equal(elsewhere.submit(frames, blue).result(), alone[1:])
        np.testing.assert_array_equal(frames(blue), alone[1:])

    with ThreadPoolExecutor(1) as thread:
        thread.submit(draw).result()
    assert len(made) == 2  # one a thread


def test_leaving_without_closing_prints_nothing():
    code = (
        "import gymnasium, embodied.envs; w = gymnasium.make('embodied/cartpole-v0'); w.reset(seed=0); "
        "w.unwrapped.frame(); w.unwrapped.frame(image_size=32)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="Mesa and triton meet on Linux")
def test_tritons_library_is_loaded_before_opengl(tmp_path):
    """After Mesa's LLVM, importing triton ended the process: `embodied train` with torch for CUDA, without a GPU."""
    library = tmp_path / "triton" / "_C" / "libtriton.so"
    library.parent.mkdir(parents=True)
    (tmp_path / "triton" / "__init__.py").write_text("raise SystemExit('it takes seconds, and is not wanted yet')")
    library.write_bytes(Path(np.linalg._umath_linalg.__file__).read_bytes())
    told = (
        "import sys; sys.addaudithook(lambda event, args: event == 'ctypes.dlopen' and print(args[0])); import embodied"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    for more in ({}, {"MUJOCO_GL": "egl"}):
        done = subprocess.run([sys.executable, "-c", told], env=environment | more, capture_output=True, text=True)
        opened = [name for name in done.stdout.splitlines() if name in (str(library), "libEGL.so.1")]
        assert opened == ([str(library)] if more else [str(library), "libEGL.so.1"]), done.stderr


def test_a_module_in_the_place_of_triton_is_left_alone():
    code = "import sys, types; sys.modules['triton'] = types.ModuleType('triton'); import embodied"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fork_of_a_process_that_has_rendered_is_refused_and_does_not_hang():
    env = gymnasium.make("embodied/reacher-red-v0", image_size=32)
    env.reset(seed=0)
    env.unwrapped.frame()
    reads, writes = os.pipe()
    with warnings.catch_warnings(action="ignore"):  # Python 3.12 warns of the fork itself
        child = os.fork()
    if child == 0:
        try:
            env.unwrapped.frame()
        except UserError as error:
            os.write(writes, str(error).encode())
        os._exit(0)
    os.close(writes)
    try:
        there, _, _ = select.select([reads], [], [], 10)
        assert there
        assert b"must not be a fork of one that has rendered" in os.read(reads, 1000)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reads)
    assert env.unwrapped.frame().shape == (32, 32, 3)
    env.close()
