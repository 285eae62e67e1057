"""The keypoint head and its scorer: cameras, lifting, tracking, caching, the success model, errors."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rewards.core import Episode, Features
from rewards.keypoint.path import CalibratedCamera, flat_path, lift_path
from rewards.keypoint.plan import PathStop
from rewards.keypoint.reward import KeypointProgress, Walked, keypoint_scorer
from rewards.keypoint.rule import KeypointRule, KeypointShaping
from tests.advancing import check_advance
from tests.fakes import FakeEncoder

RNG = np.random.default_rng(0)
TURN = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
TURN *= np.sign(np.linalg.det(TURN))
INTRINSICS = [[120.0, 0, 47.5], [0, 120.0, 47.5], [0, 0, 1]]


def calibration(eye=(0.6, -0.8, 0.7), target=(0.0, 0.0, 0.0)) -> dict:
    """A camera at `eye` that sees `target` in the middle, upright."""
    forward = np.array(target) - np.array(eye)
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    turn = np.stack([right, np.cross(forward, right), forward])
    extrinsics = np.eye(4)
    extrinsics[:3, :3], extrinsics[:3, 3] = turn, -turn @ np.array(eye)
    return {"intrinsics": INTRINSICS, "extrinsics": extrinsics.tolist(), "size": [96, 96]}


CAMERA = CalibratedCamera.read("front", calibration())
TARGET = np.array([0.1, 0.05, 0.03])


class Answers:
    """Always the same stops; notes how many frames it is asked about at once."""

    def __init__(self, *stops: PathStop) -> None:
        self.listed, self.asked = list(stops), []

    def stops(self, frames):
        self.asked.append(len(frames))
        return [self.listed] * len(frames)


class Tracks:
    """Finds the gripper where it is told to."""

    def __init__(self, places) -> None:
        self.places = torch.tensor(places, dtype=torch.float32)

    def track(self, frames, text):
        assert text == "the claw"
        return self.places[: len(frames)]


class Seen:
    """Finds the gripper by what is in each frame."""

    def track(self, frames, text):
        return frames[:, :2, 0, 0].float() / 4


class Points:
    """Finds the gripper by the first two numbers of each frame's vector."""

    def point(self, vectors, size):
        assert size == (96, 96)
        return vectors[:, :2]


def at_target(**options) -> PathStop:
    u, v = CAMERA.project(TARGET[None])[0]
    return PathStop(at=(float(u), float(v)), **options)


def features(robot, *, opening=None, all_frames=False, depth=None, seeds=(0,), **signals) -> Features:
    robot = np.broadcast_to(robot, (len(seeds), *np.shape(robot)[-2:]))
    steps = robot.shape[1]
    frames = [
        np.random.default_rng(s).integers(0, 255, (steps if all_frames else 1, 96, 96, 3), np.uint8) for s in seeds
    ]
    named = {f"gripper_{axis}": torch.from_numpy(robot[..., i].copy()).float() for i, axis in enumerate("xyz")}
    if opening is not None:
        named["gripper_opening"] = torch.tensor([opening] * len(seeds), dtype=torch.float32)
    return Features(
        views={"front": torch.zeros(len(seeds), steps, 4)},
        signals=named | signals,
        frames={"front": torch.from_numpy(np.stack(frames))},
        depth={} if depth is None else {"front": torch.from_numpy(depth).float()[None].expand(len(seeds), -1, -1)},
    )


def nearness(robot, target):
    """Progress to a single waypoint: there is no way but the lead."""
    return np.exp(-np.linalg.norm(robot - target, axis=1) / 0.1)


# Cameras -------------------------------------------------------------------------------------------------------


def test_projection_and_lifting_are_inverse():
    extrinsics = np.eye(4)
    extrinsics[:3, :3], extrinsics[:3, 3] = TURN, [0.1, -0.2, 2.0]
    camera = CalibratedCamera(np.array([[100.0, 0.5, 40], [0, 110, 45], [0, 0, 1]]), extrinsics, (96, 128))
    points = RNG.normal(0, 0.3, (50, 3))
    depth = points @ extrinsics[2, :3] + 2.0
    back = camera.lift(camera.project(points), depth)
    np.testing.assert_allclose(back, points, atol=1e-9)
    small = camera.at(48, 64)
    np.testing.assert_allclose(small.project(points) + 0.5, (camera.project(points) + 0.5) / 2, atol=1e-9)


