"""Episodes of experts, near misses, failures, random actions and trained policies, written as datasets."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from omegaconf import DictConfig, OmegaConf

from embodied.counterfactual import CounterfactualStarts, kinds_of, put
from embodied.counterfactual import Path as Shown
from embodied.datasets import Dataset, Writer
from embodied.envs.bridge import Bridged
from embodied.envs.desk import Desk
from embodied.envs.drive import Drive
from embodied.envs.drivers import CarDriver
from embodied.envs.experts import Expert, expert, has_expert
from embodied.envs.spaces import told_success
from embodied.envs.world import World
from embodied.errors import UserError, nearest
from embodied.opening import COLLECTED, COUNTERFACTUAL, POLICIES
from embodied.settings import check_least
from embodied.worlds import env_maker
from rewards.progress import tqdm

KINDS = ("expert", "noisy", "near_miss", "failure", "random")
TRIES = 25  # starts drawn until an episode is what its kind says
BRAKE = np.array([0.0, -1.0], np.float32)  # of the car
Act = Callable[[Any], Any]  # observation -> action
Player = Callable[[gymnasium.Env], Act]  # what acts in a world, made anew for each episode


def collect(config: DictConfig, learner: Player | None = None) -> Dataset:
    """The dataset that a config describes, finished where it was left.

    Args:
        config: of `embodied collect`.
        learner: what acts, for `policy=run:…`.

    Raises:
        UserError: a world without an expert for a policy that needs one, a wrong share, camera, size or folder.
    """
    _check(config)
    env = env_maker(config)()
    try:
        world = env.unwrapped
        scripted = config.policy in ("expert", "mixed", COUNTERFACTUAL)
        known = isinstance(world, Desk) if config.policy == COUNTERFACTUAL else has_expert(world)
        if scripted and not known:
            what = "one of the desk's worlds" if config.policy == COUNTERFACTUAL else "a scripted expert"
            raise UserError(f"policy={config.policy} needs {what}, which {config.env.id} lacks. Use random.")
        cameras = _cameras(env, config.cameras)
        kinds = kinds_of(world.task) if isinstance(world, Desk) and config.policy == COUNTERFACTUAL else ()
        starts = CounterfactualStarts(env, config.seed)
        first = _play(env, 0, lambda obs: env.action_space.sample(), stop=1).columns(env)
        features = {name: _feature(name, values, env) for name, values in first.items()}
        size = config.image_size
        root = Path(config.out or COLLECTED / _name(config))
        description: Any = OmegaConf.to_container(config.env, resolve=True)
        if description.get("max_episode_steps") is None:
            description.pop("max_episode_steps", None)  # as datasets of before this setting
        with (
            Writer(
                root,
                fps=_fps(env),
                features=features,
                cameras=dict.fromkeys(cameras, (size, size)),
                env=description,
            ) as writer,
            tqdm(total=config.episodes, initial=len(writer), desc="collecting", unit="episode") as bar,
        ):
            for i in range(len(writer), config.episodes):
                if kinds:
                    kind = kinds[i % len(kinds)]
                    seed, shown = starts.path(i // len(kinds), kind)
                    take = _show(env, shown, seed, (cameras, int(size)))
                else:
                    kind = _kind(i, config)
                    take = _episode(env, kind, config, i, learner, cameras)
                writer.add(
                    take.columns(env),
                    {short: np.stack(images) for short, images in take.frames.items()},
                    instruction=_instruction(env),
                    kind=kind,
                    last=take.last,
                    steps=take.steps(),
                    seed=take.seed,
                )
                bar.update()
    finally:
        env.close()
    return Dataset(root)


# One episode --------------------------------------------------------------------------------------------


@dataclass
class Take:
    """One episode as it was played; every list has one entry an action.

    Attributes:
        seed: of the reset.
        success: after each action; None where the world does not tell.
        phases: the expert's phase when it was asked for each action; [] without an expert.
        last: frames, own readings and state after the last action, as the dataset's features.
    """

    seed: int
    frames: dict[str, list[np.ndarray]] = field(default_factory=dict)
    own: list[np.ndarray] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    success: list[bool | None] = field(default_factory=list)
    terminated: list[bool] = field(default_factory=list)
    phases: list[int] = field(default_factory=list)
    last: dict[str, np.ndarray] = field(default_factory=dict)

    def columns(self, env: gymnasium.Env) -> dict[str, np.ndarray]:
        """As the dataset's features."""
        ended = np.zeros(len(self.actions), bool)
        ended[-1] = True
        whole = np.dtype(env.action_space.dtype).kind in "iu"  # choices and switches
        found = {
            "observation.state": np.array(self.own, np.float32),
            "observation.environment_state": np.array(self.states, np.float32),
            "action": np.array(self.actions, np.int64 if whole else np.float32),
            "next.reward": np.array(self.rewards, np.float32),
            "next.success": self._success(),
            "next.done": ended,
            "next.truncated": ended & ~np.array(self.terminated),
        }
        return {name: values for name, values in found.items() if values.size}

    def _success(self) -> np.ndarray:
        """(T,) bool; (0,) of a world that does not tell: unknown is not no, so such datasets have no column of it.

        Raises:
            UserError: it tells at some steps only.
        """
        told = [each for each in self.success if each is not None]
        if told and len(told) < len(self.success):
            raise UserError(
                f"collect: is_success must be told at every step, or at none; this world told {len(told)} of "
                f"{len(self.success)}. Make its step() tell it always."
            )
        return np.array(told, bool)

    def steps(self) -> list[int]:
        """Rows at which the steps of the last, uninterrupted pass through the task end, the last row included."""
        if not self.phases or self.success[-1] is not True:
            return []
        phases = np.array(self.phases)
        begun = int(np.flatnonzero(np.diff(phases) < 0)[-1]) + 1 if (np.diff(phases) < 0).any() else 0
        ends = [int(np.argmax(phases[begun:] >= k)) + begun for k in range(1, int(phases[-1]))]
        return [*sorted({end for end in ends if 0 < end < len(phases) - 1}), len(phases) - 1]


