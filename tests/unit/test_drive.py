"""The town: streets, traffic, the car's readings, what is judged, and what a frame shows of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from embodied.envs.bridge import make
from embodied.envs.drive import PENALTY, Drive
from embodied.envs.drive_random import start
from embodied.envs.experts import expert
from embodied.envs.roads import DIRECTIONS, LANE, LANES, STREET, RoadWay, outside, place
from embodied.envs.town import ROUTE
from embodied.envs.traffic import gaps, walker_gap
from tests.town import fixtures, put

GAS, BRAKE, ROLL = np.array([0.0, 1.0]), np.array([0.0, -1.0]), np.array([0.0, 0.0])


shared, world = fixtures()


# Streets and traffic ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", range(len(LANES)))
def test_lanes_lead_the_right_way_on_the_right_hand_side(lane):
    node, direction = LANES[lane]
    places, headings = RoadWay(lane, 0.0, [0]).at(np.linspace(0, STREET, 9))
    along = DIRECTIONS[direction]
    off = places - place(node)
    np.testing.assert_allclose(off @ [along[1], -along[0]], LANE / 2)  # to the right of the middle line
    assert (np.diff(off @ along) > 0).all()
    np.testing.assert_allclose(np.stack([np.cos(headings), np.sin(headings)], -1), np.tile(along, (9, 1)), atol=1e-12)


@pytest.mark.parametrize("turns", [[0], [1], [2], [0, 1, 2, 2, 1]])
def test_ways_are_smooth_stay_on_asphalt_and_know_where_a_point_is(turns):
    way = RoadWay(2, 3.0, turns)
    at = np.arange(0.0, 400.0, 0.25) + 0.1
    places, headings = way.at(at)
    for k in (0, 3, 700):
        np.testing.assert_allclose(way.spot(at[k])[0], places[k], atol=1e-9)
        assert way.spot(at[k])[1] == pytest.approx(headings[k])
    np.testing.assert_allclose(np.linalg.norm(np.diff(places, axis=0), axis=-1), 0.25, atol=2e-3)
    steps = np.stack([np.cos(headings[:-1]), np.sin(headings[:-1])], -1)
    assert ((np.diff(places, axis=0) * steps).sum(-1) > 0.248).all()
    assert (outside(places) < -0.9).all()
    for where in (5.0, 40.3, 111.7):
        middle, heading = way.spot(where)
        aside = middle + 0.8 * np.array([-np.sin(heading), np.cos(heading)])
        assert way.nearest(aside, where + 1.5) == pytest.approx(where, abs=0.15)


def test_traffic_keeps_to_its_lanes_and_nobody_touches_anybody(shared):
    """A full town for 15 s, the driven car being in nobody's way."""
    rng = np.random.default_rng(3)
    shared.traffic = 1.0
    try:
        start(shared, rng)
    finally:
        shared.traffic = 0.5
    others, far, way = shared.others, np.array([500.0, 0.0, 0.0]), RoadWay(0, -500.0, [0])
    begun, crossed = others.poses, others.across
    for moment in range(150):
        others.step(0.1, far, 0.0, way, 0.0)
        poses = others.poses
        if moment % 5:
            continue
        for k, pose in enumerate(poses[:-1]):
            assert gaps(pose, poses[k + 1 :]).min() > 0.2
            assert gaps(pose, others.parked).min() > 0.5
        for own, at, pose in zip(others.ways, others.at, poses, strict=True):
            assert np.linalg.norm(pose[:2] - own.spot(float(at))[0]) < 1e-9
        assert min(walker_gap(pose, others.walker) for pose in poses) > 0.2
        assert (outside(poses[:, :2]) < -1.5).all()
    assert np.median(np.linalg.norm(others.poses[:, :2] - begun[:, :2], axis=-1)) > 15  # and it flows
    assert others.across != crossed


def test_a_car_stops_behind_another_and_for_the_walker(world):
    put(world, (0.0, 0.0, 0.0), at=20.0)
    world.others.cruise[0], world.others.speed[0] = 6.0, 5.0
    for _ in range(60):
        world.others.step(0.1, world.pose, 0.0, world.way, 20.0)
    assert 0.5 < gaps(world.pose, world.others.poses)[0] < 4.0
    assert world.others.speed[0] < 0.05
    put(world, (0.0, 0.0, 0.0), at=30.0)
    others = world.others
    others.cruise[0], others.at[0] = 6.0, -3.0
    others.street, others.across, others.sense = world.way.crossings[0].street, LANE / 2, -1
    nearest = math.inf
    for _ in range(120):
        others.step(0.1, world.pose, 0.0, world.way, 30.0)
        nearest = min(nearest, walker_gap(others.poses[0], others.walker))
    assert 0.7 < nearest < 4.0
    assert others.at[0] > world.way.crossings[0].at  # it went on afterwards