def test_a_pixel_on_a_plane():
    points = np.array([[0.1, 0.2, 0.05], [-0.1, 0.0, 0.05]])
    got = [CAMERA.on_plane(pixel, 0.05) for pixel in CAMERA.project(points)]
    np.testing.assert_allclose(got, points, atol=1e-9)
    with pytest.raises(ValueError, match="must see the plane at z = 3"):
        CAMERA.on_plane([47.0, 47.0], 3.0)


@pytest.mark.parametrize("broken", [{}, {"intrinsics": INTRINSICS, "extrinsics": [[1]], "size": [96, 96]}])
def test_a_broken_calibration_is_named(broken):
    with pytest.raises(ValueError, match="calibration of 'front' must have"):
        CalibratedCamera.read("front", broken)  # pyright: ignore[reportArgumentType]


def test_the_desk_is_lifted_where_it_is():
    """A world's own calibration and depth, of which the reward makes places in metres."""
    from embodied.pretraining.renders import open_world

    world = open_world("embodied/desk-lift-v0", 96)
    world.reset(seed=3)
    camera = CalibratedCamera.read("front", world.calibration("front"))
    red = world.cube("red").copy()  # pyright: ignore[reportAttributeAccessIssue]
    stop = PathStop(at=tuple(camera.project(red[None])[0].tolist()))
    measured = lift_path([stop], camera, world.depth("front"), 0.0).points[0]
    assert np.linalg.norm(measured - red) < 0.035  # its surface
    np.testing.assert_allclose(lift_path([stop], camera, None, red[2]).points[0], red, atol=1e-6)
    world.close()


@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize("lost", [0.0, np.nan, np.inf])
def test_depth_that_was_not_measured_does_not_count(thin, lost):
    stop = at_target(thin=thin)
    u, v = (round(each) for each in stop.at)
    depth = np.full(CAMERA.size, 0.8, np.float32)
    whole = lift_path([stop], CAMERA, depth, 0.03).points
    depth[v, u - 1 : u + 1] = lost
    np.testing.assert_allclose(lift_path([stop], CAMERA, depth, 0.03).points, whole, atol=0.02)
    depth[:] = lost
    np.testing.assert_allclose(
        lift_path([stop], CAMERA, depth, 0.03).points, lift_path([stop], CAMERA, None, 0.03).points
    )


def test_stops_move_up_and_along():
    stops = [at_target(up=0.1), at_target(by=0.2, tail=(40.0, 47.0), head=(50.0, 47.0))]
    up, along = lift_path(stops, CAMERA, None, 0.03).points
    np.testing.assert_allclose(up, TARGET + np.array([0, 0, 0.1]), atol=1e-9)
    assert np.linalg.norm(along - TARGET) == pytest.approx(0.2)
    assert along[2] == pytest.approx(0.03)  # level
    flat = flat_path(stops, 0.01).points
    np.testing.assert_allclose(flat[0], 0.01 * np.array(stops[0].at) - [0, 0.1])
    np.testing.assert_allclose(flat[1], 0.01 * np.array(stops[1].at) + [0.2, 0])


# The head ------------------------------------------------------------------------------------------------------


def test_progress_in_the_world_by_depth_and_by_plane():
    robot = np.linspace([-0.1, 0, 0.2], TARGET, 6)
    head = KeypointProgress(Answers(at_target()), calibration={"front": calibration()}, plane=0.03)
    assert head.frames_read == "first"
    np.testing.assert_allclose(head.score(features(robot))[0], nearness(robot, TARGET), atol=1e-5)
    away = (CAMERA.extrinsics @ [*TARGET, 1])[2]
    higher = TARGET + np.array([0, 0, 0.05])  # 5 cm over the plane: told by the depth alone
    stop = PathStop(at=tuple(CAMERA.project(higher[None])[0].tolist()))
    depth = np.full((96, 96), float((CAMERA.extrinsics @ [*higher, 1])[2]))
    assert abs(depth[0, 0] - away) > 0.02
    robot = np.linspace([-0.1, 0, 0.2], higher, 6)
    lifted = KeypointProgress(Answers(stop), calibration={"front": calibration()}, plane=0.03)
    np.testing.assert_allclose(lifted.score(features(robot, depth=depth))[0], nearness(robot, higher), atol=1e-5)
    assert lifted.score(features(robot))[0, -1] < 0.9