def _play(
    env: gymnasium.Env, seed: int, act: Act, *, look: tuple[Mapping[str, str], int] | None = None, stop: int = 0
) -> Take:
    """An episode from its reset to its end (or `stop` steps), with frames of `look`'s cameras at its size."""
    obs, _ = env.reset(seed=seed)
    take, over = Take(seed), False
    for short in look[0] if look else ():
        take.frames[short] = []
    while not over:
        for short, images in take.frames.items():
            assert look is not None
            images.append(env.get_wrapper_attr("frame")(camera=look[0][short], image_size=look[1]))
        own, state = _readings(env, obs)
        action = act(obs)
        obs, reward, terminated, truncated, info = env.step(action)
        take.own.append(own)
        take.states.append(state)
        take.actions.append(np.asarray(action) if np.ndim(action) == 0 else np.ravel(action))
        take.rewards.append(float(reward))
        take.success.append(told_success(info))
        take.terminated.append(bool(terminated))
        over = terminated or truncated or len(take.actions) == stop
    _end(env, take, obs, look)
    return take


def _show(env: gymnasium.Env, path: Shown, seed: int, look: tuple[Mapping[str, str], int]) -> Take:
    """A path of states as it would have been recorded, had it been played."""
    world = env.unwrapped
    assert isinstance(world, Desk)
    env.reset(seed=seed)
    take, (cameras, size) = Take(seed), look
    for short in cameras:
        take.frames[short] = []
    put(world, path.rows[0])
    changed = True
    for action, before, after in zip(path.actions, path.rows[:-1], path.rows[1:], strict=True):
        for short, images in take.frames.items():
            images.append(world.frame(camera=cameras[short], image_size=size) if changed else images[-1])
        own, state = _readings(env, None)
        put(world, after)
        changed = not np.array_equal(before, after)
        take.own.append(own)
        take.states.append(state)
        take.actions.append(action)
        take.rewards.append(world.env_reward())
        take.success.append(world.success())
        take.terminated.append(False)
    _end(env, take, None, look)
    return take


def _end(env: gymnasium.Env, take: Take, obs: Any, look: tuple[Mapping[str, str], int] | None) -> None:
    """Keep what is there after the last action."""
    own, state = _readings(env, obs)
    told = {"observation.state": own, "observation.environment_state": state}
    take.last = {name: np.asarray(values, np.float32) for name, values in told.items() if values.size}
    for short in take.frames:
        assert look is not None
        take.last[short] = env.get_wrapper_attr("frame")(camera=look[0][short], image_size=look[1])


