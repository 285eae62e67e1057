"""A camera found from demonstrations: its geometry, what it refuses, and that the reward reads one image with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rewards.core import Episode, Features
from rewards.keypoint import keypoint_scorer
from rewards.keypoint.camera import FOCAL, camera_from_demos, fit_camera
from rewards.keypoint.path import CalibratedCamera

RNG = np.random.default_rng(0)
SIZE = (96, 128)
CLAW = "the claw"


def true_camera(focal=140.0, eye=(0.6, -0.8, 0.7)) -> CalibratedCamera:
    """A camera at `eye` that looks at the world's origin, upright."""
    forward = -np.array(eye) / np.linalg.norm(eye)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    extrinsics = np.eye(4)
    extrinsics[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    extrinsics[:3, 3] = -extrinsics[:3, :3] @ np.array(eye)
    return CalibratedCamera(np.array([[focal, 0, 63.5], [0, focal, 47.5], [0, 0, 1]]), extrinsics, SIZE)


def paths(count: int, steps: int = 30) -> np.ndarray:
    """(count, steps, 3) metres, from above the desk to places on it and up again."""
    ends = RNG.uniform([-0.2, -0.2, 0.0], [0.2, 0.2, 0.05], (count, 3))
    starts = RNG.uniform([-0.1, -0.1, 0.2], [0.1, 0.1, 0.3], (count, 3))
    share = np.sin(np.linspace(0, np.pi, steps))[:, None]
    return starts[:, None] + share * (ends - starts)[:, None]


class Sees:
    """Reads where the claw is from the first pixels of each frame, an eighth of a pixel each."""

    def track(self, frames, text):
        assert text == CLAW
        return frames[:, 0, :2, :2].float() @ torch.tensor([32.0, 0.125])


def demo(robot: np.ndarray, pixels: np.ndarray, **changes) -> Episode:
    frames = np.zeros((len(robot), *SIZE, 3), np.uint8)
    frames[:, 0, :2, 0], rest = np.divmod(pixels, 32)
    frames[:, 0, :2, 1] = rest * 8
    signals = {f"gripper_{axis}": torch.from_numpy(robot[None, :, i]).float() for i, axis in enumerate("xyz")}
    values = {
        "views": {"front": torch.zeros(1, len(robot), 4)},
        "signals": signals,
        "frames": {"front": torch.from_numpy(frames)[None]},
    }
    return Episode(features=Features(**values | changes), success=True)


def lowered(episode: Episode) -> Episode:
    """The same with the robot's readings 2 m lower."""
    signals = {name: values - 2 * (name == "gripper_z") for name, values in episode.features.signals.items()}
    return replace(episode, features=replace(episode.features, signals=signals))


def demos(camera: CalibratedCamera, count: int = 3, noise: float = 0.5) -> list[Episode]:
    robots = paths(count)
    return [demo(each, camera.project(each) + RNG.normal(0, noise, (len(each), 2))) for each in robots]


@pytest.mark.parametrize("focal", [70.0, 115.0, 300.0])
@pytest.mark.parametrize("eye", [(0.6, -0.8, 0.7), (-0.9, 0.0, 0.4), (0.05, 0.05, 1.2)])
def test_a_camera_is_found_from_places_and_pixels(focal, eye):
    """Right in the image, there and elsewhere; the focal length lies between the true one and where it leans to."""
    camera, points = true_camera(focal, eye), paths(4).reshape(-1, 3)
    found = fit_camera(points, camera.project(points), SIZE)
    assert np.linalg.norm(found.project(points) - camera.project(points), axis=1).max() < 0.5
    leaning = FOCAL * SIZE[0]
    assert min(focal, leaning) - 2 < found.intrinsics[0, 0] < max(focal, leaning) + 2
    others = RNG.uniform([-0.2, -0.2, 0], [0.2, 0.2, 0.3], (100, 3))
    assert np.median(np.linalg.norm(found.project(others) - camera.project(others), axis=1)) < 0.5
    np.testing.assert_allclose(found.extrinsics[:3, :3] @ found.extrinsics[:3, :3].T, np.eye(3), atol=1e-9)


def test_wrong_places_hardly_count():
    camera, points = true_camera(), paths(4).reshape(-1, 3)
    pixels = camera.project(points)
    pixels[::10] = [5.0, 90.0]  # it took something else for the gripper
    found = fit_camera(points, pixels, SIZE)
    assert np.median(np.linalg.norm(found.project(points) - camera.project(points), axis=1)) < 1


def test_demonstrations_tell_the_camera():
    camera = true_camera()
    shown = demos(camera)
    shown[0].features.signals["gripper_y"][0, 3:6] = torch.nan  # the robot did not say
    found = camera_from_demos(shown, Sees(), CLAW, "front")
    assert found is not None
    held_out = paths(5).reshape(-1, 3)
    assert np.median(np.linalg.norm(found.camera.project(held_out) - camera.project(held_out), axis=1)) < 0.5
    away = (held_out @ camera.extrinsics[2, :3] + camera.extrinsics[2, 3]).mean()
    assert found.scene_m == pytest.approx(SIZE[0] * away / camera.intrinsics[1, 1], rel=0.1)


def test_no_camera_is_found_where_none_is_right(caplog):
    camera = true_camera()
    few = demos(camera, count=1)[0].features
    short = demo(paths(1)[0][:19], np.full((19, 2), 30.0))
    assert camera_from_demos([short], Sees(), CLAW, "front") is None
    assert camera_from_demos(demos(camera), Sees(), CLAW, "side") is None
    assert camera_from_demos([], Sees(), CLAW, "front") is None
    blind = Episode(features=Features(views=few.views, frames=few.frames))
    assert camera_from_demos([blind], Sees(), CLAW, "front") is None
    assert not caplog.messages
    robots = paths(3)
    lost = [demo(each, RNG.uniform(0, 96, (len(each), 2))) for each in robots]
    assert camera_from_demos(lost, Sees(), CLAW, "front") is None
    assert "looked for in every frame" in caplog.text
    caplog.clear()
    carried = [demo(each, np.full((len(each), 2), 40.0)) for each in robots]  # the camera hangs on the gripper
    assert camera_from_demos(carried, Sees(), CLAW, "front") is None
    assert "moves by 0.0 px" in caplog.text


def test_with_demonstrations_the_reward_reads_one_image(tiny_clip, monkeypatch):
    from rewards.encoders import OpenCLIPEncoder
    from rewards.keypoint import reward as keypoint

    encoder = OpenCLIPEncoder(tiny_clip, precision="fp32", device="cpu")
    monkeypatch.setattr(keypoint.Grounder, "track", lambda self, frames, text: Sees().track(frames, text))
    options = {
        "encoder": encoder, "goal": "open the drawer", "path": {"gripper": CLAW}, "success": {"threshold": 0.5},
    }  # fmt: skip
    shown = demos(true_camera())
    assert keypoint_scorer(**options, demos=shown).frames_read == "first"
    assert keypoint_scorer(**options).frames_read == "all"
    head = keypoint_scorer(**options, demos=shown, calibration={}).heads["keypoint"]
    assert isinstance(head, keypoint.KeypointProgress)
    flat = shown[0].features
    first = Features(
        views=flat.views, signals=flat.signals, frames={"front": flat.frames["front"][:, :1]},
        depth={"front": torch.full((1, *SIZE), 9.0)},
    )  # fmt: skip
    without = Features(views=first.views, signals=first.signals, frames=first.frames)
    torch.testing.assert_close(head.score(first), head.score(without))  # depth has no say
    hung = [lowered(each) for each in shown]  # the readings' zero is above the camera
    other = keypoint_scorer(**options, demos=hung).heads["keypoint"]
    moved = lowered(Episode(features=without)).features
    torch.testing.assert_close(other.score(moved), head.score(without), atol=0.01, rtol=0)  # where zero is has no say
    fits, found = {}, []
    monkeypatch.setattr(keypoint, "camera_from_demos", lambda *given: found.append(given))
    for goal in ("open the drawer", "close the drawer"):  # the camera has no goal
        keypoint_scorer(**options | {"goal": goal}, demos=shown, fits=fits)
    assert len(found) == 1
