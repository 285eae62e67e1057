"""The reward model that a config describes, with what only the upper floor knows filled in.

A reward's config leaves open what follows from the world: the encoder, demonstrations given as a number or a dataset's
name, the cameras' calibration, and a goal that is the task's own instruction. Every verb makes its scorer here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from embodied import hub
from embodied.building.build import build, locate
from embodied.building.goals import (
    ASKED,
    GOALLESS,
    NAMED,
    check_goal_given,
    fitted_model,
    is_open,
    parts_of,
    with_goal,
    without_own,
)
from embodied.building.worlds import env_maker, reward_cameras
from embodied.envs import SCRIPTED, is_world
from embodied.envs.worker import own_view
from embodied.errors import UserError
from embodied.literal import literal_config, resolved
from rewards.compose import Part
from rewards.core import Encoder, Episode, Scorer
from rewards.phrases import distinct
from rewards.storage import load_fitted

if TYPE_CHECKING:
    from embodied.envs.world import World

COMPOSED = "rewards.compose.composed_scorer"
REMOTE = "embodied.serving.remote.remote_scorer"
FITTED = "fitted"  # folder of a run
NO_TERMS = {"speed": None, "speed_max": 1.0, "limits": {}, "penalty": None}  # of a synthesis that nobody filled in
EPISODES = ("demos", "adapt")  # what factories call recorded episodes


@dataclass
class Shared:
    """What the rewards of one config for several goals have in common, so that nothing is fitted or said twice.

    Attributes:
        fits: part -> what its factory fitted (its `fits`).
        demos: what was wanted, the images beside, and whether no goal is given -> the episodes with their own texts.
        told: lines that were printed.
    """

    fits: dict[str, dict[Any, Any]] = field(default_factory=dict)
    demos: dict[tuple[int | str, str, bool], Sequence[Episode]] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def tell(self, line: str) -> None:
        """Print a line on standard error, once."""
        if line not in self.told:
            print(line, file=sys.stderr)
        self.told.add(line)


def make_scorer(
    config: DictConfig,
    *,
    world: World | None = None,
    env: Mapping[str, Any] | None = None,
    goal: str | None = None,
    views: Sequence[str] | None = None,
    encoder: Encoder | None = None,
    shared: Shared | None = None,
) -> Scorer | None:
    """The reward model; None where the task's own reward is learned from.

    What a factory can take and its config leaves null is filled in: `goal`, by the one given here, else the world's
    instruction (see `embodied.building.goals`); `calibration`, by that of the reward's cameras that stand still;
    `synthesis`, by the world's own terms, where none of it was given. Recorded episodes (`demos`, `adapt`) given as a
    number are so many expert episodes of the world, given as a name or folder a whole dataset; encoded here, once.

    Args:
        config: a verb's, with `reward` and `encoder`; without `env` there is no world to ask.
        world: the world, where there is one already; else it is made and closed here, if it is needed.
        env: in place of the config's: a dataset's description of its world, plain data.
        goal: the task text of the data at hand, for rewards whose goal is left open.
        views: the cameras that it will be shown, where the verb knows them; None: those of the world.
        encoder: where the config's is there already; None: made here.
        shared: with the same config's rewards for other goals, by the same encoder.

    Raises:
        UserError: something in the config is unknown or cannot be had here.
    """
    if config.reward.get("_target_") is None:
        return None
    if config.reward["_target_"] == REMOTE:
        return build(config.reward)  # the encoder is the server's
    reward: Any = OmegaConf.to_container(config.reward, resolve=True, throw_on_missing=True)
    encoder = build(config.encoder) if encoder is None else encoder
    assert encoder is not None
    if env is not None:
        described = {"env": dict(env)} if is_world(env.get("id")) else {}
        config = literal_config(described)
    return scorer_of(reward, encoder, config, world=world, goal=goal, views=views, shared=shared)


def encoder_checked(config: DictConfig) -> tuple[Encoder | None, list[Scorer]]:
    """The encoder of a verb's config, and what `check_weights` loaded; none of a reward that is a server's.

    Args:
        config: with `encoder` and `reward`, which sees.
    """
    if config.reward["_target_"] == REMOTE:
        return None, []
    encoder: Encoder = build(config.encoder)
    return encoder, check_weights(resolved(config.reward), encoder)


def check_weights(reward: Mapping[str, Any], encoder: Encoder) -> list[Scorer]:
    """See that the weights that rewards name are there, before a verb collects or encodes anything for them.

    Args:
        reward: a reward's plain config, of which no goal need be known yet.
        encoder: for every part of it.

    Returns:
        Those of published and of chat models on this machine, loaded: they are not loaded again while these are held.

    Raises:
        FileNotFoundError, ValueError: weights that are not here, or no such model; says what to put where.
    """
    made = []
    for part in parts_of(reward).values():
        target, vlm = part.get("_target_"), part.get("vlm")
        if (folder := fitted_model(part)) is not None and not hub.is_hub(folder):
            load_fitted(folder, kind=str(target).rpartition(".")[2].removesuffix("_scorer"), encoder=encoder)
        elif target in NAMED or (target in ASKED and not (isinstance(vlm, Mapping) and vlm.get("url"))):
            made.append(build({**part, "goal": part.get("goal") or "the task is done"}, encoder=encoder))
    return made


def scorer_of(
    reward: Mapping[str, Any],
    encoder: Encoder,
    config: DictConfig,
    *,
    world: World | None = None,
    goal: str | None = None,
    views: Sequence[str] | None = None,
    shared: Shared | None = None,
) -> Scorer:
    """`make_scorer` from a reward's plain config and an encoder that is there already.

    Args:
        reward: texts in it are taken as they stand.
        encoder: for every part of it.
        config: with `env`, where there is a world to ask.
        world, goal, views, shared: see `make_scorer`.
    """
    shared = shared or Shared()
    filler = _Filler(config, encoder, world, goal, shared)
    try:
        if reward["_target_"] != COMPOSED:
            scorer = filler.scorer(reward)
        else:
            quick = sorted(reward["parts"].items(), key=lambda each: any(each[1].get(key) for key in EPISODES))
            made = {name: filler.scorer(part, name) for name, part in quick}  # nothing is collected for what fails
            parts = {name: made[name] for name in reward["parts"]}
            rest = {key: value for key, value in reward.items() if key != "parts"}
            scorer = build(rest, encoder=encoder, parts=parts)
        if any(True for _ in _fitted_heads(scorer)):
            setting = "env.cameras" if views is None else "cameras"
            check_views(scorer, filler.views() if views is None else views, setting)
            _tell_unbounded(scorer, shared)
        return scorer
    finally:
        filler.close()


def check_views(scorer: Scorer, views: Sequence[str], setting: str) -> None:
    """Say which cameras a fitted head will miss, or refuse where it cannot judge without them.

    A head that was fitted on several cameras and is shown one scores low or not at all; nobody would know why.

    Args:
        scorer: whose heads may have been fitted (`cameras`); `needs_cameras` where all of them must be there.
        views: the cameras that it will be shown; none: not known.
        setting: where a person names them.

    Raises:
        UserError: a head that has none of its cameras, or lacks one it cannot do without; gives the setting.
    """
    for name, head in _fitted_heads(scorer):
        cameras = tuple(head.cameras)
        missing = [each for each in cameras if each not in views]
        if not views or not missing or len(cameras) == len(views) == 1:  # a lone camera may have any name
            continue
        told = f"{name} was fitted on {', '.join(cameras)}, and is shown {', '.join(views)}"
        add = f"Add {setting}=[{','.join(cameras)}], or fit it again on what there is: cameras=[{','.join(views)}]."
        if len(missing) == len(cameras) or getattr(head, "needs_cameras", False):
            raise UserError(f"{setting}: {told}; without {', '.join(missing)} it cannot judge. {add}")
        print(f"{told}: it judges without {', '.join(missing)}, and less well. {add}", file=sys.stderr)


def _tell_unbounded(scorer: Scorer, shared: Shared) -> None:
    """Say which heads pay for progress alone, as no text tells whether their goal is reached."""
    for name, head in _fitted_heads(scorer):
        for text in getattr(head, "untold", ()):
            shared.tell(
                f"{name}: {text!r} does not tell the demonstrations' ends from their starts, so it pays for poses as "
                "well as for outcomes. Give a sentence that is true of success, reward.outcome.goal=…"
            )


def _fitted_heads(scorer: Scorer) -> Iterator[tuple[str, Any]]:
    """Name and head of everything that was fitted on cameras, in parts too."""
    for name, head in scorer.heads.items():
        if isinstance(head, Part):
            yield from _fitted_heads(head.scorer)
        elif getattr(head, "cameras", None):
            yield name, head


def keep_fitted(scorer: Scorer, reward: DictConfig, folder: Path) -> None:
    """Write every head that was fitted for a run into its folder, whence `kept` takes it."""
    for name, config, part in _parts(scorer, reward):
        if "model" in config and config.model is None:
            for head in part.heads.values():
                if hasattr(head, "save"):
                    head.save(folder / FITTED / name, scorer.encoder)  # pyright: ignore[reportAttributeAccessIssue]


def kept(reward: DictConfig, folder: Path) -> None:
    """Let the config of a run's reward take the heads that were fitted for the run: it is not fitted again."""
    for name, config in (reward.get("parts") or {reward_name(reward): reward}).items():
        if (folder / FITTED / name).is_dir():
            config.model = str(folder / FITTED / name)
            if config.get("adapt") is not None:
                config.adapt = None  # the kept head is adapted already