@pytest.mark.parametrize(("density", "cars", "parked"), [(0, 0, 0), (0.5, 6, 5), (1, 12, 10)])
def test_density_is_what_was_asked_for(density, cars, parked):
    env = make("drive-town", traffic=density)
    for seed in range(3):
        env.reset(seed=seed)
        others = env.unwrapped.others
        assert (len(others.ways), len(others.parked), others.walker is not None) == (cars, parked, density > 0)
        shown = (env.unwrapped.data.mocap_pos[:, 2] == 0).sum()
        assert shown == 1 + cars + parked + (density > 0)
    env.close()


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"traffic": 1.5}, "traffic must be a number from 0 .* to 1; got 1.5"),
        ({"traffic": True}, "traffic must be a number from 0 .* to 1; got True"),
        ({"task": "city"}, "task must be one of town; got 'city'"),
        ({"camera": "side"}, "camera must be one of bird, front; got 'side'"),
    ],
)
def test_bad_arguments_are_named(kwargs, words):
    with pytest.raises(ValueError, match=words):
        Drive(**kwargs)


# Readings and rewards ---------------------------------------------------------------------------------------


def test_readings_by_hand(world):
    put(world, aside=0.8, tilt=math.radians(-10), speed=5.0)
    told = world.signals()
    assert told["speed"] == pytest.approx(18.0)
    assert told["center"] == pytest.approx(0.8)
    assert told["angle"] == pytest.approx(-10.0)
    assert told["std"] == pytest.approx(0)
    assert (told["penalty"], told["steer"], told["pedal"]) == (0, 0, 0)
    ahead = 5 * math.sin(math.radians(10)) - 0.8 * math.cos(math.radians(10))
    assert told["ahead_5"] == pytest.approx(ahead)
    world.step(np.array([0.5, 0.25]))
    assert world.signals()["pedal"] == 0.25
    assert 0 < world.signals()["steer"] < 0.5  # the wheels follow with a lag
    centres = [0.8] * 19 + [abs(world.center)]
    assert world.signals()["std"] == pytest.approx(np.std(centres))


def test_only_own_readings_reach_a_policy(world):
    own = {"speed", "angle", "center", "std", "steer", "pedal", "penalty", "ahead_5", "ahead_10", "ahead_15"}
    assert set(world.signals()) == own
    assert len(world._proprio()) == len(own)
    assert not world.state_is_own
    before = world._proprio()
    put(world, (9.0, 0.0, 0.0))  # a car that stands ahead is seen by cameras alone
    np.testing.assert_array_equal(world._proprio(), before)
    assert (world._state()[: len(own)] == before).all()


@pytest.mark.parametrize("kmh", [0.0, 10.0, 22.0, 30.0])
def test_the_tasks_own_reward_is_vlm_rl_s(world, kmh):
    """reward_fn5 of zihaosheng/VLM-RL carla_env/rewards.py, by hand."""
    put(world, aside=-0.9, tilt=math.radians(18), speed=kmh / 3.6)
    world.history[:] = [0.9, 1.1] * 10
    speed = kmh / 20 if kmh < 20 else 1.0 if kmh <= 25 else 1 - (kmh - 25) / 10
    wanted = speed * (1 - 0.9 / 3) * (1 - 18 / 90) * (1 - 0.1 / 0.4)
    assert world.env_reward() == pytest.approx(wanted)
    world.collided = True
    assert world.env_reward() == PENALTY


def test_a_straight_drive_earns_and_makes_way(world):
    earned = [world.step(np.array([0.0, 0.6 if world.kmh < 22 else 0.05]))[1] for _ in range(40)]
    assert earned[-1] > 0.95
    assert world._info()["judge/route"] == pytest.approx(world.at / ROUTE)
    assert world.at > 9
    for _ in range(20):
        world.step(BRAKE)
    assert world.speed == 0  # and stays so: a brake is no reverse gear


# What is judged ---------------------------------------------------------------------------------------------


def test_a_collision_is_counted_punished_and_costs_the_success(world):
    put(world, (9.0, 0.0, 0.0), speed=6.0)
    for _ in range(40):
        _, reward, terminated, truncated, info = world.step(GAS)
        assert not terminated
        assert not truncated
        if info["judge/collisions"]:
            break
    assert info["judge/collisions"] == 1
    assert reward == PENALTY == world.signals()["penalty"]
    assert gaps(world.pose, world.others.poses)[0] == 0
    assert world.speed == 0
    _, reward, _, _, info = world.step(BRAKE)  # it is put back, and the rest of the episode is driven
    assert gaps(world.pose, world.others.poses)[0] > 2
    assert abs(world.center) < 1e-6
    assert (reward, info["judge/collisions"]) == (0, 1)
    world.farthest = ROUTE + 1
    world.step(BRAKE)
    assert not world.success()


