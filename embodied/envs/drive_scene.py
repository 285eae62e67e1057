"""The town's MuJoCo scene: a painted ground, houses and trees, and as many cars as there may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mujoco
import numpy as np

from embodied.envs.looks import look_at
from embodied.envs.roads import BLOCK, GRID, LANE, PARKING
from embodied.envs.traffic import GIRTH, HALF

OTHERS, PARKED = 12, 10  # most cars that drive, and that stand at the kerb
GROUND = 66.0  # half the side of the painted ground, metres
HEIGHT, AHEAD = 42.0, 7.0  # of the bird's-eye camera over the road, and before the car's middle
FOVY = 43.0  # degrees: 33 m of road
AWAY = -20.0  # height of cars that are not there
PAINTS = {  # of other cars; the driven one alone is red
    "blue": (0.13, 0.3, 0.72), "white": (0.9, 0.91, 0.92), "black": (0.09, 0.1, 0.11), "green": (0.12, 0.42, 0.25),
    "silver": (0.66, 0.69, 0.73), "yellow": (0.9, 0.74, 0.14),
}  # fmt: skip
_BIRD = (np.sqrt(0.5), 0.0, 0.0, -np.sqrt(0.5))  # looks down, the car's way up in the picture
_EYE, _SEEN = np.array([2.3, 0.0, 1.3]), np.array([10.0, 0.0, 0.4])  # of the front camera, in the car's axes


def build(folder: Path) -> mujoco.MjModel:
    """The compiled scene; `folder` holds `ground.png`."""
    return mujoco.MjModel.from_xml_string(mjcf(), {"ground.png": (folder / "ground.png").read_bytes()})


def mjcf() -> str:
    """The scene in MuJoCo's XML."""
    paints = list(PAINTS.values())
    bodies = [_car("car", (0.82, 0.1, 0.1), cameras=True)]
    bodies += [_car(f"other_{k}", paints[k % len(paints)]) for k in range(OTHERS)]
    bodies += [_car(f"parked_{k}", paints[(k + 3) % len(paints)]) for k in range(PARKED)]
    return f"""
<mujoco model="drive">
  <compiler angle="radian" autolimits="true"/>
  <statistic extent="60" center="0 0 0"/>
  <visual>
    <headlight ambient="0.4 0.4 0.4" diffuse="0.2 0.2 0.2" specular="0 0 0"/>
    <map znear="0.005" zfar="5"/>
    <quality shadowsize="2048"/>
  </visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".8 .88 .95" rgb2=".45 .62 .85" width="64" height="64"/>
    <texture name="ground" type="2d" file="ground.png"/>
    <material name="ground" texture="ground" specular="0" shininess="0"/>
    <material name="meadow" rgba="0.408 0.541 0.329 1" specular="0"/>
    <material name="house_a" rgba="0.74 0.6 0.48 1" specular="0"/>
    <material name="house_b" rgba="0.62 0.62 0.64 1" specular="0"/>
    <material name="roof" rgba="0.45 0.3 0.26 1" specular="0"/>
    <material name="tree" rgba="0.16 0.36 0.17 1" specular="0"/>
    <material name="glass" rgba="0.16 0.2 0.25 1" specular="0.6" shininess="0.6"/>
    <material name="lamp" rgba="0.98 0.95 0.75 1" specular="0"/>
    <material name="tyre" rgba="0.08 0.08 0.09 1" specular="0"/>
    <material name="coat" rgba="0.98 0.5 0.08 1" specular="0"/>
    <material name="skin" rgba="0.35 0.22 0.16 1" specular="0"/>
  </asset>
  <default><geom contype="0" conaffinity="0" group="1"/></default>
  <worldbody>
    <light pos="-20 -30 60" dir="0.3 0.4 -0.85" directional="true" diffuse="0.5 0.5 0.48" specular="0.1 0.1 0.1"/>
    <light pos="30 20 50" dir="-0.5 -0.3 -0.8" directional="true" diffuse="0.15 0.15 0.18" castshadow="false"/>
    <geom name="ground" type="plane" size="{GROUND} {GROUND} 1" material="ground"/>
    <geom name="meadow" type="plane" pos="0 0 -0.1" size="200 200 1" material="meadow"/>
    {"".join(_houses())}
    {"".join(bodies)}
    <body name="walker" mocap="true" pos="0 0 {AWAY}">
      <geom name="coat" type="capsule" fromto="0 0 0.45 0 0 1.2" size="{GIRTH}" material="coat"/>
      <geom name="head" type="sphere" pos="0 0 1.75" size="0.2" material="skin"/>
      <geom name="umbrella" type="ellipsoid" pos="0 0 2.15" size="0.8 0.8 0.2" material="coat"/>
    </body>
    {"".join(_distractors())}
  </worldbody>
</mujoco>"""