def _episode(
    env: gymnasium.Env, kind: str, config: DictConfig, i: int, learner: Player | None, cameras: Mapping[str, str]
) -> Take:
    """Episode i: rehearsed without frames until it is what its kind says, then played for the camera.

    Its starts are drawn from the seed, the policy and i alone, so they do not depend on what was collected before.
    """
    look = (cameras, int(config.image_size))
    for attempt in range(TRIES):
        entropy = (config.seed, zlib.crc32(config.policy.encode()), i, attempt)
        rng = np.random.default_rng(entropy)
        seed = int(rng.integers(2**31))
        if learner is not None:
            return _play(env, seed, learner(env), look=look)
        if kind == "random":
            env.action_space.seed(seed)
            return _play(env, seed, lambda obs: env.action_space.sample(), look=look)
        rehearsed = _rehearse(env, kind, seed, rng, config.noise)
        if rehearsed is not None:
            actions, phases = rehearsed
            take = _play(env, seed, _Replay(actions), look=look)
            take.phases = phases
            return take
    raise UserError(f"collect: {TRIES} starts of {config.env.id} gave no {kind} episode. Lower noise, or its share.")


class _Replay:
    """Actions that were rehearsed, one after another."""

    def __init__(self, actions: list[np.ndarray]) -> None:
        self._actions = iter(actions)

    def __call__(self, obs: Any) -> np.ndarray:
        return next(self._actions)


class _Expert:
    """The scripted expert as a policy, made at the first observation after a reset.

    Attributes:
        phases: the expert's when it was asked for each action; [] of one that has none.
    """

    def __init__(self, world: gymnasium.Env, noise: float, rng: np.random.Generator) -> None:
        self._make: Callable[[], Any] = lambda: expert(world, noise=noise, rng=rng)
        self._world, self._expert = world, None
        self.phases: list[int] = []

    def __call__(self, obs: Any) -> np.ndarray:
        if self._expert is None:
            self._expert = self._make()
        action = self._expert(self._world)
        if isinstance(self._expert, Expert | CarDriver):
            self.phases.append(self._expert.phase)
        return action


def _rehearse(
    env: gymnasium.Env, kind: str, seed: int, rng: np.random.Generator, noise: float
) -> tuple[list[np.ndarray], list[int]] | None:
    """Actions of one kind of episode, and the expert's phases; None where this start does not give one."""
    act = _Expert(env.unwrapped, noise if kind == "noisy" else 0.0, rng)
    take = _play(env, seed, act)
    solved = take.success[-1]
    if kind == "noisy":
        return take.actions, act.phases
    if not solved:
        return None
    if kind == "expert":
        return take.actions, act.phases
    first, length = take.success.index(True), len(take.actions)
    if kind == "failure":
        leave = int(rng.integers(1, max(int(0.7 * first), 2)))
        actions = [*take.actions[:leave], *_wander(env, length - leave, rng)]
        return None if any(_play(env, seed, _Replay(actions)).success) else (actions, [])
    if isinstance(env.unwrapped, Drive):  # it stops before the end
        for cut in range(first - 2, max(first - 30, 0), -1):
            actions = [*take.actions[:cut], *[BRAKE] * (length - cut)]
            if not any(_play(env, seed, _Replay(actions)).success):
                return actions, []
        return None
    undoes = rng.random() < 0.5
    for cut in range(first, max(first - 8, 0), -1):  # as late as it may be without ever being solved
        for share in (0.75, 0.5, 0.25, 0.0):  # of one more action
            partly = np.append(share * take.actions[cut][:-1], take.actions[cut][-1]).astype(np.float32)
            # Of the phase alone: what went before it (the way down to a cube) would lift when undone.
            undo = sum(each == act.phases[cut] for each in act.phases[: cut + 1]) if undoes and act.phases else 0
            actions = _stopped([*take.actions[:cut], partly], length, undo)
            if not any(_play(env, seed, _Replay(actions)).success):
                return actions, []
    return None


def _stopped(done: list[np.ndarray], length: int, undo: int) -> list[np.ndarray]:
    """What was done, then the last `undo` moves backwards, then rest, with the gripper as it was last."""
    grip = done[-1][-1]
    back = [np.append(-action[:-1], grip).astype(np.float32) for action in reversed(done[len(done) - undo :])]
    rest = np.append(np.zeros(len(done[-1]) - 1), grip).astype(np.float32)
    return [*done, *back, *[rest] * length][:length]


