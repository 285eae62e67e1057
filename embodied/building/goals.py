"""Which goal a reward follows, in one place for every verb.

A person's goal (reward.goal, or goal= for short) counts first; where it is left open, the task text of the episode or
the dataset at hand; else the instruction of the world. A goal stays a plain text all the way: it is never put where a
config is resolved.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from embodied.building.build import locate
from embodied.errors import UserError, nearest
from rewards.core import Episode
from rewards.phrases import as_worded, distinct
from rewards.storage import CONFIG

# Their demonstrations say what the task is; older configs of theirs still have an empty goal.
GOALLESS = (
    "rewards.xirl.xirl_scorer",
    "rewards.rapl.rapl_scorer",
    "rewards.demonstration.demonstration_scorer",
)


# Which are fitted to the demonstrations of their own goal, where a dataset has several tasks.
OF_GOAL = ("rewards.success.success_scorer", "rewards.keypoint.keypoint_scorer")


FITTED_TO = "fitted_to"  # in the JSON file of such a head: its goal, and the task texts of its demonstrations


# Whose `model` is a published model's name, not a folder of something fitted.
NAMED = ("rewards.pretrained.pretrained_scorer",)
# Which ask a chat model about frames, with their goal.
ASKED = (
    "rewards.vlm_progress.grm_vlm_scorer",
    "rewards.vlm_progress.topreward_scorer",
    "rewards.vlm_progress.gvl_scorer",
)


def fitted_model(part: Mapping[str, Any]) -> str | None:
    """The folder of the fitted model that a reward's config takes; None where it takes none."""
    model = part.get("model")
    return None if model is None or part.get("_target_") in NAMED else str(model)


def parts_of(reward: Mapping[str, Any]) -> dict[str, Any]:
    """The rewards of a composition by name, or the one there is, named "".

    Args:
        reward: a reward's config, plain or not.
    """
    return dict(reward.get("parts") or {"": reward})


def takes_goal(part: Mapping[str, Any]) -> bool:
    """Whether a reward follows a goal in words at all."""
    target = part.get("_target_")
    if target is None or target in GOALLESS:
        return False
    return "goal" in part or "goal" in inspect.signature(locate(target)).parameters


def is_open(part: Mapping[str, Any]) -> bool:
    """Whether a reward follows a goal that nobody gave."""
    return takes_goal(part) and part.get("goal") is None and part.get("goals") is None


def any_open(reward: Mapping[str, Any]) -> bool:
    """Whether a reward, or one of its parts, waits for a goal."""
    return any(is_open(part) for part in parts_of(reward).values())


def with_goal(reward: Mapping[str, Any], goal: str | None) -> dict[str, Any]:
    """A reward's plain config with this goal wherever one is open; the config given is not changed.

    Raises:
        UserError: a reward that follows none was given one.
    """
    if reward.get("_target_") in GOALLESS and "goal" in reward:
        if reward["goal"] is not None:
            name = str(reward["_target_"]).rpartition(".")[2].removesuffix("_scorer")
            raise UserError(f"goal must be left out: reward={name} follows none; got {reward['goal']!r}.")
        return {key: value for key, value in reward.items() if key != "goal"}
    if goal is None and not reward.get("parts"):
        return dict(reward)
    if reward.get("parts"):
        return {**reward, "parts": {name: with_goal(part, goal) for name, part in reward["parts"].items()}}
    return {**reward, "goal": goal} if is_open(reward) else dict(reward)


def told_goals(reward: Mapping[str, Any]) -> list[str]:
    """Every goal in a reward's plain config, its parts' too, each once."""
    found: dict[str, None] = {}

    def gather(value: Any) -> None:
        if isinstance(value, str):
            found[value] = None
        elif isinstance(value, Mapping):
            for each in value.values():
                gather(each)
        elif isinstance(value, list | tuple):
            for each in value:
                gather(each)

    for part in parts_of(reward).values():
        gather([part.get("goal"), part.get("goals")])
    return list(found)


def check_goal_given(part: Mapping[str, Any], name: str = "") -> None:
    """Refuse a reward that cannot do without a goal and has none.

    Args:
        part: its plain config, filled as far as it goes.
        name: of the part of a composition; "": it stands alone.

    Raises:
        UserError: says what to add.
    """
    key = f"reward.{name}.goal" if name else "reward.goal"
    parameters = inspect.signature(locate(part.get("_target_"))).parameters
    needed = "goal" in parameters and parameters["goal"].default is inspect.Parameter.empty
    needed = needed or any(each.kind is each.VAR_KEYWORD for each in parameters.values()) or "goals" in parameters
    if needed and is_open(part):
        raise UserError(f'{key} must be a text: nothing here says what the task is. Add {key}="the drawer is open".')


def without_own(part: Mapping[str, Any], demos: Sequence[Episode]) -> str | None:
    """What a person should know whose goal none of several tasks' demonstrations are of; None where all is well.

    Args:
        part: a reward's plain config, filled.
        demos: what it is fitted to.
    """
    goal, texts = part.get("goal"), distinct(each.instruction for each in demos)
    if part.get("_target_") not in OF_GOAL or not goal or len(texts) < 2 or as_worded(str(goal), texts) in texts:
        return None
    return (
        f"no demonstration is of {str(goal)!r}: all {len(demos)} of {len(texts)} tasks count as its own. Another "
        f"wording is another task: give goal=… as the data word it. {nearest(str(goal), texts)}"
    )


def of_other_tasks(reward: Mapping[str, Any], texts: Iterable[str]) -> str | None:
    """What a person should know whose episodes are judged by a head that was fitted to another task; None: no such.

    A head of one goal says of an episode of any other task that it failed.

    Args:
        reward: its plain config.
        texts: the instruction of every episode; read only where there is such a head.
    """
    for part in parts_of(reward).values():
        own = _fitted_to(part.get("model")) if part.get("_target_") in OF_GOAL else []
        if not own:
            continue
        texts = list(texts)
        others = [text for text in texts if text and as_worded(text, own) not in own]
        if others:
            first, more = distinct(others)[0], len(distinct(others)) - 1
            also = f" and {more} more" if more else ""
            return (
                f"{part['model']} was fitted to {own[0]!r}, and {len(others)} of {len(texts)} episodes are of "
                f"{first!r}{also}: it says of them whether that first task was done."
            )
    return None


def _fitted_to(model: Any) -> list[str]:
    """The tasks that a head's folder says; none where it says nothing: a damaged one is told where it is loaded."""
    if not isinstance(model, str) or not (Path(model) / CONFIG).is_file():
        return []
    with suppress(ValueError, LookupError, TypeError):
        fitted = json.loads((Path(model) / CONFIG).read_text("utf-8"))[FITTED_TO]
        tasks = [fitted["goal"]] if fitted["goal"] else fitted["tasks"]
        return [task for task in tasks if isinstance(task, str)]
    return []