def _parts(scorer: Scorer, reward: DictConfig) -> list[tuple[str, DictConfig, Scorer]]:
    """Name, config and scorer of each part of a composition, or of the one reward."""
    heads = scorer.heads
    if reward.get("parts"):
        return [(name, reward.parts[name], head.scorer) for name, head in heads.items() if isinstance(head, Part)]
    return [(reward_name(reward), reward, scorer)]


def episode_frames(reward: Mapping[str, Any]) -> str:
    """Which images of its recorded episodes a reward's factory reads: see `Features.frames`."""
    labels = reward.get("vlm")  # a chat model that labels them sees images
    finds_camera = "calibration" in inspect.signature(locate(reward.get("_target_"))).parameters
    return "all" if labels or (finds_camera and not reward.get("calibration")) else "none"


def reward_name(reward: Mapping[str, Any] | DictConfig) -> str:
    """What to call a reward, in folders and titles: "clip", "clip+process", "true"."""
    if reward.get("parts"):
        return "+".join(reward["parts"])
    return str(reward.get("_target_") or "true").rpartition(".")[2].removesuffix("_scorer")


class _Filler:
    """What a reward's factory wants of the world and its data, had only when one asks."""

    def __init__(
        self, config: DictConfig, encoder: Encoder, world: World | None, goal: str | None, shared: Shared
    ) -> None:
        self.encoder, self._shared = encoder, shared
        self._config, self._given, self._made, self._goal = config, world, None, goal

    def scorer(self, reward: Mapping[str, Any], name: str = "") -> Scorer:
        reward = with_goal(reward, self._goal)
        if hub.is_hub(reward.get("model")):
            setting = f"reward.{name}.model" if name else "reward.model"
            reward["model"] = str(hub.fetched(str(reward["model"]), hub.MODEL, setting))
        parameters = inspect.signature(locate(reward.get("_target_"))).parameters
        if is_open(reward) and self.world:
            reward = with_goal(reward, self.world.instruction)
        check_goal_given(reward, name)
        if "synthesis" in parameters and self.world and reward.get("synthesis") == NO_TERMS:
            reward["synthesis"] = dict(self.world.synthesis) or reward["synthesis"]
        call_time: dict[str, Any] = {}
        if isinstance(reward.get("goal_images"), int) and fitted_model(reward) is None and self.world:
            size = int(self.encoder.image_size[0])
            from embodied.building.goal_images import simulated

            call_time["goal_images"] = simulated(
                self.world, reward.pop("goal_images"), cameras=self._cameras(), image_size=size
            )
        if "calibration" in parameters and reward.get("calibration") is None and self.world:
            call_time["calibration"] = self._calibration(self.world)
        for each in EPISODES:
            wanted = reward.pop(each, None)
            if wanted is not None and (each != "demos" or fitted_model(reward) is None):  # a fitted model needs none
                goal = reward.get("goal", "")  # None: each episode's own
                call_time[each] = self._episodes(each, wanted, episode_frames(reward | call_time), goal)
        if reward["_target_"] in GOALLESS:
            self._tell_mixed(name or reward_name(reward), call_time.get("demos", ()))
        if told := without_own(reward, call_time.get("demos", ())):
            self._shared.tell(f"{name or reward_name(reward)}: {told}")
        if "fits" in parameters:
            call_time["fits"] = self._shared.fits.setdefault(name, {})
        return build(reward, encoder=self.encoder, **call_time)

    def _tell_mixed(self, name: str, demos: Sequence[Episode]) -> None:
        """Say that a reward that follows no goal takes demonstrations of several texts for one task."""
        texts = [repr(text) for text in distinct(each.instruction for each in demos)]
        if len(texts) > 1:
            told = ", ".join(texts[:3]) + (" …" if len(texts) > 3 else "")
            self._shared.tell(
                f"{name}: its demonstrations have {len(texts)} task texts, {told}; it takes them for one task, and "
                "holds progress to the first text alone. Leave other tasks out, or take reward=process, which tells "
                "them apart."
            )

    @cached_property
    def world(self) -> World | None:
        """The config's world, if it is one of ours."""
        if self._given is None and "env" not in self._config:
            return None
        from embodied.envs.world import World  # MuJoCo, which rewards on pictures do without

        if self._given is None:
            self._made = env_maker(self._config)()
        world = self._given or (self._made.unwrapped if self._made is not None else None)
        return world if isinstance(world, World) else None

    def _calibration(self, world: World) -> dict[str, Any]:
        size = int(self.encoder.image_size[0])
        return {name: world.calibration(name, size) for name in self._cameras() if not world.moves(name)}

    def _episodes(self, name: str, wanted: Any, frames_read: str, goal: str | None = None) -> Sequence[Episode]:
        """The recorded episodes a config asks for, encoded: the views to come, no others.

        Raises:
            UserError: neither a number nor a name, or more than there are.
        """
        if isinstance(wanted, bool) or not isinstance(wanted, int | str) or (isinstance(wanted, int) and wanted < 1):
            raise UserError(
                f"reward.{name} must be a number of expert episodes, at least 1, or a dataset; got {wanted!r}. "
                f"Try reward.{name}=5 or reward.{name}=path/to/lerobot."
            )
        key, demos = (wanted, frames_read, goal is None), self._shared.demos
        if key not in demos:
            from embodied.collecting.opening import check_same_task, open_dataset
            from embodied.datasets.encoding import encode  # pyarrow and PyAV, which few rewards need

            if isinstance(wanted, str):
                dataset = open_dataset(wanted, setting=f"reward.{name}")
            else:
                world = self._env_name(name, wanted)
                check_same_task(self._config, f"reward.{name}", wanted)
                dataset = open_dataset(f"{world}-expert", episodes=wanted, cameras=self._cameras())
                if len(dataset) < wanted:
                    raise UserError(f"reward.{name} must be at most {len(dataset)}, as many as {dataset.root} has.")
            indices = range(wanted) if isinstance(wanted, int) else None
            for i in range(len(dataset)) if goal is None and indices is None else ():
                dataset.instruction(i)  # refused where the frames of one have several
            demos[key] = encode(
                dataset, self.encoder, cameras=self._cameras() or None, indices=indices, frames_read=frames_read
            )
        # those without one text of their own are of this goal
        return [each if each.instruction else replace(each, instruction=goal or "") for each in demos[key]]

    def _env_name(self, name: str, wanted: int) -> str:
        env = str(self._config.env.id) if "env" in self._config else ""
        world = env.removeprefix("embodied/").removesuffix("-v0")
        if world not in SCRIPTED:
            raise UserError(
                f"reward.{name} must be a dataset where no world of ours has an expert; got {wanted}. "
                f"Give a LeRobot folder, reward.{name}=path/to/lerobot, or a fitted head where the reward has one, "
                "reward.model=FOLDER."
            )
        return world

    def _cameras(self) -> list[str]:
        """The views to come, where they are known."""
        named = reward_cameras(self._config) if "env" in self._config else []
        return named or ([self.world.camera] if self.world else [])

    def views(self) -> list[str]:
        """The same, of any environment."""
        if found := self._cameras():
            return found
        return [] if self._made is None else [own_view(self._made)]

    def close(self) -> None:
        if self._made is not None:
            self._made.close()