def test_the_walker_and_parked_cars_are_run_into_too(world):
    put(world, speed=6.0)
    world.others.parked = np.array([[*world.way.spot(9.0)[0], 0.0]])
    steps = [world.step(ROLL)[4]["judge/collisions"] for _ in range(15)]
    assert steps[-1] == 1
    put(world, speed=6.0)
    zebra = world.way.crossings[0]
    world.others.street, world.others.across, world.others.sense = zebra.street, zebra.side - 0.8, 1
    world.at = world.farthest = zebra.at - 4.0
    world.pose[:2] = world.way.spot(world.at)[0]
    steps = [world.step(GAS)[4]["judge/collisions"] for _ in range(6)]
    assert steps[-1] == 1


def test_leaving_the_lane_is_counted_once_and_mended(world):
    put(world, speed=5.0)
    info = {"judge/lane_departures": 0}
    while not info["judge/lane_departures"]:
        _, reward, _, _, info = world.step(np.array([-0.4, 0.2]))
        assert world.at < 30
    assert reward == PENALTY
    assert abs(world.center) > 3
    world.step(ROLL)
    assert abs(world.center) < 1e-6
    assert world._info()["judge/lane_departures"] == 1
    assert world._info()["judge/collisions"] == 0


def test_standing_for_ten_seconds_is_a_stall(world):
    rewards = [world.step(BRAKE)[1] for _ in range(230)]
    assert world._info()["judge/stalls"] == 2
    assert [k for k, reward in enumerate(rewards) if reward == PENALTY] == [99, 199]
    assert set(rewards) == {0.0, PENALTY}


def test_too_fast_is_a_violation(world):
    put(world, speed=36 / 3.6)
    world.step(GAS)
    assert world.signals()["penalty"] == PENALTY
    assert world._info()["judge/collisions"] == 0


def test_a_violation_ends_the_episode_only_where_that_is_asked_for():
    for ends in (False, True):
        env = make("drive-town", traffic=0, ends=ends)
        env.reset(seed=1)
        told = [env.step(np.array([1.0, 1.0]))[2] for _ in range(60)]
        assert any(told) == ends
        env.close()


def test_success_is_the_route_without_a_collision(world):
    put(world, at=ROUTE - 2.0, speed=6.0)
    told = [world.step(ROLL)[4] for _ in range(12)]
    done = [info["is_success"] for info in told]
    first = done.index(True)
    assert 0 < first < 8
    assert all(done[first:])
    assert told[first - 1]["judge/route"] < 1 == told[first]["judge/route"]


def test_the_expert_completes_its_route():
    env = make("drive-town")
    world = env.unwrapped
    env.reset(seed=12)
    act, phases, info, over = expert(world), [], {"is_success": False}, False
    while not info["is_success"]:
        phases.append(act.phase)
        _, _, terminated, over, info = env.step(act(world))
        assert not terminated
        assert not over
    assert info["judge/collisions"] == info["judge/lane_departures"] == info["judge/stalls"] == 0
    assert phases[0] == 0
    assert sorted(phases) == phases
    assert act.phase == 4
    with pytest.raises(ValueError, match="Make one for each world"):
        act(Drive())
    env.close()


# Chance and resume ------------------------------------------------------------------------------------------


def test_a_seed_is_an_episode():
    env = make("drive-town", obs="mixed", image_size=32)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (30, 2)) * [0.3, 1.0]

    def played(seed):
        obs, _ = env.reset(seed=seed)
        frames, rewards = [obs["pixels"]], []
        for action in actions:
            obs, reward, *_ = env.step(action)
            frames.append(obs["pixels"])
            rewards.append(reward)
        return np.stack(frames), np.array(rewards), obs["agent_pos"]

    one, same, other = played(5), played(5), played(6)
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one[0][0] != other[0][0]).mean() > 0.1
    env.close()


def test_a_saved_state_goes_on_exactly():
    env = make("drive-town", traffic=1.0)
    world = env.unwrapped
    env.reset(seed=3)
    act = expert(world)
    for _ in range(20):
        env.step(act(world))
    saved, mirror = world.get_state(), make("drive-town", traffic=1.0)
    mirror.reset(seed=9)
    mirror.unwrapped.set_state(saved)
    np.testing.assert_array_equal(mirror.unwrapped.frame(), world.frame())
    for k in range(50):
        action = act(world) + np.array([0.2 * math.sin(k), 0.1])
        first, again = env.step(action), mirror.unwrapped.step(action)
        np.testing.assert_array_equal(first[0], again[0])
        assert first[1] == again[1]
        assert first[4] == again[4]
    np.testing.assert_array_equal(mirror.unwrapped.frame("front"), world.frame("front"))
    env.close()
    mirror.close()
