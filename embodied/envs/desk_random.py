"""Random starts, states and looks of the desk."""

from __future__ import annotations

import colorsys

import mujoco
import numpy as np

from embodied.envs.desk_scene import CUBES, HALF, DeskScene

ON_DESK, IN_TRAY, STACKED = HALF, HALF + 0.006, 2 * HALF  # heights of a resting cube's centre, m
NEUTRAL = (
    "desk_edge", "wall", "floor", "arm", "joint", "accent", "cabinet", "drawer", "handle", "socket", "tray",
    "tray_rim", "distractor0", "distractor1", "distractor2",
)  # fmt: skip
BESIDE = 0.3  # share of states about the button in which the gripper is low beside it: near, and pressing nothing
TOLD = ("red", "green", "blue", "mark", "button")  # colours that sentences name


def start(world: DeskScene, rng: np.random.Generator, *, drawer_out: bool) -> None:
    """An episode's first state: cubes apart and clear of the drawer, the arm near its rest, the button up.

    Args:
        world: is set to it.
        rng: of the draws.
        drawer_out: whether the drawer begins open.
    """
    spots = _apart(rng, 3)
    for cube, spot in zip(CUBES, spots, strict=True):
        world.put_cube(cube, np.array([*spot, ON_DESK]), rng.uniform(-0.3, 0.3))
    if drawer_out:
        world.data.qpos[world.joint_address("drawer")] = rng.uniform(0.1, 0.145)
    world.put_arm(np.array([-0.05, 0.0, 0.2]) + rng.uniform(-0.03, 0.03, 3), rng.uniform(0.02, 0.07))