def _wander(env: gymnasium.Env, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random actions held for five steps each: they travel further than white noise."""
    shape = env.action_space.shape or ()
    held = [rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(-(-count // 5))]
    return [held[k // 5] for k in range(count)]


# What is written ----------------------------------------------------------------------------------------


def _readings(env: gymnasium.Env, obs: Any) -> tuple[np.ndarray, np.ndarray]:
    """The robot's own readings and the whole state, before an action; empty where the world tells none."""
    world, nothing = env.unwrapped, np.zeros(0, np.float32)
    if isinstance(world, World):
        state = world._state()
        own = list(env.get_wrapper_attr("signals")().values()) if env.has_wrapper_attr("signals") else world._proprio()
        return np.asarray(own, np.float32), state
    if isinstance(world, Bridged):
        own = np.asarray(world.own, np.float32)
        return (own if isinstance(obs, dict) or len(own) < len(world.flat) else nothing), world.flat.copy()
    return nothing, obs if obs.ndim == 1 else nothing


def own_readings(env: gymnasium.Env, obs: Any) -> tuple[list[str], np.ndarray]:
    """The robot's own readings before an action: their names, as datasets collected here have them, and (S,) values."""
    values, _ = _readings(env, obs)
    if hasattr(env.unwrapped, "signals"):
        return list(env.get_wrapper_attr("signals")()), values
    return [f"state_{k}" for k in range(len(values))], values


def _feature(name: str, values: np.ndarray, env: gymnasium.Env) -> dict[str, Any]:
    """The entry of info.json for a column."""
    width = values.shape[1] if values.ndim > 1 else 1
    names = None
    if name == "observation.state" and hasattr(env.unwrapped, "signals"):
        names = list(env.get_wrapper_attr("signals")())
    elif values.ndim > 1:
        names = [f"{'action' if name == 'action' else 'state'}_{k}" for k in range(width)]
    return {"dtype": str(values.dtype), "shape": [width], "names": names}


def _cameras(env: gymnasium.Env, wanted: Any) -> dict[str, str]:
    """Short name in the dataset -> the world's camera."""
    known, chosen = env.get_wrapper_attr("cameras"), env.get_wrapper_attr("camera")
    if wanted is None:
        wanted = [chosen] if isinstance(chosen, str) else ["free"]
        if isinstance(env.unwrapped, World):
            wanted += [name for name in known[:2] if name != chosen][:1]
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if not wanted or len(set(wanted)) != len(wanted):
        raise UserError(f"cameras must be a list of different names; got {wanted}.")
    for name in wanted:
        if name not in known:
            raise UserError(f"cameras: {name!r} is none of this world's. {nearest(str(name), known)}")
    return {name.replace("/", "_"): name for name in wanted}


def _fps(env: gymnasium.Env) -> float:
    world = env.unwrapped
    return round(1 / world.ctrl_dt if isinstance(world, World) else float(world.metadata.get("render_fps") or 20), 6)


def _instruction(env: gymnasium.Env) -> str:
    return str(getattr(env.unwrapped, "instruction", ""))


def _kind(i: int, config: DictConfig) -> str:
    """Of episode i; any number of first episodes has the declared shares, as nearly as whole numbers can."""
    if config.policy != "mixed":
        return "policy" if config.policy.startswith("run:") else config.policy
    drawn: list[str] = []
    for n in range(1, i + 2):
        drawn.append(max(KINDS, key=lambda kind, n=n: config.shares[kind] * n - drawn.count(kind)))
    return drawn[i]


def _name(config: DictConfig) -> str:
    env = str(config.env.id).removeprefix("embodied/").removesuffix("-v0").replace("/", "-").replace(":", "-")
    return f"{env}-{config.policy.replace('run:', '').replace('/', '-')}"


# From a config ------------------------------------------------------------------------------------------


def _check(config: DictConfig) -> None:
    if config.policy not in POLICIES and not config.policy.startswith("run:"):
        raise UserError(f"policy must be {', '.join(POLICIES)} or run:FOLDER; got {config.policy!r}. "
                        f"{nearest(config.policy, POLICIES)}")  # fmt: skip
    check_least(config, episodes=1, image_size=1)
    if config.image_size % 2:
        raise UserError(f"image_size must be even, for H.264; got {config.image_size}.")
    shares = {kind: float(config.shares[kind]) for kind in KINDS}
    if min(shares.values()) < 0 or not np.isclose(sum(shares.values()), 1):
        raise UserError(f"shares must be 0 or more and sum to 1; got {shares}.")