def _car(name: str, rgb: tuple[float, float, float], *, cameras: bool = False) -> str:
    length, width = HALF
    paint = " ".join(map(str, (*rgb, 1)))
    seen = ""
    if cameras:
        front = " ".join(map(str, look_at(_EYE, _SEEN)))
        seen = f"""
      <camera name="bird" pos="{AHEAD} 0 {HEIGHT}" quat="{" ".join(map(str, _BIRD))}" fovy="{FOVY}"/>
      <camera name="front" pos="{" ".join(map(str, _EYE))}" quat="{front}" fovy="75"/>"""
    return f"""
    <body name="{name}" mocap="true" pos="0 0 {AWAY}">{seen}
      <geom name="{name}" type="box" pos="0 0 0.58" size="{length} {width} 0.3" rgba="{paint}"/>
      <geom name="{name}_cabin" type="box" pos="-0.35 0 1.1" size="1.15 {width - 0.12} 0.25" material="glass"/>
      <geom name="{name}_roof" type="box" pos="-0.5 0 1.37" size="0.8 {width - 0.2} 0.03" rgba="{paint}"/>
      <geom name="{name}_lamps" type="box" pos="{length - 0.12} 0 0.7" size="0.14 {width - 0.15} 0.2" material="lamp"/>
      <geom name="{name}_wheels" type="box" pos="0 0 0.2" size="{length - 0.5} {width - 0.03} 0.2" material="tyre"/>
    </body>"""


def _houses() -> Iterator[str]:
    """Two rows of houses and a few trees in each block, and houses around the town."""
    inner = BLOCK / 2 - LANE - PARKING - 3.0  # half the side of what is not pavement
    for i in range(-1, GRID):
        for j in range(-1, GRID):
            middle = np.array([i - 0.5, j - 0.5]) * BLOCK
            if np.abs(middle).max() > BLOCK:
                middle = np.sign(middle) * np.minimum(np.abs(middle), 65.0)
                if np.abs(middle).min() > BLOCK:
                    continue
                size = np.where(np.abs(middle) > BLOCK, 4.0, inner - 1)
                yield _house(f"{i}_{j}_0", middle, size, 5.0, "ab"[(i + j) % 2])
                continue
            for k, (x, y) in enumerate(((-1, -1), (1, 1))):
                corner = middle + np.array([x, y]) * inner * 0.48
                size = np.array([inner * 0.34, inner * 0.38])
                yield _house(f"{i}_{j}_{k}", corner, size, (4.0, 6.0)[k], "ab"[(i + j + k) % 2])
            for k, (x, y) in enumerate(((-0.55, 0.6), (0.5, -0.45))):
                spot = middle + np.array([x, y]) * inner
                at = f'pos="{spot[0]} {spot[1]} 2.2"'
                yield f'<geom name="tree_{i}_{j}_{k}" type="sphere" {at} size="2.1" material="tree"/>'


def _house(name: str, middle: np.ndarray, half: np.ndarray, height: float, kind: str) -> str:
    x, y = middle
    walls = f'<geom name="house_{name}" type="box" pos="{x} {y} {height / 2}" size="{half[0]} {half[1]} {height / 2}" '
    top = f'<geom name="roof_{name}" type="box" pos="{x} {y} {height}" size="{half[0] + 0.4} {half[1] + 0.4} 0.15" '
    return f'{walls}material="house_{kind}"/>{top}material="roof"/>'


def _distractors() -> Iterator[str]:
    for k, shape in enumerate(("box", "cylinder", "box")):
        yield (
            f'<body name="distractor_{k}" pos="0 0 {AWAY}">'
            f'<geom name="distractor_{k}" type="{shape}" size="1.2 1.2 0.8" rgba="0.5 0.4 0.3 1"/></body>'
        )