def _apart(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Places for cubes on the desk, (x, y) m, no two within 8.5 cm and none where the drawer comes out."""
    spots: list[np.ndarray] = []
    while len(spots) < count:
        spot = rng.uniform([-0.14, -0.13], [0.085, 0.08])
        in_drawers_way = spot[0] > -0.045 and spot[1] > -0.02
        if not in_drawers_way and all(np.linalg.norm(spot - other) > 0.085 for other in spots):
            spots.append(spot)
        elif rng.random() < 0.02:
            spots.clear()  # an unlucky first pair can leave no room
    return spots


def sample_state(world: DeskScene, rng: np.random.Generator) -> None:
    """Any plausible state, solved ones included, each fact in a tenth of them or more.

    Args:
        world: is set to it.
        rng: of the draws.
    """
    data = world.data
    mujoco.mj_resetData(world.model, data)
    opened = rng.choice([0.0, rng.uniform(0.0, 0.012), rng.uniform(0.012, 0.09), rng.uniform(0.09, 0.15)],
                        p=[0.25, 0.1, 0.25, 0.4])  # fmt: skip
    data.qpos[world.joint_address("drawer")] = opened
    mujoco.mj_kinematics(world.model, data)
    # What the gripper is about decides where the cubes may be.
    doing = rng.choice(["carry", "touch", "handle", "button", "move"], p=[0.4, 0.1, 0.15, 0.19, 0.16])
    actor = str(rng.choice(CUBES)) if doing in ("carry", "touch") else None
    places = _place_cubes(world, rng, actor if doing == "carry" else None)
    mujoco.mj_kinematics(world.model, data)
    if doing == "carry":
        _carry(world, rng, str(actor), places)
    elif doing == "touch":
        _touch(world, rng, str(actor))
    else:
        _reach(world, rng, doing)
    mujoco.mj_forward(world.model, data)
    mujoco.mj_step(world.model, data, 16)
    world.settle()


def _place_cubes(world: DeskScene, rng: np.random.Generator, carried: str | None) -> dict[str, str]:
    """Put every cube but the carried one on the desk, the mark, in the tray or on another; says which."""
    places: dict[str, str] = {}
    for cube in ("green", "blue", "red"):
        if cube == carried:
            continue
        choices = ["desk", "tray"]
        odds = [0.8, 0.2]
        if cube == "red":
            free = [other for other in ("green", "blue") if other != carried]
            choices = ["desk", "tray", "mark", *free]
            odds = [0.2, 0.2, 0.2, *([0.4 / len(free)] * len(free))]
        place = str(rng.choice(choices, p=odds))
        at, yaw = _free_place(world, rng, place, places), rng.uniform(-np.pi / 4, np.pi / 4)
        world.put_cube(cube, at, yaw)
        places[cube] = place
    return places


def _free_place(world: DeskScene, rng: np.random.Generator, place: str, places: dict[str, str]) -> np.ndarray:
    """(3,) m: a cube's centre at a place, off the other cubes (the drawer's way, when it is out, included)."""
    mark, tray = world.site("mark"), world.site("tray")
    if place in CUBES:
        return world.cube_at(place) + np.array([*rng.uniform(-0.012, 0.012, 2), STACKED])
    for _ in range(100):
        if place == "mark":
            at = np.array([*(mark[:2] + rng.uniform(-0.026, 0.026, 2)), ON_DESK])
        elif place == "tray":
            at = np.array([*(tray[:2] + rng.uniform(-0.048, 0.048, 2)), IN_TRAY])
        else:
            at = np.array([*rng.uniform([-0.16, -0.25], [0.26, 0.14]), ON_DESK])
            in_tray = np.all(np.abs(at[:2] - tray[:2]) < 0.13)
            in_drawers_way = at[0] > -0.04 and at[1] > (0.12 - world.drawer)
            near_button = at[0] < -0.04 and at[1] > 0.12
            if in_tray or in_drawers_way or near_button:
                continue
        if all(np.linalg.norm(at[:2] - world.cube_at(other)[:2]) > 0.06 for other in places):
            return at
    return np.array([0.3, 0.3, ON_DESK])  # no room: out of the way, at the desk's far edge


def _carry(world: DeskScene, rng: np.random.Generator, cube: str, places: dict[str, str]) -> None:
    """The cube between the fingers: in the air, mostly, or held over or at a goal."""
    goals = [world.site("tray") + np.array([0, 0, IN_TRAY])]
    if cube == "red":
        goals.append(world.site("mark") + np.array([0, 0, ON_DESK]))
        goals += [world.cube_at(below) + np.array([0, 0, STACKED]) for below in places]
    tip = rng.uniform([-0.15, -0.25, 0.075], [0.24, 0.1, 0.3])
    if rng.random() < 0.25:
        tip = goals[rng.integers(len(goals))] + [*rng.uniform(-0.03, 0.03, 2), rng.choice([0.002, rng.uniform(0, 0.1)])]
    elif rng.random() < 0.12:
        tip[2] = rng.uniform(0.02, 0.075)
    tip = _clear(world, tip, cube, 0.03)
    world.put_arm(tip, 2 * HALF)
    slip = rng.uniform([-0.004, -0.002, -0.005], [0.004, 0.002, 0.01])
    world.put_cube(cube, tip + slip, rng.uniform(-0.05, 0.05))
    world.data.ctrl[7] = 0.03


def _touch(world: DeskScene, rng: np.random.Generator, cube: str) -> None:
    """The gripper at a cube where it lies: around it, on it, beside it, or on the way there."""
    at, how = world.cube_at(cube), rng.choice(["around", "above", "beside", "near"], p=[0.4, 0.2, 0.2, 0.2])
    opening = rng.uniform(0, 0.08)
    offset = rng.uniform([-0.08, -0.08, 0.03], [0.08, 0.08, 0.12])
    if how == "around":
        world.put_cube(cube, at, rng.uniform(-0.1, 0.1))
        offset, opening = np.array([*rng.uniform(-0.004, 0.004, 2), rng.uniform(0, 0.01)]), rng.uniform(0.041, 0.075)
    elif how == "above":
        offset, opening = np.array([*rng.uniform(-0.01, 0.01, 2), HALF + 0.006]), rng.uniform(0, 0.02)
    elif how == "beside":
        side = rng.choice([-1, 1])
        offset = np.array([side * (HALF + 0.012), rng.uniform(-0.01, 0.01), rng.uniform(0, 0.01)])
        opening = rng.uniform(0, 0.01)
    world.put_arm(at + offset, opening)
    if how == "around":
        world.data.ctrl[7] = rng.choice([0.03, opening])


def _reach(world: DeskScene, rng: np.random.Generator, doing: str) -> None:
    """The gripper at the handle or the button (pressing it), on the way there, or anywhere."""
    opening = rng.choice([0.0, 0.08, rng.uniform(0, 0.08)])
    way = rng.uniform([-0.08, -0.08, 0.0], [0.08, 0.04, 0.12]) * (rng.random() < 0.2)
    if doing == "handle":
        world.put_arm(world.site("handle") + rng.uniform(-0.012, 0.012, 3) * [2, 0.3, 1] + way, opening)
    elif doing == "button" and rng.random() < BESIDE:
        angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.09)
        tip = world.site("button") + away * np.array([np.cos(angle), np.sin(angle), 0])
        world.put_arm(np.array([tip[0], tip[1], rng.uniform(0.012, 0.11)]), opening)
    elif doing == "button":
        down = rng.choice([0.027, rng.uniform(0, 0.02)], p=[0.85, 0.15]) * (not way.any())
        world.data.qpos[world.joint_address("button")] = down
        tip = world.site("button") - [0, 0, down - 0.004] + [*rng.uniform(-0.01, 0.01, 2), 0]
        world.put_arm(tip + np.abs(way), 0.0 if down else opening)
        world.press_on(0.02 if down > 0.02 else 0.0)
    else:
        tip = rng.uniform([-0.16, -0.26, 0.02], [0.25, 0.26, 0.31])
        world.put_arm(_clear(world, tip, None, 0.075), opening)


def _clear(world: DeskScene, tip: np.ndarray, carried: str | None, margin: float) -> np.ndarray:
    """A tip position raised above whatever solid stands in its way."""
    low = tip[2]
    for cube in CUBES:
        away = np.abs(tip[:2] - world.cube_at(cube)[:2])
        if cube != carried and away.max() < margin + HALF:
            low = max(low, world.cube_at(cube)[2] + HALF + 0.03)
    if tip[0] > -0.03 and tip[1] > 0.22 - world.drawer - 0.13:
        low = max(low, 0.17)
    if np.linalg.norm(tip[:2] - world.site("button")[:2]) < 0.12:
        low = max(low, 0.12)
    if np.all(np.abs(tip[:2] - world.site("tray")[:2]) < 0.13):
        low = max(low, IN_TRAY + 0.004)
    return np.array([tip[0], tip[1], low])


# Looks ----------------------------------------------------------------------------------------------------


def randomize_look(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """Light, cameras, surfaces, colours and distractors; the colours that sentences name stay themselves.

    Args:
        model: is changed in place.
        rng: of the draws.
    """
    _light(model, rng)
    for camera in range(model.ncam):
        wrist = model.camera(camera).name == "wrist"
        model.cam_pos[camera] += rng.uniform(-1, 1, 3) * (0.004 if wrist else 0.04)
        turn, quat = np.empty(4), model.cam_quat[camera].copy()
        axis = rng.normal(size=3)
        mujoco.mju_axisAngle2Quat(turn, axis / np.linalg.norm(axis), np.deg2rad(rng.uniform(0, 1.8)))
        mujoco.mju_mulQuat(model.cam_quat[camera], quat, turn)
        model.cam_fovy[camera] += rng.uniform(-1, 3)
    _surfaces(model, rng)
    for name in TOLD:
        _shift(model.mat(name).rgba, rng, hue=0.02, saturation=(0.8, 1.1), value=(0.75, 1.15))
    _distract(model, rng)


def _light(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    for light in range(model.nlight):
        model.light_pos[light] += rng.uniform(-0.4, 0.4, 3)
        direction = model.light_dir[light] + rng.uniform(-0.35, 0.35, 3) * [1, 1, 0.3]
        model.light_dir[light] = direction / np.linalg.norm(direction)
        model.light_diffuse[light] *= rng.uniform(0.6, 1.4) * rng.uniform(0.93, 1.07, 3)
        model.light_ambient[light] = rng.uniform(0.0, 0.12)
        model.light_specular[light] *= rng.uniform(0, 1.5)


def _surfaces(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    tops = [model.mat(name).id for name in ("desk", "desk_walnut", "desk_stone", "desk_cloth", "desk_plain")]
    top = rng.choice(tops)
    model.geom("desk_top").matid = top
    model.mat_rgba[top, :3] *= rng.uniform(0.75, 1.1) * rng.uniform(0.92, 1.08, 3)
    for name in NEUTRAL:
        rgba = model.mat(name).rgba
        if name.startswith("distractor") or (name in ("drawer", "accent", "wall", "cabinet") and rng.random() < 0.5):
            saturation = 0.15 if name == "wall" else 0.6
            rgba[:3] = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, saturation), rng.uniform(0.35, 0.95))
        else:
            _shift(rgba, rng, hue=0.04, saturation=(0.6, 1.3), value=(0.75, 1.2))
    if rng.random() < 0.25:  # a dark arm
        model.mat("arm").rgba[:3] = rng.uniform(0.2, 0.5)
        model.mat("finger").rgba[:3] = rng.uniform(0.1, 0.6)


def _shift(
    rgba: np.ndarray,
    rng: np.random.Generator,
    *,
    hue: float,
    saturation: tuple[float, float],
    value: tuple[float, float],
) -> None:
    h, s, v = colorsys.rgb_to_hsv(*rgba[:3])
    h = (h + rng.uniform(-hue, hue)) % 1
    rgba[:3] = colorsys.hsv_to_rgb(h, min(s * rng.uniform(*saturation), 1), min(v * rng.uniform(*value), 1))


def _distract(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """Bring some distractors onto the desk's rim, where no task happens, or onto the cabinet."""
    rims = [(-0.5, -0.45, -0.24, -0.33), (0.34, -0.4, 0.52, 0.45), (-0.45, 0.33, -0.1, 0.48), (-0.5, 0.15, -0.46, 0.4)]
    spots = [np.array([0.12, 0.33, 0.122])]
    for low_x, low_y, high_x, high_y in rims:
        spots.append(np.array([rng.uniform(low_x, high_x), rng.uniform(low_y, high_y), 0.0]))
    for index, spot in enumerate(rng.permutation(len(spots))[:3]):
        if rng.random() < 0.6:
            body = model.body(f"distractor{index}")
            body.pos[:] = spots[spot]
            yaw = rng.uniform(-np.pi, np.pi)
            body.quat[:] = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
