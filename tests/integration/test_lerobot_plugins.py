"""Our plugins inside LeRobot: its own classes where it is installed, else the shapes that its version 0.6 documents."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from embodied.errors import UserError
from rewards.clip_goal import clip_scorer
from rewards.encoders import embedded_encoder
from rewards.encoders.loading import cure_torchvision
from tests.lerobot_shapes import stand_in
from tests.mjpeg_server import MjpegServer, number_of

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
NAMES = sorted(folder.parent.name for folder in PLUGINS.glob("*/pyproject.toml"))


@pytest.fixture(scope="module", autouse=True)
def installed():
    """The plugins can be imported, and so can LeRobot."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("lerobot") is None:
            stand_in(patch)
        else:
            cure_torchvision()  # which LeRobot imports
        for name in NAMES:
            patch.syspath_prepend(str(PLUGINS / name))
        yield
        for module in [each for each in sys.modules if each.startswith(tuple(NAMES))]:
            del sys.modules[module]


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_is_a_package_of_its_own(name, tmp_path):
    project = tomllib.loads((PLUGINS / name / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == name  # LeRobot imports the module that a distribution's name names
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(PLUGINS / name),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{name}/{file.name}" for file in (PLUGINS / name / name).glob("*.py")} <= held


# The camera ---------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    with MjpegServer(fps=30, size=(60, 80)) as running:
        yield running


def camera(source, **settings):
    package = importlib.import_module("lerobot_camera_embodied")
    config = package.EmbodiedCameraConfig(source=str(source), **settings)
    assert config.type == "embodied"
    return package.EmbodiedCamera(config)


def test_a_network_camera_reads_like_lerobots_own(server):
    with camera(server.url, width=40, height=30) as seen:
        assert seen.is_connected
        assert (seen.width, seen.height) == (40, 30)
        frames = [seen.read(), seen.async_read(timeout_ms=2000), seen.read_latest(max_age_ms=2000)]
        assert {(frame.shape, str(frame.dtype)) for frame in frames} == {((30, 40, 3), "uint8")}
        numbers = [number_of(frame) for frame in frames]
        assert numbers == sorted(numbers)
        assert numbers[0] < numbers[1]  # async_read gives what was not read yet
        red, blue = frames[0][20, 5], frames[0][20, 35]  # RGB: red on the left
        assert red[0] > 150 > red[2]
        assert blue[2] > 150 > blue[0]
    assert not seen.is_connected


def test_what_is_old_is_not_given_as_new(server):
    seen = camera(server.url)
    seen.connect()
    server.stall()
    time.sleep(0.5)
    seen.async_read(timeout_ms=2000)  # the last that was on its way
    with pytest.raises(TimeoutError):
        seen.async_read(timeout_ms=300)
    with pytest.raises(TimeoutError):
        seen.read_latest(max_age_ms=100)
    assert seen.read_latest(max_age_ms=60_000).shape == (60, 80, 3)
    seen.disconnect()


def test_its_errors_are_lerobots(server, tmp_path):
    errors = importlib.import_module("lerobot.utils.errors")
    seen = camera(server.url)
    for use in (seen.read, seen.async_read, seen.read_latest, seen.disconnect):
        with pytest.raises(errors.DeviceNotConnectedError, match="is not connected"):
            use()
    seen.connect()
    with pytest.raises(errors.DeviceAlreadyConnectedError):
        seen.connect()
    seen.disconnect()
    for source, told in (
        (tmp_path / "none.mp4", "no such file"),
        (server.url.replace("stream.mjpg", "missing"), "cannot be opened"),
    ):
        with pytest.raises(ConnectionError, match=told):
            camera(source).connect()
    with pytest.raises(ConnectionError, match="rotate must be 0, 90, 180 or 270"):
        camera(server.url, rotate=45).connect()
    with pytest.raises(ValueError, match="width and height must be given together"):
        camera(server.url, width=40)
    with pytest.raises(ValueError, match="source must say which camera"):
        camera("")


def test_a_password_is_told_to_nobody():
    assert str(camera("rtsp://me:secret@host/stream")) == "EmbodiedCamera(rtsp://me:***@host/stream)"


def test_lerobot_finds_the_camera_by_names():
    package = importlib.import_module("lerobot_camera_embodied")
    config = package.EmbodiedCameraConfig
    parent = importlib.import_module(config.__module__.rpartition(".")[0])  # as make_device_from_device_class looks
    assert getattr(parent, config.__name__.removesuffix("Config")) is package.EmbodiedCamera
    assert package.__name__.startswith("lerobot_camera_")


def test_cameras_need_no_torch():
    code = "import sys, embodied.cameras; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


# The reward model ---------------------------------------------------------------------------------------

GOALS = ("the drawer is open", "the drawer is closed")


def model(**settings):
    config = importlib.import_module("lerobot_reward_embodied").EmbodiedConfig(device="cpu", **settings)
    assert config.type == "embodied"
    module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))  # LeRobot's rule
    return getattr(module, f"{type(config).__name__.removesuffix('Config')}RewardModel")(config)