def test_progress_in_the_image_of_a_calibrated_camera():
    robot = np.linspace([-0.1, 0, 0.2], TARGET, 6)
    head = KeypointProgress(Answers(at_target()), calibration={"front": calibration()})
    score = head.score(features(robot))[0]
    assert score[0] < 0.1
    assert score[-1] == pytest.approx(1, abs=1e-5)
    assert (score.diff() > 0).all()


def test_progress_by_tracking_without_a_calibration():
    places = [[10.0, 10], [20, 20], [30, 30], [30, 40]]
    head = KeypointProgress(
        Answers(PathStop(at=(30.0, 30.0))), grounder=Tracks(places), gripper="the claw", scene_m=0.96
    )
    assert head.frames_read == "all"
    got = head.score(features(np.zeros((4, 3)), all_frames=True))[0]
    np.testing.assert_allclose(
        got, nearness(np.array(places) / 100, np.array([0.3, 0.3])), atol=1e-5
    )  # 10 px are 0.1 m
    with pytest.raises(ValueError, match="frames must be all 4, to find the gripper; got 1"):
        head.score(features(np.zeros((4, 3))))


def test_progress_by_pointing_reads_one_image():
    places = np.array([[10.0, 10], [20, 20], [30, 30], [30, 40]])
    head = KeypointProgress(
        Answers(PathStop(at=(30.0, 30.0))), grounder=Tracks([]), pointer=Points(), gripper="the claw", scene_m=0.96
    )
    assert head.frames_read == "first"
    views = {"front": torch.from_numpy(np.c_[places, places]).float()[None]}
    seen = Features(views=views, frames=features(np.zeros((4, 3))).frames)
    np.testing.assert_allclose(
        head.score(seen)[0], nearness(places / 100, np.array([0.3, 0.3])), atol=1e-5
    )  # 10 px are 0.1 m
    check_advance(head, seen)
    other = KeypointProgress(Answers(), pointer=Points(), camera="side")
    with pytest.raises(ValueError, match="must hold the view of camera 'side'; got front"):
        other.advance(
            seen, [Walked(flat_path([PathStop(at=(1.0, 1.0))], 0.01), (96, 96), np.zeros((0, 2)), np.zeros(0))]
        )


def test_rows_can_come_one_by_one():
    robot = np.concatenate([np.linspace([-0.1, 0, 0.2], TARGET, 6), np.linspace(TARGET, [0.1, 0, 0.3], 6)])
    opening = [1.0, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.9, 1]
    stops = at_target(gate="grasp"), PathStop(at=(60.0, 30.0))
    head = KeypointProgress(Answers(*stops), calibration={"front": calibration()})
    check_advance(head, features(robot, opening=opening))
    head = KeypointProgress(Answers(at_target()), calibration={"front": calibration()})
    check_advance(head, features(robot, seeds=(1, 2)))
    tracks = KeypointProgress(Answers(PathStop(at=(30.0, 30.0))), grounder=Seen(), scene_m=0.96)
    check_advance(tracks, features(robot, all_frames=True))


def test_a_first_frame_is_planned_once_and_new_ones_together():
    answers = Answers(at_target())
    head = KeypointProgress(answers, calibration={"front": calibration()})
    robot = np.linspace([-0.1, 0, 0.2], TARGET, 6)
    one = head.score(features(robot, seeds=(1, 2, 1)))
    assert answers.asked == [2]
    np.testing.assert_array_equal(one[0], one[2])
    prefix = head.score(features(robot[:3], seeds=(2,)))
    assert answers.asked == [2]
    np.testing.assert_array_equal(prefix[0], one[1, :3])  # causal
    head.score(features(robot, seeds=(1,), depth=np.ones((96, 96))))
    assert answers.asked == [2, 1]  # the same picture at another depth is another scene


