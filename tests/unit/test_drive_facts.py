"""What is said of the town: its facts by hand, and what a frame shows."""

from __future__ import annotations

import numpy as np
import pytest

from embodied.envs.captions import Captions
from embodied.envs.drive_facts import FACTS
from embodied.envs.roads import LANE, crossing
from embodied.paths import asset
from tests.town import fixtures, holding, put

shared, world = fixtures()


# Facts and frames -------------------------------------------------------------------------------------------


def test_facts_by_hand(world):
    assert holding(world) == {"in_lane", "road_clear"}
    put(world, (9.0, 0.0, 0.0))
    assert holding(world) == {"in_lane", "car_ahead"}
    put(world, (4.3, 0.2, 0.0))
    assert holding(world) == {"in_lane", "car_ahead", "collision"}
    put(world, (10.0, 6.5, 0.0), (10.0, 8.2, 0.0))  # an accident of two others, beside the lane
    assert holding(world) == {"in_lane", "collision"}
    put(world, aside=LANE)
    assert holding(world) == {"wrong_lane", "road_clear"}
    put(world, aside=-6.5)
    assert holding(world) == {"off_road", "road_clear"}
    put(world, tilt=1.2)
    assert holding(world) == {"askew", "road_clear"}
    zebra, junction = world.way.crossings[0], world.way.junction(0.0)
    put(world, at=zebra.at)
    assert holding(world) == {"in_lane", "road_clear", "at_crossing"}
    put(world, at=(junction.enter + junction.leave) / 2)
    assert holding(world) == {"in_lane", "road_clear", "in_junction"}
    put(world, at=zebra.at - 9.0)
    world.others.street, world.others.across = zebra.street, zebra.side
    assert holding(world) == {"in_lane", "walker_on_road"}


def test_degrees_are_one_exactly_when_a_fact_holds_and_every_fact_is_shown_both_ways(world):
    rng = np.random.default_rng(0)
    truth = []
    for _ in range(150):
        world.sample_state(rng)
        degrees = world.degrees()
        assert tuple(degrees) == world.facts == FACTS
        assert all(value == 1.0 or 0 <= value < 0.9 for value in degrees.values())
        assert not {"collision", "car_ahead"} & holding(world) or degrees["road_clear"] < 0.9
        assert len({"in_lane", "wrong_lane", "off_road"} & holding(world)) <= 1
        truth.append([value == 1.0 for value in degrees.values()])
    shown = dict(zip(FACTS, np.mean(truth, axis=0), strict=True))
    assert min(shown.values()) > 0.04, shown
    assert max(shown.values()) < 0.7, shown


def test_degrees_rise_towards_the_fact(world):
    def told(fact, **how):
        put(world, **how)
        return world.degrees()[fact]

    assert told("off_road", aside=-2.0) < told("off_road", aside=-4.0) < 0.9
    assert told("wrong_lane", aside=0.0) < told("wrong_lane", aside=1.5) < 0.9
    assert told("askew", tilt=0.1) < told("askew", tilt=0.5) < 0.9
    ahead = []
    for distance in (17.0, 14.0, 12.0):
        put(world, (distance, 0.0, 0.0))
        ahead.append(world.degrees()["car_ahead"])
    assert ahead == sorted(ahead)
    assert ahead[0] < ahead[-1] < 0.9


def test_what_is_said_of_a_state_is_true_of_it(world):
    """Every sentence belongs to a fact that holds, and every fact that holds is said."""
    captions = Captions.load(asset("drive") / "captions.yaml")
    belongs = {text: fact for fact, splits in captions.facts.items() for text in splits["train"].all()}
    rng = np.random.default_rng(1)
    for _ in range(60):
        world.sample_state(rng)
        said = {belongs[text] for text in captions.describe(world.degrees(), rng)}
        assert said == {"scene"} | holding(world)
    assert belongs[world.describe(rng)[0]] == "scene"  # by the same way


def test_frames_are_not_mirrored(world):
    """Seen from above the car's way is up and its left is left; from its front, left is left and the road below."""
    world.model.geom_rgba[world.model.geom("other_0").id] = [0, 0, 1, 1]
    world.model.geom_rgba[world.model.geom("other_0_roof").id] = [0, 0, 1, 1]

    def blue(camera):
        frame = world.frame(camera, 96).astype(int)
        mask = (frame[..., 2] > frame[..., 0] + 80) & (frame[..., 2] > frame[..., 1] + 80)
        assert mask.sum() > 10
        return np.argwhere(mask).mean(0) - 47.5  # down, right

    for left, ahead in ((4.0, 10.0), (-4.0, 10.0), (4.0, -5.0)):
        put(world, (ahead, left, 0.0))
        frame = world.frame("bird", 96).astype(int)
        car = np.argwhere((frame[..., 0] > frame[..., 1] + 80) & (frame[..., 0] > frame[..., 2] + 80)).mean(0) - 47.5
        down, right = blue("bird") - car
        assert right == pytest.approx(-left * 96 / 33, abs=2)
        assert down == pytest.approx(-ahead * 96 / 33, abs=3)
        if ahead > 0:
            down, right = blue("front")
            assert np.sign(right) == -np.sign(left)
    assert world.frame("front", 96)[:10].mean() > world.frame("front", 96)[-20:].mean()  # sky above, asphalt below


def test_cameras_ride_on_the_car(world):
    assert [world.moves(camera) for camera in world.cameras] == [True, True]
    first = world.frame("bird", 48)
    put(world, at=6.0)
    assert (world.frame("bird", 48) != first).mean() > 0.1
    for camera in world.cameras:
        intrinsics, extrinsics = (np.array(world.calibration(camera, 96)[key]) for key in ("intrinsics", "extrinsics"))
        u, v, z = intrinsics @ (extrinsics @ [*world.way.spot(world.at + 8.0)[0], 0.0, 1.0])[:3]
        assert 0 < u / z < 96
        assert 0 < v / z < 96


def test_a_new_look_changes_the_frame_not_the_truth_and_can_be_undone(world):
    put(world, (12.0, 3.4, 3.1))
    degrees, frame = world.degrees(), world.frame()
    rng = np.random.default_rng(0)
    for _ in range(3):
        world.randomize_look(rng)
        assert world.degrees() == degrees
        assert (world.frame() != frame).mean() > 0.3
    world.restore_look()
    np.testing.assert_array_equal(world.frame(), frame)


def test_the_ground_is_painted_where_the_lanes_are(world):
    """Along any lane's middle there is asphalt between the stripes, and pavement beside the street."""
    for street in (0, 5):
        middle, along, left = crossing(street)
        for offset, dark in ((LANE / 2, True), (-LANE / 2, True), (LANE + 4.0, False), (-LANE - 4.0, False)):
            spot = middle + 9.0 * along + offset * left
            world.pose = np.array([*spot, 0.0]) - [7.0, 0.0, 0.0]
            world.others.parked = np.zeros((0, 3))
            world._refresh()
            pixel = world.frame("bird", 96)[46:50, 46:50].mean()
            assert (pixel < 100) == dark