@pytest.fixture(scope="module")
def pictures():
    """(B, T, H, W, 3) uint8 frames, and LeRobot's form of them: (B, T, 3, H, W) float in [0, 1]."""
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 48, 64, 3), dtype=np.uint8))
    return frames, frames.permute(0, 1, 4, 2, 3).float() / 255


def test_it_gives_the_number_that_every_other_door_gives(pictures):
    frames, floats = pictures
    scorer = clip_scorer(encoder=embedded_encoder(device="cpu"), goal=GOALS[0])
    expected = torch.stack([scorer.score(each)[-1] for each in frames])
    reward = model(goal=GOALS[0])
    torch.testing.assert_close(reward.compute_reward({"observation.images.front": floats}), expected)
    last = {"observation.images.front": floats[:, -1], "action": torch.zeros(2, 4)}
    torch.testing.assert_close(reward.compute_reward(last), expected)
    as_bytes = {"observation.images.front": (255 * floats).round().to(torch.uint8)}
    torch.testing.assert_close(reward.compute_reward(as_bytes), expected)


def test_without_a_goal_each_row_has_its_own_task(pictures):
    _, floats = pictures
    reward, batch = model(), {"observation.images.front": floats[:, -1]}
    apart = [model(goal=goal).compute_reward(batch) for goal in GOALS]
    together = reward.compute_reward(batch | {"task": list(GOALS)})
    torch.testing.assert_close(together, torch.stack([apart[0][0], apart[1][1]]))
    torch.testing.assert_close(reward.compute_reward(batch | {"task": GOALS[1]}), apart[1])
    odd = "${oc.env:HOME} {item} 'quoted'"  # a text from a dataset is a text
    assert reward.compute_reward(batch | {"task": odd}).shape == (2,)


def test_what_it_cannot_read_is_refused(pictures):
    _, floats = pictures
    reward = model()
    with pytest.raises(KeyError, match=r"must have 'observation.images.NAME'; it has action"):
        reward.compute_reward({"action": torch.zeros(1)})
    with pytest.raises(KeyError, match="must have 'task'"):
        reward.compute_reward({"observation.images.front": floats})
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], or uint8, not normalised; got"):
        reward.compute_reward({"observation.images.front": 4 * floats - 2, "task": GOALS[0]})
    with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\) or \(B, T, 3, H, W\); got"):
        reward.compute_reward({"observation.images.front": torch.zeros(2, 48, 64, 3), "task": GOALS[0]})
    with pytest.raises(ValueError, match="task must be a text, or 2; got 3"):
        reward.compute_reward({"observation.images.front": floats, "task": ["a", "b", "c"]})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"reward": "clap"}, "unknown reward 'clap'"),
        ({"reward": "remote"}, "unknown reward ''"),  # a saved config reaches no address
        ({"reward": "contrast"}, "negative is missing"),
        ({"reward": "success"}, "demos"),
    ],
)
def test_a_reward_that_wants_more_is_refused_at_once(settings, told):
    with pytest.raises((UserError, ValueError, TypeError), match=told):
        model(goal=GOALS[0], **settings)


def test_an_encoder_of_another_name_is_refused():
    for settings in ({"encoder": "remote"}, {"encoder_model": "ViT-B-32:openai"}):
        with pytest.raises(ValueError, match=r"EmbodiedConfig: encoder"):
            model(**settings)


def test_its_config_is_all_that_it_saves(tmp_path):
    reward = model(goal=GOALS[0], image_keys=["observation.images.front"])
    assert list(reward.parameters()) == []
    assert json.loads(json.dumps(dataclasses.asdict(reward.config)))["goal"] == GOALS[0]
    again = type(reward).from_pretrained(tmp_path, config=reward.config)
    assert again.config.goal == GOALS[0]
    with pytest.raises(TypeError, match="config must be an EmbodiedConfig"):
        type(reward).from_pretrained(tmp_path, config=object())


def test_its_processors_leave_pictures_as_they_are():
    module = importlib.import_module("lerobot_reward_embodied.processor_embodied")
    config = importlib.import_module("lerobot_reward_embodied").EmbodiedConfig(device="cpu")
    before, after = getattr(module, f"make_{config.type}_pre_post_processors")(config, dataset_stats=None)
    steps = before["steps"] if isinstance(before, dict) else before.steps
    assert [type(step).__name__ for step in steps] == ["AddBatchDimensionProcessorStep", "DeviceProcessorStep"]
    assert not (after["steps"] if isinstance(after, dict) else after.steps)