def test_what_is_missing_is_named():
    head = KeypointProgress(Answers(at_target()), calibration={"front": calibration()})
    robot = np.zeros((3, 3))
    with pytest.raises(ValueError, match="must hold frames of camera 'front'; got none"):
        head.score(Features(views={"front": torch.zeros(1, 3, 4)}))
    full = features(robot)
    without = Features(views=full.views, frames=full.frames, signals={"gripper_x": full.signals["gripper_x"]})
    with pytest.raises(ValueError, match="gripper_y, gripper_z missing"):
        head.score(without)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma must be > 0"),
        ({"reach": -1.0}, "reach must be > 0"),
        ({"camera": "side"}, "camera must be one of front"),
        ({"calibration": None}, "grounder must be given"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        KeypointProgress(Answers(), **{"calibration": {"front": calibration()}, **options})


# The scorer ----------------------------------------------------------------------------------------------------


def test_dense_and_shaping_are_checked():
    with pytest.raises(ValueError, match=r"dense must be in \(0, 1\); got 1"):
        KeypointRule(1.0)
    with pytest.raises(ValueError, match="kind must be one of"):
        KeypointShaping(kind="replace")
    with pytest.raises(ValueError, match="discount must be in"):
        KeypointShaping(discount=1.1)


def episode(encoder, goal: str, cosines, success: bool) -> Episode:
    """Rows with given cosines to a goal's embedding."""
    text = encoder.encode_texts([goal])[0]
    other = torch.nn.functional.normalize(torch.ones_like(text) - (torch.ones_like(text) @ text) * text, dim=0)
    rows = torch.stack([c * text + math.sqrt(1 - c * c) * other for c in cosines])
    return Episode(features=Features(views={"main": rows[None]}), success=success)


def test_the_scorer_from_its_config(tiny_clip):
    from rewards.encoders import OpenCLIPEncoder

    encoder = OpenCLIPEncoder(tiny_clip, precision="fp32", device="cpu")
    plain = keypoint_scorer(encoder=encoder, goal="open the drawer")
    assert list(plain.heads) == ["keypoint"]
    assert plain.frames_read == "all"
    demos = [episode(encoder, "open the drawer", [0.1, 0.9], True)]
    scorer = keypoint_scorer(
        encoder=encoder, goal="open the drawer", calibration={"front": calibration()}, demos=demos, dense=0.3,
        path={"plane": 0.1, "sigma": 0.2}, shaping={"kind": "difference", "discount": 0.9},
    )  # fmt: skip
    assert list(scorer.heads) == ["keypoint", "success"]
    assert scorer.frames_read == "first"
    assert scorer.combine == KeypointRule(0.3)
    assert scorer.shaping == KeypointShaping(kind="difference", discount=0.9, dense=0.3)
    given = keypoint_scorer(encoder=encoder, goal="lift the cup", success=scorer.heads["success"])
    assert given.heads["success"] is scorer.heads["success"]
    asked = keypoint_scorer(
        encoder=encoder, goal="anything at all", answerer={"url": "http://127.0.0.1:1/v1", "model": "m"}
    )
    assert list(asked.heads) == ["keypoint"]


def test_demonstrations_of_other_tasks_say_nothing_of_this_one_s_success(tiny_clip):
    from rewards.encoders import OpenCLIPEncoder

    encoder = OpenCLIPEncoder(tiny_clip, precision="fp32", device="cpu")
    own = replace(episode(encoder, "open the drawer", [0.1, 0.9], True), instruction="open the drawer")
    other = replace(episode(encoder, "open the drawer", [0.8, 0.1], True), instruction="lift the cup")
    given = {"encoder": encoder, "goal": "open the drawer"}
    alone, both = (keypoint_scorer(**given, demos=demos).heads["success"] for demos in ([own], [other, own]))
    assert both.bounds == alone.bounds
    assert "success" not in keypoint_scorer(**given, demos=[other]).heads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": None}, "goal must be given"),
        ({"goal": "juggle"}, "goal must be an instruction"),
        ({"answerer": "gpt"}, "answerer must be embedded or a chat model; got 'gpt'"),
        ({"success": {"level": 1}}, "success must hold goal and threshold; got level"),
        ({"answerer": {"url": "http://x/v1"}}, "must name a model"),
    ],
)
def test_wrong_arguments_are_named(tiny_clip, options, message):
    from rewards.encoders import OpenCLIPEncoder

    encoder = OpenCLIPEncoder(tiny_clip, precision="fp32", device="cpu")
    with pytest.raises(ValueError, match=message):
        keypoint_scorer(**{"encoder": encoder, "goal": "open the drawer", **options})
    with pytest.raises(ValueError, match="encoder must be an open_clip or transformers encoder"):
        keypoint_scorer(encoder=FakeEncoder(), goal="open the drawer")
