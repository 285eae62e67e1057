"""Any world as a scene that an encoder can be taught: which facts hold, states to draw, looks to vary.

Our own worlds (`embodied.envs.world.World`) have all of it. Of any other that `embodied.envs.bridge.make` knows, a
`Scene` is made, with what its author gives and defaults for the rest. What may be given, as attributes of the
environment itself or of an object beside it (`scenes.NAME.facts=module:Class`, called with the environment):

| name | what | else |
|---|---|---|
| `facts` | names of what can be true, a tuple | `("success",)` |
| `degrees()` | fact -> how far it holds now, in [0, 1]: 1 where it holds, below 0.9 where not | `is_success` |
| `sample_state(rng)` | puts the world into any plausible state, solved ones included | states of episodes alone |
| `randomize_look(rng)`, `restore_look()` | draws another look, and undoes that | light, camera pose, colours |
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np

from embodied.envs.bridge import Bridged, make
from embodied.envs.looks import nudge, relight, tint
from embodied.envs.suites import physics_of
from embodied.envs.world import World
from embodied.errors import UserError

_LOOK = (
    "cam_pos",
    "cam_quat",
    "light_pos",
    "light_dir",
    "light_diffuse",
    "geom_rgba",
    "mat_rgba",
)  # fmt: skip  what the look of a foreign model varies; where things stand is the episode's
_GREY = (0.5, 0.5, 0.5, 1.0)


class SuccessFact:
    """The one fact that a world tells by itself.

    Args:
        scene: whose last step told it.
    """

    facts: ClassVar[tuple[str, ...]] = ("success",)

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def degrees(self) -> dict[str, float]:
        told = self._scene.info.get("is_success")
        if told is None:
            raise UserError(
                f"pretrain: {self._scene.name} must tell is_success at every step, or facts of its own; it does "
                "neither. Say what can be true of it with scenes.NAME.facts=module:Class."
            )
        return {"success": float(told)}


class Scene:
    """A world that is not one of ours, as `embodied.pretraining.renders` reads a `World`. See the module.

    Args:
        env: from `embodied.envs.bridge.make`.
        facts: `module:Class` beside it; None: the environment's own.

    Attributes:
        name: the world's id.
        facts: what `degrees` tells.
        steps: of an episode.
        info: of the last reset or step.

    Raises:
        UserError: no such module or class, or it tells no facts.
    """

    def __init__(self, env: gymnasium.Env, facts: str | None = None) -> None:
        world = env.unwrapped
        assert isinstance(world, Bridged)
        self.world, self.name = world, world.world_id
        self.steps: int = env.get_wrapper_attr("_max_episode_steps")
        self.info: dict[str, Any] = {}
        own = world.inner.unwrapped
        teller: Any = own if facts is None else _called(facts, own)
        if facts is None and not hasattr(own, "degrees"):
            teller = SuccessFact(self)
        told: Any = getattr(teller, "facts", ())
        self.facts: tuple[str, ...] = tuple(told)
        named = bool(self.facts) and all(isinstance(fact, str) for fact in self.facts)
        if not named or not hasattr(teller, "degrees"):
            raise UserError(
                f"pretrain: {facts or self.name} must have facts, a tuple of names, and degrees(), how far each holds; "
                f"got {self.facts}."
            )
        self._teller, self.cameras = teller, world.cameras
        self.samples = hasattr(teller, "sample_state")
        self._base: dict[str, np.ndarray] | None = None

    @property
    def action_space(self) -> gymnasium.Space:
        return self.world.action_space

    def reset(self, *, seed: int) -> None:
        self.restore_look()
        _, self.info = self.world.reset(seed=seed)

    def step(self, action: np.ndarray) -> bool:
        """Act; whether the episode is over."""
        _, _, terminated, _, self.info = self.world.step(action)
        return terminated

    def degrees(self) -> dict[str, float]:
        """fact -> how far it holds, in [0, 1].

        Raises:
            UserError: one is missing or is no such number.
        """
        told = self._teller.degrees()
        for fact in self.facts:
            if fact not in told or not 0 <= float(told[fact]) <= 1:
                raise UserError(
                    f"pretrain: degrees() of {self.name} must tell {fact!r} in [0, 1]; got {told.get(fact, 'nothing')}."
                )
        return {fact: float(told[fact]) for fact in self.facts}

    def sample_state(self, rng: np.random.Generator) -> None:
        self._teller.sample_state(rng)
        if physics := physics_of(self.world.inner):
            mujoco.mj_forward(*physics)

    def frame(self, camera: str | None = None) -> np.ndarray:
        return self.world.frame(camera)

    def close(self) -> None:
        self.world.close()

    # Looks ----------------------------------------------------------------------------------------------

    def randomize_look(self, rng: np.random.Generator) -> None:
        """The author's own, or: light, the camera's place and every colour, a little; what a model tells, no more."""
        if hasattr(self._teller, "randomize_look"):
            self._teller.randomize_look(rng)
            return
        if (physics := physics_of(self.world.inner)) is None:
            return
        model, data = physics
        self.restore_look()
        self._base = {key: getattr(model, key).copy() for key in _LOOK}
        for camera in range(model.ncam):
            nudge(model, data, camera, rng)
        self._free(rng)
        relight(model, rng)
        for row in range(model.nmat):
            model.mat_rgba[row] = tint(model.mat_rgba[row], rng)
        for row in range(model.ngeom):  # a geom of MuJoCo's own grey has its material's colour, if it has a material
            if model.geom_matid[row] < 0 or not np.allclose(model.geom_rgba[row], _GREY):
                model.geom_rgba[row] = tint(model.geom_rgba[row], rng)
        mujoco.mj_camlight(model, data)

    def _free(self, rng: np.random.Generator) -> None:
        """Lead a free camera a little round what it sees."""
        camera = self.world.camera
        if isinstance(camera, mujoco.MjvCamera):
            self._base = (self._base or {}) | {
                "free": np.array([camera.azimuth, camera.elevation, camera.distance]),
            }
            camera.azimuth += rng.uniform(-10, 10)
            camera.elevation += rng.uniform(-5, 5)
            camera.distance *= 1 + rng.uniform(-0.1, 0.1)

    def restore_look(self) -> None:
        if hasattr(self._teller, "restore_look"):
            self._teller.restore_look()
            return
        physics = physics_of(self.world.inner)
        if physics is None or self._base is None:
            return
        camera = self.world.camera
        if "free" in self._base and isinstance(camera, mujoco.MjvCamera):
            camera.azimuth, camera.elevation, camera.distance = self._base["free"]
        for key in _LOOK:
            getattr(physics[0], key)[:] = self._base[key]
        mujoco.mj_camlight(*physics)
        self._base = None


def open_scene(
    env_id: str,
    image_size: int,
    *,
    facts: str | None = None,
    camera: str | Mapping[str, Any] | None = None,
) -> World | Scene:
    """A world to render, by any name that `env.id` takes, with its truth.

    Args:
        env_id: see `embodied.envs.bridge.make`.
        image_size: of its frames, pixels.
        facts: `module:Class` that tells its facts; None: its own.
        camera: whose frames; None: the usual one.

    Raises:
        UserError: no such world or camera, or it tells no facts.
    """
    env = make(env_id, image_size=image_size, camera=camera)
    world = env.unwrapped
    if not isinstance(world, World):
        return Scene(env, facts)
    if facts is not None:
        raise UserError(f"pretrain: facts must be left out for {env_id}, which tells its own; got {facts!r}.")
    return world


def scene_steps(env_id: str, scene: World | Scene) -> int:
    """How many steps an episode has.

    Args:
        env_id: of the world.
        scene: what is known of it.
    """
    if isinstance(scene, Scene):
        return scene.steps
    return (scene.spec.max_episode_steps if scene.spec else None) or 100


def _called(name: str, env: gymnasium.Env) -> Any:
    """What `module:Class` makes of an environment.

    Raises:
        UserError: there is no such thing, or it fails.
    """
    module, colon, called = name.partition(":")
    if not colon or not module or not called:
        raise UserError(f"pretrain: facts must be module:Class; got {name!r}.")
    try:
        return getattr(importlib.import_module(module), called)(env)
    except Exception as error:  # a person's own module may fail in any way
        where = "Add its folder to PYTHONPATH." if isinstance(error, ModuleNotFoundError) else "Mend it."
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"pretrain: facts {name!r} cannot be had: {what}. {where}") from error
